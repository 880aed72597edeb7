//! `warren timeout ID SECONDS`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;

#[derive(Args)]
pub(crate) struct TimeoutArgs {
    id: SandboxId,
    /// Seconds without use; 0 = never
    seconds: u32,
}

pub(crate) async fn run(context: &Context, args: TimeoutArgs) -> anyhow::Result<ExitCode> {
    context.client()?.set_timeout(&args.id, args.seconds).await?;
    context.output.note(&match args.seconds {
        0 => format!("{} never hibernates by itself", args.id),
        seconds => format!("{} hibernates after {seconds} s without use", args.id),
    });
    Ok(ExitCode::SUCCESS)
}
