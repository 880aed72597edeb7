//! Commands: what they get, what comes back, how they end.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use warren_guest_api::exec::{Exec, Exit, ExitReason};
use warren_guest_api::frame::Frame;

use crate::client::{Agent, is_alive, sent, stdin, until};

const NOTHING: Value = Value::Null;

#[tokio::test(flavor = "current_thread")]
async fn a_command_is_the_users_own_process() {
    let Some(agent) = Agent::start().await else { return };
    let script = r#"id -u; id -g; pwd; echo "$MARK $OWN $USER $LANG"; cat /proc/self/oom_score_adj
        grep -E 'NoNewPrivs|SigIgn|SigBlk' /proc/self/status; ps -o pgid= -p $$ | tr -d ' '; echo $$
        echo $(ls /proc/self/fd); umask; echo oops >&2; exit 3"#;
    let outcome = agent.run(script, json!({"envs": {"OWN": "mine"}})).await;
    let folder = agent.folder.path().display();
    let lines: Vec<&str> = outcome.text().lines().collect();
    assert_eq!(
        &lines[..5],
        ["1000", "1000", &folder.to_string(), "from-boot mine sandbox en_US.UTF-8", "500"]
    );
    assert_eq!(
        &lines[5..8],
        ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "NoNewPrivs:\t0"],
        "sudo works, pipes break as usual"
    );
    assert_eq!(lines[8], lines[9], "it leads its process group");
    assert_eq!(lines[10], "0 1 2 3", "no descriptor of the agent's is left to it, the folder's is its own");
    assert_eq!(lines[11], "0022");
    assert_eq!(outcome.stderr, b"oops\n");
    assert_eq!(outcome.exit, Some(Exit { code: 3, reason: ExitReason::Exited }));
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_start_is_refused_with_a_reason() {
    let Some(agent) = Agent::start().await else { return };
    std::fs::write(agent.path("plain"), "text").unwrap();
    let orphan = agent.path("orphan");
    std::fs::write(&orphan, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&orphan, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (request, says) in [
        (agent.request("nope", &["x"], NOTHING), r#"cannot start "nope": No such file or directory"#),
        (agent.request("./orphan", &["x"], NOTHING), "is there, but not what it needs to run"),
        (agent.request("./plain", &["x"], NOTHING), r#"cannot start "./plain": Permission denied"#),
        (
            agent.request("true", &[], json!({"cwd": "/no/such"})),
            r#"working directory "/no/such" does not exist"#,
        ),
        (agent.request("true", &[], json!({"cwd": "/etc/passwd"})), "Not a directory"),
        (agent.request("", &[], NOTHING), "cmd is required"),
        (agent.request("a\0b", &[], NOTHING), "NUL"),
        (agent.request("true", &["a\0b"], NOTHING), "NUL"),
        (agent.request("true", &[], json!({"cwd": "/\0"})), "NUL"),
        (agent.request("true", &[], json!({"envs": {"A=B": "1"}})), "environment variable"),
        (agent.request("true", &[], json!({"envs": {"": "1"}})), "environment variable"),
        (agent.request("true", &[], json!({"envs": {"A": "\0"}})), "NUL"),
        (agent.request("echo", &[&"x".repeat(200_000)], NOTHING), "Argument list too long"),
        ("{".to_owned(), "EOF"),
        (r#"{"cmd": 7}"#.to_owned(), "expected a string"),
    ] {
        for path in ["/v1/exec", "/v1/exec/run"] {
            let error = agent.call(Method::POST, path, request.clone()).await.error(400);
            assert!(error.message.contains(says), "{}", error.message);
        }
    }
    let huge = agent.call(Method::POST, "/v1/exec", vec![b' '; 5_000_000]).await;
    huge.error(413);
    let known: Vec<Exec> = agent.get("/v1/exec").await.json();
    assert!(known.is_empty(), "what did not start is not known");
    assert!(agent.cgroups().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn shells_are_used_when_they_are_needed() {
    let Some(agent) = Agent::start().await else { return };
    let sessions = |cmd: &str| agent.request(cmd, &[], json!({"shell": "when_needed"}));
    for (cmd, expected) in [("echo hello | tr a-z A-Z", "HELLO\n"), ("pwd", ""), ("echo 'a b'", "a b\n")] {
        let exec: Exec = agent.call(Method::POST, "/v1/exec", sessions(cmd)).await.json();
        assert_eq!(agent.wait(&exec).await.code, 0);
        let output = agent.get(&format!("/v1/exec/{}/output?stream=stdout", exec.id)).await;
        assert!(output.body.ends_with(expected.as_bytes()), "{output:?}");
    }
    let script = agent.path("with space");
    std::fs::write(&script, "#!/bin/sh\necho \"ran $0\"\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let exec: Exec = agent.call(Method::POST, "/v1/exec", sessions("./with space")).await.json();
    assert_eq!(agent.wait(&exec).await.code, 0, "the name of a program is run as it is");
    let error = agent.call(Method::POST, "/v1/exec", sessions("no-such-program")).await.error(400);
    assert!(error.message.contains("No such file"), "{}", error.message);
}

#[tokio::test(flavor = "current_thread")]
async fn input_reaches_the_command_and_ends_only_when_told() {
    let Some(agent) = Agent::start().await else { return };
    let exec = agent.exec("cat", &["-"], json!({"stdin": true})).await;
    let path = format!("/v1/exec/{}/attach", exec.id);
    let (first, mut first_frames) = agent.attach(&path).await;
    first_frames.replay().await;
    first.send(stdin("one ")).await.unwrap();
    first_frames.until(|seen| seen.stdout == b"one ").await;
    // The body ends; the command does not.
    drop(first);
    let (second, mut second_frames) = agent.attach(&path).await;
    assert_eq!(second_frames.replay().await.1.stdout, b"one ");
    // A frame may come in any pieces.
    let frame = Frame::Stdin(Bytes::from_static(b"two")).to_bytes();
    for byte in frame {
        second.send(Ok(Bytes::from(vec![byte]))).await.unwrap();
    }
    first_frames.until(|seen| seen.stdout == b"two").await;
    assert_eq!(agent.status(&exec).await.attached_clients, 2);
    second.send(sent(&Frame::StdinEnd)).await.unwrap();
    assert_eq!(second_frames.rest().await.code(), 0);
    assert_eq!(first_frames.rest().await.code(), 0);
    until("clients are gone", || async { agent.status(&exec).await.attached_clients == 0 }).await;

    let exec = agent.exec("cat", &["-"], NOTHING).await;
    assert_eq!(agent.wait(&exec).await.code, 0, "without stdin there is nothing to read");
}

#[tokio::test(flavor = "current_thread")]
async fn much_input_passes_through_unchanged() {
    let Some(agent) = Agent::start().await else { return };
    let exec = agent.exec("cat", &["-"], json!({"stdin": true})).await;
    let (input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach", exec.id)).await;
    frames.replay().await;
    let pieces: Vec<Bytes> = (0..40u8).map(|number| Bytes::from(vec![number; 50_000])).collect();
    let sending = pieces.clone();
    tokio::spawn(async move {
        for piece in sending {
            input.send(sent(&Frame::Stdin(piece))).await.unwrap();
        }
        input.send(sent(&Frame::StdinEnd)).await.unwrap();
    });
    let outcome = frames.rest().await;
    assert!(outcome.stdout == pieces.concat(), "{} bytes came back", outcome.stdout.len());
}

#[tokio::test(flavor = "current_thread")]
async fn attaching_replays_from_the_offset_and_goes_on_live() {
    let Some(agent) = Agent::start().await else { return };
    let script = "printf aaa; read x; printf BBB >&2; read x; printf ccc; read x; printf ddd";
    let exec = agent.exec("sh", &["-c", script], json!({"stdin": true})).await;
    let (input, _frames) = agent.attach(&format!("/v1/exec/{}/attach", exec.id)).await;
    for written in [3, 6, 9] {
        until("the next part is there", || async { agent.status(&exec).await.log_end == written }).await;
        if written < 9 {
            input.send(stdin("\n")).await.unwrap();
        }
    }
    for (offset, out, err) in
        [("", "aaaccc", "BBB"), ("?offset=4", "ccc", "BB"), ("?offset=9", "", ""), ("?offset=99", "", "")]
    {
        let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach{offset}", exec.id)).await;
        let (start, replayed) = frames.replay().await;
        assert_eq!((replayed.text(), &replayed.stderr[..]), (out, err.as_bytes()));
        assert_eq!(start + (out.len() + err.len()) as u64, 9);
    }
    let (input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach?offset=9", exec.id)).await;
    frames.replay().await;
    input.send(stdin("\n")).await.unwrap();
    assert_eq!(frames.rest().await.text(), "ddd");
    let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach", exec.id)).await;
    assert_eq!(frames.replay().await.1.text(), "aaacccddd");
    assert_eq!(frames.rest().await.code(), 0, "one that comes late gets the exit too");
    let stderr = agent.get(&format!("/v1/exec/{}/output?stream=stderr", exec.id)).await;
    let mut replay = agent.frames(&format!("/v1/exec/{}/replay", exec.id)).await;
    assert_eq!(replay.replay().await.1.text(), "aaacccddd");
    assert_eq!(replay.next().await, None);
    assert_eq!(&stderr.body[..], b"BBB");
    agent.get(&format!("/v1/exec/{}/attach", exec.id)).await.error(405);
    agent.get("/v1/exec/00000000/output").await.error(404);
    agent.get("/v1/exec/..%2f..%2fx").await.error(404);
    agent.get(&format!("/v1/exec/{}/output?stream=stdin", exec.id)).await.error(400);
}

#[tokio::test(flavor = "current_thread")]
async fn signals_end_a_command_and_the_code_says_so() {
    let Some(agent) = Agent::start().await else { return };
    let exec = agent.exec("sleep", &["1000"], NOTHING).await;
    assert_eq!(agent.kill(&exec, 15).await.status, 204);
    assert_eq!(agent.wait(&exec).await, Exit { code: 143, reason: ExitReason::Signalled });
    assert_eq!(agent.kill(&exec, 9).await.status, 204, "a second time is fine");
    for signal in [0, -1, 65, i32::MIN] {
        agent.kill(&exec, signal).await.error(400);
    }
    agent.call(Method::POST, "/v1/exec/00000000/kill", r#"{"signal": 9}"#).await.error(404);

    let script = "trap 'echo got; exit 4' INT; echo ready; while :; do sleep 0.01; done";
    let exec = agent.exec("sh", &["-c", script], NOTHING).await;
    let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach?offset=0", exec.id)).await;
    frames.replay().await;
    until("it is ready", || async { agent.status(&exec).await.log_end > 0 }).await;
    agent.kill(&exec, 2).await;
    assert_eq!(agent.wait(&exec).await, Exit { code: 4, reason: ExitReason::Exited });
}

#[tokio::test(flavor = "current_thread")]
async fn nine_and_time_limits_end_everything_a_command_started() {
    let Some(agent) = Agent::start().await else { return };
    if !agent.has_cgroups() {
        eprintln!("skipped: no cgroup version 2 here");
        return;
    }
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & sleep 0.1; sleep 1000";
    let exec = agent.exec("sh", &["-c", script], NOTHING).await;
    until("the child has a session of its own", || async { agent.status(&exec).await.log_end > 0 }).await;
    let bystander = agent.exec("sleep", &["1000"], NOTHING).await;
    let child = agent.get(&format!("/v1/exec/{}/output", exec.id)).await;
    let child = String::from_utf8(child.body.to_vec()).unwrap();
    assert!(is_alive(&child));
    agent.kill(&exec, 9).await;
    assert_eq!(agent.wait(&exec).await, Exit { code: 137, reason: ExitReason::Signalled });
    until("the child is dead", || async { !is_alive(&child) }).await;

    let outcome = agent.run(script, json!({"timeout_ms": 300})).await;
    assert_eq!(outcome.exit, Some(Exit { code: -1, reason: ExitReason::TimedOut }));
    let child = outcome.text().to_owned();
    until("the child is dead", || async { !is_alive(&child) }).await;
    assert!(outcome.stderr.is_empty());
    assert!(agent.status(&bystander).await.running, "nothing else is touched");
    // The last empty groups go with the next thing that happens.
    agent.run("true", NOTHING).await;
    until("the groups are removed", || async {
        agent.run("true", NOTHING).await;
        agent.cgroups().len() <= 1
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn children_left_behind_neither_hold_up_the_end_nor_die_of_it() {
    let Some(agent) = Agent::start().await else { return };
    let script =
        "(i=0; while :; do echo chatter; i=$((i+1)); echo $i > beat; sleep 0.01; done) & echo started";
    let started = std::time::Instant::now();
    let outcome = agent.run(script, NOTHING).await;
    assert!(started.elapsed().as_secs() < 20);
    assert_eq!(outcome.code(), 0);
    assert!(outcome.text().contains("started"));
    let beat = agent.path("beat");
    let count =
        || std::fs::read_to_string(&beat).ok().and_then(|text| text.trim().parse::<u32>().ok()).unwrap_or(0);
    let then = count();
    until("the child goes on", || async { count() > then + 20 }).await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_written_before_the_end_is_all_there() {
    let Some(agent) = Agent::start().await else { return };
    for _ in 0..20 {
        // A child holds the pipe open, so its end does not mark the end of the output.
        let outcome = agent.run("sleep 1000 & head -c 60000 /dev/zero; printf x >&2", NOTHING).await;
        assert_eq!((outcome.stdout.len(), &outcome.stderr[..]), (60_000, &b"x"[..]));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_command_outlives_its_callers_but_not_longer_than_allowed() {
    let Some(mut agent) = Agent::start().await else { return };
    let frames = agent.run_frames("sleep 0.2; echo done > result; sleep 1000", NOTHING).await;
    drop(frames);
    until("the command goes on", || async { agent.path("result").exists() }).await;

    let short = json!({"max_run_after_disconnect_ms": 200});
    let never_attached = agent.exec("sleep", &["1000"], short.clone()).await;
    let exec = agent.exec("sh", &["-c", "sleep 0.6; echo alive; sleep 1000"], short).await;
    let (input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach", exec.id)).await;
    frames.replay().await;
    frames.until(|seen| seen.stdout == b"alive\n").await;
    assert!(agent.status(&exec).await.running, "it stays while somebody is attached");
    // All clients go with the connection.
    agent.reconnect().await;
    drop((input, frames));
    assert_eq!(agent.wait(&exec).await, Exit { code: 137, reason: ExitReason::Abandoned });
    assert!(agent.status(&never_attached).await.running, "nobody has left it");
    let (input, frames) = agent.attach(&format!("/v1/exec/{}/attach", never_attached.id)).await;
    agent.reconnect().await;
    drop((input, frames));
    assert_eq!(agent.wait(&never_attached).await.reason, ExitReason::Abandoned);
}

#[tokio::test(flavor = "current_thread")]
async fn a_thousand_quick_commands_end_with_their_own_codes() {
    let Some(agent) = Agent::start().await else { return };
    for round in 0..40 {
        let runs = (0..25).map(|number| round * 25 + number).map(|number| {
            let agent = &agent;
            async move {
                let code = number % 256;
                let outcome = agent.run(&format!("echo {number}; exit {code}"), NOTHING).await;
                assert_eq!((outcome.text().trim(), outcome.code()), (number.to_string().as_str(), code));
            }
        });
        let mut all: Vec<_> = runs.map(Box::pin).collect();
        std::future::poll_fn(|context| {
            all.retain_mut(|run| run.as_mut().poll(context).is_pending());
            if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
    let known: Vec<Exec> = agent.get("/v1/exec").await.json();
    assert!(known.len() <= 256, "finished commands are not kept without end");
    assert!(known.iter().all(|exec| !exec.running && exec.ended_at_ms >= Some(exec.started_at_ms)));
}

#[tokio::test(flavor = "current_thread")]
async fn a_command_under_an_id_of_the_callers_is_started_once() {
    let Some(agent) = Agent::start().await else { return };
    let id = "0a1b2c3d";
    // What cannot be started has not been.
    let wrong = agent.request("nope", &["x"], json!({ "id": id }));
    agent.call(Method::POST, "/v1/exec", wrong).await.error(400);
    let request = agent.request("sh", &["-c", "echo ran >> ran"], json!({ "id": id, "once": true }));
    let start = || agent.call(Method::POST, "/v1/exec", request.clone());
    // Asked for again while it begins, while it runs, and when it has ended.
    let (one, two) = tokio::join!(start(), start());
    let (one, two): (Exec, Exec) = (one.json(), two.json());
    assert!(one.id.as_str() == id && two.id.as_str() == id);
    assert_eq!(agent.wait(&one).await.code, 0);
    let again: Exec = start().await.json();
    assert_eq!((again.running, again.exit.map(|exit| exit.code)), (false, Some(0)));
    // And when it has been forgotten: whether it ran well is not known then, that it ran is.
    for _ in 0..300 {
        let other: Exec =
            agent.call(Method::POST, "/v1/exec", agent.request("true", &["x"], NOTHING)).await.json();
        agent.wait(&other).await;
    }
    agent.get(&format!("/v1/exec/{id}")).await.error(404);
    let gone = start().await.error(410);
    assert!(gone.message.contains("has run"), "{}", gone.message);
    assert_eq!(std::fs::read_to_string(agent.path("ran")).unwrap(), "ran\n");
}

#[tokio::test(flavor = "current_thread")]
async fn the_next_agent_knows_what_commands_have_come_to() {
    let (Some(agent), Some(next)) = (Agent::start().await, Agent::start().await) else { return };
    let begin = async |script: &str| -> Exec {
        agent.call(Method::POST, "/v1/exec", agent.request("sh", &["-c", script], NOTHING)).await.json()
    };
    let (done, runs) = (begin("echo done; exit 5").await, begin("echo begun; sleep 600").await);
    agent.wait(&done).await;
    let has_begun = || async {
        let output = agent.get(&format!("/v1/exec/{}/output?stream=stdout", runs.id)).await;
        output.body == "begun\n"
    };
    until("it has begun", has_begun).await;
    let told = agent.get("/v1/exec/kept").await.body;
    next.call(Method::PUT, "/v1/exec/kept", told.clone()).await;
    next.call(Method::PUT, "/v1/exec/kept", told[..told.len() - 1].to_vec()).await.error(400);
    for (exec, code, said) in [(done, 5, &b"done\n"[..]), (runs, 137, b"begun\n")] {
        let found: Exec = next.get(&format!("/v1/exec/{}", exec.id)).await.json();
        assert_eq!((found.running, found.exit.map(|exit| exit.code)), (false, Some(code)));
        let output = next.get(&format!("/v1/exec/{}/output?stream=stdout", exec.id)).await;
        assert_eq!(&output.body[..], said);
    }
}
