//! `warren hibernate ID`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;

#[derive(Args)]
pub(crate) struct HibernateArgs {
    id: SandboxId,
}

pub(crate) async fn run(context: &Context, args: HibernateArgs) -> anyhow::Result<ExitCode> {
    let answer = context.client()?.hibernate_sandbox(&args.id).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    context.output.note(&format!("{} {}", args.id, crate::output::printable(&answer.value.status)));
    Ok(ExitCode::SUCCESS)
}
