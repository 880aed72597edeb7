//! Sandboxes whose user is another than the usual one.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use http::Method;
use serde_json::{Value, json};
use warren_guest_api::frame::Frame;

use crate::client::{Agent, Frames, Outcome, Sent, patiently, stdin};

const WHO: &str = r#"echo "$(id -u):$(id -g) $USER $LOGNAME $HOME $(pwd)""#;

/// Starts an agent whose user has its home and its place of work in a folder of its own.
async fn start(uid: u32, folder: &Path) -> Option<Agent> {
    for name in ["home", "work"] {
        std::fs::create_dir(folder.join(name)).unwrap();
        std::os::unix::fs::chown(folder.join(name), Some(uid), Some(uid)).unwrap();
    }
    let user = json!({"name": "tester", "uid": uid, "gid": uid, "home": folder.join("home")});
    Agent::start_as(&json!({"envs": {}, "user": user, "workdir": folder.join("work")})).await
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    folder
}

/// Runs a command line that says nothing of its own of where.
async fn run(agent: &Agent, cmd: &str, more: Value) -> Outcome {
    let mut request = json!({"cmd": cmd});
    request.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let answer =
        agent.open(Method::POST, "/v1/exec/run", Sent::Whole(Some(request.to_string().into()))).await;
    assert_eq!(answer.status(), 200);
    let mut frames = Frames::of(answer);
    assert!(matches!(frames.next().await, Some(Frame::Started { .. })));
    frames.rest().await
}

#[tokio::test(flavor = "current_thread")]
async fn commands_and_terminals_are_the_users_and_start_where_the_image_says() {
    let folder = folder();
    let shown = folder.path().display();
    let Some(agent) = start(4321, folder.path()).await else { return };
    let who = run(&agent, WHO, json!({})).await;
    assert_eq!(who.text(), format!("4321:4321 tester tester {shown}/home {shown}/work\n"));
    let below_home = run(&agent, "pwd", json!({"cwd": "."})).await;
    assert_eq!(below_home.text(), format!("{shown}/home\n"));
    let as_root = run(&agent, WHO, json!({"as_root": true})).await;
    assert_eq!(as_root.text(), format!("0:0 root root /root {shown}/work\n"));

    let answer = agent.call(Method::POST, "/v1/pty", r#"{"shell": "/bin/sh"}"#).await;
    let pty: warren_guest_api::pty::Pty = answer.json();
    let (keys, screen) = agent.attach(&format!("/v1/pty/{}/attach", pty.id)).await;
    keys.send(stdin("stat -c %u $(tty); pwd; exit\n")).await.unwrap();
    let seen = patiently(screen.rest()).await;
    assert!(seen.text().contains("4321\r\n"), "{}", seen.text());
    assert!(seen.text().contains(&format!("\r\n{shown}/work\r\n")), "{}", seen.text());
}

#[tokio::test(flavor = "current_thread")]
async fn a_place_of_work_that_is_gone_gives_way_to_the_home() {
    let folder = folder();
    let Some(agent) = start(4321, folder.path()).await else { return };
    std::fs::remove_dir(folder.path().join("work")).unwrap();
    let there = run(&agent, "pwd", json!({})).await;
    assert_eq!(there.text().trim(), folder.path().join("home").to_str().unwrap());
    std::fs::remove_dir(folder.path().join("home")).unwrap();
    assert_eq!(run(&agent, "pwd", json!({})).await.text(), "/\n");
}

#[tokio::test(flavor = "current_thread")]
async fn new_files_are_the_users_in_its_own_folders() {
    let folder = folder();
    let shown = folder.path().display();
    let Some(agent) = start(4321, folder.path()).await else { return };
    let owner = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().uid();
    for (path, name) in [("a/b".to_owned(), "home/a/b"), (format!("{shown}/work/c"), "work/c")] {
        assert_eq!(agent.put(&path, "x").await.status, 204);
        assert_eq!(owner(name), 4321, "{name}");
    }
    assert_eq!(owner("home/a"), 4321);
    assert_eq!(agent.put(&format!("{shown}/elsewhere"), "x").await.status, 204);
    assert_eq!(owner("elsewhere"), 0);
    let moved = agent.call(Method::POST, "/v1/files/move", r#"{"from": "a/b", "to": "b"}"#).await;
    assert_eq!(moved.status, 204);
    assert_eq!(owner("home/b"), 4321);
}

#[tokio::test(flavor = "current_thread")]
async fn an_image_may_run_as_root() {
    let folder = folder();
    let Some(agent) = start(0, folder.path()).await else { return };
    let who = run(&agent, WHO, json!({})).await;
    assert!(who.text().starts_with("0:0 tester tester "), "{}", who.text());
    assert_eq!(agent.put("a", "x").await.status, 204);
    assert_eq!(std::fs::metadata(folder.path().join("home/a")).unwrap().uid(), 0);
}
