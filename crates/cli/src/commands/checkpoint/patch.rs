//! `warren checkpoint patch add|ls|rm`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use warren_api::checkpoints::PatchCreate;
use warren_types::CheckpointId;

use crate::context::Context;
use crate::output::{Table, human_age, printable};

/// Far above what a server takes.
const MAX_SCRIPT_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum PatchCommand {
    /// Add a script; it runs once in each sandbox made from the checkpoint, whenever that begins to run
    Add(AddArgs),
    /// List the patches of a checkpoint, in order
    Ls(OfCheckpoint),
    /// Remove a patch; where it has run, what it did stays
    Rm(RmArgs),
}

#[derive(Args)]
pub(crate) struct AddArgs {
    checkpoint: CheckpointId,
    /// File with the bash script; `-` reads it from stdin
    #[arg(long, value_name = "FILE")]
    script: PathBuf,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

#[derive(Args)]
pub(crate) struct OfCheckpoint {
    checkpoint: CheckpointId,
}

#[derive(Args)]
pub(crate) struct RmArgs {
    checkpoint: CheckpointId,
    /// The patch's id, as `ls` shows it
    patch: String,
}

pub(crate) async fn run(context: &Context, command: PatchCommand) -> anyhow::Result<()> {
    match command {
        PatchCommand::Add(args) => add(context, args).await,
        PatchCommand::Ls(args) => list(context, &args.checkpoint).await,
        PatchCommand::Rm(args) => {
            context.client()?.delete_patch(&args.checkpoint, &args.patch).await?;
            context.output.note(&printable(&format!("removed {}", args.patch)));
            Ok(())
        }
    }
}

async fn add(context: &Context, args: AddArgs) -> anyhow::Result<()> {
    let script = read_script(&args.script)?;
    let body = PatchCreate { script: Some(script), description: args.description };
    let answer = context.client()?.create_patch(&args.checkpoint, &body).await?;
    let patch = &answer.value.patch;
    context.output.made("patch", &patch.id, &patch.id, &answer.json)?;
    context.output.note(&format!("patch {} of {}", patch.sequence, args.checkpoint));
    Ok(())
}

fn read_script(path: &Path) -> anyhow::Result<String> {
    let mut script = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_SCRIPT_BYTES).read_to_string(&mut script)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_SCRIPT_BYTES).read_to_string(&mut script))
    };
    read.with_context(|| format!("could not read {}", path.display()))?;
    Ok(script)
}

async fn list(context: &Context, id: &CheckpointId) -> anyhow::Result<()> {
    let answer = context.client()?.list_patches(id).await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if answer.value.is_empty() {
        output.note("no patches");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "SEQ", "DESCRIPTION", "AGE"]);
    for patch in &answer.value {
        table.row([
            patch.id.clone(),
            patch.sequence.to_string(),
            if patch.description.is_empty() { "-".to_owned() } else { patch.description.clone() },
            human_age(patch.created_at),
        ]);
    }
    output.table(&table)
}
