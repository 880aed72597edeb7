//! Bad neighbours: readers that stop, connections that talk nonsense.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use warren_guest_api::Status;
use warren_guest_api::exec::{Exec, LOG_BYTES};
use warren_guest_api::frame::Frame;

use crate::client::{Agent, patiently, until};

#[tokio::test(flavor = "current_thread")]
async fn a_slow_reader_holds_the_command_back_and_loses_nothing() {
    let Some(agent) = Agent::start().await else { return };
    let total = LOG_BYTES + (32 << 20);
    let exec = agent.exec("head", &["-c", &total.to_string(), "/dev/zero"], Value::Null).await;
    let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach?offset=0", exec.id)).await;
    let (start, replayed) = frames.replay().await;
    assert_eq!(start, 0);
    until("the log is full", || async { agent.status(&exec).await.log_end > LOG_BYTES - (8 << 20) }).await;
    // Others are served meanwhile.
    assert_eq!(agent.run("echo hi", Value::Null).await.text(), "hi\n");
    let held: Exec = agent.get(&format!("/v1/exec/{}/wait?ms=200", exec.id)).await.json();
    assert!(held.running && held.log_end < total, "not held back: {held:?}");
    let mut seen = replayed.stdout.len() as u64;
    let exit = loop {
        match frames.next().await.unwrap() {
            Frame::Stdout(bytes) => seen += bytes.len() as u64,
            Frame::Exit(exit) => break exit,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!((seen, exit.code), (total, 0));
}

#[tokio::test(flavor = "current_thread")]
async fn readers_of_all_speeds_see_the_same_bytes() {
    let Some(agent) = Agent::start().await else { return };
    let exec =
        agent.exec("sh", &["-c", "seq 1 300000; seq 1 1000 >&2; seq 300001 600000"], Value::Null).await;
    let path = format!("/v1/exec/{}/attach?offset=", exec.id);
    let (_one, mut early) = agent.attach(&format!("{path}0")).await;
    let (_, mut from_start) = early.replay().await;
    agent.wait(&exec).await;
    let rest = early.rest().await;
    from_start.stdout.extend_from_slice(&rest.stdout);
    let expected: String = (1..=600_000).map(|number| format!("{number}\n")).collect();
    assert!(from_start.stdout == expected.as_bytes(), "{} of {}", from_start.stdout.len(), expected.len());
    let raw = agent.get(&format!("/v1/exec/{}/output?stream=stdout", exec.id)).await;
    assert!(raw.body == expected);
    let (_two, mut late) = agent.attach(&format!("{path}1000001")).await;
    let (start, replayed) = late.replay().await;
    assert_eq!(start, 1_000_001);
    assert!(replayed.stdout == expected.as_bytes()[1_000_001..]);
    assert_eq!(late.rest().await.code(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn with_nobody_attached_the_oldest_output_goes() {
    let Some(agent) = Agent::start().await else { return };
    let total = LOG_BYTES + (16 << 20);
    let exec = agent.exec("head", &["-c", &total.to_string(), "/dev/zero"], Value::Null).await;
    assert_eq!(agent.wait(&exec).await.code, 0, "nobody holds it back");
    let exec = agent.status(&exec).await;
    assert_eq!(exec.log_end, total);
    assert!(exec.log_start > 0 && exec.log_end - exec.log_start <= LOG_BYTES, "{exec:?}");
    let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach?offset=0", exec.id)).await;
    assert!(matches!(frames.next().await, Some(Frame::Started { offset, .. }) if offset == exec.log_start));
}

#[tokio::test(flavor = "current_thread")]
async fn output_that_is_not_to_be_kept_reaches_its_reader_and_no_file() {
    let Some(agent) = Agent::start().await else { return };
    let total = 24 << 20;
    let unkept = || json!({"unkept": true});
    let ran = agent.run(&format!("yes a line of it | head -c {total}; echo end >&2"), unkept()).await;
    assert_eq!((ran.stdout.len(), ran.stderr.as_slice(), ran.code()), (total, &b"end\n"[..], 0));
    // With nobody who reads it, it goes on.
    let exec = agent.exec("head", &["-c", &total.to_string(), "/dev/zero"], unkept()).await;
    assert_eq!(agent.wait(&exec).await.code, 0);
    let exec = agent.status(&exec).await;
    assert!(exec.log_end == total as u64 && exec.log_start > 16 << 20, "memory has the newest: {exec:?}");
    let logged = agent.call(Method::POST, "/v1/logs", json!({"filter": {}, "limit": 10}).to_string()).await;
    assert_eq!(logged.body, "\n", "and there are no rows of it");
    assert!(!agent.path("output").exists() && !agent.path("journal").exists());
}

#[tokio::test(flavor = "current_thread")]
async fn garbage_on_a_connection_harms_nothing() {
    let Some(agent) = Agent::start().await else { return };
    let socket = agent.path("socket");
    let exec = agent.exec("sleep", &["1000"], Value::Null).await;
    for noise in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0xff; 64],
        b"WARRENGA\0\x02\0\x02\0\0\0\x01this is no preface at all",
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let _ = stream.write_all(noise).await;
        let mut answer = Vec::new();
        let _ = patiently(stream.read_to_end(&mut answer)).await;
    }
    // Those that say nothing are given up, so they cannot keep others out for long.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(UnixStream::connect(&socket).await.unwrap());
    }
    let mut agent = agent;
    agent.reconnect().await;
    assert!(agent.status(&exec).await.running);
    let status: Status = agent.get("/v1/status").await.json();
    assert_eq!((status.execs_running, status.ptys_running), (1, 0));
    for (method, path, code) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1/exec/x/y/z", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::DELETE, "/v1/exec", 405),
        (Method::POST, "/v1/status", 405),
        (Method::POST, "/v1/files/list?path=/", 405),
        (Method::PUT, "/v1/pty", 405),
    ] {
        agent.call(method, path, "").await.error(code);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_idle_agent_sleeps() {
    let Some(agent) = Agent::start().await else { return };
    agent.run("head -c 3000000 /dev/zero", json!({})).await;
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let switches = || -> u64 {
        std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
            .map(|(_, count)| count.trim().parse::<u64>().unwrap())
            .sum()
    };
    // Once it has given its memory back nothing is left to do.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let before = (ticks(), switches());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((ticks(), switches()), before, "it does something all the time");
}
