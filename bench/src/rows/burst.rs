//! Many creates at the same moment, each to the first output of a command, each on a connection of its own.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;

use super::{Bench, Peer, milliseconds, peer_line};
use crate::docker::Docker;
use crate::report::{Line, Unit, Verdict, WARREN};
use crate::warren::Warren;

pub(super) const FIGURE: &str = "creates at once, each to first output";
/// A first, smaller burst of Docker's tells how large a one it can do in the time there is.
const TRIAL: usize = 5;
const WARREN_ROUNDS: usize = 2;

/// What became of one burst.
struct Burst {
    taken: Vec<f64>,
    failures: Vec<String>,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let figure = format!("{} {FIGURE}", bench.sizes.burst);
    let mut warren = warren_burst(&bench.warren, bench.sizes.burst).await?;
    let (docker, size) = docker_turn(bench).await;
    for _ in 1..WARREN_ROUNDS {
        let more = warren_burst(&bench.warren, bench.sizes.burst).await?;
        warren.taken.extend(more.taken);
        warren.failures.extend(more.failures);
    }

    let unit = Unit::Milliseconds;
    let asked = bench.sizes.burst * WARREN_ROUNDS;
    let mut line = Line::new(&figure, WARREN, unit, warren.taken);
    let failed = warren.failures.len();
    line.aims.push(Verdict {
        aim: "all succeed".to_owned(),
        met: Some(failed == 0),
        by: (failed > 0).then(|| format!("{failed} of {asked} failed")),
    });
    if let Some(first) = warren.failures.first() {
        line = line.note(format!("{failed} of {asked} failed, the first with: {first}"));
    }
    let mut other =
        peer_line(&figure, "Docker", unit, &bench.docker, docker.taken).against(&line.samples, 99, Some(0.1));
    if let Some(first) = docker.failures.first() {
        other = other.note(format!("{} of {size} failed, the first with: {first}", docker.failures.len()));
    }
    if bench.docker.is_ok() && size < bench.sizes.burst {
        other = other
            .note(format!("only {size} at once, for time; the ratio is as measured, so in Docker's favour"));
    }
    Ok(vec![line, other])
}

async fn warren_burst(warren: &Warren, size: usize) -> anyhow::Result<Burst> {
    let mut clients = vec![warren.clone(); size];
    for client in &mut clients {
        client.connect().await?;
    }
    let begun = Instant::now();
    let done = join_all(clients.iter_mut().map(|client| async move {
        let created = client.create().await?;
        let output = client.run(&created.id, "echo hi").await;
        let taken = begun.elapsed();
        // Removed only when all are done: what is measured is making them.
        anyhow::Ok((created.id, output.map(|output| (output, taken))))
    }))
    .await;
    let mut burst = Burst { taken: Vec::new(), failures: Vec::new() };
    let mut made = Vec::new();
    for one in done {
        match one {
            Ok((id, ran)) => {
                made.push(id);
                burst.keep(ran.and_then(|(output, taken)| {
                    ensure!(output == "hi\n", "`echo hi` said {output:?}");
                    Ok(taken)
                }));
            }
            Err(error) => burst.keep(Err(error)),
        }
    }
    for (client, id) in clients.iter_mut().zip(&made) {
        client.delete(id).await?;
    }
    Ok(burst)
}

/// As many at once as the time allows; also how many that were.
async fn docker_turn(bench: &mut Bench) -> (Burst, usize) {
    let nothing = Burst { taken: Vec::new(), failures: Vec::new() };
    let Ok(docker) = &bench.docker else { return (nothing, 0) };
    let begun = Instant::now();
    let trial = docker_burst(docker, TRIAL).await;
    let each = begun.elapsed() / u32::try_from(TRIAL).unwrap_or(1);
    let possible = bench.sizes.row_time.as_secs_f64() / each.as_secs_f64().max(1e-3);
    let size = bench.sizes.peer_burst.min(possible as usize).max(TRIAL);
    let result = match trial {
        Ok(_) => docker_burst(docker, size).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(burst) => (burst, size),
        Err(error) => {
            bench.docker = Peer::Err(format!("{error:#}"));
            (nothing, size)
        }
    }
}

async fn docker_burst(docker: &Docker, size: usize) -> anyhow::Result<Burst> {
    let mut clients = vec![docker.clone(); size];
    let begun = Instant::now();
    let done = join_all(clients.iter_mut().map(|client| async move {
        let id = client.create().await?;
        client.exec(&id, &["echo", "hi"], false).await?.expect("hi\n").await?;
        Ok(begun.elapsed())
    }))
    .await;
    let mut burst = Burst { taken: Vec::new(), failures: Vec::new() };
    done.into_iter().for_each(|one| burst.keep(one));
    docker.clone().delete_all().await?;
    Ok(burst)
}

// === impl Burst ===

impl Burst {
    fn keep(&mut self, one: anyhow::Result<Duration>) {
        match one {
            Ok(taken) => self.taken.push(milliseconds(taken)),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }
}
