//! Files: streaming both ways, what is passed on and what is not.

use bytes::Bytes;
use futures_util::stream;
use http::{Method, header};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Server, send};

#[tokio::test]
async fn contents_stream_through_unchanged() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}/files");
    let file = format!("{path}?path=%2Ftmp%2Fa%20b%2B%C3%A9");
    let content: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let pieces: Vec<_> =
        content.chunks(70_000).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    let upload =
        server.acme.request(Method::PUT, &file).body(reqwest::Body::wrap_stream(stream::iter(pieces)));
    send(upload).await.is(204);
    assert!(server.node.state().sandboxes[&id.parse().unwrap()].files.contains_key("/tmp/a b+é"));

    let response = server.acme.request(Method::GET, &file).send().await.unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/octet-stream",
        "not what the guest says"
    );
    assert!(!response.headers().contains_key(header::SET_COOKIE));
    assert_eq!(response.content_length(), Some(5_000_000));
    assert_eq!(response.bytes().await.unwrap(), content);

    let head = send(server.acme.request(Method::HEAD, &file)).await.is(200);
    assert_eq!((head.headers[header::CONTENT_LENGTH].to_str().unwrap(), head.text.as_str()), ("5000000", ""));
    let part = server.acme.request(Method::GET, &file).header("range", "bytes=10-12").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), part.headers()[header::CONTENT_RANGE].to_str().unwrap()),
        (206, "bytes 10-12/5000000")
    );
    assert_eq!(part.bytes().await.unwrap(), &content[10..13]);
    let beyond =
        send(server.acme.request(Method::GET, &file).header("range", "bytes=5000000-5000001")).await.is(416);
    assert_eq!(beyond.headers[header::CONTENT_RANGE], "bytes */5000000");
    assert_eq!(beyond.error(), "outside");
    let missing = server.acme.get(&format!("{path}?path=/none")).await.is(404);
    assert_eq!(missing.error(), "/none: No such file or directory");

    let tar = send(server.acme.request(Method::PUT, &format!("{path}/archive?path=/dir")).body("tar")).await;
    tar.is(204);
    let tar = server.acme.get(&format!("{path}/archive?path=/dir")).await.is(200);
    assert_eq!(
        (tar.headers[header::CONTENT_TYPE].to_str().unwrap(), tar.text.as_str()),
        ("application/x-tar", "tar")
    );
}

#[tokio::test]
async fn an_upload_that_breaks_off_changes_nothing() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let pieces = vec![Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("cut"))];
    let upload = server.acme.request(Method::PUT, &format!("/api/sandboxes/{id}/files?path=/f"));
    assert!(upload.body(reqwest::Body::wrap_stream(stream::iter(pieces))).send().await.is_err());
    server.acme.get(&format!("/api/sandboxes/{id}/files?path=/f")).await.is(404);
}

#[tokio::test]
async fn files_are_listed_described_moved_and_changed() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/sandboxes/{id}/files");
    assert_eq!(server.acme.get(&format!("{path}/list")).await.is(200).json(), json!([]));
    send(server.acme.request(Method::PUT, &format!("{path}?path=/d/a")).body("abc")).await.is(204);
    let entry = json!({"name": "a", "path": "/d/a", "isDir": false, "size": 3});
    assert_eq!(server.acme.get(&format!("{path}/list?path=/d")).await.is(200).json(), json!([entry]));
    let many: Vec<String> = (0..3000).map(|number| format!("/many/{number:04}")).collect();
    let sandbox = id.parse().unwrap();
    for name in &many {
        let mut state = server.node.state();
        state.sandboxes.get_mut(&sandbox).unwrap().files.insert(name.clone(), Bytes::from_static(b"x"));
    }
    let listed = server.acme.get(&format!("{path}/list?path=/many")).await.is(200).json();
    let paths = listed.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap());
    assert!(paths.eq(many.iter()), "{} entries", listed.as_array().unwrap().len());
    server.acme.post(&format!("{path}/move"), json!({"from": "/d/a", "to": "/d/b"})).await.is(204);
    server.acme.post(&format!("{path}/chmod"), json!({"path": "/d/b", "mode": "0750"})).await.is(204);
    let stat = server.acme.get(&format!("{path}/stat?path=/d/b")).await.is(200).json();
    assert_eq!(
        stat,
        json!({"name": "b", "path": "/d/b", "type": "file", "size": 3, "mode": "0750", "uid": 1000, "gid": 1000,
            "modifiedAt": "2026-08-06T07:06:40.123Z"})
    );
    let write = |query: &str| server.acme.request(Method::PUT, &format!("{path}?path=/d/b{query}")).body("x");
    send(write("&mode=4711")).await.is(204);
    assert_eq!(server.acme.get(&format!("{path}/stat?path=/d/b")).await.json()["mode"], "4711");
    for bad in ["", "8", "10000", "-1", "+7", "rwx", "0o7", "%D9%A1"] {
        let refused = send(write(&format!("&mode={bad}"))).await.is(400).error();
        assert!(refused.contains("octal"), "{refused}");
    }
    send(server.acme.request(Method::POST, &format!("{path}/mkdir?path=/x"))).await.is(204);
    server.acme.delete(&format!("{path}?path=/d/b")).await.is(204);
    server.acme.get(&format!("{path}/stat?path=/d/b")).await.is(404);
    for bad in [
        json!({"path": "/x", "mode": "0999"}),
        json!({"path": "/x", "mode": "77777"}),
        json!({"path": "", "mode": "1"}),
    ] {
        server.acme.post(&format!("{path}/chmod"), bad).await.is(400).error();
    }
    server.acme.post(&format!("{path}/move"), json!({"from": "/x"})).await.is(400).error();
}

#[tokio::test]
async fn a_file_that_says_it_is_too_large_is_refused_unread_and_the_close_is_announced() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let mut connection = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let head = format!(
        "PUT /api/sandboxes/{id}/files?path=/f HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\nContent-Length: 2147483649\r\n\r\n",
        server.acme.key.as_deref().unwrap()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("2 GiB"), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");

    let read =
        server.acme.post(&format!("/api/sandboxes/{id}/files/chmod"), json!({"path": ""})).await.is(400);
    assert!(!read.headers.contains_key(header::CONNECTION), "a body that was read ends nothing");
}
