//! `warren files …`: one thing done to one path.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Body;
use tokio_util::io::ReaderStream;
use warren_api::files::{FileChmod, FileMove, FileUrlCreate};
use warren_types::SandboxId;

use crate::client::Client;
use crate::commands::cp::SANDBOX_HOME;
use crate::context::Context;
use crate::failure::hinted;
use crate::output::{Table, human_bytes, printable};

const PIECE_BYTES: usize = 256 * 1024;

#[derive(Subcommand)]
pub(crate) enum FilesCommand {
    /// List a folder
    Ls {
        id: SandboxId,
        #[arg(default_value = SANDBOX_HOME)]
        path: String,
    },
    /// Print files
    Cat {
        id: SandboxId,
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Write stdin to a file, as a whole
    Put { id: SandboxId, path: String },
    /// Show what a path is; a link is shown itself
    Stat { id: SandboxId, path: String },
    /// Make a folder and those above it
    Mkdir { id: SandboxId, path: String },
    /// Remove files
    Rm(RmArgs),
    /// Move or rename; replaces what is at TO
    Mv { id: SandboxId, from: String, to: String },
    /// Print a URL that reads a file without a key, or writes it
    Url(UrlArgs),
    /// Set permissions
    Chmod {
        id: SandboxId,
        /// In octal, such as 755
        #[arg(value_parser = parse_mode)]
        mode: String,
        path: String,
    },
}

#[derive(Args)]
pub(crate) struct RmArgs {
    id: SandboxId,
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
    /// Also folders, with all that is in them
    #[arg(long, short)]
    recursive: bool,
}

#[derive(Args)]
pub(crate) struct UrlArgs {
    id: SandboxId,
    path: String,
    /// For writing the file with PUT, instead of reading it
    #[arg(long)]
    upload: bool,
    /// Seconds until it expires, 86400 at most [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    expires: Option<u32>,
}

fn parse_mode(text: &str) -> Result<String, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(format!("{mode:04o}")),
        _ => Err("expected permissions in octal, such as 755".to_owned()),
    }
}

pub(crate) async fn run(context: &Context, command: FilesCommand) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    match command {
        FilesCommand::Ls { id, path } => list(context, &client, &id, &path).await?,
        FilesCommand::Cat { id, paths } => cat(context, &client, &id, &paths).await?,
        FilesCommand::Put { id, path } => {
            let body = Body::wrap_stream(ReaderStream::with_capacity(tokio::io::stdin(), PIECE_BYTES));
            client.write_file(&id, &path, None, body, None).await?;
        }
        FilesCommand::Stat { id, path } => stat(context, &client, &id, &path).await?,
        FilesCommand::Mkdir { id, path } => client.make_folder(&id, &path).await?,
        FilesCommand::Rm(args) => remove(&client, args).await?,
        FilesCommand::Mv { id, from, to } => client.move_file(&id, &FileMove { from, to }).await?,
        FilesCommand::Url(args) => url(context, &client, args).await?,
        FilesCommand::Chmod { id, mode, path } => client.chmod_file(&id, &FileChmod { path, mode }).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context, client: &Client, id: &SandboxId, path: &str) -> anyhow::Result<()> {
    let answer = client.list_files(id, path).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    if context.output.quiet {
        let names: String =
            answer.value.iter().map(|entry| format!("{}\n", printable(&entry.name))).collect();
        return context.output.write(names.as_bytes());
    }
    let mut table = Table::new(&["TYPE", "SIZE", "NAME"]);
    for entry in answer.value {
        let (kind, size) =
            if entry.is_dir { ("folder", "-".to_owned()) } else { ("file", human_bytes(entry.size)) };
        table.row([kind.to_owned(), size, entry.name]);
    }
    context.output.table(&table)
}

async fn url(context: &Context, client: &Client, args: UrlArgs) -> anyhow::Result<()> {
    let body = FileUrlCreate { path: Some(args.path), expires_in: args.expires.map(i64::from) };
    let answer = client.sign_file_url(&args.id, args.upload, &body).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    context.output.line(&printable(&answer.value.url))?;
    context.output.note(&printable(&format!("expires at {}", answer.value.expires_at)));
    Ok(())
}

async fn cat(context: &Context, client: &Client, id: &SandboxId, paths: &[String]) -> anyhow::Result<()> {
    for path in paths {
        let mut response = client.read_file(id, path).await?;
        while let Some(piece) = client.next_chunk(&mut response).await? {
            context.output.write(&piece)?;
        }
    }
    Ok(())
}

async fn stat(context: &Context, client: &Client, id: &SandboxId, path: &str) -> anyhow::Result<()> {
    let answer = client.stat_file(id, path).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    let stat = answer.value;
    let lines = [
        ("Path", Some(stat.path)),
        ("Type", Some(stat.kind)),
        ("Leads to", stat.link_target),
        ("Size", Some(format!("{} bytes", stat.size))),
        ("Mode", Some(stat.mode)),
        ("Owner", Some(format!("{}:{}", stat.uid, stat.gid))),
        ("Modified", Some(stat.modified_at)),
    ];
    let present = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let text: String =
        present.map(|(name, value)| format!("{:<9} {}\n", format!("{name}:"), printable(&value))).collect();
    context.output.write(text.as_bytes())
}

/// The API removes folders with all that is in them and takes a missing path for success. At a keyboard both are more often
/// a slip than meant, so it is asked first what is there.
async fn remove(client: &Client, args: RmArgs) -> anyhow::Result<()> {
    for path in &args.paths {
        let stat = client.stat_file(&args.id, path).await?.value;
        if stat.kind == "directory" && !args.recursive {
            return Err(hinted(format!("{path} is a folder"), "-r removes it with all that is in it"));
        }
        client.remove_file(&args.id, path).await?;
    }
    Ok(())
}
