//! `warren agent attach ID`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use warren_types::SandboxId;

use super::run::follow;
use crate::agent::run::finish::Wanted;
use crate::agent::run::headless::Signals;
use crate::agent::run::record::Run;
use crate::context::Context;

#[derive(Args)]
#[command(
    after_help = "Shows its output from the beginning and then as it comes, or its terminal. When it ends, what it changed is shown or written as after `agent run`."
)]
pub(crate) struct AttachArgs {
    /// As `agent ls` prints it
    id: SandboxId,
    /// Write what changed here when it ends
    #[arg(long)]
    apply: bool,
    /// Write what changed to a file that `git apply` takes
    #[arg(long, value_name = "FILE")]
    patch_file: Option<PathBuf>,
    /// Keep the sandbox, asleep
    #[arg(long)]
    keep: bool,
}

pub(crate) async fn run(context: &Context, args: AttachArgs) -> anyhow::Result<ExitCode> {
    let wanted = Wanted {
        apply: args.apply,
        show: !args.apply && args.patch_file.is_none(),
        patch_file: args.patch_file,
    };
    wanted.check()?;
    let client = context.client()?;
    let mut run = Run::find(&args.id)?;
    run.record.keep |= args.keep;
    // To follow it wakes it.
    run.record.paused = false;
    run.save()?;
    follow(&client, context.output, run, None, &wanted, &mut Signals::catch()?).await
}
