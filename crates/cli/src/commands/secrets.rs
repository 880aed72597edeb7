//! `warren secrets rotate-key`: the key that a server on this machine encrypts secrets with. It may be running.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use warren_control::secrets;

use crate::context::Context;
use crate::serve::DEFAULT_DATA_DIR;

#[derive(Subcommand)]
pub(crate) enum SecretsCommand {
    /// Make a new key and encrypt every secret with it; the server may run on
    RotateKey(RotateArgs),
}

#[derive(Args)]
pub(crate) struct RotateArgs {
    /// Where the server keeps its data
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// File with the keys, if the server was given another than the one in its data directory
    #[arg(long, value_name = "FILE")]
    secrets_key_file: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, command: SecretsCommand) -> anyhow::Result<ExitCode> {
    let SecretsCommand::RotateKey(args) = command;
    let count = secrets::rotate_key(&args.data_dir, args.secrets_key_file.as_deref()).await?;
    if context.output.json {
        context.output.json(&json!({ "secrets": count }))?;
    }
    context.output.note(&format!("{count} secrets are encrypted with a new key; keep a copy of its file"));
    Ok(ExitCode::SUCCESS)
}
