//! A terminal in a sandbox, with and without a terminal here.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};

use crate::harness::{Home, ID, finish, send_signal, until};
use crate::server::{Connection, Server, Step};

const CREATE: &str = "POST /api/sandboxes/sb-0123abcd/pty";
const RESIZE: &str = "POST /api/sandboxes/sb-0123abcd/pty/0000feed/resize";
const DELETE: &str = "DELETE /api/sandboxes/sb-0123abcd/pty/0000feed";

fn serving(connections: Vec<Connection>) -> Server {
    let server = Server::start();
    server.answer(CREATE, 201, &json!({ "sessionID": "0000feed", "sandboxID": ID }));
    server.answer(RESIZE, 200, &Value::Null);
    server.answer(DELETE, 204, &Value::Null);
    for connection in connections {
        server.connection(connection);
    }
    server
}

/// A terminal of our own: what we hold, and what the program gets.
fn terminal() -> (File, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty()).unwrap();
    (File::from(master), slave)
}

fn set_size(terminal: &File, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn is_raw(slave: &OwnedFd) -> bool {
    !tcgetattr(slave).unwrap().local_modes.contains(LocalModes::ECHO)
}

/// `warren shell` on a terminal of 100 by 30, once it is raw.
fn on_terminal(home: &Home) -> (Child, File, OwnedFd) {
    let (master, slave) = terminal();
    set_size(&master, 30, 100);
    let on = || Stdio::from(slave.try_clone().unwrap());
    let child = home.command(&["shell", ID, "--shell", "/bin/zsh"]).stdin(on()).stdout(on()).spawn().unwrap();
    until("raw mode", || is_raw(&slave));
    (child, master, slave)
}

#[test]
fn a_terminal_is_raw_while_it_lasts_and_restored_after() {
    let steps = vec![
        Step::Send(b"prompt$ ".to_vec()),
        Step::Await(b"\x03".to_vec()),
        Step::AwaitRequest(RESIZE.to_owned()),
        Step::Close,
    ];
    let server = serving(vec![Connection::Open(None, steps)]);
    let home = Home::of(&server);
    let (child, mut master, slave) = on_terminal(&home);
    let mut prompt = [0; 8];
    master.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"prompt$ ");
    // Ctrl-C belongs to the sandbox.
    master.write_all(b"\x03").unwrap();
    set_size(&master, 40, 120);
    send_signal(&child, Signal::WINCH);
    assert_eq!(finish(child).code, 0);
    assert!(!is_raw(&slave));
    assert_eq!(server.body_of(CREATE), json!({ "cols": 100, "rows": 30, "shell": "/bin/zsh" }));
    assert_eq!(server.body_of(RESIZE), json!({ "cols": 120, "rows": 40 }));
    assert_eq!(server.lines().last().unwrap(), DELETE);
}

#[test]
fn a_signal_restores_the_terminal_and_ends_the_session() {
    let server = serving(vec![Connection::Open(None, vec![Step::Hold])]);
    let home = Home::of(&server);
    let (child, _master, slave) = on_terminal(&home);
    send_signal(&child, Signal::TERM);
    assert_eq!(finish(child).code, 143);
    assert!(!is_raw(&slave));
    assert_eq!(server.lines().last().unwrap(), DELETE);
}

#[test]
fn a_shell_works_without_a_terminal() {
    let steps = vec![
        Step::Await(b"ls\n".to_vec()),
        Step::Send(b"file\r\n".to_vec()),
        Step::Await(vec![4]),
        Step::Close,
    ];
    let server = serving(vec![Connection::Open(None, steps)]);
    let ran = Home::of(&server).run_with_input(&["shell", ID], b"ls\n");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "file\r\n", ""));
    assert_eq!(server.lines().last().unwrap(), DELETE);
}

#[test]
fn a_broken_connection_is_joined_again() {
    let server = serving(vec![
        Connection::Open(None, vec![Step::Send(b"one".to_vec()), Step::Drop]),
        Connection::Open(None, vec![Step::Send(b"one two".to_vec()), Step::Close]),
    ]);
    let home = Home::of(&server);
    let mut child = home.command(&["shell", ID]).stdin(Stdio::piped()).spawn().unwrap();
    let open = child.stdin.take();
    let ran = finish(child);
    drop(open);
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.starts_with("one\r\n[connection broken: "), "{:?}", ran.stdout);
    assert!(ran.stdout.ends_with("\x1b[2J\x1b[Hone two"), "{:?}", ran.stdout);
}

#[test]
fn a_terminal_that_ended_meanwhile_is_over() {
    let server = serving(vec![
        Connection::Open(None, vec![Step::Drop]),
        Connection::Refuse(404, json!({ "error": "no such terminal" })),
    ]);
    assert_eq!(Home::of(&server).run(&["shell", ID]).code, 0);
}
