//! Logs: events byte for byte, their end, what is refused.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use warren_guest_api::logs::Source;
use warren_types::SandboxState;

use crate::harness::{Server, eventually};
use crate::sim::logs::Log;

const ROW: &str = r#"{"time_ms":1500,"source":"exec_stdout","line":"hi \u00e9\n","exec_id":"0123abcd","command":"sh","argv":["sh","-c"],"exit_code":3}"#;

fn event(id: &str) -> String {
    format!(
        "data: {{\"_time\":\"1970-01-01T00:00:01.5Z\",\"source\":\"exec_stdout\",\"line\":\"hi é\\n\",\"sandbox_id\":\"{id}\",\
         \"exec_id\":\"0123abcd\",\"command\":\"sh\",\"argv\":[\"sh\",\"-c\"],\"exit_code\":3}}\n\n"
    )
}

fn log(server: &Server, id: &str) -> Arc<Log> {
    Arc::clone(&server.node.state().sandboxes[&id.parse().unwrap()].log)
}

fn write_history(server: &Server, id: &str, text: &str) {
    *log(server, id).history.lock().unwrap() = text.to_owned();
}

#[tokio::test]
async fn history_is_sent_as_events_and_ends() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    write_history(&server, &id, &format!("{ROW}\n{ROW}\n"));
    let answer = server.acme.get(&format!("/api/sandboxes/{id}/logs?tail=false")).await.is(200);
    assert_eq!(answer.text, event(&id).repeat(2));
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    let path = format!(
        "/api/sandboxes/{id}/logs?tail=0&q=x%20y&source=agent,var_log&limit=20000&since=1970-01-01T00:00:09Z"
    );
    server.acme.get(&path).await.is(200);
    let asked = log(&server, &id).asked.lock().unwrap().clone();
    assert!(!asked[0].follow && asked[0].limit == 1000 && asked[0].filter.since_ms > Some(1_700_000_000_000));
    assert_eq!((asked[1].limit, asked[1].filter.since_ms), (10_000, Some(9000)));
    assert_eq!(asked[1].filter.text.as_deref(), Some("x y"));
    assert_eq!(asked[1].filter.sources, [Source::Agent, Source::VarLog]);
    server.acme.get(&format!("/api/sandboxes/{id}/logs?limit=x")).await.is(400).error();
    server.acme.get(&format!("/api/sandboxes/{id}/logs?q=%ff")).await.is(400).error();
    server.rival.get(&format!("/api/sandboxes/{id}/logs")).await.is(404).error();
    assert_eq!(log(&server, &id).asked.lock().unwrap().len(), 2, "nothing is asked for what is refused");
}

#[tokio::test]
async fn live_rows_follow_until_the_sandbox_ends() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    write_history(&server, &id, &format!("{ROW}\n"));
    let request = server.acme.request(Method::GET, &format!("/api/sandboxes/{id}/logs"));
    let mut answer = request.send().await.unwrap();
    let mut seen = String::new();
    let log = log(&server, &id);
    let next = async |answer: &mut reqwest::Response| {
        let chunk = tokio::time::timeout(Duration::from_secs(10), answer.chunk()).await.expect("in time");
        chunk.unwrap().map(|chunk| String::from_utf8(chunk.to_vec()).unwrap())
    };
    seen += &next(&mut answer).await.unwrap();
    assert_eq!(seen, event(&id));
    // Rows come in any pieces.
    let (start, rest) = ROW.split_at(20);
    for piece in [start, rest, "\n"] {
        log.live.send(Some(piece.to_owned())).unwrap();
    }
    assert_eq!(next(&mut answer).await.unwrap(), event(&id));
    log.live.send(None).unwrap();
    assert_eq!(next(&mut answer).await, None, "a proper end");
}

#[tokio::test]
async fn a_reader_that_leaves_is_noticed_at_once() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let log = log(&server, &id);
    let answer = server.acme.request(Method::GET, &format!("/api/sandboxes/{id}/logs")).send().await.unwrap();
    eventually("it is followed", async || (log.live.receiver_count() == 1).then_some(())).await;
    drop(answer);
    eventually("it is not followed any more", async || (log.live.receiver_count() == 0).then_some(())).await;
    let _held = server.acme.request(Method::GET, &format!("/api/sandboxes/{id}/logs")).send().await.unwrap();
    // Ends although somebody follows.
    server.stop().await;
}

#[tokio::test]
async fn what_a_guest_sends_that_is_no_row_breaks_the_history_off() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    write_history(&server, &id, &format!("{ROW}\nnonsense\n"));
    let request = server.acme.request(Method::GET, &format!("/api/sandboxes/{id}/logs?tail=false"));
    request.send().await.unwrap().text().await.expect_err("it is not the end of the history");
}

#[tokio::test]
async fn a_sandbox_that_does_not_run_shows_its_history_and_stays_as_it_is() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    write_history(&server, &id, &format!("{ROW}\n"));
    let path = format!("/api/sandboxes/{id}/logs");
    server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), serde_json::json!({})).await.is(200);
    assert_eq!(server.acme.get(&path).await.is(200).text, event(&id));
    assert_eq!(server.acme.status(&id).await, "hibernated");
    server.node.change(&id, SandboxState::Error, Some("it broke"));
    eventually("it is stored", async || (server.acme.status(&id).await == "error").then_some(())).await;
    assert_eq!(server.acme.get(&path).await.is(200).text, event(&id));
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    assert_eq!(server.acme.get(&path).await.is(410).error(), format!("sandbox {id} has been stopped"));
}
