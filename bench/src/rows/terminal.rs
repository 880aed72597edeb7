//! A keystroke to a shell in a terminal, and its echo back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;

use super::{Bench, keep, milliseconds, peer_line, share};
use crate::docker::Attached;
use crate::report::{Line, Unit, WARREN};
use crate::warren::Socket;

pub(super) const FIGURE: &str = "PTY echo";
const KEY: u8 = b'~';
/// Clears the line that was typed.
const CLEAR: &[u8] = b"\x15";
/// Keystrokes on one line; the line must not wrap.
const LINE: usize = 30;
/// A shell that has said nothing for so long waits for a key.
const QUIET: Duration = Duration::from_millis(300);
const ECHO_LIMIT: Duration = Duration::from_secs(10);

enum Terminal {
    Warren(Box<Socket>),
    Docker(Box<Attached>),
}

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let sandbox = bench.warren.create().await?.id;
    let mut docker = docker_terminal(bench).await.map_err(|error| format!("{error:#}"));
    let measured = take_turns(bench, &sandbox, &mut docker).await;
    drop(docker);
    bench.warren.delete(&sandbox).await?;
    if let Ok(system) = &mut bench.docker {
        system.delete_all().await?;
    }
    measured
}

async fn docker_terminal(bench: &mut Bench) -> anyhow::Result<Terminal> {
    let docker = bench.docker.as_mut().map_err(|reason| anyhow::anyhow!(reason.clone()))?;
    let id = docker.create().await?;
    Ok(Terminal::Docker(Box::new(docker.exec(&id, &["bash"], true).await?)))
}

async fn take_turns(
    bench: &mut Bench,
    sandbox: &str,
    docker: &mut Result<Terminal, String>,
) -> anyhow::Result<Vec<Line>> {
    let mut terminal = Terminal::Warren(Box::new(bench.warren.start_terminal(sandbox).await?));
    terminal.type_line(LINE).await?;
    let (mut warren, mut other) = (Vec::new(), Vec::new());
    let rounds = bench.sizes.keystrokes.div_ceil(LINE);
    for round in 0..rounds {
        let keys = share(bench.sizes.keystrokes, rounds, round);
        warren.extend(terminal.type_line(keys).await?);
        if let Ok(system) = docker {
            let mut lines = Vec::new();
            let measured = system.type_line(keys).await;
            keep(docker, &mut lines, measured);
            other.extend(lines.into_iter().flatten());
        }
    }
    let unit = Unit::Milliseconds;
    let warren = Line::new(FIGURE, WARREN, unit, warren)
        .aim(50, true, 1.0)
        .note("the shell is bash, which echoes itself; Warren through a WebSocket, Docker through its attach stream");
    let docker = peer_line(FIGURE, "Docker exec -t", unit, docker, other).against(&warren.samples, 50, None);
    Ok(vec![warren, docker])
}

// === impl Terminal ===

impl Terminal {
    /// Types this many keys on a fresh line, each after the echo of the one before; milliseconds of each.
    async fn type_line(&mut self, keys: usize) -> anyhow::Result<Vec<f64>> {
        self.send(CLEAR).await?;
        while let Ok(some) = tokio::time::timeout(QUIET, self.receive()).await {
            some?;
        }
        let mut echoes = Vec::with_capacity(keys);
        for _ in 0..keys {
            let begun = Instant::now();
            self.send(&[KEY]).await?;
            let echo = async {
                while !self.receive().await?.contains(&KEY) {}
                anyhow::Ok(())
            };
            tokio::time::timeout(ECHO_LIMIT, echo).await.context("the terminal does not echo")??;
            echoes.push(milliseconds(begun.elapsed()));
        }
        ensure!(echoes.len() == keys, "keys were lost");
        Ok(echoes)
    }

    async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Warren(socket) => socket.send(Bytes::copy_from_slice(bytes)).await,
            Self::Docker(stream) => stream.send(bytes).await,
        }
    }

    async fn receive(&mut self) -> anyhow::Result<Bytes> {
        match self {
            Self::Warren(socket) => socket.receive().await,
            Self::Docker(stream) => stream.receive().await,
        }
    }
}
