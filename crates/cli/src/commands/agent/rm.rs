//! `warren agent rm ID…`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::agent::run::finish;
use crate::agent::run::record::Run;
use crate::agent::run::turn::Turn;
use crate::client::Client;
use crate::context::Context;
use crate::failure;

#[derive(Args)]
pub(crate) struct RmArgs {
    /// As `agent ls` prints them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<SandboxId>,
}

pub(crate) async fn run(context: &Context, args: RmArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    failure::each(context.output, ("remove", "removed"), &args.ids, async |id| remove(&client, id).await)
        .await
}

async fn remove(client: &Client, id: &SandboxId) -> anyhow::Result<()> {
    let mut run = Run::find(id)?;
    let turn = Turn::of(&run)?;
    turn.leave_word("it was removed with `warren agent rm`", run.record.ended)?;
    finish::end_keys(client, &mut run).await;
    if let Err(error) = finish::kill(client, id).await {
        turn.take_word_back()?;
        return Err(error);
    }
    run.forget();
    Ok(())
}
