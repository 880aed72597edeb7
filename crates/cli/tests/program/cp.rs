//! Files and folders, both ways.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::harness::{Home, ID, Ran};
use crate::server::Server;

const MKDIR: &str = "POST /api/sandboxes/sb-0123abcd/files/mkdir?path=";

fn done() -> Ran {
    Ran { code: 0, stdout: String::new(), stderr: String::new() }
}

#[test]
fn a_file_goes_there_and_back_unchanged() {
    let server = Server::start();
    server.put_file("/workspace", None, 0o755);
    let home = Home::of(&server);
    let contents: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let local = home.path().join("script with blanks.sh");
    std::fs::write(&local, &contents).unwrap();
    std::fs::set_permissions(&local, std::fs::Permissions::from_mode(0o755)).unwrap();

    let there = "/workspace/script with blanks.sh";
    assert_eq!(home.run(&["cp", "script with blanks.sh", &format!("{ID}:/workspace")]), done());
    assert!(server.file(there).unwrap() == contents);
    let put = server.asked().into_iter().find(|asked| asked.line.starts_with("PUT ")).unwrap();
    assert_eq!(put.headers["content-length"], "3000000");
    for mode in [0o755, 0o600] {
        std::fs::set_permissions(&local, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(home.run(&["cp", "script with blanks.sh", &format!("{ID}:/workspace")]), done());
        assert_eq!(home.run(&["cp", &format!("{ID}:{there}"), "back"]), done());
        let back = home.path().join("back");
        assert!(std::fs::read(&back).unwrap() == contents);
        assert_eq!(std::fs::metadata(&back).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_folder_goes_there_and_back_unchanged() {
    let server = Server::start();
    server.answer(&format!("{MKDIR}%2Ftmp%2Fcopy"), 204, &Value::Null);
    let home = Home::of(&server);
    let tree = home.path().join("tree");
    std::fs::create_dir_all(tree.join("a/empty")).unwrap();
    std::fs::write(tree.join("a/file"), "contents").unwrap();
    std::fs::write(tree.join("ünïcode"), "").unwrap();

    // The copy becomes what is not there yet, and lands in what is.
    assert_eq!(home.run(&["cp", "tree", &format!("{ID}:/tmp/copy")]), done());
    assert_eq!(server.file("/tmp/copy/a/file").unwrap(), b"contents");
    server.put_file("/tmp/copy", None, 0o755);
    for (target, arrives) in [("fresh", "fresh"), (".", "copy")] {
        assert_eq!(home.run(&["cp", &format!("{ID}:/tmp/copy"), target]), done());
        let arrived = home.path().join(arrives);
        assert_eq!(std::fs::read(arrived.join("a/file")).unwrap(), b"contents", "{target}");
        assert!(arrived.join("a/empty").is_dir() && arrived.join("ünïcode").is_file(), "{target}");
    }
    let mut names: Vec<_> =
        std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["copy", "fresh", "tree"], "nothing else is left");
}

#[test]
fn what_changed_while_it_was_packed_is_told() {
    let server = Server::start();
    server.put_file("/tmp/busy", None, 0o755);
    server.put_file("/tmp/busy/shortened", Some(b"x\0\0"), 0o644);
    let home = Home::of(&server);
    let ran = home.run(&["cp", &format!("{ID}:/tmp/busy"), "copy"]);
    let said = "error: copied, but these changed meanwhile: some \\u{1b}[1m zeros";
    assert_eq!((ran.code, ran.stderr.lines().next()), (1, Some(said)));
    assert_eq!(std::fs::read(home.path().join("copy/shortened")).unwrap(), b"x\0\0");
}

#[test]
fn a_page_is_not_taken_for_a_file() {
    let server = Server::start();
    server.put_file("/tmp/page", Some(b"<html>log in first</html>"), 0o644);
    let home = Home::of(&server);
    for args in [&["cp", &format!("{ID}:/tmp/page"), "kept"][..], &["files", "cat", ID, "/tmp/page"]] {
        let ran = home.run(args);
        let said = "error: the server sent text/html where application/octet-stream was to come";
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.lines().next()), (1, "", Some(said)));
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn a_download_that_breaks_leaves_the_old_file() {
    let server = Server::start();
    server.put_file("/tmp/broken", Some(&[b'x'; 100_000]), 0o644);
    let home = Home::of(&server);
    std::fs::write(home.path().join("kept"), "old").unwrap();
    let ran = home.run(&["cp", &format!("{ID}:/tmp/broken"), "kept"]);
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    assert_eq!(std::fs::read(home.path().join("kept")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1, "no half file is left");

    let ran = home.run(&["cp", &format!("{ID}:/tmp/nothing"), "kept"]);
    assert_eq!(
        ran,
        Ran {
            code: 3,
            stdout: String::new(),
            stderr: "error: /tmp/nothing: no such file or directory (404)\n".to_owned()
        }
    );
}

#[test]
fn stdin_and_stdout_are_places_too() {
    let server = Server::start();
    let home = Home::of(&server);
    assert_eq!(home.run_with_input(&["cp", "-", &format!("{ID}:/tmp/in")], b"from stdin"), done());
    assert_eq!(server.file("/tmp/in").unwrap(), b"from stdin");
    assert_eq!(home.run(&["cp", &format!("{ID}:/tmp/in"), "-"]).stdout, "from stdin");
    assert_eq!(home.run_with_input(&["files", "put", ID, "/tmp/put"], b"put"), done());
    assert_eq!(home.run(&["files", "cat", ID, "/tmp/in", "/tmp/put"]).stdout, "from stdinput");
}

#[test]
fn a_folder_is_removed_only_when_that_is_meant() {
    let server = Server::start();
    server.put_file("/tmp/d", None, 0o755);
    server.answer("DELETE /api/sandboxes/sb-0123abcd/files?path=%2Ftmp%2Fd", 204, &Value::Null);
    let home = Home::of(&server);
    let ran = home.run(&["files", "rm", ID, "/tmp/d"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (1, "error: /tmp/d is a folder\nhint: -r removes it with all that is in it\n")
    );
    assert!(!server.lines().iter().any(|line| line.starts_with("DELETE")));
    assert_eq!(home.run(&["files", "rm", "-r", ID, "/tmp/d"]), done());
}

#[test]
fn a_folder_is_listed_and_a_file_described() {
    let server = Server::start();
    server.answer(
        "GET /api/sandboxes/sb-0123abcd/files/list?path=%2Fhome%2Fsandbox",
        200,
        &json!([{ "name": "src", "isDir": true, "size": 0, "path": "/home/sandbox/src" },
                { "name": "a\nb", "isDir": false, "size": 2048, "path": "/home/sandbox/a\nb" }]),
    );
    server.put_file("/f", Some(b"abc"), 0o640);
    let home = Home::of(&server);
    assert_eq!(
        home.run(&["files", "ls", ID]).stdout,
        "TYPE    SIZE   NAME\nfolder  -      src\nfile    2 KiB  a\\nb\n"
    );
    assert_eq!(
        home.run(&["files", "stat", ID, "/f"]).stdout,
        "Path:     /f\nType:     file\nSize:     3 bytes\nMode:     0640\nOwner:    1000:1000\nModified: 2026-01-01T00:00:00Z\n"
    );
}
