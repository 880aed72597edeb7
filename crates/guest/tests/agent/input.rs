//! Input and its credit: what senders may, what happens to what they leave behind.

use bytes::Bytes;
use http::Method;
use serde_json::json;
use warren_guest_api::exec::Exec;
use warren_guest_api::frame::{Frame, MAX_PAYLOAD};
use warren_guest_api::input::WINDOW;

use crate::client::{Agent, Sent, patiently, sent, stdin, until};

fn zeros(length: usize) -> Bytes {
    Frame::Stdin(Bytes::from(vec![0; length])).to_bytes()
}

async fn unread(agent: &Agent) -> (Exec, String) {
    let exec = agent.exec("sh", &["-c", "read go < go; wc -c; echo end"], json!({"stdin": true})).await;
    let path = format!("/v1/exec/{}/input", exec.id);
    (exec, path)
}

/// Makes the command of [`unread`] read.
fn make_fifo(agent: &Agent) {
    let fifo = agent.path("go");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    std::fs::set_permissions(&fifo, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_leaves_with_its_input_unread_is_gone_at_once_and_its_input_arrives() {
    let Some(agent) = Agent::start().await else { return };
    make_fifo(&agent);
    let (exec, path) = unread(&agent).await;
    let (keys, output) = agent.attach(&path.replace("/input", "/attach")).await;
    keys.send(Ok(zeros(3_000_000))).await.unwrap();
    keys.send(sent(&Frame::StdinEnd)).await.unwrap();
    assert_eq!(agent.status(&exec).await.attached_clients, 1);
    drop((keys, output));
    until("nobody is attached", || async { agent.status(&exec).await.attached_clients == 0 }).await;
    std::fs::write(agent.path("go"), "\n").unwrap();
    assert_eq!(agent.wait(&exec).await.code, 0);
    let output = agent.get(&format!("/v1/exec/{}/output", exec.id)).await;
    assert_eq!(String::from_utf8_lossy(&output.body), "3000000\nend\n");
}

#[tokio::test(flavor = "current_thread")]
async fn the_window_is_taken_off_the_wire_though_nobody_reads_and_not_a_byte_more() {
    let Some(agent) = Agent::start().await else { return };
    make_fifo(&agent);
    let (exec, path) = unread(&agent).await;
    let (body, mut grants) = agent.input(&path).await;
    body.send(Ok(zeros(MAX_PAYLOAD))).await.unwrap();
    // Everything is sent: the channel behind the connection's small window is empty again.
    until("all is taken off the wire", || async { body.capacity() == body.max_capacity() }).await;
    std::fs::write(agent.path("go"), "\n").unwrap();
    let mut granted = 0;
    while granted < WINDOW - WINDOW / 8 {
        let Some(Frame::InputTaken(bytes)) = patiently(grants.next()).await else { panic!("no grant") };
        granted += bytes as usize;
    }
    assert!(granted <= WINDOW);
    body.send(sent(&Frame::StdinEnd)).await.unwrap();
    assert_eq!(agent.wait(&exec).await.code, 0);
    // Beyond the window: broken off, and the command goes on.
    let (exec, path) = unread(&agent).await;
    let (body, mut grants) = agent.input(&path).await;
    let (other, _other_grants) = agent.input(&path).await;
    for piece in [zeros(MAX_PAYLOAD), zeros(1 << 20)] {
        body.send(Ok(piece)).await.unwrap();
    }
    assert!(patiently(grants.try_next()).await.is_err(), "a sender that goes beyond its credit is refused");
    assert!(agent.status(&exec).await.running);
    std::fs::write(agent.path("go"), "\n").unwrap();
    other.send(stdin("of the other")).await.unwrap();
    other.send(sent(&Frame::StdinEnd)).await.unwrap();
    assert_eq!(agent.wait(&exec).await.code, 0, "others may still send");
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_input_is_refused_and_what_nobody_wants_is_ended() {
    let Some(agent) = Agent::start().await else { return };
    let exec = agent.exec("cat", &["-"], json!({"stdin": true})).await;
    let path = format!("/v1/exec/{}/input", exec.id);
    for frame in [Frame::Stdout(Bytes::from_static(b"x")), Frame::InputTaken(1), Frame::ReplayEnd] {
        let (body, mut grants) = agent.input(&path).await;
        body.send(sent(&frame)).await.unwrap();
        assert!(patiently(grants.try_next()).await.is_err(), "{frame:?}");
    }
    let (body, mut grants) = agent.input(&path).await;
    body.send(sent(&Frame::StdinEnd)).await.unwrap();
    assert_eq!(patiently(grants.next()).await, None, "after the end of the input no more is wanted");
    assert_eq!(agent.wait(&exec).await.code, 0);
    let (_body, mut grants) = agent.input(&path).await;
    assert_eq!(patiently(grants.next()).await, None, "nor of a command that has ended");
    let exec = agent.exec("sleep", &["1000"], json!({})).await;
    let (_body, mut grants) = agent.input(&format!("/v1/exec/{}/input", exec.id)).await;
    assert_eq!(patiently(grants.next()).await, None, "nor of one without a standard input");
    agent.call(Method::POST, "/v1/exec/00000000/input", "").await.error(404);
    agent.call(Method::POST, "/v1/pty/00000000/input", "").await.error(404);
    agent.call(Method::GET, &path, "").await.error(405);
}

#[tokio::test(flavor = "current_thread")]
async fn senders_are_counted_until_what_they_left_is_taken() {
    let Some(agent) = Agent::start().await else { return };
    let exec = agent.exec("sleep", &["1000"], json!({"stdin": true})).await;
    let path = format!("/v1/exec/{}/input", exec.id);
    for _ in 0..128 {
        let (body, mut grants) = agent.input(&path).await;
        body.send(Ok(zeros(70_000))).await.unwrap();
        drop(body);
        assert_eq!(patiently(grants.next()).await, None, "it has arrived");
    }
    let answer = agent.open(Method::POST, &path, Sent::Whole(None)).await;
    assert_eq!(answer.status(), 503);
    agent.kill(&exec, 9).await;
    agent.wait(&exec).await;
    until("all are let go", || async {
        agent.open(Method::POST, &path, Sent::Whole(None)).await.status() == 200
    })
    .await;
}
