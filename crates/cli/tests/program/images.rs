//! `warren build`, `images`, `snapshots`, `templates`, and `create` from them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Home, finish, send_signal, until};
use crate::server::Server;

const ID: &str = "01234567-89ab-4def-8123-456789abcdef";

fn snapshot(status: &str) -> Value {
    json!({
        "id": ID, "orgId": "o", "contentHash": "c0ffee", "checkpointId": ID, "name": "tools", "version": 2,
        "manifest": {"base": "base", "steps": [{"type": "run", "args": {"commands": ["true"]}}]}, "status": status,
        "isolation": "container", "public": false, "sizeBytes": 5 << 20, "env": {"A": "1\u{1b}[2J"}, "workdir": "/w",
        "createdAt": "2100-01-01T00:00:00Z", "lastUsedAt": "2100-01-01T00:00:00Z", "fromTheFuture": 1,
    })
}

fn log(step: u32, kind: &str, message: &str) -> String {
    format!("event: build_log\ndata: {}\n\n", json!({"step": step, "type": kind, "message": message}))
}

fn a_build() -> String {
    [
        ": keepalive\n\n".to_owned(),
        log(0, "build", "Building image with 2 steps"),
        log(1, "cache_hit", "Step 1/2: run true (cached)"),
        log(2, "run", "Step 2/2: run make"),
        log(2, "run", "compiling\u{1b}[2J"),
        log(2, "run", "Step 2/2 completed"),
        log(3, "checkpoint", "Saving the image"),
        "event: from_the_future\ndata: {}\n\n".to_owned(),
    ]
    .concat()
}

fn result(json: &Value) -> String {
    format!("event: result\ndata: {json}\n\n")
}

fn failure(error: &str) -> String {
    format!("event: error\ndata: {}\n\n", json!({ "error": error }))
}

fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_manifest_is_built_and_its_version_printed() {
    let server = Server::start();
    server.answer_events("POST /api/snapshots", &(a_build() + &result(&snapshot("ready"))));
    let home = Home::of(&server);
    let manifest =
        json!({"base": "base", "steps": [{"type": "run", "args": {"commands": ["make"]}}], "name": "tools"});
    write(home.path(), "image.json", &manifest.to_string());
    let ran = home.run(&["build", "image.json", "--isolation", "vm"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "tools@2\n"));
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(
        lines[..4],
        [
            "Building image with 2 steps",
            "Step 1/2: run true (cached)",
            "Step 2/2: run make",
            "  compiling\\u{1b}[2J"
        ]
    );
    assert!(lines[4].starts_with("  done in "), "{lines:?}");
    assert_eq!(lines[5], "Saving the image");
    assert!(
        lines[6].starts_with("tools@2: ready in ") && lines[6].ends_with(", container, 5 MiB"),
        "{lines:?}"
    );
    assert_eq!(lines.len(), 7, "{lines:?}");
    let body = json!({"name": "tools", "image": manifest, "newVersion": true, "isolation": "vm"});
    assert_eq!(server.body_of("POST /api/snapshots"), body);
    assert_eq!(server.asked()[0].headers["accept"], "text/event-stream");

    let ran = home
        .run_with_input(&["build", "-", "--name", "other", "--json", "-q"], manifest.to_string().as_bytes());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap(),
        snapshot("ready"),
        "as the server sent it"
    );
    let sent: Value = serde_json::from_slice(&server.asked()[1].body).unwrap();
    assert_eq!(sent["name"], "other");
}

#[test]
fn an_image_of_a_registry_is_built_under_its_own_name() {
    let server = Server::start();
    server.answer_events("POST /api/snapshots", &result(&snapshot("ready")));
    let home = Home::of(&server);
    let args =
        ["build", "localhost:5000/team/node:22", "--registry-user", "me", "--registry-password-stdin", "-q"];
    let ran = home.run_with_input(&args, b"pass word\n");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "tools@2\n", ""));
    assert_eq!(
        server.body_of("POST /api/snapshots"),
        json!({
            "name": "node", "image": "localhost:5000/team/node:22", "newVersion": true,
            "registryAuth": {"username": "me", "password": "pass word"},
        })
    );
}

