//! Bad input gets a 4xx with a sentence, and has no effect.

use http::{Method, header};
use serde_json::json;

use crate::harness::{Server, send};

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let huge = format!("{{\"alias\": \"{}\"}}", "x".repeat(1 << 20));
    let nested = format!("{{\"x\": {}}}", "[".repeat(100_000));
    let run = format!("/api/sandboxes/{id}/exec/run");
    let script = json!({"cmd": "exit 7", "args": ["x".repeat(3 << 20)]}).to_string();
    let exec_huge = json!({"cmd": "x".repeat(4 << 20)}).to_string();
    let long_variable = json!({"envs": {"A": "x".repeat(128 << 10)}}).to_string();
    for (path, body, status) in [
        ("/api/sandboxes", long_variable.as_str(), 400),
        ("/api/sandboxes", "[]", 400),
        ("/api/sandboxes", "nonsense", 400),
        ("/api/sandboxes", "{\"timeout\": ", 400),
        ("/api/sandboxes", "\"x\"", 400),
        ("/api/sandboxes", "{\"timeout\": \"5\"}", 400),
        ("/api/sandboxes", "{\"timeout\": 1e300}", 400),
        ("/api/sandboxes", "{\"envs\": {\"\": \"x\"}}", 400),
        ("/api/sandboxes", "{\"envs\": {\"A\": \"x\\u0000\"}}", 400),
        ("/api/sandboxes", "{\"metadata\": []}", 400),
        ("/api/sandboxes", "{\"memoryMB\": 2048}", 400),
        ("/api/sandboxes", "{\"diskMB\": 1}", 400),
        ("/api/sandboxes", "{\"alias\": \"a\\nb\"}", 400),
        ("/api/sandboxes", "{\"templateID\": \"../x\"}", 404),
        ("/api/sandboxes", "{\"tags\": {\"oc:x\": \"\"}}", 400),
        ("/api/sandboxes", huge.as_str(), 413),
        ("/api/sandboxes", nested.as_str(), 400),
        (run.as_str(), "", 400),
        (run.as_str(), "{\"cmd\": \"\"}", 400),
        (run.as_str(), "{\"cmd\": 5}", 400),
        (run.as_str(), "{\"cmd\": \"x\", \"args\": \"x\"}", 400),
        (run.as_str(), "{\"cmd\": \"x\", \"timeout\": -1}", 400),
        (run.as_str(), "{\"cmd\": \"x\", \"timeout\": 2592001}", 400),
        (run.as_str(), "{\"cmd\": \"x\\u0000\"}", 400),
        (run.as_str(), exec_huge.as_str(), 413),
        (run.as_str(), script.as_str(), 200),
    ] {
        let request = server
            .acme
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "text/plain")
            .body(body.to_owned());
        let answer = send(request).await;
        assert_eq!(answer.status, status, "{path} {}: {answer:?}", &body[..body.len().min(60)]);
        if status != 200 {
            answer.error();
        }
    }
    let missing = send(server.acme.request(Method::POST, &run)).await;
    assert_eq!(missing.error(), "cmd is required");
    assert_eq!(server.node.state().creates, 1, "nothing was made");
    assert_eq!(server.acme.get("/api/sandboxes").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn ids_and_paths_that_cannot_be_name_nothing() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    for bad in [
        "x",
        "sb-",
        "sb-%00%00%00%00",
        "sb-..%2f..%2f",
        "sb-%C3%A9",
        "%ff",
        &"x".repeat(5000),
        &id.to_uppercase(),
    ] {
        for (method, path) in
            [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/exec"), (Method::GET, "/files?path=/x")]
        {
            let answer =
                send(server.acme.request(method, &format!("/api/sandboxes/{bad}{path}"))).await.is(404);
            assert_eq!(answer.error(), "sandbox not found", "{bad}{path}");
        }
    }
    let files = format!("/api/sandboxes/{id}/files");
    for route in ["", "/stat", "/archive"] {
        let none = server.acme.get(&format!("{files}{route}")).await.is(400);
        assert_eq!(none.error(), "path query parameter is required");
    }
    for bad in ["%00", "a%00b", "%", &"x".repeat(4097)] {
        server.acme.get(&format!("{files}?path={bad}")).await.is(400).error();
        server.acme.get(&format!("{files}/list?path={bad}")).await.is(400).error();
    }
    // Names are bytes.
    for none in ["%ff", &"x".repeat(4096)] {
        server.acme.get(&format!("{files}?path={none}")).await.is(404);
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_are_errors_of_ours() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    for path in [
        "/",
        "/nope",
        "/api",
        "/api/nope",
        "/sandboxes",
        &format!("/api/sandboxes/{id}/mounts"),
        &format!("/sandboxes/{id}"),
    ] {
        let error = server.acme.get(path).await.is(404).error();
        assert!(error.contains("not available on this server"), "{error}");
    }
    server.acme.post(&format!("/api/sandboxes/{id}/mounts"), json!({})).await.is(404).error();
    for (method, path) in
        [(Method::PUT, "/api/sandboxes"), (Method::POST, "/health"), (Method::DELETE, "/api/tags")]
    {
        send(server.acme.request(method, path)).await.is(405).error();
    }
}

#[tokio::test]
async fn every_answer_is_named_and_open_to_pages() {
    let server = Server::start().await;
    let name =
        |given: &'static str| server.acme.request(Method::GET, "/health").header("x-request-id", given);
    assert_eq!(send(name("my.Id_1-2")).await.headers["x-request-id"], "my.Id_1-2");
    for unfit in ["a b", "", "{}", "a,b"] {
        assert_ne!(send(name(unfit)).await.headers["x-request-id"], unfit);
    }
    let long = server.acme.request(Method::GET, "/health").header("x-request-id", "x".repeat(129));
    assert!(send(long).await.headers["x-request-id"].len() < 129);
    let preflight = server
        .anonymous()
        .request(Method::OPTIONS, "/api/sandboxes")
        .header("origin", "https://page.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,x-api-key");
    let allowed = send(preflight).await.is(200);
    assert_eq!(allowed.headers["access-control-allow-origin"], "*");
    assert_eq!(allowed.headers["access-control-allow-headers"], "authorization,x-api-key");
    assert!(!allowed.headers.contains_key("access-control-allow-credentials"));
    let refused =
        send(server.anonymous().request(Method::GET, "/api/whoami").header("origin", "https://page.example"));
    assert_eq!(refused.await.is(401).headers["access-control-allow-origin"], "*");
    for (path, status) in [("/health", "ok"), ("/healthz", "alive"), ("/readyz", "ready")] {
        assert_eq!(server.anonymous().get(path).await.is(200).json(), json!({"status": status}));
    }
}
