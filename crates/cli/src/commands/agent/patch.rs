//! `warren agent patch ID`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use crate::agent::run::finish::{self, Wanted};
use crate::agent::run::record::Run;
use crate::agent::run::turn::Turn;
use crate::context::Context;
use crate::failure::hinted;

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
    let wanted = Wanted {
        apply: args.apply,
        show: args.diff || !args.apply && args.patch_file.is_none(),
        patch_file: args.patch_file,
    };
    wanted.check()?;
    run.record.include_ignored |= args.include_ignored;
    let turn = Turn::of(&run)?;
    if wanted.apply {
        // Two that write at once could leave the older state of a file.
        turn.take(|| output.note("another command brings its work home; waiting for that")).await;
        if run.again().is_none() {
            return Err(hinted(
                format!("{} was brought home by another command meanwhile", args.id),
                "`warren agent ls` lists what is left",
            ));
        }
    }
    let changes = finish::brought(&client, &run).await?;
    if run.record.paused {
        // To look woke it.
        client.hibernate_sandbox(&args.id).await?;
    }
    let finished = finish::deliver(&client, output, &run, changes, &wanted).await?;
    Ok(ExitCode::from(finished.code()))
}
