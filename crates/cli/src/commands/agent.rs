//! `warren agent …`: agents in sandboxes.

mod install;
mod outside;

use std::process::ExitCode;

use clap::Subcommand;

use crate::context::Context;

#[derive(Subcommand)]
pub(crate) enum AgentCommand {
    /// Build a snapshot that has agents in it, from where they are published
    Install(install::InstallArgs),
    /// Run an agent of this machine with its hands in a sandbox
    Outside(outside::OutsideArgs),
}

pub(crate) async fn run(context: &Context, command: AgentCommand) -> anyhow::Result<ExitCode> {
    match command {
        AgentCommand::Install(args) => install::run(context, args).await,
        AgentCommand::Outside(args) => outside::run(context, args).await,
    }
}
