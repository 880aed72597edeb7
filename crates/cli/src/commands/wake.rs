//! `warren wake ID`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;

#[derive(Args)]
pub(crate) struct WakeArgs {
    id: SandboxId,
    /// Also set the seconds without use after which it hibernates; 0 = never
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
}

pub(crate) async fn run(context: &Context, args: WakeArgs) -> anyhow::Result<ExitCode> {
    let answer = context.client()?.wake_sandbox(&args.id, args.timeout).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    let status = answer.value.get("status").and_then(serde_json::Value::as_str).unwrap_or("is awake");
    context.output.note(&format!("{} {}", args.id, crate::output::printable(status)));
    Ok(ExitCode::SUCCESS)
}
