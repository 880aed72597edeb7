//! Virtual machines: restored against booted, and the rows of their past. One at a time; what else there is to be had is
//! the other rows.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Clock, Peer, SETTLE, milliseconds, peer_line};
use crate::qemu::Qemu;
use crate::report::{Line, Unit, WARREN};
use crate::warren::Warren;

pub(super) const FIGURE: &str = "machine: create to first output";
const BOOT: &str = "a cold boot of the same machine";
const PAUSE: &str = "machine: checkpoint pause";
const FORK: &str = "machine: fork to first output";
const RESTORE: &str = "machine: restore in place to first output";
const HIBERNATE: &str = "machine: hibernate, 300 MB touched";
const WAKE: &str = "machine: wake to first output, 300 MB touched";
const FORKS: &str = "machine: 20 forks at once, all to first output";
const SAMPLES: usize = 20;
const BOOTS: usize = 3;
/// Of a QEMU that is taken by its own means, which takes far longer.
const PEER_SAMPLES: usize = 5;
const AT_ONCE: usize = 20;
const MEMORY_MB: u32 = 1024;
const LARGE_MB: u32 = 4096;
/// After a create, so that another machine waits for the next: creates do not come one after the other for ever.
const REST: Duration = Duration::from_millis(2500);
const PREPARE: &str = "echo hi > ~/said; sync";
const SAY: &str = "cat ~/said";
/// Memory that is not a file's.
const TOUCH: &str =
    "python3 -c 'import time; kept = bytearray(300 << 20); print(1, flush=True); time.sleep(100000)'";

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<Vec<Line>> {
    let (saved, loaded) = by_its_own_means(&mut bench.qemu).await;
    let clock = Clock::start(bench);
    let warren = &mut bench.warren;
    // The first of a kind waits for a boot.
    for memory in [LARGE_MB, MEMORY_MB] {
        let first = warren.create_machine(memory).await?;
        warren.delete(&first).await?;
    }
    let (create, in_a_row) = creates(warren, &clock).await?;
    let boot = boots(warren).await?;
    let unit = Unit::Milliseconds;
    let mut lines = vec![
        Line::new(FIGURE, WARREN, unit, create)
            .aim(50, true, 150.0)
            .note("taken from the two that wait restored; 2.5 s between creates, so that there is one"),
    ];
    let restored = Line::new(FIGURE, "restored on the spot", unit, in_a_row)
        .against(&lines[0].samples, 50, None)
        .note("one after the other: more than there are waiting");
    let booted = Line::new(FIGURE, BOOT, unit, boot)
        .against(&lines[0].samples, 50, Some(0.05))
        .note("power-cycle, exec");
    lines.extend([restored, booted]);
    for memory in [MEMORY_MB, LARGE_MB] {
        let pauses = pauses(warren, memory).await?;
        let figure = format!("{PAUSE}, {memory} MB of memory");
        let pause = Line::new(&figure, WARREN, unit, pauses)
            .aim(50, true, 10.0)
            .note("memory, processes and a disk of 20 GiB; measured by the server");
        let peer = (memory == MEMORY_MB).then(|| {
            peer_line(&figure, "QEMU savevm", unit, &bench.qemu, saved.clone())
                .against(&pause.samples, 50, None)
                .note("the same kernel, idle; it stands still while all its memory is written into its disk, a qcow2")
        });
        lines.push(pause);
        lines.extend(peer);
    }
    let (fork, restore, at_once) = forks(warren).await?;
    let fork = Line::new(FORK, WARREN, unit, fork).note("goes on with its memory");
    let create = Line::new(FORK, "a create", unit, lines[0].samples.values().to_vec()).against(
        &fork.samples,
        50,
        Some(1.2),
    );
    let restore = Line::new(RESTORE, WARREN, unit, restore);
    let forked = Line::new(RESTORE, "a fork", unit, fork.samples.values().to_vec()).against(
        &restore.samples,
        50,
        Some(1.0),
    );
    let reloaded = peer_line(RESTORE, "QEMU loadvm", unit, &bench.qemu, loaded)
        .against(&restore.samples, 50, None)
        .note("until QEMU says that it runs on; no output was waited for");
    lines.extend([fork, create, restore, forked, reloaded]);
    lines.push(Line::new(FORKS, WARREN, unit, at_once).aim(50, true, 3000.0));
    let (down, up) = rests(warren).await?;
    lines.push(Line::new(HIBERNATE, WARREN, unit, down).aim(50, true, 400.0));
    lines.push(Line::new(WAKE, WARREN, unit, up).aim(50, true, 150.0));
    Ok(lines)
}

/// What QEMU does with a machine by itself: milliseconds of each `savevm`, and of each `loadvm`. One that fails is left out.
async fn by_its_own_means(qemu: &mut Peer<Qemu>) -> (Vec<f64>, Vec<f64>) {
    let Ok(system) = qemu else { return Default::default() };
    match saves_and_loads(system).await {
        Ok(taken) => taken,
        Err(error) => {
            *qemu = Err(format!("{error:#}"));
            Default::default()
        }
    }
}

