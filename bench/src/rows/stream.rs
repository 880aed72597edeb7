//! Output of one command, as fast as it comes.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use warren_api::exec_frame;

use super::{Bench, Clock, keep, peer_line, speed};
use crate::docker::Docker;
use crate::report::{Line, Unit, WARREN};

pub(super) const FIGURE: &str = "exec output streamed";

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let measured = take_turns(bench, &sandbox).await;
    bench.warren.delete(&sandbox).await?;
    measured
}

async fn take_turns(bench: &mut Bench, sandbox: &str) -> anyhow::Result<Vec<Line>> {
    let (bytes, peer_bytes) = (bench.sizes.stream_bytes, bench.sizes.peer_stream_bytes);
    // Paths are taken once before they are timed.
    warren_once(bench, sandbox, bytes / 16).await?;
    let (mut warren, mut docker, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let clock = Clock::start(bench);
    for _ in 0..bench.sizes.rounds {
        warren.push(warren_once(bench, sandbox, bytes).await?);
        plain.push(plain_once(bytes)?);
        if let Ok(system) = &mut bench.docker {
            let measured = docker_once(system, peer_bytes).await;
            keep(&mut bench.docker, &mut docker, measured);
        }
        if clock.is_over() {
            break;
        }
    }
    let unit = Unit::Speed;
    let warren = Line::new(FIGURE, WARREN, unit, warren).aim(50, false, 500.0).note(format!(
        "Warren and the pipe: {} MiB of zeros a time; Docker: {} MB",
        bytes >> 20,
        peer_bytes / 1_000_000
    ));
    let docker =
        peer_line(FIGURE, "Docker exec", unit, &bench.docker, docker).against(&warren.samples, 50, None);
    let plain = Line::new(FIGURE, "plain pipe", unit, plain).against(&warren.samples, 50, None);
    Ok(vec![warren, docker, plain])
}

/// The command waits for a line of input, so that nothing is written before somebody listens.
async fn warren_once(bench: &mut Bench, sandbox: &str, bytes: u64) -> anyhow::Result<f64> {
    let command = format!("read -r _; exec head -c {bytes} /dev/zero");
    let mut socket = bench.warren.start_command(sandbox, &command).await?;
    socket.wait_live().await?;
    let begun = Instant::now();
    socket.send(Bytes::from_static(&[exec_frame::STDIN, b'\n'])).await?;
    let length = socket.drain().await?;
    let taken = begun.elapsed();
    ensure!(length == bytes, "{length} bytes came of {bytes}");
    Ok(speed(bytes, taken))
}

async fn docker_once(docker: &mut Docker, bytes: u64) -> anyhow::Result<f64> {
    let id = docker.create().await?;
    let mut attached = docker.exec(&id, &["head", "-c", &bytes.to_string(), "/dev/zero"], false).await?;
    let begun = Instant::now();
    let length = attached.drain().await?;
    let taken = begun.elapsed();
    docker.delete(&id).await?;
    ensure!(length == bytes, "{length} bytes came of {bytes}");
    Ok(speed(bytes, taken))
}

fn plain_once(bytes: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut child = Command::new("head")
        .args(["-c", &bytes.to_string(), "/dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start head")?;
    let mut output = child.stdout.take().context("head has no output")?;
    let mut buffer = vec![0; 64 * 1024];
    let mut length = 0;
    loop {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        length += count as u64;
    }
    let taken = begun.elapsed();
    ensure!(child.wait()?.success() && length == bytes, "{length} bytes came of {bytes}");
    Ok(speed(bytes, taken))
}
