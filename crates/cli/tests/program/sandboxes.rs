//! Commands that ask once and print the answer: tables, JSON, exit codes, hints.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Home, ID, Ran, finish};
use crate::server::Server;

fn sandbox(id: &str) -> Value {
    json!({
        "sandboxID": id, "status": "running", "templateID": "base", "region": "local", "cpuCount": 1, "memoryMB": 4096,
        "diskMB": 20480, "timeout": 0, "startedAt": "2100-01-01T00:00:00Z", "metadata": {}, "tags": {},
        "tagsLastUpdatedAt": null, "isolation": "container", "generation": 1, "fromTheFuture": [1, 2],
    })
}

fn with(mut value: Value, field: &str, to: Value) -> Value {
    value[field] = to;
    value
}

#[test]
fn create_prints_the_id_and_sends_what_was_asked() {
    let server = Server::start();
    server.answer("POST /api/sandboxes", 201, &sandbox(ID));
    let home = Home::of(&server);
    let ran = home.run(&[
        "create",
        "--template",
        "base",
        "--memory",
        "4096",
        "--timeout",
        "60",
        "-e",
        "A=1=2",
        "-m",
        "team=x",
        "-t",
        "env=dev",
        "--no-network",
        "--secret-store",
        "keys",
        "--idempotency-key",
        "once",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "sb-0123abcd\n"));
    let (start, end) = ("running in ", " ms: base, 1 vCPU, 4 GiB, container\n");
    assert!(ran.stderr.starts_with(start) && ran.stderr.ends_with(end), "{}", ran.stderr);
    assert_eq!(
        server.body_of("POST /api/sandboxes"),
        json!({ "templateID": "base", "memoryMB": 4096, "timeout": 60, "envs": { "A": "1=2" }, "metadata": { "team": "x" },
                "tags": { "env": "dev" }, "networkEnabled": false, "secretStore": "keys" })
    );
    assert_eq!(server.asked()[0].headers["idempotency-key"], "once");

    let ran = home.run(&["create", "--json", "-q"]);
    assert_eq!(ran.stderr, "");
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), sandbox(ID));
}

#[test]
fn a_list_is_a_table_for_people_and_the_apis_own_json_for_programs() {
    let server = Server::start();
    let first = with(sandbox(ID), "tags", json!({ "env": "dev", "note": "\u{1b}[2Jgone" }));
    let second = with(
        with(sandbox("sb-ffffffff"), "status", json!("hibernated")),
        "templateID",
        json!("a-longer-name"),
    );
    server.answer_with("GET /api/sandboxes", 200, &[("x-next-cursor", "c1")], &json!([first]));
    server.answer("GET /api/sandboxes?cursor=c1", 200, &json!([second]));
    let home = Home::of(&server);
    assert_eq!(
        home.run(&["ls"]),
        Ran {
            code: 0,
            stdout: "ID           STATUS   TEMPLATE  CPU  MEMORY  ISOLATION  AGE  TAGS\n\
                     sb-0123abcd  running  base      1    4 GiB   container  0s   env=dev,note=\\u{1b}[2Jgone\n"
                .to_owned(),
            stderr: "there are more; --all lists them all\n".to_owned(),
        }
    );
    let ran = home.run(&["ls", "--all"]);
    assert_eq!(
        ran.stdout.lines().last(),
        Some("sb-ffffffff  hibernated  a-longer-name  1    4 GiB   container  0s   -")
    );
    let ran = home.run(&["ls", "--all", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), json!([first, second]));
    assert_eq!(home.run(&["ls", "-a", "-q"]).stdout, "sb-0123abcd\nsb-ffffffff\n");

    let filtered = "GET /api/sandboxes?status=running%2Cerror&tag.a=b&metadata.c=d+e&limit=7";
    server.answer(filtered, 200, &json!([]));
    let ran = home.run(&["ls", "-s", "running,error", "-t", "a=b", "-m", "c=d e", "--limit", "7"]);
    assert_eq!(ran, Ran { code: 0, stdout: String::new(), stderr: "no sandboxes\n".to_owned() });
}

#[test]
fn one_sandbox_is_described_in_words() {
    let server = Server::start();
    let answer = with(with(sandbox(ID), "status", json!("error")), "statusReason", json!("its disk is full"));
    server.answer("GET /api/sandboxes/sb-0123abcd", 200, &with(answer, "timeout", json!(90)));
    let ran = Home::of(&server).run(&["get", ID]);
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.stdout,
        "ID:        sb-0123abcd\nStatus:    error (its disk is full)\nTemplate:  base\nCPU:       1 vCPU\n\
         Memory:    4 GiB\nDisk:      20 GiB\nIsolation: container: shares the host's kernel\n\
         Timeout:   hibernates after 90 s without use\nRegion:    local\nStarted:   2100-01-01T00:00:00Z\n\
         Tags:      -\nMetadata:  -\n"
    );
}

