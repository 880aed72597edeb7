//! Previews and URLs of files.

use serde_json::{Value, json};

use crate::harness::{Home, ID};
use crate::server::Server;

const PATH: &str = "/api/sandboxes/sb-0123abcd/preview";

fn preview(port: u16) -> Value {
    json!({
        "id": "i", "sandboxId": ID, "orgId": "o", "hostname": format!("{ID}-p{port}.localhost:7070"), "port": port,
        "sslStatus": "active", "authConfig": {}, "createdAt": "2100-01-01T00:00:00Z",
        "url": format!("http://{ID}-p{port}.localhost:7070"),
    })
}

#[test]
fn previews_print_their_address_and_nothing_else() {
    let server = Server::start();
    let home = Home::of(&server);
    server.answer(&format!("POST {PATH}"), 201, &preview(3000));
    let ran = home.run(&["preview", "create", ID, "3000"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "http://sb-0123abcd-p3000.localhost:7070\n", "")
    );
    assert_eq!(server.body_of(&format!("POST {PATH}")), json!({"port": 3000}));
    let ran = home.run(&["preview", "create", ID, "3000", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), preview(3000));

    server.answer(&format!("GET {PATH}"), 200, &json!([preview(80), preview(3000)]));
    let ran = home.run(&["preview", "ls", ID]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", ran.stdout);
    assert!(
        lines[0].starts_with("PORT  URL") && lines[2].contains("http://sb-0123abcd-p3000.localhost:7070")
    );

    server.answer(&format!("DELETE {PATH}/80"), 204, &Value::Null);
    server.answer(
        &format!("DELETE {PATH}/3000"),
        404,
        &json!({"error": "port 3000 of this sandbox is not registered"}),
    );
    assert_eq!(home.run(&["preview", "rm", ID, "80"]).code, 0);
    let ran = home.run(&["preview", "rm", ID, "3000"]);
    assert!(ran.code != 0 && ran.stderr.contains("is not registered"), "{}", ran.stderr);
    for port in ["0", "65536", "x"] {
        assert_eq!(home.run(&["preview", "url", ID, port]).code, 2, "{port}");
    }
}

#[test]
fn a_token_and_links_are_printed_alone() {
    let server = Server::start();
    let home = Home::of(&server);
    server.answer(&format!("POST {PATH}/rotate"), 200, &json!({"previewAuthToken": "t", "scheme": "bearer"}));
    assert_eq!(home.run(&["preview", "rotate", ID]).stdout, "t\n");
    let share = format!("POST {PATH}/80/share");
    server.answer(&share, 200, &json!({"url": "http://u", "expiresAt": "2100-01-01T00:00:00Z"}));
    let ran = home.run(&["preview", "share", ID, "80", "--expires", "60"]);
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("http://u\n", "expires at 2100-01-01T00:00:00Z\n")
    );
    assert_eq!(server.body_of(&share), json!({"expiresIn": 60}));

    for (flags, route, body) in [
        (vec![], "download-url", json!({"path": "/a b"})),
        (vec!["--upload", "--expires", "5"], "upload-url", json!({"path": "/a b", "expiresIn": 5})),
    ] {
        let line = format!("POST /api/sandboxes/{ID}/files/{route}");
        server.answer(&line, 200, &json!({"url": "http://f", "expiresAt": "2100-01-01T00:00:00Z"}));
        let ran = home.run(&[&["files", "url", ID, "/a b"], flags.as_slice()].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "http://f\n"));
        assert_eq!(server.body_of(&line), body);
    }
}
