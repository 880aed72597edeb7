//! Previews and signed URLs. The programs "inside" are real HTTP servers on the loopback of the test.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use warren_types::SandboxState;

use crate::harness::{Answer, Server, send};
use crate::sim::SimNode;

pub(crate) const PORT: u16 = 3000;

/// What arrived: method, path with query, headers, and the body's length.
async fn echo(request: Request) -> axum::Json<Value> {
    let (parts, body) = request.into_parts();
    let length = axum::body::to_bytes(body, 1 << 26).await.unwrap().len();
    let mut headers = serde_json::Map::new();
    for (name, value) in &parts.headers {
        let seen = headers.entry(name.as_str()).or_insert(json!([]));
        seen.as_array_mut().unwrap().push(json!(value.to_str().unwrap()));
    }
    axum::Json(
        json!({"method": parts.method.as_str(), "target": parts.uri.to_string(), "headers": headers, "length": length}),
    )
}

/// An answer with everything a program should not decide.
async fn rude() -> Response {
    let headers = [
        ("set-cookie", "own=1; Domain=localhost; Path=/"),
        ("alt-svc", "h3=\":1\""),
        ("clear-site-data", "\"cookies\""),
        ("access-control-allow-origin", "https://one.example"),
        ("access-control-allow-credentials", "true"),
        ("x-request-id", "forged"),
        ("x-own", "kept"),
    ];
    (headers, "rude").into_response()
}

