//! Commands over a WebSocket: input to its end, output kept apart, exit codes mirrored, broken streams continued.

use std::io::Read as _;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Home, ID, Ran, finish, send_signal, until};
use crate::server::{Connection, Server, Step};

const SID: &str = "00c0ffee";
const START: &str = "POST /api/sandboxes/sb-0123abcd/exec";
const KILL: &str = "POST /api/sandboxes/sb-0123abcd/exec/00c0ffee/kill";
const ATTACH: &str = "GET /api/sandboxes/sb-0123abcd/exec/00c0ffee";

fn out(text: &str) -> Step {
    Step::Send([&[1], text.as_bytes()].concat())
}

fn err(text: &str) -> Step {
    Step::Send([&[2], text.as_bytes()].concat())
}

fn exit(code: i32) -> Step {
    Step::Send([&[3][..], &code.to_be_bytes()].concat())
}

fn replay_end() -> Step {
    Step::Send(vec![4])
}

fn session() -> Value {
    json!({ "sessionID": SID, "sandboxID": ID, "command": "sort", "args": ["-r"], "running": true,
            "startedAt": "2100-01-01T00:00:00Z", "attachedClients": 0 })
}

/// A server on which one command is started and met by these connections.
fn serving(connections: Vec<Connection>) -> Server {
    let server = Server::start();
    server.answer(START, 201, &session());
    server.answer(KILL, 200, &json!({}));
    for connection in connections {
        server.connection(connection);
    }
    server
}

#[test]
fn input_reaches_its_end_and_the_exit_code_is_mirrored() {
    let steps = vec![replay_end(), err("working\n"), Step::EchoInput, exit(7), Step::Close];
    let server = serving(vec![Connection::Open(Some(0), steps)]);
    let input: Vec<u8> = (0..200_000).map(|n| b'a' + (n % 26) as u8).collect();
    let args = ["exec", ID, "--cwd", "/tmp", "-e", "A=b", "--timeout", "9", "--", "sort", "-r", "--", "-x"];
    let ran = Home::of(&server).run_with_input(&args, &input);
    assert_eq!((ran.code, ran.stderr.as_str()), (7, "working\n"));
    assert!(ran.stdout.as_bytes() == input, "{} bytes came back of {}", ran.stdout.len(), input.len());
    assert_eq!(
        server.body_of(START),
        json!({ "cmd": "sort", "args": ["-r", "--", "-x"], "envs": { "A": "b" }, "cwd": "/tmp", "timeout": 9 })
    );
    assert!(server.lines().contains(&format!("{ATTACH}?offset=0")));
}

#[test]
fn input_that_cannot_be_read_to_its_end_is_told() {
    let server =
        serving(vec![Connection::Open(Some(0), vec![replay_end(), Step::EchoInput, exit(0), Step::Close])]);
    let home = Home::of(&server);
    let folder = std::fs::File::open(home.path()).unwrap();
    let ran = finish(home.command(&["exec", ID, "--", "cat"]).stdin(folder).spawn().unwrap());
    assert!(ran.stderr.starts_with("warning: stdin could not be read to its end: "), "{ran:?}");
}

#[test]
fn no_exit_code_is_ever_changed_into_success() {
    for (sent, seen) in [(0, 0), (1, 1), (137, 137), (255, 255), (256, 255), (-1, 255)] {
        let server = serving(vec![Connection::Open(Some(0), vec![replay_end(), exit(sent), Step::Close])]);
        let ran = Home::of(&server).run(&["exec", "-q", ID, "--", "x"]);
        assert_eq!(ran, Ran { code: seen, stdout: String::new(), stderr: String::new() }, "{sent}");
    }
}

