//! `warren agent run --tasks FILE`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::begin::{abandon, machine, new_token, own};
use super::run::{RunArgs, sweep};
use crate::agent::program::Program;
use crate::agent::run::headless::Signals;
use crate::agent::run::keys;
use crate::agent::run::prepare::Preparing;
use crate::agent::tasks::{Batch, Task, read, run as run_batch};
use crate::agent::tree::cache;
use crate::client::Client;
use crate::context::Context;
use crate::failure::{LOCAL, SomeFailed, usage};
use crate::words::parse_duration;

const MAX_PARALLEL: u64 = 64;
const HEADING: &str = "Several tasks";

#[derive(Args)]
pub(crate) struct TasksArgs {
    /// File of tasks (.toml, .json, .jsonl, or a prompt on each line), one sandbox each
    #[arg(long = "tasks", id = "tasks", value_name = "FILE", conflicts_with = "prompt", help_heading = HEADING)]
    pub(super) file: Option<PathBuf>,
    /// How many at a time
    #[arg(long, value_name = "N", default_value_t = 2, requires = "tasks", help_heading = HEADING, value_parser = clap::value_parser!(u64).range(1..=MAX_PARALLEL))]
    parallel: u64,
    /// How often one that fails is begun again
    #[arg(long, value_name = "N", default_value_t = 0, requires = "tasks", help_heading = HEADING, value_parser = clap::value_parser!(u32).range(0..=10))]
    retries: u32,
    /// Time for all of them, like 1h: then what runs is stopped and nothing new begins
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "tasks", help_heading = HEADING)]
    budget: Option<u32>,
    /// Money for all of them: when the agents report more, nothing new begins
    #[arg(long, value_name = "USD", value_parser = parse_usd, requires = "tasks", help_heading = HEADING)]
    budget_usd: Option<f64>,
    /// Folder for patches and logs [default: one below ~/.local/state/warren]
    #[arg(long, value_name = "DIR", requires = "tasks", help_heading = HEADING)]
    out: Option<PathBuf>,
}

fn parse_usd(text: &str) -> Result<f64, String> {
    let usd = text.parse().ok().filter(|usd: &f64| usd.is_finite() && *usd > 0.0);
    usd.ok_or_else(|| "a sum of money is a number above 0, like 2.50".to_owned())
}

pub(super) async fn run(
    context: &Context,
    args: &RunArgs,
    client: &Client,
    (server, root): (&str, &Path),
    program: &Program,
) -> anyhow::Result<ExitCode> {
    let output = context.output;
    let given = &args.tasks;
    let Some(file) = &given.file else { return Err(usage("there are no tasks")) };
    let tasks = read(file)?;
    for limit in tasks.iter().filter_map(|task| task.timeout.as_deref()) {
        parse_duration(limit).map_err(usage)?;
    }
    let out = match &given.out {
        Some(out) => out.clone(),
        None => {
            let now = jiff::Zoned::now().strftime("%Y-%m-%d-%H%M%S").to_string();
            cache::runs()?.with_file_name("tasks").join(now)
        }
    };
    let name = program.name();
    let launch = |task: &Task| program.launch(Some(&task.prompt), false);
    let token = new_token()?;
    // One for all of it: what comes between two parts is not lost.
    let mut signals = Signals::catch()?;
    // What it takes to install is the same for each; so is what is its own.
    let first = launch(&tasks[0])?;
    let (own, store) = own(client, args, root, &name, &first, &token).await?;
    let ran = async {
        let (machine, options) = machine(client, args, program, &first).await;
        let preparing = Preparing {
            client,
            output,
            server,
            root,
            options: &options,
            machine: &machine,
            fresh: args.machine.fresh,
        };
        let mut prepared = tokio::select! {
            prepared = preparing.prepare(&own) => prepared?,
            code = signals.any() => {
                abandon(client, &token).await;
                return Ok(Err(code));
            }
        };
        // Others may look at the tree meanwhile.
        prepared.place.share()?;
        let batch = Batch {
            client,
            output,
            server,
            root,
            agent: &name,
            prepared,
            own,
            launch: &launch,
            parallel: usize::try_from(given.parallel).unwrap_or(1),
            retries: given.retries,
            timeout: args.timeout,
            budget: given.budget.map(|seconds| Duration::from_secs(seconds.into())),
            budget_usd: given.budget_usd,
            out: out.clone(),
            include_ignored: args.include_ignored,
            keep: args.keep,
        };
        run_batch(&batch, &tasks, &mut signals).await.map(Ok::<_, u8>)
    }
    .await;
    if let Some(store) = &store {
        keys::delete(client, store, "").await;
    }
    let failed = match ran? {
        Ok(failed) => failed,
        Err(code) => return Ok(ExitCode::from(code)),
    };
    sweep(client, output, server).await;
    if !output.json {
        output.note(&format!(
            "{} of {} done; patches and logs are in {}",
            tasks.len() - failed,
            tasks.len(),
            out.display()
        ));
    }
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        failed => Err(SomeFailed { failed, total: tasks.len(), exit_code: LOCAL }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_sum_that_can_be_used_up() {
        for wrong in ["nan", "inf", "-inf", "-1", "0", "-0", "", "1e999", "x"] {
            assert!(parse_usd(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_usd("2.50"), Ok(2.5));
    }
}