/// Pieces with a pause between them.
async fn events() -> Response {
    let pieces = futures_util::stream::unfold(0, async |count| {
        if count == 3 {
            std::future::pending::<()>().await;
        }
        Some((Ok::<_, std::convert::Infallible>(format!("data: {count}\n\n")), count + 1))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(pieces)).into_response()
}

async fn socket(upgrade: WebSocketUpgrade, headers: HeaderMap) -> Response {
    let host = headers["host"].to_str().unwrap().to_owned();
    upgrade.protocols(["chat"]).on_upgrade(async move |mut socket| {
        let _ = socket.send(host.into()).await;
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// Starts a program that listens on a port of a sandbox.
pub(crate) async fn listen(server: &Server, id: &str, port: u16) {
    let routes = Router::new()
        .route("/rude", get(rude))
        .route("/events", get(events))
        .route("/socket", get(socket))
        .fallback(any(echo));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    server.node.state().listeners.insert((id.parse().unwrap(), port), listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
}

pub(crate) fn host(id: &str, port: u16) -> String {
    format!("{id}-p{port}.localhost")
}

fn asked(server: &Server, method: Method, id: &str, path: &str) -> reqwest::RequestBuilder {
    asked_at(server, method, &host(id, PORT), path)
}

pub(crate) fn asked_at(server: &Server, method: Method, host: &str, path: &str) -> reqwest::RequestBuilder {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    http.request(method, format!("http://{}{path}", server.address)).header("host", host)
}

pub(crate) async fn ask(server: &Server, id: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = asked(server, Method::GET, id, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request).await
}

/// Bytes as they are, and all that comes back.
async fn raw(server: &Server, text: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    read.expect("the server closes").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_program_sees_who_asked_and_nothing_of_ours() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    listen(&server, &id, PORT).await;
    let request = asked(&server, Method::POST, &id, "/a/b?c=%20d&e")
        .header("x-forwarded-for", "9.9.9.9")
        .header("x-forwarded-host", "evil.example")
        .header("x-oc-preview-token", "whatever")
        .header("authorization", "Bearer own")
        .header("cookie", "warren-preview=1.2; own=1")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body("12345");
    let seen = send(request).await.is(200).json();
    assert_eq!(
        (&seen["method"], &seen["target"], &seen["length"]),
        (&json!("POST"), &json!("/a/b?c=%20d&e"), &json!(5))
    );
    let headers = &seen["headers"];
    assert_eq!(headers["host"], json!([host(&id, PORT)]));
    assert_eq!(headers["x-forwarded-host"], json!([host(&id, PORT)]));
    assert_eq!(headers["x-forwarded-for"], json!(["9.9.9.9, 127.0.0.1"]));
    assert_eq!(headers["x-forwarded-proto"], json!(["http"]));
    assert_eq!(
        headers["authorization"],
        json!(["Bearer own"]),
        "which is the program's while previews are open"
    );
    assert_eq!(headers["cookie"], json!(["own=1"]));
    assert_eq!((headers.get("x-hop"), headers.get("x-oc-preview-token")), (None, None));

    let answer = ask(&server, &id, "/rude", &[("origin", "https://page.example")]).await.is(200);
    assert_eq!(answer.text, "rude");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert!(!answer.headers.contains_key("access-control-allow-credentials"));
    assert!(!answer.headers.contains_key("alt-svc") && !answer.headers.contains_key("clear-site-data"));
    assert_eq!(answer.headers["set-cookie"], "own=1; Path=/");
    assert_ne!(answer.headers["x-request-id"], "forged");
    assert_eq!(answer.headers["x-own"], "kept");
}

#[tokio::test]
async fn a_stream_comes_as_it_is_made_and_a_socket_goes_both_ways() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    listen(&server, &id, PORT).await;
    let mut answer = asked(&server, Method::GET, &id, "/events").send().await.unwrap();
    let mut text = String::new();
    while text.matches("data").count() < 3 {
        let piece = tokio::time::timeout(Duration::from_secs(5), answer.chunk())
            .await
            .expect("it comes before its end");
        text.push_str(std::str::from_utf8(&piece.unwrap().unwrap()).unwrap());
    }

    let mut request = format!("ws://{}/socket", server.address).into_client_request().unwrap();
    request.headers_mut().insert("host", host(&id, PORT).parse().unwrap());
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    let (mut socket, opened) = connect_async(request).await.unwrap();
    assert_eq!(opened.headers()["sec-websocket-protocol"], "chat");
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Text(host(&id, PORT).into()));
    let large = Message::Binary(vec![7; 1 << 20].into());
    socket.send(large.clone()).await.unwrap();
    assert!(socket.next().await.unwrap().unwrap() == large);
    server.shut_down();
    let end =
        tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("it ends with the server");
    assert!(!matches!(end, Some(Ok(Message::Text(_) | Message::Binary(_)))), "{end:?}");
}

#[tokio::test]
async fn a_host_leads_to_one_place() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    listen(&server, &id, PORT).await;
    let preview = host(&id, PORT);
    // The same path is the program's on one host and ours on the other.
    let program =
        send(asked(&server, Method::GET, &id, "/api/sandboxes").header("x-api-key", "k")).await.is(200);
    assert_eq!(program.json()["target"], "/api/sandboxes");
    assert_eq!(server.anonymous().get("/health").await.is(200).json(), json!({"status": "ok"}));
    let request = |target: &str, hosts: &[&str]| {
        let lines: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        format!("GET {target} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n")
    };
    let absolute = format!("http://{preview}/health");
    for (target, hosts, status, reaches) in [
        ("/health", vec![preview.as_str()], 200, true),
        ("/health", vec![&format!("{}:1", preview.to_uppercase())], 200, true),
        (&absolute, vec![preview.as_str()], 200, true),
        (&absolute, vec!["localhost"], 400, false),
        ("http://localhost/health", vec![preview.as_str()], 400, false),
        ("/health", vec![preview.as_str(), "localhost"], 400, false),
        ("/health", vec![&format!("{preview}.")], 400, false),
        ("/health", vec![&format!("x@{preview}")], 400, false),
        ("/health", vec![&format!("{preview}:0x50")], 400, false),
        ("/health", vec![&format!("x.{preview}")], 404, false),
        ("/health", vec![&format!("{id}.localhost")], 404, false),
        ("/health", vec!["api.localhost"], 404, false),
        ("/health", vec![&format!("{id}-p03000.localhost")], 404, false),
        ("/health", vec!["localhost."], 200, false),
    ] {
        let answer = raw(&server, &request(target, &hosts)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target} {hosts:?}: {answer}");
        assert_eq!(answer.contains("\"target\""), reaches, "{target} {hosts:?}: {answer}");
    }
    let connect = raw(
        &server,
        &format!("CONNECT {preview}:80 HTTP/1.1\r\nHost: {preview}:80\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(connect.starts_with("HTTP/1.1 501 "), "{connect}");
}

#[tokio::test]
async fn a_token_opens_a_private_preview_and_is_looked_at_before_anything_happens() {
    let server = Server::start().await;
    let made = server.acme.create(json!({"previewAuth": {"scheme": "bearer", "token": "auto"}})).await;
    let (id, token) = (made["sandboxID"].as_str().unwrap(), made["previewAuthToken"].as_str().unwrap());
    assert_eq!(token.len(), 43);
    assert_eq!(server.acme.get(&format!("/api/sandboxes/{id}")).await.json().get("previewAuthToken"), None);
    listen(&server, id, PORT).await;
    server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);

    let nothing = ask(&server, id, "/", &[]).await.is(401);
    assert_eq!(nothing.error(), "preview URL requires authentication");
    assert_eq!(nothing.headers["www-authenticate"], "Bearer realm=\"preview\"");
    let right = format!("Bearer {token}");
    let wrong = format!("{}x", &token[..42]);
    for headers in [
        vec![("x-oc-preview-token", wrong.as_str())],
        vec![("authorization", "Bearer x")],
        vec![("x-oc-preview-token", ""), ("authorization", right.as_str())],
        vec![("x-oc-preview-token", token), ("x-oc-preview-token", token)],
    ] {
        assert_eq!(
            ask(&server, id, "/", &headers).await.is(401).error(),
            "invalid preview token",
            "{headers:?}"
        );
    }
    for headers in [vec![("authorization", "Basic eDp5")], vec![("cookie", "warren-preview=9999999999.00")]] {
        assert_eq!(
            ask(&server, id, "/", &headers).await.is(401).error(),
            "preview URL requires authentication"
        );
    }
    ask(&server, id, &format!("/?token={token}"), &[]).await.is(401);
    assert_eq!(server.node.state().wakes, 0, "nobody was woken");
    assert_eq!(server.acme.status(id).await, "hibernated");

    let seen = ask(&server, id, "/", &[("authorization", &right)]).await.is(200).json();
    assert_eq!(seen["headers"].get("authorization"), None);
    assert_eq!(server.node.state().wakes, 1);
    let both = [("x-oc-preview-token", token), ("authorization", "Bearer own")];
    let seen = ask(&server, id, "/", &both).await.is(200).json();
    assert_eq!(seen["headers"]["authorization"], json!(["Bearer own"]));
    assert_eq!(seen["headers"].get("x-oc-preview-token"), None);

    let rotated =
        server.acme.post(&format!("/api/sandboxes/{id}/preview/rotate"), json!({})).await.is(200).json();
    assert_eq!(rotated["scheme"], "bearer");
    ask(&server, id, "/", &[("x-oc-preview-token", token)]).await.is(401);
    let token = rotated["previewAuthToken"].as_str().unwrap();
    ask(&server, id, "/", &[("x-oc-preview-token", token)]).await.is(200);

    // Rotating closes what was open.
    let open = server.acme.sandbox().await;
    listen(&server, &open, PORT).await;
    ask(&server, &open, "/", &[]).await.is(200);
    server.acme.post(&format!("/api/sandboxes/{open}/preview/rotate"), json!({})).await.is(200);
    ask(&server, &open, "/", &[]).await.is(401);
}

#[tokio::test]
async fn a_shared_link_leaves_a_cookie_for_one_preview() {
    let server = Server::start().await;
    let made = server.acme.create(json!({"previewAuth": {"token": "0123456789abcdef"}})).await;
    assert_eq!(made["previewAuthToken"], "0123456789abcdef");
    let id = made["sandboxID"].as_str().unwrap();
    listen(&server, id, PORT).await;
    let share = format!("/api/sandboxes/{id}/preview/{PORT}/share");
    let link = server.acme.post(&share, json!({"expiresIn": 60})).await.is(200).json();
    let url = link["url"].as_str().unwrap();
    let port = server.address.rsplit_once(':').unwrap().1;
    let query = url.strip_prefix(&format!("http://{}:{port}/?", host(id, PORT))).expect(url);

    let opened = ask(&server, id, &format!("/a?x=1&{query}&y"), &[]).await.is(303);
    assert_eq!(opened.headers["location"], "/a?x=1&y");
    let cookie = opened.headers["set-cookie"].to_str().unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Domain") && !cookie.contains("Secure"), "{cookie}");
    let tls = ask(&server, id, &format!("/?{query}"), &[("x-forwarded-proto", "https")]).await.is(303);
    assert!(tls.headers["set-cookie"].to_str().unwrap().starts_with("__Host-warren-preview="));
    assert!(tls.headers["set-cookie"].to_str().unwrap().ends_with("; Secure"));

    let pair = cookie.split(';').next().unwrap();
    let seen = ask(&server, id, "/a", &[("cookie", &format!("own=1; {pair}"))]).await.is(200).json();
    assert_eq!(seen["headers"]["cookie"], json!(["own=1"]));
    let app = [("cookie", pair), ("authorization", "Bearer of-the-app")];
    assert_eq!(
        ask(&server, id, "/", &app).await.is(200).json()["headers"]["authorization"],
        json!(["Bearer of-the-app"])
    );
    for foreign in [("origin", "http://sb-00000000-p80.localhost"), ("sec-fetch-site", "same-site")] {
        ask(&server, id, "/", &[("cookie", pair), foreign]).await.is(401);
    }
    // Of a link, and for another port or sandbox, it is none.
    let value = query.split_once('=').unwrap().1;
    ask(&server, id, "/", &[("cookie", &format!("warren-preview={value}"))]).await.is(401);
    let other = server.acme.create(json!({"previewAuth": {"token": "0123456789abcdef"}})).await;
    ask(&server, other["sandboxID"].as_str().unwrap(), "/", &[("cookie", pair)]).await.is(401);
    send(asked_at(&server, Method::GET, &host(id, 3001), "/").header("cookie", pair)).await.is(401);

    ask(&server, id, &format!("/?{query}0"), &[]).await.is(403).error();
    server.acme.post(&format!("/api/sandboxes/{id}/preview/rotate"), json!({})).await.is(200);
    ask(&server, id, &format!("/?{query}"), &[]).await.is(403).error();
    ask(&server, id, "/", &[("cookie", pair)]).await.is(401);
    let open = server.acme.sandbox().await;
    let nothing_to_share = format!("/api/sandboxes/{open}/preview/80/share");
    server.acme.post(&nothing_to_share, json!({})).await.is(409).error();
    server.acme.post(&format!("/api/sandboxes/{id}/preview/080/share"), json!({})).await.is(400).error();
}

#[tokio::test]
async fn what_cannot_be_shown_says_why() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let none = ask(&server, &id, "/", &[]).await.is(502);
    assert_eq!(none.error(), format!("sandbox {id}: upstream unavailable"));
    let page = ask(&server, &id, "/", &[("accept", "text/html,*/*")]).await.is(502);
    assert!(page.text.contains("port 3000") && page.text.contains("http-equiv=\"refresh\""), "{}", page.text);
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let unknown = ask(&server, "sb-00000000", "/", &[]).await.is(404);
    assert_eq!(unknown.error(), "sandbox sb-00000000 not found");

    // A program that starts a moment later is found.
    let (waiting, ()) = tokio::join!(ask(&server, &id, "/", &[]), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        listen(&server, &id, PORT).await;
    });
    waiting.is(200);

    // What is no HTTP, and what ends without an answer.
    for answer in [
        "nonsense\r\n\r\n",
        "",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.node.state().listeners.insert((id.parse().unwrap(), 3001), listener.local_addr().unwrap());
        let program = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        send(asked_at(&server, Method::GET, &host(&id, 3001), "/")).await.is(502).error();
        program.abort();
    }

    server.node.change(&id, SandboxState::Hibernated, None);
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    let gone = ask(&server, &id, "/", &[]).await.is(410);
    assert_eq!(gone.error(), format!("sandbox {id} has been stopped"));
}

#[tokio::test]
async fn a_browser_gets_a_page_while_a_sandbox_wakes_and_others_wait() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    listen(&server, &id, PORT).await;
    server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);
    server.node.state().wake_takes = Duration::from_secs(3);
    let html = [("accept", "text/html")];
    let (page, waited) = tokio::join!(ask(&server, &id, "/", &html), ask(&server, &id, "/", &[]));
    let page = page.is(503);
    assert!(page.text.contains("waking") && page.text.contains("http-equiv=\"refresh\""), "{}", page.text);
    assert_eq!(page.headers["retry-after"], "2");
    waited.is(200);
    assert_eq!(ask(&server, &id, "/", &html).await.is(200).json()["target"], "/");
}

