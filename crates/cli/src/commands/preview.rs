//! `warren preview url|create|ls|rm|rotate|share`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;
use warren_types::SandboxId;

use crate::context::Context;
use crate::failure::hinted;
use crate::output::{Table, human_age, printable};

#[derive(Subcommand)]
pub(crate) enum PreviewCommand {
    /// Print the address of a port
    Url(OnePort),
    /// Put a port on the list and print its address; ports off the list open as well
    Create(OnePort),
    /// List the registered ports of a sandbox
    Ls { id: SandboxId },
    /// Take ports off the list
    Rm {
        id: SandboxId,
        #[arg(required = true, value_name = "PORT", value_parser = port())]
        ports: Vec<u16>,
    },
    /// Make a new token for the previews of a sandbox and print it; the old one and all shared links end
    Rotate { id: SandboxId },
    /// Print a link that opens a port in a browser without the token
    Share {
        #[command(flatten)]
        which: OnePort,
        /// Seconds until it expires, 604800 at most [default: 3600]
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        expires: Option<u32>,
    },
}

#[derive(Args)]
pub(crate) struct OnePort {
    id: SandboxId,
    #[arg(value_parser = port())]
    port: u16,
}

fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

pub(crate) async fn run(context: &Context, command: PreviewCommand) -> anyhow::Result<ExitCode> {
    match command {
        PreviewCommand::Url(which) => url(context, &which).await?,
        PreviewCommand::Create(which) => {
            let answer = context.client()?.create_preview(&which.id, which.port).await?;
            context.output.made("preview", &answer.value.url, &answer.value.url, &answer.json)?;
        }
        PreviewCommand::Ls { id } => list(context, &id).await?,
        PreviewCommand::Rm { id, ports } => {
            let client = context.client()?;
            for port in ports {
                client.delete_preview(&id, port).await?;
            }
        }
        PreviewCommand::Rotate { id } => {
            let answer = context.client()?.rotate_preview_token(&id).await?;
            print(context, &answer.json, &answer.value.preview_auth_token)?;
        }
        PreviewCommand::Share { which, expires } => {
            let answer = context.client()?.share_preview(&which.id, which.port, expires).await?;
            print(context, &answer.json, &answer.value.url)?;
            context.output.note(&printable(&format!("expires at {}", answer.value.expires_at)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(context: &Context, json: &serde_json::Value, text: &str) -> anyhow::Result<()> {
    if context.output.json { context.output.json(json) } else { context.output.line(&printable(text)) }
}

async fn url(context: &Context, which: &OnePort) -> anyhow::Result<()> {
    let client = context.client()?;
    let sandbox = client.get_sandbox(&which.id).await?.value;
    let domain = sandbox.sandbox_domain.ok_or_else(|| {
        hinted("this server has no previews", "is it a Warren server of this version? `warren config show`")
    })?;
    let url = format!("{}://{}-p{}.{domain}", client.scheme(), which.id, which.port);
    print(context, &json!({ "url": url }), &url)
}

async fn list(context: &Context, id: &SandboxId) -> anyhow::Result<()> {
    let answer = context.client()?.list_previews(id).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    if answer.value.is_empty() && !context.output.quiet {
        context.output.note("no previews");
        return Ok(());
    }
    let mut table = Table::new(&["PORT", "URL", "CREATED"]);
    for preview in answer.value {
        table.row([preview.port.to_string(), preview.url, human_age(preview.created_at)]);
    }
    context.output.table(&table)
}