#[test]
fn refusals_become_exit_codes_with_hints() {
    let cases = [
        (400, "a sentence", 3, None),
        (401, "missing API key", 3, Some("warren keys create")),
        (404, "sandbox not found", 3, Some("warren ls")),
        (409, "busy", 4, None),
        (410, "sandbox sb-0123abcd has been stopped", 3, Some("warren create")),
        (500, "internal error", 5, None),
    ];
    for (status, message, code, hint) in cases {
        let server = Server::start();
        let home = Home::of(&server);
        server.answer("GET /api/sandboxes/sb-0123abcd", status, &json!({ "error": message }));
        let ran = home.run(&["get", ID]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{status}");
        let mut lines = ran.stderr.lines();
        assert_eq!(lines.next(), Some(format!("error: {message} ({status})").as_str()));
        match hint {
            Some(hint) => assert!(
                lines.next().unwrap().starts_with("hint: ") && ran.stderr.contains(hint),
                "{}",
                ran.stderr
            ),
            None => assert_eq!(lines.next(), None),
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_said_to_be() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = Home::new().run(&["ls", "--api-url", &format!("http://{free}")]);
    assert_eq!(ran.code, 5);
    let (error, hint) = ran.stderr.split_once('\n').unwrap();
    assert_eq!(error, format!("error: could not reach http://{free}: Connection refused (os error 111)"));
    assert!(hint.starts_with("hint: is the server running? `warren serve`"), "{hint}");
}

#[test]
fn plain_http_needs_no_certificates() {
    let server = Server::start();
    server.answer("GET /api/sandboxes", 200, &json!([]));
    let home = Home::of(&server).with("SSL_CERT_FILE", "/nonexistent").with("SSL_CERT_DIR", "/nonexistent");
    assert_eq!(home.run(&["ls", "-q"]), Ran { code: 0, stdout: String::new(), stderr: String::new() });
    let ran = home.run(&["ls", "--api-url", "https://127.0.0.1:1"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("could not set up TLS") && ran.stderr.contains("ca-certificates"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_key_is_not_taken_along_a_redirect() {
    let (server, elsewhere) = (Server::start(), Server::start());
    let target = format!("{}/api/sandboxes", elsewhere.url());
    server.answer_with("GET /api/sandboxes", 307, &[("location", &target)], &Value::Null);
    let ran = Home::of(&server).run(&["ls"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(&format!("the server redirects to {target} (307)")), "{}", ran.stderr);
    assert!(elsewhere.asked().is_empty());
}

#[test]
fn an_answer_from_something_else_is_told_apart_from_an_error() {
    let server = Server::start();
    server.answer("GET /api/sandboxes", 200, &json!({ "hello": "I am a printer" }));
    let ran = Home::of(&server).run(&["ls"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("cannot be read") && ran.stderr.contains("is it a Warren server"),
        "{}",
        ran.stderr
    );
}

#[test]
fn kill_goes_on_after_a_failure() {
    let server = Server::start();
    server.answer("DELETE /api/sandboxes/sb-00000001", 404, &json!({ "error": "sandbox not found" }));
    server.answer("DELETE /api/sandboxes/sb-00000002", 204, &Value::Null);
    let ran = Home::of(&server).run(&["kill", "sb-00000001", "sb-00000002"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    assert!(
        ran.stderr.starts_with("error: could not kill sb-00000001: sandbox not found (404)\nhint: "),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.ends_with("\nkilled sb-00000002\n"), "{}", ran.stderr);
}

#[test]
fn tags_change_one_by_one() {
    let server = Server::start();
    let line = "/api/sandboxes/sb-0123abcd/tags";
    server.answer(
        &format!("GET {line}"),
        200,
        &json!({ "tags": { "a": "1", "b": "2" }, "tagsLastUpdatedAt": null }),
    );
    server.answer(
        &format!("PUT {line}"),
        200,
        &json!({ "tags": { "a": "9", "c": "" }, "tagsLastUpdatedAt": null }),
    );
    let home = Home::of(&server);
    assert_eq!(home.run(&["tags", ID]).stdout, "KEY  VALUE\na    1\nb    2\n");
    assert_eq!(home.run(&["tags", ID, "a=9", "c=", "--remove", "b"]).stdout, "KEY  VALUE\na    9\nc\n");
    assert_eq!(server.body_of(&format!("PUT {line}")), json!({ "a": "9", "c": "" }));
}

#[test]
fn the_life_of_a_sandbox_is_one_request_each() {
    let server = Server::start();
    let base = "/api/sandboxes/sb-0123abcd";
    server.answer(&format!("POST {base}/timeout"), 204, &Value::Null);
    server.answer(
        &format!("POST {base}/hibernate"),
        200,
        &json!({ "sandboxID": ID, "status": "hibernated" }),
    );
    server.answer(&format!("POST {base}/wake"), 200, &json!({ "sandboxID": ID, "status": "running" }));
    let home = Home::of(&server);
    let said = |args: &[&str]| home.run(args).stderr;
    assert_eq!(said(&["timeout", ID, "300"]), "sb-0123abcd hibernates after 300 s without use\n");
    assert_eq!(server.body_of(&format!("POST {base}/timeout")), json!({ "timeout": 300 }));
    assert_eq!(said(&["hibernate", ID]), "sb-0123abcd hibernated\n");
    assert_eq!(said(&["wake", ID]), "sb-0123abcd running\n");
    // A wake that says nothing about the time-out must not change it.
    assert_eq!(server.body_of(&format!("POST {base}/wake")), json!({}));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let server = Server::start();
    server.answer("GET /api/sandboxes", 200, &json!([sandbox(ID)]));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = Home::of(&server).command(&["ls"]).stdout(Stdio::from(writer)).spawn().unwrap();
    assert_eq!(finish(child), Ran { code: 0, stdout: String::new(), stderr: String::new() });
}
