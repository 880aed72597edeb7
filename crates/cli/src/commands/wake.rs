//! `warren wake ID`.

use std::process::ExitCode;

use clap::Args;
use warren_api::sandboxes::Wake;
use warren_types::SandboxId;

use crate::context::Context;

#[derive(Args)]
pub(crate) struct WakeArgs {
    id: SandboxId,
    /// Also set the seconds without use after which it hibernates; 0 = never
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// With the disk as it was before it last woke; for one that the server refuses as damaged
    #[arg(long)]
    previous_disk: bool,
}

pub(crate) async fn run(context: &Context, args: WakeArgs) -> anyhow::Result<ExitCode> {
    let body = Wake {
        timeout: args.timeout.map(i64::from),
        disk: args.previous_disk.then(|| "previous".to_owned()),
    };
    let answer = context.client()?.wake(&args.id, &body).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    let text = |field: &str| answer.value.get(field).and_then(serde_json::Value::as_str);
    let processes = match text("processes") {
        Some("restarted") => "; its processes had ended, its start commands are started again",
        Some("kept") => "; its processes go on where they were",
        _ => "",
    };
    let status = text("status").unwrap_or("is awake");
    context.output.note(&format!("{} {}{processes}", args.id, crate::output::printable(status)));
    Ok(ExitCode::SUCCESS)
}
