//! `warren agent …`: agents in sandboxes.

mod install;

use std::process::ExitCode;

use clap::Subcommand;

use crate::context::Context;

#[derive(Subcommand)]
pub(crate) enum AgentCommand {
    /// Build a snapshot that has agents in it, from where they are published
    Install(install::InstallArgs),
}

pub(crate) async fn run(context: &Context, command: AgentCommand) -> anyhow::Result<ExitCode> {
    match command {
        AgentCommand::Install(args) => install::run(context, args).await,
    }
}
