//! Several sandboxes that begin where the one of a run is.

use anyhow::Context as _;
use warren_types::SandboxId;

use super::super::launch::Launch;
use super::super::tree::cache::Tree;
use super::prepare::{self, Own, delete_checkpoint};
use super::record::{Run, Session};
use super::{headless, session};
use crate::client::Client;
use crate::output::Output;

/// What became of the program in the forks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Went {
    /// On, from where it was.
    On,
    /// Ended with the disk's copy, and begun again.
    Anew,
}

/// Makes `count` forks of a run; each is recorded as a run of its own. Those that were made stay when one cannot be.
pub(crate) async fn fork(
    client: &Client,
    output: Output,
    run: &Run,
    count: u32,
) -> anyhow::Result<(Vec<Run>, Went)> {
    let sandbox = run.sandbox()?;
    // It sleeps, perhaps; a checkpoint is of one that runs.
    client.wake_sandbox(&sandbox, None).await?;
    let keeps_memory = client.get_sandbox(&sandbox).await?.value.hibernation_keeps == "memory";
    let went = if keeps_memory { Went::On } else { Went::Anew };
    let checkpoint = prepare::checkpoint(client, &sandbox, "fork").await?;
    let tree = Tree {
        server: run.record.server.clone(),
        folder: run.record.root.clone(),
        checkpoint,
        sandbox: sandbox.to_string(),
        coarse: run.record.coarse,
        listed: run.record.listed,
    };
    let mut forks = Vec::new();
    let made = async {
        for _ in 0..count {
            forks.push(one(client, output, run, &tree, went).await?);
        }
        anyhow::Ok(())
    }
    .await;
    delete_checkpoint(client, &tree).await;
    made.with_context(|| format!("{} of {count} forks were made", forks.len()))?;
    Ok((forks, went))
}

async fn one(client: &Client, output: Output, run: &Run, tree: &Tree, went: Went) -> anyhow::Result<Run> {
    let own = Own {
        metadata: session::metadata(&run.record.agent, &run.record.root, run.record.store.as_deref()),
        ..Own::default()
    };
    let sandbox: SandboxId = prepare::fork(client, tree, &own).await?;
    let recorded = begin(client, output, run, &sandbox, went).await;
    if recorded.is_err() {
        let _ = client.kill_sandbox(&sandbox).await;
        if let Ok(fork) = Run::find(&sandbox) {
            fork.forget();
        }
    }
    let fork = recorded?;
    output.note(&format!("{sandbox}: `warren agent attach {sandbox}`"));
    Ok(fork)
}

async fn begin(
    client: &Client,
    output: Output,
    run: &Run,
    sandbox: &SandboxId,
    went: Went,
) -> anyhow::Result<Run> {
    let mut fork = run.forked(sandbox)?;
    // Whichever ends last takes the keys away.
    fork.record.store.clone_from(&run.record.store);
    match went {
        Went::On => fork.record.session.clone_from(&run.record.session),
        Went::Anew => {
            let launch = Launch {
                argv: run.record.argv.clone(),
                prompt_on_stdin: run.record.prompt.clone(),
                interactive: matches!(run.record.session, Some(Session::Pty { .. })),
                lines: run.record.lines(),
                ..Launch::default()
            };
            session::start(client, &mut fork, &launch).await?;
            // Who attaches later, if anybody does, has nothing to give it.
            if let Some(exec) = headless::exec_of(&fork) {
                let prompt = launch.prompt_on_stdin.as_deref();
                headless::hand_over(client, output, (sandbox, &exec), prompt).await?;
            }
        }
    }
    fork.save()?;
    Ok(fork)
}