#[tokio::test]
async fn an_old_agent_is_said_to_be_one() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    server.node.state().guest_answer =
        Some((404, json!({"kind": "not_found", "message": "the agent has no such path"}).to_string()));
    let old = ask(&server, &id, "/", &[]).await.is(502);
    assert!(old.error().contains("reboot the sandbox"), "{}", old.text);
    assert_eq!(old.json()["code"], "agent_too_old");
}

#[tokio::test]
async fn a_sandbox_that_is_deleted_meanwhile_is_said_to_be_stopped() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    // Let in by what is stored, and gone when its node is asked.
    server.node.state().sandboxes.remove(&id.parse().unwrap());
    let gone = ask(&server, &id, "/", &[]).await.is(410);
    assert_eq!(gone.error(), format!("sandbox {id} has been stopped"));
}

#[tokio::test]
async fn registrations_are_a_list_and_no_more() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}/preview");
    let port = server.address.rsplit_once(':').unwrap().1;
    assert_eq!(server.acme.get(&path).await.is(200).json(), json!([]));
    let body = json!({"port": 8080, "authConfig": {}});
    let first = server.acme.post(&path, body.clone()).await.is(201).json();
    assert_eq!(first["hostname"], format!("{id}-p8080.localhost:{port}"));
    assert_eq!(
        (&first["sandboxId"], &first["port"], &first["sslStatus"], &first["authConfig"]),
        (&json!(id), &json!(8080), &json!("active"), &json!({}))
    );
    assert_eq!(server.acme.post(&path, body).await.is(200).json(), first);
    server.acme.post(&path, json!({"port": 80})).await.is(201);
    let ports: Vec<Value> = server
        .acme
        .get(&path)
        .await
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["port"].clone())
        .collect();
    assert_eq!(ports, [json!(80), json!(8080)]);
    for bad in [
        json!({}),
        json!({"port": 0}),
        json!({"port": 65536}),
        json!({"port": -1}),
        json!({"port": "80"}),
        json!({"port": 1.5}),
        json!({"port": 1, "domain": "x.example"}),
        json!({"port": 1, "authConfig": {"public": false}}),
        json!({"port": 1, "authConfig": "x"}),
    ] {
        server.acme.post(&path, bad).await.is(400).error();
    }
    for bad in ["0", "65536", "x", "080", "+80", "-1"] {
        server.acme.delete(&format!("{path}/{bad}")).await.is(400).error();
    }
    server.acme.delete(&format!("{path}/80")).await.is(204);
    server.acme.delete(&format!("{path}/80")).await.is(404).error();
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    assert_eq!(server.acme.get(&path).await.is(200).json(), json!([]));
    server.acme.post(&path, json!({"port": 80})).await.is(410).error();
    server.acme.post(&format!("{path}/rotate"), json!({})).await.is(410).error();
}

