//! What was made and cannot be told on stdout is told on stderr, by a name that can be used.

use std::fs::OpenOptions;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Home, ID, finish};
use crate::server::Server;

const CHECKPOINT: &str = "01234567-89ab-4def-8123-456789abcdef";
const MADE: &str = "11234567-89ab-4def-8123-456789abcdef";
const AT: &str = "2100-01-01T00:00:00Z";

/// Runs it with a full stdout and with one that nobody reads.
fn is_told(home: &Home, args: &[&str], says: &str) {
    for json in [false, true] {
        let args = if json { [args, &["--json"]].concat() } else { args.to_vec() };
        let full: Stdio = OpenOptions::new().write(true).open("/dev/full").unwrap().into();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        for (stdout, why) in [(full, "No space left"), (writer.into(), "stdout is closed")] {
            let ran = finish(home.command(&args).stdout(stdout).spawn().unwrap());
            assert_eq!(ran.code, 1, "{args:?}: {ran:?}");
            assert!(ran.stderr.contains(says) && ran.stderr.contains(why), "{args:?}: {ran:?}");
        }
    }
}

#[test]
fn what_cannot_be_told_on_stdout_is_told_on_stderr() {
    let server = Server::start();
    let sandbox = json!({
        "sandboxID": ID, "status": "running", "templateID": "base", "region": "local", "cpuCount": 1, "memoryMB": 4096,
        "startedAt": AT, "metadata": {}, "tags": {}, "tagsLastUpdatedAt": null,
    });
    let checkpoint = json!({
        "id": MADE, "orgId": "o", "sandboxId": ID, "name": "one", "kind": "full", "holds": "disk", "status": "ready",
        "captured": true, "durable": false, "location": "local", "sizeBytes": 0, "isPublic": false, "sandboxConfig": {},
        "createdAt": AT,
    });
    let session = json!({
        "sessionID": "00c0ffee", "sandboxID": ID, "command": "true", "args": [], "running": true, "startedAt": AT,
        "attachedClients": 0,
    });
    let store = json!({ "id": MADE, "orgId": "o", "name": "one", "egressAllowlist": [], "createdAt": AT, "updatedAt": AT });
    for (route, body) in [
        ("sandboxes".to_owned(), &sandbox),
        (format!("sandboxes/from-checkpoint/{CHECKPOINT}"), &sandbox),
        (format!("sandboxes/{ID}/checkpoints"), &checkpoint),
        (format!("sandboxes/{ID}/exec"), &session),
        ("secret-stores".to_owned(), &store),
    ] {
        server.answer(&format!("POST /api/{route}"), 201, body);
    }
    let home = Home::of(&server);
    is_told(&home, &["create"], "the sandbox sb-0123abcd was made");
    is_told(&home, &["fork", CHECKPOINT], "the sandbox sb-0123abcd was made");
    is_told(&home, &["checkpoint", "create", ID], &format!("the checkpoint {MADE} was made"));
    is_told(&home, &["exec", "--detach", ID, "--", "true"], "the session 00c0ffee was made");
    is_told(&home, &["secret-store", "create", "one"], &format!("the secret store {MADE} was made"));
}

#[test]
fn a_key_that_cannot_be_told_is_named_so_that_it_can_be_revoked() {
    let home = Home::new();
    let data = home.path().join("data");
    let data = data.to_str().unwrap();
    is_told(&home, &["keys", "create", "--org", "acme", "--data-dir", data], "the API key ");
    let list = home.run(&["keys", "list", "--data-dir", data, "--json"]);
    let keys: Vec<Value> = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(keys.len(), 4, "each was made");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = finish(
        home.command(&["keys", "create", "--org", "b", "--data-dir", data]).stdout(full).spawn().unwrap(),
    );
    let id = ran.stderr.split_whitespace().find(|word| word.len() == MADE.len()).expect("its id is there");
    assert!(!ran.stderr.contains("osb_"), "the key itself goes to stdout only: {ran:?}");
    assert_eq!(home.run(&["keys", "revoke", id, "--data-dir", data]).code, 0);
}
