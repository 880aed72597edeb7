//! One short command in a sandbox that runs, beside the cost of a process as such.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{Bench, Clock, keep, milliseconds, peer_line, share};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "exec/run of `true`, warm";
const WARM_UP: usize = 20;
const PROGRAM: &str = "/bin/true";

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
        plain_once()?;
    }
    let (mut warren, mut docker, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    let rounds = bench.sizes.peer_execs;
    for round in 0..rounds {
        for _ in 0..share(bench.sizes.execs, rounds, round) {
            warren.push(warren_once(bench, sandbox).await?);
        }
        for _ in 0..share(bench.sizes.execs, rounds, round) {
            plain.push(plain_once()?);
        }
        if let (Ok(system), Ok(id)) = (&mut bench.docker, &*container) {
            let measured = docker_once(system, id).await.map(milliseconds);
            keep(container, &mut docker, measured);
        }
        if clock.is_over() {
            break;
        }
    }
    let unit = Unit::Milliseconds;
    let warren = Line::new(FIGURE, WARREN, unit, warren);
    let docker = peer_line(FIGURE, "Docker exec", unit, container, docker)
        .against(&warren.samples, 50, Some(1.0 / 30.0))
        .note("Docker exec: create, start, to the end of its streams, without asking for the exit code");
    let plain = Line::new(FIGURE, "plain spawn", unit, plain)
        .against(&warren.samples, 50, Some(3.0))
        .note("plain spawn: posix_spawn of /bin/true and wait, no shell, no pipes, no limits");
    Ok(vec![warren, docker, plain])
}

async fn warren_once(bench: &mut Bench, sandbox: &str) -> anyhow::Result<f64> {
    let begun = Instant::now();
    bench.warren.run(sandbox, "true").await?;
    Ok(milliseconds(begun.elapsed()))
}

async fn docker_once(docker: &mut Docker, id: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    docker.exec(id, &["true"], false).await?.drain().await?;
    Ok(begun.elapsed())
}

fn plain_once() -> anyhow::Result<f64> {
    let begun = Instant::now();
    let status = Command::new(PROGRAM).stdin(Stdio::null()).status().context("could not start /bin/true")?;
    let taken = begun.elapsed();
    ensure!(status.success(), "{PROGRAM} ended with {status}");
    Ok(milliseconds(taken))
}