#[test]
fn archives_and_layouts_are_streamed() {
    let server = Server::start();
    let line = "POST /api/images/archive?name=app&newVersion=true";
    server.answer_events(line, &(log(0, "pull", "unpacking") + &result(&snapshot("ready"))));
    let home = Home::of(&server);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    archive.append_data(&mut header, "manifest.json", &b"[]"[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    std::fs::write(home.path().join("app.tar"), &archive).unwrap();
    let ran = home.run(&["build", "app.tar"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "tools@2\n"), "{}", ran.stderr);
    assert!(ran.stderr.starts_with("unpacking\n"), "{}", ran.stderr);
    let asked = &server.asked()[0];
    assert_eq!(
        (asked.body.as_slice(), asked.headers["content-type"].as_str()),
        (archive.as_slice(), "application/x-tar")
    );
    assert_eq!(asked.headers["content-length"], archive.len().to_string());

    write(home.path(), "app/index.json", "{}");
    write(home.path(), "app/blobs/sha256/0", "blob");
    assert_eq!(home.run(&["build", "./app", "-q"]).code, 0);
    let mut layout = tar::Archive::new(server.asked()[1].body.as_slice().to_vec().leak() as &[u8]);
    let names: Vec<String> =
        layout.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names, ["blobs", "blobs/sha256", "blobs/sha256/0", "index.json"]);

    let mut child = home.command(&["build", "/dev/stdin", "--name", "app", "-q"]);
    let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    assert_eq!(finish(child).code, 0);
    assert_eq!(server.asked()[2].body, archive, "not a byte of a pipe is lost");
}

#[test]
fn a_failed_build_shows_the_output_of_its_step() {
    let server = Server::start();
    let output: String = (0..100).map(|n| log(2, "run", &format!("line {n}"))).collect();
    let events = a_build()
        .replace("Step 2/2 completed", "still going")
        .split_inclusive("\n\n")
        .take(5)
        .collect::<String>()
        + &output
        + &failure("step 1 (run) failed (exit 3): line 99\nmore of it");
    server.answer_events("POST /api/snapshots", &events);
    let home = Home::of(&server);
    write(home.path(), "image.json", "{\"steps\": []}");
    let ran = home.run(&["build", "image.json", "--name", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.ends_with("  line 99\nerror: the build failed: step 1 (run) failed (exit 3): line 99\n"),
        "{}",
        ran.stderr
    );
    let ran = home.run(&["build", "image.json", "--name", "x", "-q"]);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!((ran.code, lines.len()), (1, 62), "its last lines, though asked to be quiet: {lines:?}");
    assert_eq!((lines[0], lines[1], lines[60]), ("Step 2/2: run make", "  line 40", "  line 99"));
}

#[test]
fn what_cannot_be_built_is_said_before_anything_is_sent() {
    let server = Server::start();
    let home = Home::of(&server);
    write(home.path(), "Dockerfile", "FROM debian\n");
    write(home.path(), "bad.json", "{\"steps\": [}");
    write(home.path(), "list.json", "[]");
    write(home.path(), "folder/file", "");
    write(home.path(), "image.json", "{\"steps\": []}");
    std::fs::write(home.path().join("a.tar"), b"BZh9").unwrap();
    for (source, code, says) in [
        ("Dockerfile", 1, "docker buildx build"),
        ("bad.json", 1, "bad.json is no manifest"),
        ("list.json", 2, "not a JSON object"),
        ("folder", 1, "it has no index.json"),
        ("a.tar", 1, "unpack it with bunzip2 first"),
        ("./missing", 1, "there is no ./missing"),
        ("image.json", 2, "give one with --name"),
    ] {
        let ran = home.run(&["build", source]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{source}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{source}: {}", ran.stderr);
    }
    let ran = home.run(&["create", "--image", "a.tar"]);
    assert_eq!(ran.code, 1);
    assert!(server.asked().is_empty());
}

#[test]
fn refusals_and_broken_streams_are_told() {
    let server = Server::start();
    server.answer("POST /api/snapshots", 413, &json!({"error": "an image has at most 128 steps"}));
    server.answer_events("POST /api/snapshots", &a_build());
    server.answer_events("POST /api/snapshots", "event: result\ndata: nonsense\n\n");
    let home = Home::of(&server);
    let build = || home.run(&["build", "node:22", "-q"]);
    let ran = build();
    assert_eq!(
        (ran.code, ran.stderr.lines().next()),
        (3, Some("error: an image has at most 128 steps (413)"))
    );
    let ran = build();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("ended before it said") && ran.stderr.contains("hint: "), "{}", ran.stderr);
    assert_eq!(build().code, 1);
}

/// A server that begins a build and then waits; later requests are written down and answered with the bodies.
fn a_slow_server(answers: Vec<(u16, String)>) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let read_head = |stream: &mut std::net::TcpStream| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            String::from_utf8(head).unwrap().lines().next().unwrap_or_default().to_owned()
        };
        let (mut first, _) = listener.accept().unwrap();
        sender.send(read_head(&mut first)).unwrap();
        let event = log(1, "run", "Step 1/1: run sleep");
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        write!(first, "{head}{:x}\r\n{event}\r\n", event.len()).unwrap();
        for (status, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            sender.send(read_head(&mut stream)).unwrap();
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )
            .unwrap();
        }
    });
    (format!("http://{address}"), receiver)
}

