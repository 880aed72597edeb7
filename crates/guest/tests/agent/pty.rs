//! Terminals.

use bytes::Bytes;
use http::Method;
use serde_json::json;
use warren_guest_api::exec::ExitReason;
use warren_guest_api::frame::Frame;
use warren_guest_api::pty::{Pty, SCROLLBACK_BYTES};

use crate::client::{Agent, Frames, is_alive, stdin, until};

async fn open(agent: &Agent, request: serde_json::Value) -> Pty {
    let answer = agent.call(Method::POST, "/v1/pty", request.to_string()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

async fn see(frames: &mut Frames, text: &str) -> String {
    let outcome = frames.until(|seen| String::from_utf8_lossy(&seen.stdout).contains(text)).await;
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

#[tokio::test(flavor = "current_thread")]
async fn a_shell_on_a_terminal_talks_with_all_who_are_attached() {
    let Some(agent) = Agent::start().await else { return };
    let pty = open(&agent, json!({"cols": 100, "rows": 30, "shell": "/bin/sh"})).await;
    assert_eq!((pty.cols, pty.rows, pty.attached_clients), (100, 30, 0));
    let path = format!("/v1/pty/{}/attach", pty.id);
    let (keys, mut screen) = agent.attach(&path).await;
    keys.send(stdin("echo \"$TERM $COLUMNS $LINES $MARK\" $(stty size) $(id -u) `tty`; pwd\n"))
        .await
        .unwrap();
    let seen = see(&mut screen, &format!("\r\n{}\r\n", agent.folder.path().display())).await;
    assert!(seen.contains("xterm-256color 100 30 from-boot 30 100 1000 /dev/pts/"), "{seen}");
    let resize =
        agent.call(Method::POST, &format!("/v1/pty/{}/resize", pty.id), r#"{"cols": 40, "rows": 10}"#).await;
    assert_eq!(resize.status, 204);
    keys.send(stdin("stty size; echo $((40+2))\n")).await.unwrap();
    assert!(see(&mut screen, "42\r\n$ ").await.contains("10 40"));
    let (_other_keys, mut other_screen) = agent.attach(&path).await;
    assert!(see(&mut other_screen, "42\r\n").await.contains("from-boot"), "the scrollback comes first");
    // Control characters do what they do on a terminal.
    keys.send(stdin("cat\nmeow\n")).await.unwrap();
    see(&mut screen, "meow\r\nmeow\r\n").await;
    keys.send(stdin("\u{3}")).await.unwrap();
    see(&mut screen, "^C\r\n$ ").await;
    keys.send(stdin("echo inter''rupted\n")).await.unwrap();
    see(&mut screen, "interrupted\r\n").await;
    see(&mut other_screen, "interrupted\r\n").await;
    keys.send(stdin("exit 7\n")).await.unwrap();
    for frames in [screen, other_screen] {
        assert_eq!(frames.rest().await.code(), 7);
    }
    until("the terminal is forgotten", || async { agent.get("/v1/pty").await.json::<Vec<Pty>>().is_empty() })
        .await;
    agent.call(Method::POST, &path, "").await.error(404);
}

#[tokio::test(flavor = "current_thread")]
async fn characters_arrive_whole() {
    let Some(agent) = Agent::start().await else { return };
    let pty = open(&agent, json!({"shell": "/bin/sh"})).await;
    let (keys, mut screen) = agent.attach(&format!("/v1/pty/{}/attach", pty.id)).await;
    // The kernel's echo cuts into what programs write.
    keys.send(stdin("stty -echo; echo qui''et; exec cat\n")).await.unwrap();
    see(&mut screen, "quiet\r\n").await;
    let text = "žluťoučký kůň 🦀 漢字 ".repeat(12);
    for _ in 0..100 {
        keys.send(stdin(&format!("{text}\n"))).await.unwrap();
    }
    let mut lines = 0;
    while lines < 100 {
        let Some(Frame::Stdout(bytes)) = screen.next().await else { panic!("the stream ended") };
        let piece = std::str::from_utf8(&bytes).expect("no character is cut in two");
        lines += piece.matches('\n').count();
    }
    // What is no text is not waited for in vain.
    keys.send(Ok(Frame::Stdin(Bytes::from_static(b"\xe6\xbc\n")).to_bytes())).await.unwrap();
    screen.until(|seen| seen.stdout.windows(2).filter(|pair| pair == b"\xe6\xbc").count() == 1).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_terminal_nobody_watches_goes_on_and_keeps_its_last_lines() {
    let Some(agent) = Agent::start().await else { return };
    let pty = open(&agent, json!({"shell": "/bin/sh"})).await;
    let path = format!("/v1/pty/{}/attach", pty.id);
    let (keys, mut screen) = agent.attach(&path).await;
    keys.send(stdin("seq 1 200000; echo the''end\n")).await.unwrap();
    see(&mut screen, "\r\n2\r\n").await;
    drop((keys, screen));
    let (_keys, mut screen) = agent.attach(&path).await;
    let seen = see(&mut screen, "theend").await;
    assert!(seen.contains("200000\r\n"));
    let (_keys, mut screen) = agent.attach(&path).await;
    let seen = see(&mut screen, "theend").await;
    assert!(seen.len() <= SCROLLBACK_BYTES && seen.len() > SCROLLBACK_BYTES / 2, "{}", seen.len());
}

#[tokio::test(flavor = "current_thread")]
async fn input_that_nobody_reads_ends_with_its_terminal() {
    let Some(agent) = Agent::start().await else { return };
    for delete in [true, false] {
        let pty = open(&agent, json!({"shell": "/bin/sh"})).await;
        let path = format!("/v1/pty/{}", pty.id);
        let (keys, mut screen) = agent.attach(&format!("{path}/attach")).await;
        let seconds = if delete { 1000 } else { 2 };
        let script = format!("stty raw -echo; echo rea''dy; exec sleep {seconds}\n");
        keys.send(stdin(&script)).await.unwrap();
        see(&mut screen, "ready").await;
        // More than the kernel keeps for who does not read.
        for _ in 0..8 {
            keys.send(stdin(&"x".repeat(30_000))).await.unwrap();
        }
        drop((keys, screen));
        if delete {
            assert_eq!(agent.call(Method::DELETE, &path, "").await.status, 204);
        }
        let is_over = || async { agent.get("/v1/pty").await.json::<Vec<Pty>>().is_empty() };
        until("the terminal is forgotten", is_over).await;
        assert_eq!(agent.run("echo here", json!({})).await.text(), "here\n");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn deleting_a_terminal_ends_what_it_started() {
    let Some(agent) = Agent::start().await else { return };
    let pty = open(&agent, json!({"shell": "/bin/sh"})).await;
    let (keys, mut screen) = agent.attach(&format!("/v1/pty/{}/attach", pty.id)).await;
    keys.send(stdin("setsid sh -c 'echo child=$$=; exec sleep 1000' &\n")).await.unwrap();
    let child_in = |seen: &[u8]| -> Option<String> {
        let text = String::from_utf8_lossy(seen).into_owned();
        let numbers = text.split("child=").filter_map(|after| Some(after.split_once('=')?.0.to_owned()));
        numbers.into_iter().find(|number| number.parse::<u32>().is_ok())
    };
    let seen = screen.until(|seen| child_in(&seen.stdout).is_some()).await;
    let child = child_in(&seen.stdout).unwrap();
    assert!(is_alive(&child), "{seen:?}");
    let delete = agent.call(Method::DELETE, &format!("/v1/pty/{}", pty.id), "").await;
    assert_eq!(delete.status, 204);
    agent.call(Method::DELETE, &format!("/v1/pty/{}", pty.id), "").await.error(404);
    assert_eq!(screen.rest().await.exit.map(|exit| exit.reason), Some(ExitReason::Signalled));
    if agent.has_cgroups() {
        until("its child is dead", || async { !is_alive(&child) }).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn terminals_that_make_no_sense_are_refused() {
    let Some(agent) = Agent::start().await else { return };
    let call = |request: &'static str| agent.call(Method::POST, "/v1/pty", request);
    call(r#"{"cols": 0}"#).await.error(400);
    call(r#"{"cols": 70000}"#).await.error(400);
    call("7").await.error(400);
    let error = call(r#"{"shell": "/no/such"}"#).await.error(400);
    assert!(error.message.contains("/no/such"), "{}", error.message);
    agent.call(Method::POST, "/v1/pty/00000000/resize", r#"{"cols": 1, "rows": 1}"#).await.error(404);
    assert!(agent.get("/v1/pty").await.json::<Vec<Pty>>().is_empty());
}