#[tokio::test]
async fn a_preview_has_a_second_name_below_a_domain_of_its_organisation() {
    let server = Server::start_with(SimNode::new(), tempfile::tempdir().unwrap(), |config| {
        config.custom_domains = vec!["acme=apps.acme.example".parse().unwrap()];
    })
    .await;
    let (id, theirs) = (server.acme.sandbox().await, server.rival.sandbox().await);
    listen(&server, &id, PORT).await;
    listen(&server, &theirs, PORT).await;
    let of = |id: &str, port: u16| format!("{id}-p{port}.apps.acme.example");
    let at = async |host: &str| send(asked_at(&server, Method::GET, host, "/")).await;
    at(&of(&id, PORT)).await.is(404);
    let path = format!("/api/sandboxes/{id}/preview");
    for other in ["other.example", "x.apps.acme.example", "acme.example"] {
        server.acme.post(&path, json!({"port": PORT, "domain": other})).await.is(400).error();
    }
    let body = json!({"port": PORT, "domain": "Apps.Acme.example"});
    let made = server.acme.post(&path, body.clone()).await.is(201).json();
    let port = server.address.rsplit_once(':').unwrap().1;
    assert_eq!(made["customHostname"], format!("{}:{port}", of(&id, PORT)));
    assert_eq!(server.acme.post(&path, json!({"port": PORT})).await.is(200).json(), made);
    let seen = at(&of(&id, PORT)).await.is(200).json();
    assert_eq!(seen["target"], "/");
    at(&format!("{id}-p{PORT}.localhost")).await.is(200);
    // Only what was registered, and only the organisation's own.
    at(&of(&id, 81)).await.is(404);
    let refused = server.rival.post(&format!("/api/sandboxes/{theirs}/preview"), body).await.is(400);
    assert!(refused.error().contains("Apps.Acme.example"), "{}", refused.text);
    at(&of(&theirs, PORT)).await.is(404);
    at("www.apps.acme.example").await.is(404);
    at("apps.acme.example").await.is(404);
    send(asked_at(&server, Method::GET, "apps.acme.example", "/health")).await.is(200);
    // Its token is asked for there as well.
    server.acme.post(&format!("{path}/rotate"), json!({})).await.is(200);
    at(&of(&id, PORT)).await.is(401);
    server.acme.delete(&format!("{path}/{PORT}")).await.is(204);
    at(&of(&id, PORT)).await.is(404);
}

