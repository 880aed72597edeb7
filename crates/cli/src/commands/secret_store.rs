//! `warren secret-store create|ls|get|update|rm`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use warren_api::secrets::{SecretStore, SecretStoreChange, SecretStoreCreate};

use crate::context::Context;
use crate::output::{Table, human_age, printable};

#[derive(Subcommand)]
pub(crate) enum SecretStoreCommand {
    /// Make a secret store and print its id
    Create(CreateArgs),
    /// List the secret stores
    Ls,
    /// Show a secret store
    Get(OneArgs),
    /// Change the name of a secret store, or the hosts its sandboxes may reach
    Update(UpdateArgs),
    /// Delete a secret store and its secrets, also from the sandboxes that have it
    Rm(OneArgs),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Unique in the organisation
    name: String,
    /// A host its sandboxes may reach, and none but those that are allowed; repeatable
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
}

#[derive(Args)]
pub(crate) struct UpdateArgs {
    /// Name or id
    store: String,
    /// A new name
    #[arg(long)]
    name: Option<String>,
    /// A host its sandboxes may reach, instead of those before; repeatable
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Let its sandboxes reach everything
    #[arg(long, conflicts_with = "allow_host")]
    allow_all: bool,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// Name or id
    store: String,
}

pub(crate) async fn run(context: &Context, command: SecretStoreCommand) -> anyhow::Result<ExitCode> {
    match command {
        SecretStoreCommand::Create(args) => create(context, args).await?,
        SecretStoreCommand::Ls => list(context).await?,
        SecretStoreCommand::Get(args) => get(context, &args.store).await?,
        SecretStoreCommand::Update(args) => update(context, args).await?,
        SecretStoreCommand::Rm(args) => remove(context, &args.store).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let body = SecretStoreCreate {
        name: Some(args.name),
        egress_allowlist: (!args.allow_host.is_empty()).then_some(args.allow_host),
    };
    let answer = context.client()?.create_secret_store(&body).await?;
    context.output.made("secret store", &answer.value.id, &answer.value.id, &answer.json)?;
    context.output.note(&printable(&format!("made the secret store {}", answer.value.name)));
    Ok(())
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let answer = context.client()?.list_secret_stores().await?;
    let output = context.output;
    if output.json {
        return output.json(&answer.json);
    }
    if output.quiet {
        let ids: String = answer.value.iter().map(|store| format!("{}\n", printable(&store.id))).collect();
        return output.write(ids.as_bytes());
    }
    if answer.value.is_empty() {
        output.note("no secret stores; `warren secret-store create NAME` makes one");
        return Ok(());
    }
    output.table(&table(&answer.value))
}

async fn get(context: &Context, store: &str) -> anyhow::Result<()> {
    let client = context.client()?;
    let answer = client.get_secret_store(&client.find_secret_store(store).await?).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    context.output.table(&table(std::slice::from_ref(&answer.value)))
}

async fn update(context: &Context, args: UpdateArgs) -> anyhow::Result<()> {
    let client = context.client()?;
    let body = SecretStoreChange {
        name: args.name,
        egress_allowlist: (args.allow_all || !args.allow_host.is_empty()).then_some(args.allow_host),
    };
    let answer = client.change_secret_store(&client.find_secret_store(&args.store).await?, &body).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    context.output.table(&table(std::slice::from_ref(&answer.value)))
}

async fn remove(context: &Context, store: &str) -> anyhow::Result<()> {
    let client = context.client()?;
    client.delete_secret_store(&client.find_secret_store(store).await?).await?;
    context.output.note(&printable(&format!("deleted {store} and its secrets")));
    Ok(())
}

fn table(stores: &[SecretStore]) -> Table {
    let mut table = Table::new(&["ID", "NAME", "MAY REACH", "AGE"]);
    for store in stores {
        let hosts = match store.egress_allowlist.as_slice() {
            [] => "everything".to_owned(),
            hosts => hosts.join(","),
        };
        table.row([store.id.clone(), store.name.clone(), hosts, human_age(store.created_at)]);
    }
    table
}
