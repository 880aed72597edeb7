//! `warren images ls|rm|usage`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::failure;
use crate::output::{Table, human_age, human_bytes, printable};

#[derive(Subcommand)]
pub(crate) enum ImagesCommand {
    /// List images that are built, with and without a name
    Ls,
    /// Delete images; sandboxes made from them stay
    Rm(RmArgs),
    /// Show what all images together take of the server's drive
    Usage,
}

#[derive(Args)]
pub(crate) struct RmArgs {
    /// As `images ls` prints them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

pub(crate) async fn run(context: &Context, command: ImagesCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImagesCommand::Ls => list(context).await?,
        ImagesCommand::Rm(args) => return remove(context, &args.ids).await,
        ImagesCommand::Usage => usage(context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let answer = context.client()?.list_images().await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if output.quiet {
        let ids: String = answer.value.iter().map(|one| format!("{}\n", printable(&one.id))).collect();
        return output.write(ids.as_bytes());
    }
    if answer.value.is_empty() {
        output.note("no images; `warren build` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "NAME", "STATUS", "ISOLATION", "SIZE", "AGE", "USED"]);
    for one in &answer.value {
        let name = match (&one.name, one.version) {
            (Some(name), Some(version)) => format!("{name}@{version}"),
            (Some(name), None) => name.clone(),
            (None, _) => "-".to_owned(),
        };
        table.row([
            one.id.clone(),
            name,
            one.status.clone(),
            one.isolation.clone(),
            human_bytes(one.size_bytes),
            human_age(one.created_at),
            format!("{} ago", human_age(one.last_used_at)),
        ]);
    }
    output.table(&table)
}

async fn remove(context: &Context, ids: &[String]) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    failure::each(context.output, ("delete", "deleted"), ids, async |id| client.delete_image(id).await).await
}

async fn usage(context: &Context) -> anyhow::Result<()> {
    let answer = context.client()?.image_usage().await?;
    let (output, usage) = (context.output, &answer.value);
    if output.json {
        return output.json(&answer.json);
    }
    let budget = match usage.budget_bytes {
        0 => "none".to_owned(),
        bytes => human_bytes(bytes),
    };
    let mut table = Table::new(&["USED", "BUDGET", "DRIVE", "FREE"]);
    table.row([
        human_bytes(usage.used_bytes),
        budget,
        human_bytes(usage.volume_bytes),
        human_bytes(usage.free_bytes),
    ]);
    output.table(&table)
}
