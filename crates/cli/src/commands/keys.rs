//! `warren keys create|list|revoke`: API keys, in the data directory of a server on this machine. It may be running.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use warren_control::keys::{self, KeyInfo, Keys, KeysError};

use crate::context::Context;
use crate::failure::{hinted, usage};
use crate::output::{Table, human_age, printable};
use crate::serve::DEFAULT_DATA_DIR;

#[derive(Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it, once
    Create(CreateArgs),
    /// List the keys, without what makes them keys
    List(DataDir),
    /// Make a key worthless, from the next request on
    Revoke(RevokeArgs),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// The organisation the key is for; made with its first key
    #[arg(long, value_name = "NAME")]
    org: String,
    /// What the key is for, in your words
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(Args)]
pub(crate) struct RevokeArgs {
    /// The key's id, or its first characters, as `keys list` shows them
    #[arg(value_name = "ID|PREFIX")]
    key: String,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(Args)]
pub(crate) struct DataDir {
    /// Where the server keeps its data
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
}

pub(crate) async fn run(context: &Context, command: KeysCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeysCommand::Create(args) => create(context, args).await?,
        KeysCommand::List(data_dir) => list(context, &data_dir).await?,
        KeysCommand::Revoke(args) => revoke(context, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    make_data_dir(&args.data_dir)?;
    let keys = open(&args.data_dir).await?;
    let (key, info) = keys.create(&args.org, args.label.as_deref()).await.map_err(told)?;
    let mut object = as_json(&info);
    object["key"] = Value::String(key.expose().clone());
    context.output.made("API key", &info.id, key.expose(), &object)?;
    context.output.note("the key is shown this once; only its hash is kept");
    Ok(())
}

async fn list(context: &Context, data_dir: &DataDir) -> anyhow::Result<()> {
    let infos = existing(data_dir).await?.list().await.map_err(told)?;
    if context.output.json {
        return context.output.json(&infos.iter().map(as_json).collect());
    }
    if context.output.quiet {
        let ids: String = infos.iter().map(|info| format!("{}\n", printable(&info.id))).collect();
        return context.output.write(ids.as_bytes());
    }
    if infos.is_empty() {
        context.output.note("no keys; `warren keys create --org NAME` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "PREFIX", "ORG", "LABEL", "STATUS", "AGE", "LAST USED"]);
    for info in infos {
        let status = if info.revoked_at.is_some() { "revoked" } else { "active" };
        let used =
            info.last_used_at.map_or_else(|| "never".to_owned(), |time| format!("{} ago", human_age(time)));
        let label = info.label.unwrap_or_else(|| "-".to_owned());
        table.row([
            info.id,
            info.prefix,
            info.org_name,
            label,
            status.to_owned(),
            human_age(info.created_at),
            used,
        ]);
    }
    context.output.table(&table)
}

async fn revoke(context: &Context, args: RevokeArgs) -> anyhow::Result<()> {
    let info = existing(&args.data_dir).await?.revoke(&args.key).await.map_err(told)?;
    if context.output.json {
        context.output.json(&as_json(&info))?;
    }
    context.output.note(&format!(
        "revoked {} ({} of {})",
        info.id,
        printable(&info.prefix),
        printable(&info.org_name)
    ));
    Ok(())
}

/// A data directory for its owner alone, as the server would make it.
fn make_data_dir(DataDir { data_dir }: &DataDir) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| {
        hinted(
            format!("could not make the data directory {}: {error}", data_dir.display()),
            "run it as the user the server runs as, or choose another with --data-dir",
        )
    })
}

async fn open(DataDir { data_dir }: &DataDir) -> anyhow::Result<Keys> {
    keys::open(data_dir).await.map_err(told)
}

/// Looking must not make a store where there is none: a mistyped directory would then read as "no keys".
async fn existing(data_dir: &DataDir) -> anyhow::Result<Keys> {
    if !data_dir.data_dir.is_dir() {
        return Err(hinted(
            format!("there is no data directory {}", data_dir.data_dir.display()),
            "name the server's with --data-dir; `warren keys create` makes a new one",
        ));
    }
    open(data_dir).await
}

fn told(error: KeysError) -> anyhow::Error {
    match error {
        KeysError::BadName { .. } => usage(error.to_string()),
        KeysError::NotFound(_) | KeysError::Ambiguous { .. } => error.into(),
        KeysError::Store(_) | KeysError::Record(_) => hinted(
            crate::failure::chain_of(&error),
            "run it as the user the server runs as, with the server's --data-dir",
        ),
    }
}

fn as_json(info: &KeyInfo) -> Value {
    json!({
        "id": info.id, "prefix": info.prefix, "orgId": info.org_id, "org": info.org_name, "label": info.label,
        "createdAt": info.created_at, "lastUsedAt": info.last_used_at, "revokedAt": info.revoked_at,
    })
}
