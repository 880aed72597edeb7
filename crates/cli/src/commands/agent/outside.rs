//! `warren agent outside KIND PROMPT --sandbox ID`: an agent on this machine, with its hands in a sandbox that is there.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use warren_types::SandboxId;

use crate::agent::kinds::{Kind, Task};
use crate::agent::outside::{Outside, ready};
use crate::context::Context;

#[derive(Args)]
pub(crate) struct OutsideArgs {
    /// claude-code, codex or opencode, installed on this machine
    kind: Kind,
    /// What to do; without one the agent opens on the terminal
    prompt: Option<String>,
    /// The sandbox it works in
    #[arg(long, value_name = "ID")]
    sandbox: SandboxId,
    /// Where the work is in it
    #[arg(long, value_name = "PATH", default_value = "/workspace")]
    folder: String,
    /// Model, as the agent calls it
    #[arg(long)]
    model: Option<String>,
    /// Seconds after which it is ended
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(crate) async fn run(context: &Context, args: OutsideArgs) -> anyhow::Result<ExitCode> {
    let outside = Outside {
        kind: args.kind,
        sandbox: &args.sandbox,
        folder: &args.folder,
        task: Task { prompt: args.prompt.as_deref(), model: args.model.as_deref(), arguments: &[] },
        timeout: args.timeout.map(Duration::from_secs),
    };
    let ended = ready(context, &outside).await?.work(context.output).await?;
    if context.output.json {
        context
            .output
            .line(&json!({ "type": "ended", "exitCode": ended.code, "totals": ended.totals }).to_string())?;
    }
    Ok(ExitCode::from(ended.code))
}