async fn saves_and_loads(qemu: &Qemu) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let mut machine = qemu.boot(MEMORY_MB).await?;
    let (mut saved, mut loaded) = (Vec::new(), Vec::new());
    for _ in 0..PEER_SAMPLES {
        saved.push(milliseconds(machine.save("bench").await?));
        tokio::time::sleep(SETTLE).await;
        loaded.push(milliseconds(machine.load("bench").await?));
        machine.forget("bench").await?;
    }
    machine.end().await?;
    Ok((saved, loaded))
}

async fn creates(warren: &mut Warren, clock: &Clock) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut waiting, mut in_a_row) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        tokio::time::sleep(REST).await;
        waiting.push(create_once(warren).await?);
        if clock.is_over() {
            break;
        }
    }
    for number in 0..SAMPLES / 2 {
        let taken = create_once(warren).await?;
        if number >= 3 {
            in_a_row.push(taken);
        }
    }
    Ok((waiting, in_a_row))
}

async fn create_once(warren: &mut Warren) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let id = warren.create_machine(MEMORY_MB).await?;
    let said = warren.run(&id, "echo hi").await;
    let taken = begun.elapsed();
    warren.delete(&id).await?;
    ensure!(said? == "hi\n", "a new machine said something else");
    Ok(milliseconds(taken))
}

async fn boots(warren: &mut Warren) -> anyhow::Result<Vec<f64>> {
    let id = warren.create_machine(MEMORY_MB).await?;
    let mut boots = Vec::new();
    for _ in 0..BOOTS {
        let begun = Instant::now();
        warren.power_cycle(&id).await?;
        warren.run(&id, "echo hi").await?;
        boots.push(milliseconds(begun.elapsed()));
    }
    warren.delete(&id).await?;
    Ok(boots)
}

async fn pauses(warren: &mut Warren, memory: u32) -> anyhow::Result<Vec<f64>> {
    let id = warren.create_machine(memory).await?;
    let mut pauses = Vec::new();
    for number in 0..SAMPLES {
        warren.run(&id, "date > ~/little").await?;
        let taken = warren.checkpoint_all(&id, &format!("bench {number}")).await?;
        warren.wait_checkpoint(&id, &taken.id).await?;
        warren.delete_checkpoint(&id, &taken.id).await?;
        // The first writes out what the machine was made with.
        if number > 0 {
            pauses.push(taken.pause);
        }
    }
    warren.delete(&id).await?;
    Ok(pauses)
}

async fn forks(warren: &mut Warren) -> anyhow::Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let id = warren.create_machine(MEMORY_MB).await?;
    warren.run(&id, PREPARE).await?;
    let checkpoint = warren.checkpoint_all(&id, "bench").await?.id;
    warren.wait_checkpoint(&id, &checkpoint).await?;
    let (mut fork, mut restore) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let begun = Instant::now();
        let other = warren.fork(&checkpoint).await?;
        let said = warren.run(&other, SAY).await;
        fork.push(milliseconds(begun.elapsed()));
        warren.delete(&other).await?;
        ensure!(said? == "hi\n", "a fork said something else");
        tokio::time::sleep(SETTLE).await;
        let begun = Instant::now();
        warren.restore(&id, &checkpoint).await?;
        ensure!(warren.run(&id, SAY).await? == "hi\n", "a restored machine said something else");
        restore.push(milliseconds(begun.elapsed()));
        tokio::time::sleep(SETTLE).await;
    }
    let at_once = at_once(warren, &checkpoint).await?;
    warren.delete(&id).await?;
    Ok((fork, restore, vec![at_once]))
}

async fn at_once(warren: &Warren, checkpoint: &str) -> anyhow::Result<f64> {
    let mut clients = vec![warren.clone(); AT_ONCE];
    for client in &mut clients {
        client.connect().await?;
    }
    let begun = Instant::now();
    let made = futures_util::future::join_all(clients.iter_mut().map(|client| async move {
        let id = client.fork(checkpoint).await?;
        client.run(&id, SAY).await?;
        anyhow::Ok(id)
    }))
    .await;
    let taken = milliseconds(begun.elapsed());
    for (client, id) in clients.iter_mut().zip(made) {
        client.delete(&id?).await?;
    }
    Ok(taken)
}

async fn rests(warren: &mut Warren) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let id = warren.create_machine(MEMORY_MB).await?;
    let _touched = warren.start_command(&id, TOUCH).await?;
    warren.run(&id, "sleep 3").await?;
    let (mut down, mut up) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES / 2 {
        let begun = Instant::now();
        warren.hibernate(&id).await?;
        down.push(milliseconds(begun.elapsed()));
        tokio::time::sleep(SETTLE).await;
        let begun = Instant::now();
        warren.run(&id, "echo hi").await?;
        up.push(milliseconds(begun.elapsed()));
        tokio::time::sleep(SETTLE).await;
    }
    warren.delete(&id).await?;
    Ok((down, up))
}