#[tokio::test]
async fn the_operator_can_make_every_preview_private_and_choose_the_domain() {
    let server = Server::start_with(SimNode::new(), tempfile::tempdir().unwrap(), |config| {
        config.preview_auth_required = true;
        config.sandbox_domain = "preview.example.com".parse().unwrap();
        config.public_url = Some("https://api.preview.example.com/".to_owned());
    })
    .await;
    let made = server.acme.create(json!({})).await;
    let id = made["sandboxID"].as_str().unwrap();
    assert_eq!(made["previewAuthToken"].as_str().unwrap().len(), 43);
    assert_eq!(made["sandboxDomain"], "preview.example.com");
    let on = |host: String| asked_at(&server, Method::GET, &host, "/health");
    send(on(format!("{id}-p80.preview.example.com"))).await.is(401);
    send(on("api.preview.example.com".to_owned())).await.is(200);
    send(on("other.preview.example.com".to_owned())).await.is(404);
    send(on(format!("{id}-p80.localhost"))).await.is(200);
    let listed =
        server.acme.post(&format!("/api/sandboxes/{id}/preview"), json!({"port": 80})).await.is(201).json();
    assert_eq!(listed["url"], format!("https://{id}-p80.preview.example.com"));
    for bad in [
        json!({"scheme": "basic"}),
        json!({"token": "short"}),
        json!("x"),
        json!({"token": "0123456789 abcdef"}),
    ] {
        server.acme.post("/api/sandboxes", json!({"previewAuth": bad})).await.is(400).error();
    }
}

