//! `warren agent patch ID`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::agent::run::finish::{self, Wanted};
use crate::agent::run::record::Run;
use crate::context::Context;

#[derive(Args)]
pub(crate) struct PatchArgs {
    /// As `agent ls` prints it
    id: SandboxId,
    /// Write what changed here
    #[arg(long)]
    apply: bool,
    /// Show it as a diff too
    #[arg(long)]
    diff: bool,
    /// Write what changed to a file that `git apply` takes
    #[arg(long, value_name = "FILE")]
    patch_file: Option<PathBuf>,
    /// Bring back ignored files too
    #[arg(long)]
    include_ignored: bool,
}

pub(crate) async fn run(context: &Context, args: PatchArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let output = context.output;
    let mut run = Run::find(&args.id)?;
    run.record.include_ignored |= args.include_ignored;
    let changes = finish::brought(&client, &run).await?;
    let wanted = Wanted {
        apply: args.apply,
        show: args.diff || !args.apply && args.patch_file.is_none(),
        patch_file: args.patch_file,
    };
    if run.record.paused {
        // To look woke it.
        client.hibernate_sandbox(&args.id).await?;
    }
    let finished = finish::deliver(&client, output, &run, changes, &wanted).await?;
    Ok(ExitCode::from(finished.code()))
}