#[test]
fn an_interrupt_cancels_the_build_of_that_version() {
    for (status, deleted) in [("building", true), ("ready", false)] {
        let mut answers = vec![(200, snapshot(status).to_string())];
        if deleted {
            answers.push((204, String::new()));
        }
        let (url, asked) = a_slow_server(answers);
        let home = Home::new().with("OPENCOMPUTER_API_URL", &url);
        let mut child = home.command(&["build", "node:22", "--name", "tools"]).spawn().unwrap();
        let mut seen = [0; 19];
        child.stderr.as_mut().unwrap().read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"Step 1/1: run sleep");
        send_signal(&child, Signal::INT);
        let ran = finish(child);
        assert_eq!((ran.code, ran.stdout.as_str()), (130, ""));
        let mut lines = Vec::new();
        until("its requests", || {
            lines.extend(asked.try_iter());
            lines.len() == if deleted { 3 } else { 2 }
        });
        assert_eq!(lines[1], "GET /api/snapshots/tools HTTP/1.1");
        if deleted {
            assert_eq!(lines[2], "DELETE /api/snapshots/tools@2 HTTP/1.1");
            assert!(ran.stderr.contains("cancelled the build of tools@2"), "{}", ran.stderr);
        } else {
            assert!(
                ran.stderr.contains("no build of tools goes on"),
                "a version that is ready stays: {}",
                ran.stderr
            );
        }
    }
}

