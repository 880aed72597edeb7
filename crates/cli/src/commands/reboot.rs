//! `warren reboot ID`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;

#[derive(Args)]
pub(crate) struct RebootArgs {
    id: SandboxId,
    /// End everything at once, without asking first
    #[arg(long)]
    hard: bool,
}

pub(crate) async fn run(context: &Context, args: RebootArgs) -> anyhow::Result<ExitCode> {
    context.client()?.reboot_sandbox(&args.id, args.hard).await?;
    context.output.note(&format!("{} runs again", args.id));
    Ok(ExitCode::SUCCESS)
}
