//! Create to the first output of a command, one at a time, nothing kept warm.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Clock, SETTLE, keep, milliseconds, peer_line, share};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "create to first output";
const WARM_UP: usize = 3;

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    for _ in 0..WARM_UP {
        warren_once(bench).await?;
    }
    peers(bench, &mut Vec::new(), &mut Vec::new()).await;
    bench.trace.clear();

    let (mut warren, mut docker, mut runc) = (Vec::new(), Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    let rounds = bench.sizes.peer_creates;
    for round in 0..rounds {
        for _ in 0..share(bench.sizes.creates, rounds, round) {
            warren.push(milliseconds(warren_once(bench).await?));
        }
        peers(bench, &mut docker, &mut runc).await;
        if clock.is_over() {
            break;
        }
    }

    let unit = Unit::Milliseconds;
    let warren = Line::new(FIGURE, WARREN, unit, warren).aim(50, true, 10.0).aim(99, true, 20.0);
    let docker = peer_line(FIGURE, "Docker", unit, &bench.docker, docker)
        .against(&warren.samples, 50, Some(1.0 / 30.0))
        .note("Docker: create, start, exec, to the first byte of its output; Warren: create, exec, to the exit code");
    let runc = peer_line(FIGURE, "runc run", unit, &bench.runc, runc)
        .against(&warren.samples, 50, None)
        .note("runc alone: no daemon, no limits, no way out of its network, a read-only root");
    Ok(vec![warren, docker, runc])
}

async fn warren_once(bench: &mut Bench) -> anyhow::Result<Duration> {
    let warren = &mut bench.warren;
    let begun = Instant::now();
    let created = warren.create().await?;
    let create = begun.elapsed();
    let output = warren.run(&created.id, "echo hi").await;
    let taken = begun.elapsed();
    let deleted = warren.delete(&created.id).await;
    ensure!(output? == "hi\n", "`echo hi` in {} said something else", created.id);
    deleted?;
    bench.trace.add(create, taken.saturating_sub(create), created.server_timing.as_deref());
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}

async fn peers(bench: &mut Bench, docker: &mut Vec<f64>, runc: &mut Vec<f64>) {
    if let Ok(system) = &mut bench.docker {
        let measured = docker_once(system).await.map(milliseconds);
        keep(&mut bench.docker, docker, measured);
    }
    if let Ok(system) = &mut bench.runc {
        let measured = system.run().map(milliseconds);
        keep(&mut bench.runc, runc, measured);
        tokio::time::sleep(SETTLE).await;
    }
}

async fn docker_once(docker: &mut Docker) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let id = docker.create().await?;
    docker.exec(&id, &["echo", "hi"], false).await?.expect("hi\n").await?;
    let taken = begun.elapsed();
    docker.delete(&id).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}