#[test]
fn a_broken_stream_is_taken_up_where_it_broke() {
    let server = serving(vec![
        Connection::Open(Some(0), vec![replay_end(), out("hello "), err("e1 "), Step::Drop]),
        Connection::Refuse(503, json!({ "error": "starting", "retryable": true })),
        // Starts four bytes too early: "o " of stdout's end and part of stderr were printed already.
        Connection::Open(
            Some(5),
            vec![out(" "), err("e1 "), replay_end(), out("world\n"), err("e2\n"), exit(3), Step::Close],
        ),
    ]);
    let ran = Home::of(&server).run(&["exec", "-q", ID, "--", "x"]);
    assert_eq!(ran, Ran { code: 3, stdout: "hello world\n".to_owned(), stderr: "e1 e2\n".to_owned() });
    let attached: Vec<String> = server.lines().into_iter().filter(|line| line.starts_with(ATTACH)).collect();
    assert_eq!(
        attached,
        [format!("{ATTACH}?offset=0"), format!("{ATTACH}?offset=9"), format!("{ATTACH}?offset=9")]
    );
}

#[test]
fn output_that_is_no_longer_kept_is_told() {
    let steps = vec![out("tail"), replay_end(), exit(0), Step::Close];
    let server = serving(vec![Connection::Open(Some(100), steps)]);
    let ran = Home::of(&server).run(&["execs", "attach", ID, SID, "--offset", "40"]);
    let warning = "warning: 60 bytes of older output are no longer kept and are left out\n";
    assert_eq!(ran, Ran { code: 0, stdout: "tail".to_owned(), stderr: warning.to_owned() });
    assert_eq!(server.received(), Vec::<Vec<u8>>::new(), "attaching must not end the command's input");
}

