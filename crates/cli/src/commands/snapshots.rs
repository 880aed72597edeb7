//! `warren snapshots ls|get|rm|publish|unpublish`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use warren_api::images::Snapshot;

use crate::context::Context;
use crate::failure;
use crate::output::{Table, human_age, human_bytes, pairs, printable};

#[derive(Subcommand)]
pub(crate) enum SnapshotsCommand {
    /// List snapshots: images that have a name
    Ls(LsArgs),
    /// Show a snapshot
    Get(OneArgs),
    /// Delete snapshots, or cancel those that are being built; sandboxes made from them stay
    Rm(RmArgs),
    /// Let every organisation make sandboxes from a snapshot
    Publish(OneArgs),
    /// Take that back
    Unpublish(OneArgs),
}

#[derive(Args)]
pub(crate) struct LsArgs {
    /// Every version, not only the newest
    #[arg(long)]
    versions: bool,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// NAME, which is its newest version, or NAME@VERSION
    name: String,
}

#[derive(Args)]
pub(crate) struct RmArgs {
    /// NAME, which is all of its versions, or NAME@VERSION
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn run(context: &Context, command: SnapshotsCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotsCommand::Ls(args) => list(context, args.versions).await?,
        SnapshotsCommand::Get(args) => get(context, &args.name).await?,
        SnapshotsCommand::Rm(args) => return remove(context, &args.names).await,
        SnapshotsCommand::Publish(args) => publish(context, &args.name, true).await?,
        SnapshotsCommand::Unpublish(args) => publish(context, &args.name, false).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context, all_versions: bool) -> anyhow::Result<()> {
    let answer = context.client()?.list_snapshots(all_versions).await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if output.quiet {
        let names: String =
            answer.value.iter().map(|one| format!("{}\n", printable(&name_of(one)))).collect();
        return output.write(names.as_bytes());
    }
    if answer.value.is_empty() {
        output.note("no snapshots; `warren build` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "STATUS", "ISOLATION", "SIZE", "PUBLIC", "AGE", "USED"]);
    for one in &answer.value {
        table.row([
            name_of(one),
            one.status.clone(),
            one.isolation.clone(),
            human_bytes(one.size_bytes),
            if one.public { "yes" } else { "-" }.to_owned(),
            human_age(one.created_at),
            format!("{} ago", human_age(one.last_used_at)),
        ]);
    }
    output.table(&table)?;
    for one in &answer.value {
        if let Some(error) = &one.error {
            output.note(&printable(&format!("{} failed: {error}", name_of(one))));
        }
    }
    Ok(())
}

fn name_of(one: &Snapshot) -> String {
    match (&one.name, one.version) {
        (Some(name), Some(version)) => format!("{name}@{version}"),
        (Some(name), None) => name.clone(),
        (None, _) => one.id.clone(),
    }
}

async fn get(context: &Context, name: &str) -> anyhow::Result<()> {
    let answer = context.client()?.get_snapshot(name).await?;
    let (output, one) = (context.output, &answer.value);
    if output.json {
        return output.json(&answer.json);
    }
    let mut table = Table::new(&["FIELD", "VALUE"]);
    let steps = one.manifest.get("steps").and_then(|steps| steps.as_array()).map_or(0, Vec::len);
    let base = one.manifest.get("base").unwrap_or(&one.manifest).as_str().unwrap_or("base");
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("name", name_of(one));
    row("status", one.status.clone());
    if let Some(error) = &one.error {
        row("error", error.clone());
    }
    row("id", one.id.clone());
    row("checkpoint", one.checkpoint_id.clone().unwrap_or_else(|| "-".to_owned()));
    row("isolation", one.isolation.clone());
    row("base", base.to_owned());
    row("steps", steps.to_string());
    row("env", pairs(&one.env));
    row("workdir", one.workdir.clone().unwrap_or_else(|| "-".to_owned()));
    row("size", human_bytes(one.size_bytes));
    row("public", if one.public { "yes" } else { "no" }.to_owned());
    row("content", one.content_hash.clone());
    row("made", format!("{} ago", human_age(one.created_at)));
    row("used", format!("{} ago", human_age(one.last_used_at)));
    output.table(&table)
}

async fn remove(context: &Context, names: &[String]) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    failure::each(context.output, ("delete", "deleted"), names, async |name| {
        client.delete_snapshot(name).await
    })
    .await
}

async fn publish(context: &Context, name: &str, public: bool) -> anyhow::Result<()> {
    let answer = context.client()?.publish_snapshot(name, public).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    let name = &answer.value.name;
    context.output.note(&printable(&match answer.value.public {
        true => format!("sandboxes can be made from {name} by every organisation"),
        false => format!("sandboxes can be made from {name} by its owner alone"),
    }));
    Ok(())
}
