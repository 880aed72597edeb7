//! To rest and back: a sandbox hibernates, and its next use wakes it.

use std::time::Instant;

use anyhow::ensure;

use super::{Bench, Clock, SETTLE, keep, milliseconds, peer_line, share};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "hibernate";
const WAKE: &str = "wake to first output";
const WARM_UP: usize = 3;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let container = match &mut bench.docker {
        Ok(docker) => docker.create().await,
        Err(reason) => Err(anyhow::anyhow!(reason.clone())),
    };
    let mut container = container.map_err(|error| format!("{error:#}"));
    let measured = take_turns(bench, &sandbox, &mut container).await;
    bench.warren.delete(&sandbox).await?;
    if let (Ok(docker), Ok(container)) = (&mut bench.docker, &container) {
        docker.delete(container).await?;
    }
    measured
}

async fn take_turns(
    bench: &mut Bench,
    sandbox: &str,
    container: &mut Result<String, String>,
) -> anyhow::Result<Vec<Line>> {
    for _ in 0..WARM_UP {
        warren_once(bench, sandbox).await?;
    }
    let (mut warren, mut docker) = (Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    let rounds = bench.sizes.peer_forks;
    for round in 0..rounds {
        for _ in 0..share(bench.sizes.forks, rounds, round) {
            warren.push(warren_once(bench, sandbox).await?);
        }
        if let (Ok(system), Ok(id)) = (&mut bench.docker, &*container) {
            let measured = docker_once(system, id).await;
            keep(container, &mut docker, measured);
        }
        if clock.is_over() {
            break;
        }
    }
    let unit = Unit::Milliseconds;
    let (down, up): (Vec<f64>, Vec<f64>) = warren.into_iter().unzip();
    let (stop, start): (Vec<f64>, Vec<f64>) = docker.into_iter().unzip();
    let down = Line::new(FIGURE, WARREN, unit, down)
        .note("until its disk is no longer in use, read to its end, and its digest written down");
    let up = Line::new(WAKE, WARREN, unit, up)
        .note("exec/run of a command in a sandbox that hibernates, to its exit code; processes had ended, the disk is kept");
    let stop = peer_line(FIGURE, "Docker stop", unit, container, stop).against(&down.samples, 50, None);
    let start = peer_line(WAKE, "Docker start", unit, container, start)
        .against(&up.samples, 50, None)
        .note("Docker: stop without time to end; start and exec");
    Ok(vec![down, stop, up, start])
}

/// Milliseconds to rest, and back.
async fn warren_once(bench: &mut Bench, sandbox: &str) -> anyhow::Result<(f64, f64)> {
    let warren = &mut bench.warren;
    warren.run(sandbox, "echo hi > ~/said").await?;
    let begun = Instant::now();
    warren.hibernate(sandbox).await?;
    let down = begun.elapsed();
    tokio::time::sleep(SETTLE).await;
    let begun = Instant::now();
    let said = warren.run(sandbox, "cat ~/said").await?;
    let up = begun.elapsed();
    ensure!(said == "hi\n", "`cat` after a wake said {said:?}");
    tokio::time::sleep(SETTLE).await;
    Ok((milliseconds(down), milliseconds(up)))
}

async fn docker_once(docker: &mut Docker, id: &str) -> anyhow::Result<(f64, f64)> {
    let begun = Instant::now();
    docker.stop(id).await?;
    let down = begun.elapsed();
    tokio::time::sleep(SETTLE).await;
    let begun = Instant::now();
    docker.start(id).await?;
    docker.exec(id, &["echo", "hi"], false).await?.expect("hi\n").await?;
    let up = begun.elapsed();
    tokio::time::sleep(SETTLE).await;
    Ok((milliseconds(down), milliseconds(up)))
}
