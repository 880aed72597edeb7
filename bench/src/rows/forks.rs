//! Many forks of one checkpoint at the same moment, each to the first output of a command.

use std::time::Instant;

use anyhow::ensure;
use futures_util::future::join_all;

use super::{Bench, milliseconds};
use crate::report::{Line, Unit, Verdict, WARREN};
use crate::warren::Warren;

pub(super) const FIGURE: &str = "forks at once, all to first output";
const ROUNDS: usize = 5;
/// Milliseconds for all of them together.
const LIMIT: f64 = 3000.0;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let size = bench.sizes.forks_at_once;
    let warren = &mut bench.warren;
    let sandbox = warren.create().await?.id;
    warren.run(&sandbox, "echo hi > ~/said").await?;
    let checkpoint = warren.checkpoint(&sandbox, "bench").await?.id;
    warren.wait_checkpoint(&sandbox, &checkpoint).await?;
    let (mut totals, mut failures) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (total, failed) = forks(warren, &checkpoint, size).await?;
        totals.push(total);
        failures.extend(failed);
    }
    warren.delete_checkpoint(&sandbox, &checkpoint).await?;
    warren.delete(&sandbox).await?;
    let figure = format!("{size} {FIGURE}");
    let mut line = Line::new(&figure, WARREN, Unit::Milliseconds, totals).aim(50, true, LIMIT);
    line.aims.push(Verdict {
        aim: "all answer".to_owned(),
        met: Some(failures.is_empty()),
        by: failures.first().map(|first| format!("{} failed, the first with: {first}", failures.len())),
    });
    Ok(vec![line.note("each value is of all of them together, from the first request to the last output")])
}

/// Milliseconds until the last has said something, and why some did not.
async fn forks(warren: &Warren, checkpoint: &str, size: usize) -> anyhow::Result<(f64, Vec<String>)> {
    let mut clients = vec![warren.clone(); size];
    for client in &mut clients {
        client.connect().await?;
    }
    let begun = Instant::now();
    let done = join_all(clients.iter_mut().map(|client| async move {
        let id = client.fork(checkpoint).await?;
        let said = client.run(&id, "cat ~/said").await;
        anyhow::Ok((id, said))
    }))
    .await;
    let total = milliseconds(begun.elapsed());
    let mut failures = Vec::new();
    for (client, one) in clients.iter_mut().zip(done) {
        let said = match one {
            Ok((id, said)) => {
                client.delete(&id).await?;
                said
            }
            Err(error) => Err(error),
        };
        let checked = said.and_then(|said| {
            ensure!(said == "hi\n", "it said {said:?}");
            Ok(())
        });
        failures.extend(checked.err().map(|error| format!("{error:#}")));
    }
    Ok((total, failures))
}
