//! `warren get ID`.

use std::process::ExitCode;

use clap::Args;
use warren_api::sandboxes::Sandbox;
use warren_types::SandboxId;

use crate::context::Context;
use crate::output::{human_bytes, pairs, printable};

#[derive(Args)]
pub(crate) struct GetArgs {
    id: SandboxId,
}

pub(crate) async fn run(context: &Context, args: GetArgs) -> anyhow::Result<ExitCode> {
    let answer = context.client()?.get_sandbox(&args.id).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    } else {
        context.output.write(describe(&answer.value).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(sandbox: &Sandbox) -> String {
    let status = match &sandbox.status_reason {
        Some(reason) => format!("{} ({reason})", sandbox.status),
        None => sandbox.status.clone(),
    };
    let isolation = match sandbox.isolation.as_str() {
        "container" => "container: shares the host's kernel".to_owned(),
        "vm" => "vm: has a kernel of its own".to_owned(),
        other => other.to_owned(),
    };
    let timeout = match sandbox.timeout {
        0 => "never hibernates by itself".to_owned(),
        seconds => format!("hibernates after {seconds} s without use"),
    };
    let lines = [
        ("ID", Some(sandbox.sandbox_id.clone())),
        ("Status", Some(status)),
        ("Template", Some(sandbox.template_id.clone())),
        ("Alias", sandbox.alias.clone()),
        ("CPU", Some(format!("{} vCPU", sandbox.cpu_count))),
        ("Memory", Some(human_bytes(u64::from(sandbox.memory_mb) << 20))),
        ("Disk", Some(human_bytes(u64::from(sandbox.disk_mb) << 20)).filter(|_| sandbox.disk_mb > 0)),
        ("Isolation", Some(isolation).filter(|text| !text.is_empty())),
        ("Timeout", Some(timeout)),
        ("Region", Some(sandbox.region.clone())),
        ("Started", Some(sandbox.started_at.to_string())),
        ("Ended", sandbox.end_at.map(|time| time.to_string())),
        ("Forked", sandbox.from_checkpoint_id.as_ref().map(|id| format!("from checkpoint {id}"))),
        ("Processes", sandbox.processes_since.map(|time| format!("since {time}"))),
        ("Patches", sandbox.patch_error.clone()),
        ("Warning", sandbox.warning.clone()),
        ("Tags", Some(pairs(&sandbox.tags))),
        ("Metadata", Some(pairs(&sandbox.metadata))),
    ];
    let present = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    present.map(|(name, value)| format!("{:<10} {}\n", format!("{name}:"), printable(&value))).collect()
}