#[test]
fn a_command_that_cannot_be_found_again_is_lost() {
    let server = serving(vec![
        Connection::Open(Some(0), vec![replay_end(), out("partial"), Step::Drop]),
        Connection::Refuse(404, json!({ "error": "no such session" })),
    ]);
    let ran = Home::of(&server).run(&["exec", "-q", ID, "--", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (255, "partial"));
    assert_eq!(
        ran.stderr,
        "error: lost: no such session (404)\n\
         hint: the command may still be running; see with `warren execs attach sb-0123abcd 00c0ffee --offset 7`\n"
    );
}

#[test]
fn input_that_may_be_gone_is_not_sent_twice() {
    let first = [&[0], &b"rm old\n"[..]].concat();
    let server = serving(vec![
        Connection::Open(Some(0), vec![replay_end(), Step::Await(first), Step::Vanish]),
        Connection::Open(Some(0), vec![exit(0), Step::Close]),
    ]);
    let home = Home::of(&server);
    // The input stays open, so that its end plays no part.
    let mut child = home.command(&["exec", ID, "--", "sh"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"rm old\n").unwrap();
    let ran = finish(child);
    assert_eq!(ran.code, 255);
    assert!(ran.stderr.contains("input was under way and may or may not have arrived"), "{}", ran.stderr);
    assert_eq!(server.lines().iter().filter(|line| line.starts_with(ATTACH)).count(), 1);
}

#[test]
fn the_first_ctrl_c_interrupts_and_the_second_detaches() {
    let steps = vec![
        replay_end(),
        out("ready\n"),
        Step::AwaitRequest(KILL.to_owned()),
        out("stopping\n"),
        Step::Hold,
    ];
    let server = serving(vec![Connection::Open(Some(0), steps)]);
    let home = Home::of(&server);
    let mut child = home.command(&["exec", ID, "--", "x"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    expect(&mut stdout, "ready\n");
    send_signal(&child, Signal::INT);
    expect(&mut stdout, "stopping\n");
    assert_eq!(server.body_of(KILL), json!({ "signal": 2 }));
    send_signal(&child, Signal::INT);
    let ran = finish(child);
    assert_eq!(ran.code, 130);
    assert!(
        ran.stderr.ends_with(
            "left running; follow it again with `warren execs attach sb-0123abcd 00c0ffee --offset 15`\n"
        ),
        "{}",
        ran.stderr
    );
}

fn expect(from: &mut impl std::io::Read, text: &str) {
    let mut bytes = vec![0; text.len()];
    from.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

#[test]
fn a_command_whose_reader_leaves_gets_the_signal_for_it() {
    let mut steps = vec![replay_end(), out("first\n"), Step::Await(vec![5])];
    steps.extend([out("more\n"), Step::Hold]);
    let server = serving(vec![Connection::Open(Some(0), steps)]);
    let home = Home::of(&server);
    let mut child = home.command(&["exec", ID, "--", "yes"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    expect(&mut stdout, "first\n");
    drop(stdout);
    // Only now may the command print more.
    drop(child.stdin.take());
    let ran = finish(child);
    assert_eq!(ran, Ran { code: 141, stdout: String::new(), stderr: String::new() });
    assert_eq!(server.body_of(KILL), json!({ "signal": 13 }));
}

#[test]
fn detached_commands_are_named_and_listed() {
    let server = serving(vec![]);
    server.answer("GET /api/sandboxes/sb-0123abcd/exec", 200, &json!([session()]));
    let home = Home::of(&server);
    let ran = home.run(&["exec", ID, "--detach", "--shell", "--", "sleep 9 &&", "date"]);
    assert_eq!(ran, Ran { code: 0, stdout: "00c0ffee\n".to_owned(), stderr: String::new() });
    assert_eq!(server.body_of(START), json!({ "cmd": "/bin/sh", "args": ["-c", "sleep 9 && date"] }));
    assert_eq!(
        home.run(&["execs", "ls", ID]).stdout,
        "SID       STATUS   AGE  CLIENTS  COMMAND\n00c0ffee  running  0s   0        sort -r\n"
    );
    assert_eq!(
        home.run(&["execs", "kill", ID, SID, "--signal", "TERM"]).stderr,
        "sent signal 15 to 00c0ffee\n"
    );
    assert_eq!(server.body_of(KILL), json!({ "signal": 15 }));
}

#[test]
fn with_json_the_result_is_one_object() {
    let steps = vec![replay_end(), out("o"), err("e"), Step::Await(vec![5]), out("!"), exit(4), Step::Close];
    let server = serving(vec![Connection::Open(Some(0), steps)]);
    let ran = Home::of(&server).run_with_input(&["exec", "--json", ID, "--", "x y"], b"not for it");
    assert_eq!((ran.code, ran.stderr.as_str()), (4, ""));
    let result = json!({ "exitCode": 4, "stdout": "o!", "stderr": "e" });
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), result);
    // The same as without: started as it is, and refused when there is no such program.
    assert_eq!(server.body_of(START), json!({ "cmd": "x y", "args": [], "timeout": 60 }));
}

#[test]
fn a_command_that_does_not_start_is_a_refusal() {
    let server = Server::start();
    server.answer(START, 400, &json!({ "error": "nope: no such file or directory" }));
    let ran = Home::of(&server).run(&["exec", ID, "--", "nope"]);
    assert_eq!(
        ran,
        Ran {
            code: 3,
            stdout: String::new(),
            stderr: "error: nope: no such file or directory (400)\n".to_owned()
        }
    );
}

#[test]
fn output_is_seen_as_it_comes() {
    let server = serving(vec![Connection::Open(Some(0), vec![replay_end(), out("now"), Step::Hold])]);
    let home = Home::of(&server);
    let mut child = home.command(&["exec", "-n", ID, "--", "x"]).spawn().unwrap();
    let mut byte = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"now");
    until("the end of input", || server.received() == [vec![5]]);
    send_signal(&child, Signal::KILL);
    finish(child);
}

#[test]
fn what_ends_the_program_ends_the_command() {
    for (signal, number) in [(Signal::TERM, 15), (Signal::HUP, 1)] {
        let steps = vec![
            replay_end(),
            out("ready\n"),
            Step::AwaitRequest(KILL.to_owned()),
            out("last\n"),
            exit(128 + number),
            Step::Close,
        ];
        let server = serving(vec![Connection::Open(Some(0), steps)]);
        let home = Home::of(&server);
        let mut child = home.command(&["exec", ID, "--", "x"]).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        expect(&mut stdout, "ready\n");
        send_signal(&child, signal);
        expect(&mut stdout, "last\n");
        assert_eq!(finish(child).code, 128 + number);
        assert_eq!(server.body_of(KILL), json!({ "signal": number }));
    }
}
