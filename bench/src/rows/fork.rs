//! From a checkpoint to the first output of a command: in a new sandbox, and in place.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Clock, SETTLE, keep, milliseconds, peer_line, share};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "fork to first output";
const FIRST: &str = "first fork of a checkpoint to first output";
/// Checkpoints that are forked once, so that nothing was prepared for it.
const FIRSTS: usize = 10;
const RESTORE: &str = "restore in place to first output";
const WARM_UP: usize = 3;
const PREPARE: &str = "echo hi > ~/said; head -c 20000000 /dev/urandom > ~/filled";
const SAY: &str = "cat ~/said";
/// The same work without a checkpoint: a program that reads what the shell says.
const SAY_ANEW: &str = "echo hi | cat";
const FORGET: &str = "echo lost > ~/said";

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let measured = take_turns(bench, &sandbox).await;
    bench.warren.delete(&sandbox).await?;
    if let Ok(docker) = &mut bench.docker {
        docker.delete_all().await?;
    }
    measured
}

async fn take_turns(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<Line>> {
    let warren = &mut bench.warren;
    warren.run(sandbox, PREPARE).await?;
    let checkpoint = warren.checkpoint(sandbox, "bench").await?.id;
    warren.wait_checkpoint(sandbox, &checkpoint).await?;
    let mut image = docker_image(bench).await.map_err(|error| format!("{error:#}"));
    for _ in 0..WARM_UP {
        create_once(bench).await?;
        fork_once(bench, &checkpoint).await?;
        restore_once(bench, sandbox, &checkpoint).await?;
    }
    let (mut create, mut fork, mut restore, mut docker) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let first = first_forks(bench, sandbox).await?;
    let clock = Clock::start(bench);
    let rounds = bench.sizes.peer_forks;
    for round in 0..rounds {
        for _ in 0..share(bench.sizes.forks, rounds, round) {
            create.push(milliseconds(create_once(bench).await?));
            fork.push(milliseconds(fork_once(bench, &checkpoint).await?));
            restore.push(milliseconds(restore_once(bench, sandbox, &checkpoint).await?));
        }
        if let (Ok(system), Ok(from)) = (&mut bench.docker, &image) {
            let measured = docker_once(system, from).await.map(milliseconds);
            keep(&mut image, &mut docker, measured);
        }
        if clock.is_over() {
            break;
        }
    }
    bench.warren.delete_checkpoint(sandbox, &checkpoint).await?;
    if let (Ok(system), Ok(image)) = (&mut bench.docker, &image) {
        system.delete_image(image).await?;
    }
    let unit = Unit::Milliseconds;
    let fork = Line::new(FIGURE, WARREN, unit, fork)
        .note("of a checkpoint that is ready; fork, exec, to the exit code");
    let first = Line::new(FIRST, WARREN, unit, first)
        .note("each of another checkpoint; the others above are of one that was forked before");
    let created = Line::new(FIRST, "Warren create", unit, create.clone()).against(&first.samples, 50, None);
    let create = Line::new(FIGURE, "Warren create", unit, create).against(&fork.samples, 50, Some(1.1));
    let docker = peer_line(FIGURE, "Docker", unit, &image, docker)
        .against(&fork.samples, 50, None)
        .note("Docker: create, start, exec, from an image that docker commit made of a container with the same files");
    let restore = Line::new(RESTORE, WARREN, unit, restore)
        .note("restore, exec, to the exit code; what was written since the checkpoint is gone");
    let forked = Line::new(RESTORE, "Warren fork", unit, fork.samples.values().to_vec()).against(
        &restore.samples,
        50,
        Some(1.0),
    );
    Ok(vec![fork, create, docker, first, created, restore, forked])
}

async fn first_forks(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<f64>> {
    let mut taken = Vec::new();
    for number in 0..FIRSTS {
        let checkpoint = bench.warren.checkpoint(sandbox, &format!("first-{number}")).await?.id;
        bench.warren.wait_checkpoint(sandbox, &checkpoint).await?;
        tokio::time::sleep(SETTLE).await;
        taken.push(milliseconds(fork_once(bench, &checkpoint).await?));
        bench.warren.delete_checkpoint(sandbox, &checkpoint).await?;
    }
    Ok(taken)
}

async fn docker_image(bench: &mut Bench) -> anyhow::Result<String> {
    let docker = bench.docker.as_mut().map_err(|reason| anyhow::anyhow!(reason.clone()))?;
    let id = docker.create().await?;
    docker.exec(&id, &["sh", "-c", PREPARE], false).await?.drain().await?;
    let image = docker.commit(&id).await?;
    docker.delete(&id).await?;
    Ok(image)
}

async fn create_once(bench: &mut Bench) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let id = bench.warren.create().await?.id;
    say(bench, &id, SAY_ANEW, begun).await
}

async fn fork_once(bench: &mut Bench, checkpoint: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let id = bench.warren.fork(checkpoint).await?;
    say(bench, &id, SAY, begun).await
}

async fn say(bench: &mut Bench, id: &str, command: &str, begun: Instant) -> anyhow::Result<Duration> {
    let output = bench.warren.run(id, command).await;
    let taken = begun.elapsed();
    bench.warren.delete(id).await?;
    ensure!(output? == "hi\n", "`{command}` in {id} said something else");
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}

async fn restore_once(bench: &mut Bench, sandbox: &str, checkpoint: &str) -> anyhow::Result<Duration> {
    let warren = &mut bench.warren;
    warren.run(sandbox, FORGET).await?;
    let begun = Instant::now();
    warren.restore(sandbox, checkpoint).await?;
    let output = warren.run(sandbox, SAY).await?;
    let taken = begun.elapsed();
    ensure!(output == "hi\n", "`{SAY}` after a restore said {output:?}");
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}

async fn docker_once(docker: &mut Docker, image: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let id = docker.create_from(image).await?;
    docker.exec(&id, &["sh", "-c", SAY], false).await?.expect("hi\n").await?;
    let taken = begun.elapsed();
    docker.delete(&id).await?;
    tokio::time::sleep(SETTLE).await;
    Ok(taken)
}