#[test]
fn create_shows_the_build_and_prints_the_id() {
    let server = Server::start();
    let made = json!({
        "sandboxID": "sb-ffffffff", "status": "running", "templateID": "base", "region": "local", "cpuCount": 1,
        "memoryMB": 1024, "startedAt": "2100-01-01T00:00:00Z", "metadata": {}, "tags": {}, "tagsLastUpdatedAt": null,
        "isolation": "container",
    });
    server.answer_events(
        "POST /api/sandboxes",
        &(log(0, "cache_hit", "Image was built before") + &result(&made)),
    );
    let home = Home::of(&server);
    let ran = home.run(&[
        "create",
        "--snapshot",
        "tools@2",
        "-e",
        "A=1",
        "--timeout",
        "60",
        "--idempotency-key",
        "k",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "sb-ffffffff\n"));
    assert!(ran.stderr.starts_with("Image was built before\nrunning in "), "{}", ran.stderr);
    assert_eq!(
        server.body_of("POST /api/sandboxes"),
        json!({"snapshot": "tools@2", "envs": {"A": "1"}, "timeout": 60})
    );
    assert_eq!(server.asked()[0].headers["accept"], "text/event-stream");
    assert_eq!(server.asked()[0].headers["idempotency-key"], "k");
    let ran = home.run_with_input(&["create", "--image", "-", "--json", "-q"], b"{\"steps\": []}");
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), made);
    let sent: Value = serde_json::from_slice(&server.asked()[1].body).unwrap();
    assert_eq!(sent, json!({"image": {"steps": []}}));
    let ran = home.run(&["create", "--image", "node:22", "-q"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let login = ["create", "--image", "node:22", "-q", "--registry-user", "me", "--registry-password-stdin"];
    assert_eq!(home.run_with_input(&login, b"pw\n").code, 0);
    let sent: Value = serde_json::from_slice(&server.asked().last().unwrap().body).unwrap();
    assert_eq!(sent["registryAuth"], json!({"username": "me", "password": "pw"}));
    // A server may answer without events.
    server.answer("POST /api/sandboxes", 201, &made);
    home.run(&["create", "--image", "node:22", "-q"]);
    assert_eq!(home.run(&["create", "--image", "node:22", "-q"]).stdout, "sb-ffffffff\n");
}

#[test]
fn lists_are_tables_or_the_apis_own_json() {
    let server = Server::start();
    let mut failed = snapshot("failed");
    failed["error"] = json!("step 0 (run) failed");
    failed["name"] = json!("broken\u{1b}[2J");
    let list = json!([snapshot("ready"), failed]);
    server.answer("GET /api/snapshots", 200, &list);
    let home = Home::of(&server);
    let ran = home.run(&["snapshots", "ls"]);
    assert_eq!(
        ran.stdout,
        "NAME               STATUS  ISOLATION  SIZE   PUBLIC  AGE  USED\n\
         tools@2            ready   container  5 MiB  -       0s   0s ago\n\
         broken\\u{1b}[2J@2  failed  container  5 MiB  -       0s   0s ago\n"
    );
    assert_eq!(ran.stderr, "broken\\u{1b}[2J@2 failed: step 0 (run) failed\n");
    assert_eq!(
        serde_json::from_str::<Value>(&home.run(&["snapshots", "ls", "--json"]).stdout).unwrap(),
        list
    );
    assert_eq!(home.run(&["snapshots", "ls", "-q"]).stdout, "tools@2\nbroken\\u{1b}[2J@2\n");

    let mut nameless = snapshot("ready");
    nameless.as_object_mut().unwrap().retain(|key, _| key != "name" && key != "version");
    server.answer("GET /api/images", 200, &json!([nameless]));
    assert_eq!(
        home.run(&["images", "ls"]).stdout,
        format!(
            "ID                                    NAME  STATUS  ISOLATION  SIZE   AGE  USED\n\
             {ID}  -     ready   container  5 MiB  0s   0s ago\n"
        )
    );
    server.answer("GET /api/images/usage", 200, &json!({"usedBytes": 1 << 30, "budgetBytes": 0, "volumeBytes": 10_u64 << 30, "freeBytes": 9_u64 << 30}));
    assert_eq!(
        home.run(&["images", "usage"]).stdout,
        "USED   BUDGET  DRIVE   FREE\n1 GiB  none    10 GiB  9 GiB\n"
    );
    server.answer(
        "GET /api/templates",
        200,
        &json!([{"templateID": "base", "name": "base", "tag": "latest", "status": "ready"}]),
    );
    assert_eq!(home.run(&["templates", "ls"]).stdout, "TEMPLATE  NEWEST  STATUS\nbase      latest  ready\n");
    assert_eq!(home.run(&["templates", "ls", "-q"]).stdout, "base\n");
}

#[test]
fn a_snapshot_is_shown_published_and_deleted() {
    let server = Server::start();
    server.answer("GET /api/snapshots/a%20b@1", 200, &snapshot("ready"));
    let home = Home::of(&server);
    let shown = home.run(&["snapshots", "get", "a b@1"]).stdout;
    for line in [
        "name        tools@2",
        "base        base",
        "steps       1",
        "env         A=1\\u{1b}[2J",
        "workdir     /w",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line} is not in:\n{shown}");
    }
    server.answer("POST /api/snapshots/tools/publish", 200, &json!({"name": "tools", "public": true}));
    assert!(home.run(&["snapshots", "publish", "tools"]).stderr.contains("every organisation"));
    server.answer(
        "POST /api/snapshots/tools/unpublish",
        403,
        &json!({"error": "only the platform's organisation may"}),
    );
    assert_eq!(home.run(&["snapshots", "unpublish", "tools"]).code, 3);
    server.answer("DELETE /api/snapshots/gone", 404, &json!({"error": "snapshot not found"}));
    server.answer("DELETE /api/snapshots/tools", 204, &Value::Null);
    let ran = home.run(&["snapshots", "rm", "gone", "tools"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.stderr.contains("hint: `warren snapshots ls`") && ran.stderr.contains("deleted tools"),
        "{}",
        ran.stderr
    );
    server.answer(&format!("DELETE /api/images/{ID}"), 409, &json!({"error": "the image has a name"}));
    assert_eq!(home.run(&["images", "rm", ID]).code, 4);
}
