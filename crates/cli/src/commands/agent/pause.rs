//! `warren agent pause ID` and `warren agent resume ID`.

use std::process::ExitCode;

use warren_types::SandboxId;

use crate::agent::run::record::Run;
use crate::context::Context;

pub(crate) async fn pause(context: &Context, id: &SandboxId) -> anyhow::Result<ExitCode> {
    let mut run = Run::find(id)?;
    let client = context.client()?;
    // First, or who follows it would wake it, or take its processes' end for its own.
    mark(&mut run, true)?;
    let answer = match client.hibernate_sandbox(id).await {
        Ok(answer) => answer,
        Err(error) => {
            mark(&mut run, false)?;
            return Err(error);
        }
    };
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    context.output.note(&match answer.value.keeps.as_str() {
        "memory" => format!("{id} sleeps; `warren agent resume {id}` lets the agent go on where it was"),
        _ => format!("{id} sleeps; its files are kept, and the agent has ended: a container keeps no processes. `warren agent patch {id}` shows what it did"),
    });
    Ok(ExitCode::SUCCESS)
}

fn mark(run: &mut Run, paused: bool) -> anyhow::Result<()> {
    run.record.paused = paused;
    run.save()
}

pub(crate) async fn resume(context: &Context, id: &SandboxId) -> anyhow::Result<ExitCode> {
    let mut run = Run::find(id)?;
    let answer = context.client()?.wake_sandbox(id, None).await?;
    mark(&mut run, false)?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    let processes = answer.value.get("processes").and_then(serde_json::Value::as_str);
    context.output.note(&match processes {
        Some("restarted") => {
            format!("{id} is awake, its agent had ended; `warren agent patch {id}` shows what it did")
        }
        _ => format!("{id} is awake; `warren agent attach {id}` goes on with its agent"),
    });
    Ok(ExitCode::SUCCESS)
}