#[tokio::test]
async fn a_signed_url_is_all_a_browser_needs() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let sign = async |route: &str, body: Value| {
        server.acme.post(&format!("/api/sandboxes/{id}/files/{route}"), body).await.is(200).json()
    };
    let of = |url: &Value| {
        url["url"].as_str().unwrap().strip_prefix(&server.acme.base).expect("it is this server's").to_owned()
    };
    let upload = of(&sign("upload-url", json!({"path": "/tmp/a b+c.txt", "expiresIn": 60})).await);
    let download = sign("download-url", json!({"path": "/tmp/a b+c.txt"})).await;
    assert!(download["expiresAt"].as_str().unwrap().ends_with('Z'));
    let download = of(&download);
    assert!(download.contains("path=%2Ftmp%2Fa+b%2Bc.txt&expires="), "{download}");
    let anonymous = server.anonymous();
    let put = |path: &str| anonymous.request(Method::PUT, path).body("content");
    send(put(&upload)).await.is(204);
    let read = anonymous.get(&download).await.is(200);
    assert_eq!(read.text, "content");
    assert_eq!(read.headers["content-type"], "application/octet-stream");
    assert_eq!(read.headers["content-disposition"], "attachment; filename*=UTF-8''a%20b%2Bc.txt");
    send(anonymous.request(Method::HEAD, &download)).await.is(200);

    // Each for its own use, path and sandbox.
    let as_download = upload.replace("/upload?", "/download?");
    assert_eq!(anonymous.get(&as_download).await.is(403).error(), "invalid signature");
    send(put(&download.replace("/download?", "/upload?"))).await.is(403).error();
    anonymous.get(&download.replace("b%2Bc", "b%2Bd")).await.is(403).error();
    let other = server.acme.sandbox().await;
    anonymous.get(&download.replace(&id, &other)).await.is(403).error();
    let expires = download.split("expires=").nth(1).unwrap().split('&').next().unwrap();
    let later = format!("{}", expires.parse::<i64>().unwrap() + 1);
    anonymous.get(&download.replace(expires, &later)).await.is(403).error();
    assert_eq!(anonymous.get(&download.replace(expires, "1")).await.is(403).error(), "signed URL expired");
    let bare = format!("/api/sandboxes/{id}/files/download");
    for (query, status) in [
        ("", 400),
        ("?path=/x", 400),
        ("?path=/x&expires=9999999999", 400),
        ("?expires=9999999999&signature=00", 400),
        ("?path=/x&expires=x&signature=00", 400),
        ("?path=/x&expires=-1&signature=00", 400),
        ("?path=/x&expires=99999999999999999999&signature=00", 400),
        ("?path=/x&expires=9999999999&signature=00", 403),
        ("?path=/x&expires=1&signature=zz", 403),
    ] {
        anonymous.get(&format!("{bare}{query}")).await.is(status).error();
    }
    // Who does not own the sandbox gets none.
    server
        .rival
        .post(&format!("/api/sandboxes/{id}/files/download-url"), json!({"path": "/x"}))
        .await
        .is(404);
    server.acme.post(&format!("/api/sandboxes/{id}/files/upload-url"), json!({})).await.is(400).error();

    server.acme.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);
    anonymous.get(&download).await.is(200);
    assert_eq!(server.acme.status(&id).await, "running", "it was woken");
    server.acme.delete(&format!("/api/sandboxes/{id}")).await.is(204);
    anonymous.get(&download).await.is(410).error();
}
