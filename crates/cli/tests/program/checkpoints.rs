//! Checkpoints, forks, patches, scaling, reboots.

use serde_json::{Value, json};

use crate::harness::{Home, ID, Ran};
use crate::server::Server;

const CHECKPOINT: &str = "01234567-89ab-4def-8123-456789abcdef";
const OTHER: &str = "11234567-89ab-4def-8123-456789abcdef";

fn checkpoint(id: &str, status: &str) -> Value {
    json!({
        "id": id, "orgId": "o", "sandboxId": ID, "name": "one\u{1b}[2J", "kind": "full", "holds": "disk", "status": status,
        "captured": true, "durable": false, "location": "local", "consistency": "quiesced", "pauseMs": 1.25,
        "sizeBytes": if status == "ready" { 5 << 20 } else { 0 }, "isPublic": false, "sandboxConfig": {},
        "createdAt": "2100-01-01T00:00:00Z", "fromTheFuture": 1,
    })
}

fn route(rest: &str) -> String {
    format!("/api/sandboxes/{ID}/checkpoints{rest}")
}

#[test]
fn create_waits_until_it_is_ready_and_prints_the_id() {
    let server = Server::start();
    server.answer(&format!("POST {}", route("")), 201, &checkpoint(CHECKPOINT, "processing"));
    let list = format!("GET {}", route(""));
    server.answer(&list, 200, &json!([checkpoint(CHECKPOINT, "processing")]));
    server.answer(&list, 200, &json!([checkpoint(OTHER, "ready"), checkpoint(CHECKPOINT, "ready")]));
    let home = Home::of(&server);
    let args = [
        "checkpoint",
        "create",
        ID,
        "one",
        "--kind",
        "disk-only",
        "--keep",
        "3",
        "--idempotency-key",
        "once",
    ];
    let ran = home.run(&args);
    assert_eq!((ran.code, ran.stdout), (0, format!("{CHECKPOINT}\n")));
    assert!(ran.stderr.starts_with("one\\u{1b}[2J: captured in "), "{}", ran.stderr);
    assert!(ran.stderr.contains("the sandbox stood still for 1.2 ms, ready in "), "{}", ran.stderr);
    assert!(ran.stderr.ends_with("holds the disk, 5 MiB\n"), "{}", ran.stderr);
    assert_eq!(
        server.body_of(&format!("POST {}", route(""))),
        json!({"name": "one", "kind": "disk_only", "retentionPolicy": {"mode": "delete_oldest", "maxCount": 3}})
    );
    assert_eq!(server.asked()[0].headers["idempotency-key"], "once");
    let ran = home.run(&["checkpoint", "create", ID, "--json", "-q", "--no-wait"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), checkpoint(CHECKPOINT, "processing"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_checkpoint_without_a_name_has_that_of_its_key_or_the_time() {
    let server = Server::start();
    let line = format!("POST {}", route(""));
    server.answer(&line, 201, &checkpoint(CHECKPOINT, "ready"));
    let home = Home::of(&server);
    assert_eq!(home.run(&["checkpoint", "create", ID, "--idempotency-key", "once"]).code, 0);
    assert_eq!(server.body_of(&line), json!({"name": "once"}));
    assert_eq!(home.run(&["checkpoint", "create", ID]).code, 0);
    let asked = server.asked();
    let name = serde_json::from_slice::<Value>(&asked[1].body).unwrap()["name"].clone();
    assert!(name.as_str().unwrap().len() == "2100-01-01-000000.000".len(), "{name}");
}

#[test]
fn a_checkpoint_that_fails_or_is_not_at_rest_is_said() {
    let server = Server::start();
    server.answer(&format!("POST {}", route("")), 201, &checkpoint(CHECKPOINT, "processing"));
    let mut failed = checkpoint(CHECKPOINT, "failed");
    failed["errorMsg"] = json!("the drive is full");
    server.answer(&format!("GET {}", route("")), 200, &json!([failed]));
    let home = Home::of(&server);
    let ran = home.run(&["checkpoint", "create", ID]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("failed: the drive is full"), "{}", ran.stderr);
    let ran = home.run(&["checkpoint", "ls", ID]);
    assert!(ran.stderr.contains("failed: the drive is full"), "{}", ran.stderr);

    let mut torn = checkpoint(CHECKPOINT, "ready");
    torn["consistency"] = json!("crash");
    server.answer(&format!("POST {}", route("")), 201, &torn);
    server.answer(&format!("POST {}", route("")), 201, &torn);
    let ran = home.run(&["checkpoint", "create", ID]);
    let ran = if ran.code == 1 { home.run(&["checkpoint", "create", ID]) } else { ran };
    assert!(ran.stderr.contains("warning: the sandbox did not come to rest"), "{}", ran.stderr);
}

#[test]
fn the_list_is_a_table_or_the_apis_own_json() {
    let server = Server::start();
    let list = json!([checkpoint(CHECKPOINT, "ready")]);
    server.answer(&format!("GET {}", route("")), 200, &list);
    let home = Home::of(&server);
    assert_eq!(
        home.run(&["checkpoint", "ls", ID]).stdout,
        format!(
            "ID                                    NAME          STATUS  HOLDS  SIZE   PUBLIC  AGE\n\
             {CHECKPOINT}  one\\u{{1b}}[2J  ready   disk   5 MiB  -       0s\n"
        )
    );
    let ran = home.run(&["checkpoint", "ls", ID, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), list);
    assert_eq!(home.run(&["checkpoint", "ls", ID, "-q"]).stdout, format!("{CHECKPOINT}\n"));
}

#[test]
fn rm_goes_on_after_a_failure() {
    let server = Server::start();
    let gone = json!({"error": "checkpoint not found"});
    server.answer(&format!("DELETE {}", route(&format!("/{OTHER}"))), 404, &gone);
    server.answer(&format!("DELETE {}", route(&format!("/{CHECKPOINT}"))), 204, &Value::Null);
    let ran = Home::of(&server).run(&["checkpoint", "rm", ID, OTHER, CHECKPOINT]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains(&format!("deleted {CHECKPOINT}")), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("could not delete {OTHER}")), "{}", ran.stderr);
}

#[test]
fn restore_returns_when_the_sandbox_runs_again() {
    let server = Server::start();
    let restoring = json!({"sandboxId": ID, "checkpointId": CHECKPOINT, "status": "restoring"});
    server.answer(&format!("POST {}", route(&format!("/{CHECKPOINT}/restore"))), 200, &restoring);
    server.answer(&format!("POST /api/sandboxes/{ID}/wake"), 200, &json!({"status": "running"}));
    let home = Home::of(&server);
    let ran = home.run(&["checkpoint", "restore", ID, CHECKPOINT, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), restoring);
    assert!(ran.stderr.starts_with(&format!("{ID} is back at {CHECKPOINT}, in ")), "{}", ran.stderr);
    assert_eq!(server.lines().len(), 2, "the restore, and the wake that waits for its end");
    let damaged = json!({"error": "checkpoint is damaged and was not used", "code": "checkpoint_damaged"});
    server.answer(&format!("POST {}", route(&format!("/{OTHER}/restore"))), 409, &damaged);
    assert_eq!(home.run(&["checkpoint", "restore", ID, OTHER]).code, 4);
}

#[test]
fn publishing_says_what_it_means() {
    let server = Server::start();
    let mut public = checkpoint(CHECKPOINT, "ready");
    public["isPublic"] = json!(true);
    server.answer(&format!("POST /api/sandboxes/checkpoints/{CHECKPOINT}/publish"), 200, &public);
    let private = checkpoint(CHECKPOINT, "ready");
    server.answer(&format!("POST /api/sandboxes/checkpoints/{CHECKPOINT}/unpublish"), 200, &private);
    let home = Home::of(&server);
    let ran = home.run(&["checkpoint", "publish", CHECKPOINT]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert!(ran.stderr.contains("every organisation"), "{}", ran.stderr);
    let ran = home.run(&["checkpoint", "unpublish", CHECKPOINT, "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["isPublic"], false);
}

#[test]
fn a_fork_prints_the_new_id_and_warns_of_a_failed_patch() {
    let server = Server::start();
    let line = format!("POST /api/sandboxes/from-checkpoint/{CHECKPOINT}");
    let made = json!({
        "sandboxID": "sb-ffffffff", "status": "running", "templateID": "base", "region": "local", "cpuCount": 1,
        "memoryMB": 4096, "startedAt": "2100-01-01T00:00:00Z", "metadata": {}, "tags": {}, "tagsLastUpdatedAt": null,
        "fromCheckpointId": CHECKPOINT, "patchError": "patch 2 failed (exit code 1)",
    });
    server.answer(&line, 201, &made);
    let home = Home::of(&server);
    let ran = home.run(&[
        "fork",
        CHECKPOINT,
        "-e",
        "A=1",
        "-m",
        "b=2",
        "--timeout",
        "60",
        "--memory",
        "4096",
        "--allow-host",
        "a.com",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "sb-ffffffff\n"));
    assert!(
        ran.stderr.ends_with("ms: 1 vCPU, 4 GiB\nwarning: patch 2 failed (exit code 1)\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        server.body_of(&line),
        json!({"timeout": 60, "envs": {"A": "1"}, "metadata": {"b": "2"}, "memoryMB": 4096, "egressAllowlist": ["a.com"]})
    );
    let ran = home.run(&["fork", CHECKPOINT, "--json", "-q"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), made);
}

#[test]
fn patches_are_added_from_a_file_listed_and_removed() {
    let server = Server::start();
    let path = format!("/api/sandboxes/checkpoints/{CHECKPOINT}/patches");
    let patch = json!({
        "id": OTHER, "checkpointId": CHECKPOINT, "sequence": 3, "script": "echo hi\n", "description": "greets",
        "strategy": "on_wake", "createdAt": "2100-01-01T00:00:00Z",
    });
    server.answer(&format!("POST {path}"), 201, &json!({"patch": patch}));
    server.answer(&format!("GET {path}"), 200, &json!([patch]));
    server.answer(&format!("DELETE {path}/{OTHER}"), 204, &Value::Null);
    let home = Home::of(&server);
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.sh");
    std::fs::write(&script, "echo hi\n").unwrap();
    let script = script.to_str().unwrap();
    let ran =
        home.run(&["checkpoint", "patch", "add", CHECKPOINT, "--script", script, "--description", "greets"]);
    assert_eq!((ran.code, ran.stdout), (0, format!("{OTHER}\n")));
    assert_eq!(
        server.body_of(&format!("POST {path}")),
        json!({"script": "echo hi\n", "description": "greets"})
    );
    assert_eq!(
        home.run(&["checkpoint", "patch", "ls", CHECKPOINT]).stdout,
        format!(
            "ID                                    SEQ  DESCRIPTION  AGE\n{OTHER}  3    greets       0s\n"
        )
    );
    assert_eq!(home.run(&["checkpoint", "patch", "rm", CHECKPOINT, OTHER]).code, 0);
    let ran = home.run(&["checkpoint", "patch", "add", CHECKPOINT, "--script", "/does/not/exist"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("could not read /does/not/exist"), "{}", ran.stderr);
}

#[test]
fn scaling_says_what_the_sandbox_has_now() {
    let server = Server::start();
    let path = format!("/api/sandboxes/{ID}");
    let scaled = json!({
        "sandboxID": ID, "workerID": "w", "memoryMB": 8192, "cpuPercent": 200, "migrated": false, "ok": true,
        "autoscaleDisabled": true,
    });
    server.answer(&format!("POST {path}/scale"), 200, &scaled);
    let auto =
        |enabled| json!({"sandboxID": ID, "enabled": enabled, "minMemoryMB": 1024, "maxMemoryMB": 8192});
    server.answer(&format!("PUT {path}/autoscale"), 200, &auto(true));
    server.answer(&format!("GET {path}/autoscale"), 200, &auto(false));
    server.answer(&format!("PUT {path}/scaling-lock"), 200, &json!({"sandboxID": ID, "locked": true}));
    let home = Home::of(&server);
    let said = |args: &[&str]| home.run(args).stderr;
    assert_eq!(
        said(&["scale", ID, "8192"]),
        format!("{ID} has 8 GiB and 2 vCPU; it no longer scales by itself\n")
    );
    assert_eq!(
        said(&["scale", ID, "--auto", "--min", "1024", "--max", "8192"]),
        format!("{ID} scales by itself, from 1 GiB to 8 GiB\n")
    );
    assert_eq!(
        server.body_of(&format!("PUT {path}/autoscale")),
        json!({"enabled": true, "minMemoryMB": 1024, "maxMemoryMB": 8192})
    );
    assert_eq!(said(&["scale", ID]), format!("{ID} does not scale by itself\n"));
    assert_eq!(said(&["scale", ID, "--lock"]), format!("{ID} is locked to its size\n"));
    let ran = home.run(&["scale", ID, "8192", "--json", "-q"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), scaled);
}

#[test]
fn reboot_and_wake_say_what_became_of_the_processes() {
    let server = Server::start();
    for verb in ["reboot", "power-cycle"] {
        server.answer(&format!("POST /api/sandboxes/{ID}/{verb}"), 204, &Value::Null);
    }
    let home = Home::of(&server);
    for args in [&["reboot", ID][..], &["reboot", ID, "--hard"]] {
        assert_eq!(
            home.run(args),
            Ran { code: 0, stdout: String::new(), stderr: format!("{ID} runs again\n") }
        );
    }
    assert_eq!(server.lines().len(), 2);
    let wake = format!("POST /api/sandboxes/{ID}/wake");
    server.answer(&wake, 200, &json!({"status": "running", "processes": "restarted"}));
    let ran = home.run(&["wake", ID, "--previous-disk"]);
    assert_eq!(
        ran.stderr,
        format!("{ID} running; its processes had ended, its start commands are started again\n")
    );
    assert_eq!(server.body_of(&wake), json!({"disk": "previous"}));
}
