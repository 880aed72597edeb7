//! `warren agent fork ID -n N`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use warren_types::SandboxId;

use crate::agent::run::fork::{Went, fork};
use crate::agent::run::record::Run;
use crate::context::Context;

#[derive(Args)]
#[command(
    after_help = "In a virtual machine each goes on from where the agent is. In a container, which keeps no processes, each begins the agent anew on the files as they are."
)]
pub(crate) struct ForkArgs {
    /// As `agent ls` prints it
    id: SandboxId,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    number: u32,
}

pub(crate) async fn run(context: &Context, args: ForkArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let output = context.output;
    let run = Run::find(&args.id)?;
    let (forks, went) = fork(&client, output, &run, args.number).await?;
    let ids: Vec<_> = forks.iter().map(|fork| fork.record.sandbox.clone()).collect();
    output.made("fork", &ids.join(", "), &ids.join("\n"), &json!(ids))?;
    output.note(match went {
        Went::On => "the agents go on from where that one is",
        Went::Anew => "the agents began anew on the files as they are there",
    });
    Ok(ExitCode::SUCCESS)
}
