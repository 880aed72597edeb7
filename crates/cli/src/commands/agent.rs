//! `warren agent …`: agents that work on a folder in a sandbox.

mod attach;
mod begin;
mod fork;
mod install;
mod ls;
mod outside;
mod patch;
mod pause;
mod rm;
mod run;
mod tasks;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use warren_types::SandboxId;

use crate::agent::outside::keeper::{KeepArgs, LeashArgs, keep, leash};
use crate::context::Context;

#[derive(Subcommand)]
pub(crate) enum AgentCommand {
    /// Let an agent work on a folder in a sandbox; what it changed comes back as a patch
    Run(Box<run::RunArgs>),
    /// Build a snapshot that has agents in it, from where they are published
    Install(install::InstallArgs),
    /// Run an agent of this machine with its hands in a sandbox
    Outside(outside::OutsideArgs),
    /// List the agents of this machine
    Ls,
    /// Go on with an agent that was left running
    Attach(attach::AttachArgs),
    /// Show what an agent changed so far, or write it here
    Patch(patch::PatchArgs),
    /// Let an agent's sandbox sleep. In a virtual machine the agent goes on where it was, in a container it ends
    Pause(OneArgs),
    /// Wake an agent's sandbox
    Resume(OneArgs),
    /// Let several agents begin where one is
    Fork(fork::ForkArgs),
    /// End agents, their sandboxes and what is recorded of them
    Rm(rm::RmArgs),
    /// Be the parent of an agent on this machine
    #[command(hide = true)]
    Keep(KeepArgs),
    /// Become an agent that ends with its keeper
    #[command(hide = true)]
    Leash(LeashArgs),
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// As `agent ls` prints it
    id: SandboxId,
}

pub(crate) async fn run(context: &Context, command: AgentCommand) -> anyhow::Result<ExitCode> {
    match command {
        AgentCommand::Run(args) => run::run(context, *args).await,
        AgentCommand::Install(args) => install::run(context, args).await,
        AgentCommand::Outside(args) => outside::run(context, args).await,
        AgentCommand::Ls => ls::run(context).await,
        AgentCommand::Attach(args) => attach::run(context, args).await,
        AgentCommand::Patch(args) => patch::run(context, args).await,
        AgentCommand::Pause(args) => pause::pause(context, &args.id).await,
        AgentCommand::Resume(args) => pause::resume(context, &args.id).await,
        AgentCommand::Fork(args) => fork::run(context, args).await,
        AgentCommand::Rm(args) => rm::run(context, args).await,
        AgentCommand::Keep(args) => keep(args).await,
        AgentCommand::Leash(args) => leash(&args),
    }
}

/// The address that records are kept by.
fn server_of(context: &Context) -> anyhow::Result<String> {
    Ok(context.config()?.base_url()?.to_string())
}
