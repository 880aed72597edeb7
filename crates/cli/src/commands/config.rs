//! `warren config show` and `warren config set`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::config::{masked, store};
use crate::context::Context;
use crate::failure::{hinted, usage};
use crate::output::Table;

/// A key is a line; more than this is not one.
const MAX_VALUE_BYTES: u64 = 4096;

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show the settings in use and where each comes from
    Show,
    /// Store a setting in the configuration file
    Set {
        name: Name,
        /// The value; `-` reads it from stdin, which keeps a key out of the shell's history
        value: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Name {
    #[value(alias = "api_key")]
    ApiKey,
    #[value(alias = "api_url")]
    ApiUrl,
}

pub(crate) fn run(context: &Context, command: ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Show => show(context)?,
        ConfigCommand::Set { name, value } => set(context, name, value)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(context: &Context) -> anyhow::Result<()> {
    let config = context.config()?;
    let key = config.api_key.as_ref().map(|key| (masked(&key.value), key.source.to_string()));
    let file = config.file.as_deref().map(|path| path.display().to_string());
    if context.output.json {
        return context.output.json(&json!({
            "api_url": { "value": config.api_url.value, "source": config.api_url.source.to_string() },
            "api_key": key.map(|(value, source)| json!({ "value": value, "source": source })),
            "file": file,
        }));
    }
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    table.row(["api-url".to_owned(), config.api_url.value, config.api_url.source.to_string()]);
    let (value, source) = key.unwrap_or_else(|| ("-".to_owned(), "not set".to_owned()));
    table.row(["api-key".to_owned(), value, source]);
    context.output.table(&table)?;
    if let Some(file) = file {
        context.output.note(&format!("configuration file: {file}"));
    }
    Ok(())
}

fn set(context: &Context, name: Name, value: String) -> anyhow::Result<()> {
    use std::io::Read as _;

    let mut value = value;
    if value == "-" {
        value.clear();
        std::io::stdin()
            .take(MAX_VALUE_BYTES)
            .read_to_string(&mut value)
            .context("could not read the value from stdin")?;
    }
    let value = value.trim();
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(usage("the value must be one line of text"));
    }
    let path = crate::config::file_path().ok_or_else(|| {
        hinted("there is no home directory to keep the configuration in", "set HOME or XDG_CONFIG_HOME")
    })?;
    let key = match name {
        Name::ApiKey => "api_key",
        Name::ApiUrl => "api_url",
    };
    store(&path, key, value, context.output)?;
    context.output.note(&format!("stored in {}", path.display()));
    Ok(())
}
