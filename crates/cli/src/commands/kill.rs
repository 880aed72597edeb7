//! `warren kill ID…`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use warren_types::SandboxId;

use crate::context::Context;
use crate::failure::{self, SomeFailed};

#[derive(Args)]
pub(crate) struct KillArgs {
    #[arg(required = true, value_name = "ID")]
    ids: Vec<SandboxId>,
}

/// Goes on after a failure, so that one stale id does not keep the others alive; the first failure decides the exit code.
pub(crate) async fn run(context: &Context, args: KillArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let total = args.ids.len();
    let mut failed = 0;
    let mut exit_code = None;
    for id in &args.ids {
        match client.kill_sandbox(id).await.with_context(|| format!("could not kill {id}")) {
            Ok(()) => context.output.note(&format!("killed {id}")),
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
