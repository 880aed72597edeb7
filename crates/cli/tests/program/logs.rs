//! `warren logs`: rows for people and for programs, what is asked for, how it ends.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use rustix::process::Signal;

use crate::harness::{Home, ID, Ran, finish, send_signal};
use crate::server::Server;

const EVENTS: &str = concat!(
    ": keepalive\n\n",
    r#"data: {"_time":"2026-01-31T12:00:00.25Z","source":"exec_stdout","line":"a\tb\u001b[2J","sandbox_id":"sb-0123abcd","#,
    r#""exec_id":"0123abcd","command":"sh","argv":["sh","-c","echo hi"],"new":[1]}"#,
    "\n\n",
    r#"data: {"_time":"2026-01-31T12:00:01Z","source":"exec_stderr","line":"oops","exec_id":"0123abcd"}"#,
    "\n\n",
    r#"data: {"_time":"2026-01-31T12:00:02Z","source":"exec_stdout","line":"exited with code 3","exec_id":"0123abcd","#,
    r#""command":"sh","argv":["sh","-c","echo hi"],"exit_code":3}"#,
    "\n\n",
    r#"data: {"_time":"2026-01-31T23:59:59.999Z","source":"var_log","line":"up","path":"/var/log/app.log"}"#,
    "\n\n",
);

#[test]
fn rows_are_lines_for_people_and_json_for_programs() {
    let server = Server::start();
    server.answer_events("GET /api/sandboxes/sb-0123abcd/logs", EVENTS);
    let home = Home::of(&server).with("TZ", "UTC");
    assert_eq!(
        home.run(&["logs", ID]),
        Ran {
            code: 0,
            stdout: "2026-01-31 12:00:00.250  stdout   0123abcd  a\tb\\u{1b}[2J\n\
                     2026-01-31 12:00:01.000  stderr   0123abcd  oops\n\
                     2026-01-31 12:00:02.000  exit     0123abcd  exited with code 3: sh -c echo hi\n\
                     2026-01-31 23:59:59.999  var_log  /var/log/app.log  up\n"
                .to_owned(),
            stderr: String::new(),
        }
    );
    assert_eq!(home.run(&["logs", ID, "-q"]).stdout, "a\tb\\u{1b}[2J\noops\nexited with code 3\nup\n");
    let ran = home.run(&["logs", ID, "--json"]);
    let sent: Vec<&str> = EVENTS.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(
        ran.stdout.lines().collect::<Vec<_>>(),
        sent,
        "as the server sent them, unknown fields included"
    );
}

#[test]
fn options_become_parameters() {
    let server = Server::start();
    let asked = "GET /api/sandboxes/sb-0123abcd/logs?tail=false&since=2026-01-31T11%3A00%3A00Z&until=2026-01-31T12%3A00%3A00Z\
                 &q=a+b&source=exec_stdout%2Cvar_log&limit=7";
    server.answer_events(asked, "");
    let home = Home::of(&server);
    let ran = home.run(&[
        "logs",
        ID,
        "--no-tail",
        "--since",
        "2026-01-31T12:00:00+01:00",
        "--until",
        "2026-01-31T12:00:00Z",
        "--grep",
        "a b",
        "--source",
        "exec_stdout,var_log",
        "--limit",
        "7",
    ]);
    assert_eq!(ran, Ran { code: 0, stdout: String::new(), stderr: String::new() });
    home.run(&["logs", ID, "--since", "30m"]);
    let line = server.lines().pop().unwrap();
    let since: jiff::Timestamp = line.split_once("since=").unwrap().1.replace("%3A", ":").parse().unwrap();
    let ago = jiff::Timestamp::now().as_second() - since.as_second();
    assert!((1800..1860).contains(&ago), "{line}");
    for wrong in [
        &["logs", ID, "--since", "yesterday"][..],
        &["logs", ID, "--source", "stdout"],
        &["logs", ID, "--limit", "0"],
        &["logs", ID, "--until", "30m"],
    ] {
        assert_eq!(home.run(wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn refusals_and_nonsense_are_told() {
    let server = Server::start();
    server.answer(
        "GET /api/sandboxes/sb-0123abcd/logs",
        404,
        &serde_json::json!({ "error": "sandbox not found" }),
    );
    let home = Home::of(&server);
    let ran = home.run(&["logs", ID]);
    assert_eq!((ran.code, ran.stderr.lines().next()), (3, Some("error: sandbox not found (404)")));
    let limited = "GET /api/sandboxes/sb-0123abcd/logs?limit=1";
    let row = r#"data: {"_time":"2026-01-31T12:00:00Z","source":"agent","line":"x"}"#;
    for nonsense in ["data: nonsense\n\n", row, "nonsense"] {
        server.answer_events(limited, nonsense);
        let ran = home.run(&["logs", ID, "--limit", "1"]);
        assert_eq!(ran.code, 1, "{nonsense}");
        assert!(ran.stderr.contains("cannot be read"), "{nonsense}: {}", ran.stderr);
        server.forget(limited);
    }
    server.answer_text(limited, 200, "{}");
    let ran = home.run(&["logs", ID, "--limit", "1"]);
    let said = "error: the server sent application/json where text/event-stream was to come";
    assert_eq!((ran.code, ran.stderr.lines().next()), (1, Some(said)));
}

/// A server that sends one row and then goes on for ever, or breaks off.
fn half_a_server(breaks_off: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).unwrap();
        let event = "data: {\"_time\":\"2026-01-31T12:00:00Z\",\"source\":\"agent\",\"line\":\"first\"}\n\n";
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        write!(stream, "{head}{:x}\r\n{event}\r\n", event.len()).unwrap();
        if !breaks_off {
            // Until the client leaves.
            let _ = stream.read(&mut request);
        }
    });
    format!("http://{address}")
}

#[test]
fn an_interrupt_ends_it_without_a_word() {
    let home = Home::new().with("OPENCOMPUTER_API_URL", &half_a_server(false)).with("TZ", "UTC");
    let mut child = home.command(&["logs", ID]).spawn().unwrap();
    let expected = "2026-01-31 12:00:00.000  agent    first\n";
    let mut seen = vec![0; expected.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(std::str::from_utf8(&seen).unwrap(), expected);
    send_signal(&child, Signal::INT);
    assert_eq!(finish(child), Ran { code: 130, stdout: String::new(), stderr: String::new() });
}

#[test]
fn a_log_that_breaks_off_is_an_error() {
    let home = Home::new().with("OPENCOMPUTER_API_URL", &half_a_server(true)).with("TZ", "UTC");
    let ran = home.run(&["logs", ID]);
    assert_eq!((ran.code, ran.stdout.as_str()), (5, "2026-01-31 12:00:00.000  agent    first\n"));
    assert!(ran.stderr.starts_with("error: could not reach"), "{}", ran.stderr);
}
