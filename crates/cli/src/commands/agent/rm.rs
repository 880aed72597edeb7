//! `warren agent rm ID…`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use warren_types::SandboxId;

use crate::agent::run::finish;
use crate::agent::run::record::Run;
use crate::client::Client;
use crate::context::Context;
use crate::failure::{self, SomeFailed};

#[derive(Args)]
pub(crate) struct RmArgs {
    /// As `agent ls` prints them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<SandboxId>,
}

/// Goes on after a failure; the first decides the exit code.
pub(crate) async fn run(context: &Context, args: RmArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let total = args.ids.len();
    let (mut failed, mut exit_code) = (0, None);
    for id in &args.ids {
        match remove(&client, id).await.with_context(|| format!("could not remove {id}")) {
            Ok(()) => context.output.note(&format!("removed {id}")),
            Err(error) => {
                failure::report(&error);
                failed += 1;
                exit_code.get_or_insert(failure::exit_code(&error));
            }
        }
    }
    match exit_code {
        None => Ok(ExitCode::SUCCESS),
        Some(exit_code) => Err(SomeFailed { failed, total, exit_code }.into()),
    }
}

async fn remove(client: &Client, id: &SandboxId) -> anyhow::Result<()> {
    let mut run = Run::find(id)?;
    finish::end_keys(client, &mut run).await;
    finish::kill(client, id).await?;
    run.forget();
    Ok(())
}
