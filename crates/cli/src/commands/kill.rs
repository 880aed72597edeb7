//! `warren kill ID…`.

use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;
use crate::failure;

#[derive(Args)]
pub(crate) struct KillArgs {
    #[arg(required = true, value_name = "ID")]
    ids: Vec<SandboxId>,
}

pub(crate) async fn run(context: &Context, args: KillArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    failure::each(context.output, ("kill", "killed"), &args.ids, async |id| client.kill_sandbox(id).await)
        .await
}
