//! One large file up and down, and what the server holds meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;

use super::{Bench, Clock, keep, peer_line, speed};
use crate::docker::Docker;
use crate::http::Repeated;
use crate::process;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "file up";
const DOWN: &str = "file down";
const MEMORY: &str = "server memory during it, peak";
const FILE: &str = "/home/sandbox/bench.bin";
const BLOCK: usize = 1 << 20;
/// Checked byte by byte before anything is timed.
const CHECKED_BYTES: u64 = 24 << 20;

#[derive(Default)]
struct Found {
    up: Vec<f64>,
    down: Vec<f64>,
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let measured = take_turns(bench, &sandbox).await;
    bench.warren.delete(&sandbox).await?;
    measured
}

async fn take_turns(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<Line>> {
    let block = noise();
    check_content(bench, sandbox, &block).await?;
    let size = bench.sizes.file_bytes;
    let (mut warren, mut docker) = (Found::default(), Found::default());
    let (mut peaks, mut resting) = (Vec::new(), None);
    let clock = Clock::start(bench);
    for _ in 0..bench.sizes.rounds {
        let server = bench.server.as_ref().and_then(|home| home.pids.first().copied());
        if let Some(pid) = server {
            resting.get_or_insert(process::resident(pid)?);
            process::reset_peak(pid)?;
        }
        warren_once(bench, sandbox, &block, size, &mut warren).await?;
        if let Some(pid) = server {
            peaks.push(process::peak(pid)? as f64 / 1e6);
        }
        if let Ok(system) = &mut bench.docker {
            let mut both = Vec::new();
            let measured = docker_once(system, &block, size).await;
            keep(&mut bench.docker, &mut both, measured);
            for (up, down) in both {
                docker.up.push(speed(size, up));
                docker.down.push(speed(size, down));
            }
        }
        if clock.is_over() {
            break;
        }
    }
    let docker_note = "Docker: the archive calls that `docker cp` makes";
    let mut lines = Vec::new();
    for (figure, warren, docker) in [(FIGURE, warren.up, docker.up), (DOWN, warren.down, docker.down)] {
        let figure = format!("{} MiB {figure}", size >> 20);
        let warren = Line::new(&figure, WARREN, Unit::Speed, warren).aim(50, false, 500.0);
        let docker = peer_line(&figure, "Docker", Unit::Speed, &bench.docker, docker)
            .against(&warren.samples, 50, None)
            .note(docker_note);
        lines.extend([warren, docker]);
    }
    lines.push(match resting {
        Some(resting) => Line::new(MEMORY, WARREN, Unit::Megabytes, peaks)
            .aim(99, true, 64.0)
            .note(format!("it held {:.1} MB before", resting as f64 / 1e6)),
        None => {
            Line::skipped(MEMORY, WARREN, Unit::Megabytes, "no --server-pid was given").aim(99, true, 64.0)
        }
    });
    Ok(lines)
}

async fn warren_once(
    bench: &mut Bench,
    sandbox: &str,
    block: &Bytes,
    size: u64,
    found: &mut Found,
) -> anyhow::Result<()> {
    let path = Path::new(FILE);
    // What was written before must not be paid for now.
    rustix::fs::sync();
    let begun = Instant::now();
    bench.warren.put_file(sandbox, path, Repeated::new([(block.clone(), size)])).await?;
    found.up.push(speed(size, begun.elapsed()));
    rustix::fs::sync();
    let begun = Instant::now();
    let length = bench.warren.get_file(sandbox, path, |_| {}).await?;
    found.down.push(speed(size, begun.elapsed()));
    ensure!(length == size, "{length} bytes came back of {size}");
    bench.warren.run(sandbox, &format!("rm {FILE}")).await?;
    Ok(())
}

async fn docker_once(docker: &mut Docker, block: &Bytes, size: u64) -> anyhow::Result<(Duration, Duration)> {
    let path = Path::new(FILE);
    let id = docker.create().await?;
    rustix::fs::sync();
    let begun = Instant::now();
    docker.put_file(&id, path, block.clone(), size).await?;
    let up = begun.elapsed();
    rustix::fs::sync();
    let begun = Instant::now();
    let length = docker.get_file(&id, path).await?;
    let down = begun.elapsed();
    docker.delete(&id).await?;
    ensure!(length > size, "{length} bytes came back of an archive of {size}");
    Ok((up, down))
}

/// A fast answer that is wrong is worth nothing: one file is compared before any is timed.
async fn check_content(bench: &mut Bench, sandbox: &str, block: &Bytes) -> anyhow::Result<()> {
    let path = Path::new(FILE);
    bench.warren.put_file(sandbox, path, Repeated::new([(block.clone(), CHECKED_BYTES)])).await?;
    let (mut at, mut same) = (0, true);
    let length = bench
        .warren
        .get_file(sandbox, path, |piece| {
            for byte in piece {
                same &= *byte == block[at % BLOCK];
                at += 1;
            }
        })
        .await?;
    ensure!(
        same && length == CHECKED_BYTES,
        "a file came back different ({length} bytes of {CHECKED_BYTES})"
    );
    Ok(())
}

/// Bytes that do not compress and are the same every time.
fn noise() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(BLOCK / 8).flatten().collect()
}
