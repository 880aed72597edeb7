//! `warren secret set|ls|rm|uses`.
//!
//! A value is read from stdin, a file or the terminal: the arguments of a program can be read by everybody on the
//! machine, and shells write them down.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use warren_api::secrets::SecretSet;
use warren_types::Secret;

use crate::context::Context;
use crate::failure::usage;
use crate::output::{Table, human_age, printable};
use crate::terminal::Silence;

/// Above what a server takes, so that it is the server that says what that is.
const MAX_VALUE_BYTES: u64 = 1024 * 1024;

#[derive(Subcommand)]
pub(crate) enum SecretCommand {
    /// Set a secret; its value is read from stdin, or asked for on a terminal
    Set(SetArgs),
    /// List the secrets of a store, without their values
    Ls(OfStore),
    /// Delete a secret, also from the sandboxes that have it
    Rm(OneArgs),
    /// Show what a secret was used for, newest first
    Uses(OneArgs),
}

#[derive(Args)]
pub(crate) struct SetArgs {
    /// Name or id of the store
    store: String,
    /// The environment variable that stands for it in sandboxes. NAME=VALUE works too, but others on this machine can
    /// see the value then
    name: String,
    /// File with the value, taken as it is; `-` is stdin
    #[arg(long, value_name = "FILE")]
    value_file: Option<PathBuf>,
    /// A host it is put in for, instead of those before; repeatable
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Put it in for every host that a sandbox may reach
    #[arg(long, conflicts_with = "allow_host")]
    allow_all: bool,
    /// A part of requests it is put into [default: header]; repeatable
    #[arg(long, value_enum, value_name = "PART")]
    place: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    Header,
    Query,
    Body,
}

#[derive(Args)]
pub(crate) struct OfStore {
    /// Name or id of the store
    store: String,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// Name or id of the store
    store: String,
    name: String,
}

pub(crate) async fn run(context: &Context, command: SecretCommand) -> anyhow::Result<ExitCode> {
    match command {
        SecretCommand::Set(args) => set(context, args).await?,
        SecretCommand::Ls(args) => list(context, &args.store).await?,
        SecretCommand::Rm(args) => remove(context, &args).await?,
        SecretCommand::Uses(args) => uses(context, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(context: &Context, args: SetArgs) -> anyhow::Result<()> {
    let (name, value) = match args.name.split_once('=') {
        Some(_) if args.value_file.is_some() => {
            return Err(usage("the value is given twice: leave out --value-file, or =VALUE after the name"));
        }
        Some((name, value)) => {
            context
                .output
                .warn("others on this machine can see the arguments of a program; give the value on stdin");
            (name.to_owned(), Secret::new(value.to_owned()))
        }
        None => (args.name.clone(), read_value(&args.name, args.value_file.as_deref())?),
    };
    let words = args.place.iter().map(|place| match place {
        Place::Header => "header".to_owned(),
        Place::Query => "query".to_owned(),
        Place::Body => "body".to_owned(),
    });
    let body = SecretSet {
        value: Some(value),
        allowed_hosts: (args.allow_all || !args.allow_host.is_empty()).then_some(args.allow_host),
        places: (!args.place.is_empty()).then(|| words.collect()),
    };
    let client = context.client()?;
    let answer = client.set_secret(&client.find_secret_store(&args.store).await?, &name, &body).await?;
    if context.output.json {
        context.output.json(&answer.json)?;
    }
    context
        .output
        .note(&printable(&format!("set {name}; sandboxes that have it now: {}", answer.value.refreshed)));
    if let Some(pending) = &answer.value.pending {
        context
            .output
            .warn(&printable(&format!("{pending} sandboxes do not have it yet; they are told soon")));
    }
    Ok(())
}

/// From the file; else what stdin holds, without the line end that `echo` adds; else what is typed.
fn read_value(name: &str, file: Option<&Path>) -> anyhow::Result<Secret<String>> {
    let stdin = std::io::stdin();
    if let Some(path) = file.filter(|path| *path != Path::new("-")) {
        let mut value = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(MAX_VALUE_BYTES).read_to_string(&mut value))
            .with_context(|| format!("could not read {}", path.display()))?;
        return Ok(Secret::new(value));
    }
    let mut value = String::new();
    if file.is_none() && stdin.is_terminal() {
        let _silence = Silence::enter().context("could not turn the terminal's echo off")?;
        let _ = write!(std::io::stderr(), "value of {}: ", printable(name));
        stdin.read_line(&mut value).context("could not read the value")?;
        let _ = writeln!(std::io::stderr());
    } else {
        stdin
            .lock()
            .take(MAX_VALUE_BYTES)
            .read_to_string(&mut value)
            .context("could not read the value from stdin")?;
    }
    let end = value.strip_suffix('\n').map(|rest| rest.strip_suffix('\r').unwrap_or(rest)).map(str::len);
    value.truncate(end.unwrap_or(value.len()));
    Ok(Secret::new(value))
}

async fn list(context: &Context, store: &str) -> anyhow::Result<()> {
    let client = context.client()?;
    let answer = client.list_secrets(&client.find_secret_store(store).await?).await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if output.quiet {
        let names: String = answer.value.iter().map(|one| format!("{}\n", printable(&one.name))).collect();
        return output.write(names.as_bytes());
    }
    if answer.value.is_empty() {
        output.note("no secrets");
        return Ok(());
    }
    let mut table = Table::new(&["NAME", "PUT IN FOR", "INTO", "UPDATED"]);
    for one in &answer.value {
        let hosts = match one.allowed_hosts.as_slice() {
            [] => "every allowed host".to_owned(),
            hosts => hosts.join(","),
        };
        table.row([
            one.name.clone(),
            hosts,
            one.places.join(","),
            format!("{} ago", human_age(one.updated_at)),
        ]);
    }
    output.table(&table)
}

async fn remove(context: &Context, args: &OneArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    client.delete_secret(&client.find_secret_store(&args.store).await?, &args.name).await?;
    context.output.note(&printable(&format!("deleted {}", args.name)));
    Ok(())
}

async fn uses(context: &Context, args: &OneArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let answer = client.list_secret_uses(&client.find_secret_store(&args.store).await?, &args.name).await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if answer.value.is_empty() {
        output.note("it was not used");
        return Ok(());
    }
    let mut table = Table::new(&["LAST", "HOST", "SANDBOX", "REQUESTS"]);
    for one in &answer.value {
        table.row([
            format!("{} ago", human_age(one.at)),
            one.host.clone(),
            one.sandbox_id.clone(),
            one.count.to_string(),
        ]);
    }
    output.table(&table)
}
