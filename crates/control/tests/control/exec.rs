//! Commands over plain HTTP. The steps of the simulated commands are described in `sim/exec.rs`.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::harness::{Server, eventually, send};

async fn run(server: &Server, id: &str, cmd: &str) -> Value {
    server.acme.post(&format!("/api/sandboxes/{id}/exec/run"), json!({"cmd": cmd})).await.is(200).json()
}

#[tokio::test]
async fn a_run_returns_both_streams_and_the_true_code() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let result =
        |code: i32, stdout: &str, stderr: &str| json!({"exitCode": code, "stdout": stdout, "stderr": stderr});
    assert_eq!(run(&server, &id, "out a;err b;out c;exit 3").await, result(3, "ac", "b"));
    assert_eq!(run(&server, &id, "exit 137").await, result(137, "", ""));
    assert_eq!(run(&server, &id, "out a;err b;timeout").await, result(-1, "a", "b\nProcess timed out"));
    assert_eq!(run(&server, &id, "raw 61ff62f09f").await, result(0, "a\u{fffd}b\u{fffd}", ""));
    let lost = server
        .acme
        .post(&format!("/api/sandboxes/{id}/exec/run"), json!({"cmd": "out a;lose"}))
        .await
        .is(502);
    assert!(lost.error().contains("the output of the command was lost"), "{lost:?}");

    let body = json!({"cmd": "sh", "args": ["-c", "x"], "envs": {"A": "=b"}, "cwd": "/tmp", "timeout": 7});
    server.acme.post(&format!("/api/sandboxes/{id}/exec/run-async"), json!({"cmd": "hold"})).await.is(202);
    let rejected = json!({"cmd": "out", "envs": {"A=": ""}});
    server.acme.post(&format!("/api/sandboxes/{id}/exec/run"), rejected).await.is(400);
    let _ = tokio::time::timeout(
        Duration::from_millis(300),
        server.acme.post(&format!("/api/sandboxes/{id}/exec/run"), body),
    )
    .await;
    let state = server.node.state();
    let started =
        state.sandboxes[&id.parse().unwrap()].execs.values().find(|exec| exec.start.cmd == "sh").unwrap();
    assert_eq!(
        (started.start.timeout_ms, started.start.cwd.as_deref(), started.start.stdin),
        (Some(7000), Some("/tmp"), false)
    );
    assert_eq!((started.start.args[1].as_str(), started.start.envs["A"].as_str()), ("x", "=b"));
}

#[tokio::test]
async fn a_run_whose_beginning_nobody_heard_of_is_not_to_be_run_again() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let post = async |route: &str, cmd: &str| {
        server.acme.post(&format!("/api/sandboxes/{id}/exec/{route}"), json!({ "cmd": cmd })).await
    };
    assert_eq!(
        run(&server, &id, "unheard;out a;exit 3").await,
        json!({"exitCode": 3, "stdout": "a", "stderr": ""})
    );
    let handle = post("run-async", "unheard;out a;exit 3").await.is(202).json();
    let handle = handle["execId"].as_str().unwrap();
    let result = server.acme.get(&format!("/api/sandboxes/{id}/exec/{handle}/result")).await.json();
    assert_eq!((&result["exitCode"], &result["stdout"]), (&json!(3), &json!("a")));
    assert_eq!(server.node.state().ran.len(), 2, "each has begun once");
    for route in ["run", "run-async"] {
        let unknown = post(route, "vanish").await.is(409).json();
        assert_eq!(
            (&unknown["code"], unknown.get("retryable")),
            (&json!("command_ended"), None),
            "{unknown}"
        );
    }
}

#[tokio::test]
async fn large_output_arrives_whole() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    for bytes in [1_048_576, 1_048_577, 9_000_000] {
        let result = run(&server, &id, &format!("raw e9;big {bytes};raw c3a9;err oops;exit 4")).await;
        let stdout = result["stdout"].as_str().unwrap();
        assert_eq!(
            (stdout.len(), &result["exitCode"], &result["stderr"]),
            (bytes + 5, &json!(4), &json!("oops"))
        );
        assert!(stdout.starts_with("\u{fffd}x") && stdout.ends_with("xé"));
    }
    let limited = run(&server, &id, "big 2000000;timeout").await;
    assert_eq!((&limited["exitCode"], &limited["stderr"]), (&json!(-1), &json!("\nProcess timed out")));
    assert_eq!(limited.get("truncated"), None);
    let cut = run(&server, &id, "big 2000000;err oops;drop 77").await;
    assert_eq!((&cut["exitCode"], &cut["truncated"]), (&json!(0), &json!(true)));
    let told = "oops\nThe first 77 bytes of output are missing: the command wrote more than is kept of it\n";
    assert_eq!(cut["stderr"], told);
}

#[tokio::test]
async fn a_run_ends_when_its_client_leaves_and_only_then() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let signal_of = |cmd: &str| {
        let state = server.node.state();
        let exec = state.sandboxes[&id.parse().unwrap()].execs.values().find(|exec| exec.start.cmd == cmd);
        exec.map(|exec| exec.log.lock().unwrap().signal)
    };
    let path = format!("/api/sandboxes/{id}/exec/run");
    // Also one of which so much was said that it is only waited for.
    for cmd in ["out a;hold", "big 2000000;hold"] {
        let left = server.acme.post(&path, json!({"cmd": cmd}));
        assert!(tokio::time::timeout(Duration::from_millis(300), left).await.is_err());
        eventually("it is killed", async || (signal_of(cmd) == Some(Some(9))).then_some(())).await;
    }
    let handle = json!({"cmd": "out b;hold"});
    server.acme.post(&format!("/api/sandboxes/{id}/exec/run-async"), handle).await.is(202);
    run(&server, &id, "out c").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((signal_of("out b;hold"), signal_of("out c")), (Some(None), Some(None)));
}

#[tokio::test]
async fn a_long_run_is_kept_alive_with_blanks() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let request = |cmd: &str| {
        server
            .acme
            .request(Method::POST, &format!("/api/sandboxes/{id}/exec/run"))
            .json(&json!({"cmd": cmd, "timeout": 60}))
    };
    let started = Instant::now();
    let (ended, lost) = tokio::join!(
        async {
            let mut response = request("sleep 10500;out late;exit 2").send().await.unwrap();
            assert_eq!(response.status(), 200);
            let first = response.chunk().await.unwrap().unwrap();
            assert_eq!(&first[..], b" ");
            assert!((9.0..10.4).contains(&started.elapsed().as_secs_f64()), "{:?}", started.elapsed());
            let mut rest = Vec::new();
            while let Some(piece) = response.chunk().await.unwrap() {
                rest.extend_from_slice(&piece);
            }
            serde_json::from_slice::<Value>(&rest).unwrap()
        },
        send(request("sleep 10200;lose")),
    );
    assert_eq!(ended, json!({"exitCode": 2, "stdout": "late", "stderr": ""}));
    let lost = lost.is(200);
    assert!(lost.text.starts_with(' '));
    assert!(lost.json()["error"].as_str().unwrap().contains("lost"));
}

#[tokio::test]
async fn an_async_run_is_inline_or_a_handle_to_poll() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}/exec");
    let inline =
        server.acme.post(&format!("{path}/run-async"), json!({"cmd": "out a;exit 1"})).await.is(200).json();
    assert_eq!(inline, json!({"exitCode": 1, "stdout": "a", "stderr": ""}));

    let handle = server
        .acme
        .post(&format!("{path}/run-async"), json!({"cmd": "out a;sleep 700;err b;exit 5"}))
        .await
        .is(202);
    let handle = handle.json();
    assert_eq!((&handle["running"], handle["startedAt"].is_string()), (&json!(true), true));
    let result = format!("{path}/{}/result", handle["execId"].as_str().unwrap());
    let early = server.acme.get(&result).await.is(200).json();
    if early["running"] == true {
        assert_eq!(
            (early.get("exitCode"), &early["stdout"], &early["stderr"]),
            (None, &json!("a"), &json!(""))
        );
    }
    let ended = eventually("it ends", async || {
        let progress = server.acme.get(&result).await.is(200).json();
        (progress["running"] == false).then_some(progress)
    })
    .await;
    assert_eq!(
        (&ended["exitCode"], &ended["stdout"], &ended["stderr"]),
        (&json!(5), &json!("a"), &json!("b"))
    );

    let large = server
        .acme
        .post(&format!("{path}/run-async"), json!({"cmd": "out old;big 2000000;exit 0"}))
        .await
        .is(202);
    let result = format!("{path}/{}/result", large.json()["execId"].as_str().unwrap());
    let progress = eventually("it ends", async || {
        let progress = server.acme.get(&result).await.is(200).json();
        (progress["running"] == false).then_some(progress)
    })
    .await;
    assert_eq!(
        (&progress["truncated"], progress["stdout"].as_str().unwrap().len()),
        (&json!(true), 1_048_576)
    );

    let held = server.acme.post(&format!("{path}/run-async"), json!({"cmd": "hold"})).await.is(202).json();
    let started = Instant::now();
    let progress =
        server.acme.get(&format!("{path}/{}/result", held["execId"].as_str().unwrap())).await.json();
    assert_eq!(progress["running"], true);
    assert!(started.elapsed() > Duration::from_millis(400), "a question is held");
    for unknown in ["00000000", "nope", "..%2f..", "%00", "%ff"] {
        server.acme.get(&format!("{path}/{unknown}/result")).await.is(404).error();
    }
}

#[tokio::test]
async fn sessions_are_listed_and_killed() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}/exec");
    let session = server
        .acme
        .post(&path, json!({"cmd": "hold", "args": ["a"], "maxRunAfterDisconnect": 3}))
        .await
        .is(201)
        .json();
    assert_eq!(
        (&session["sandboxID"], &session["command"], &session["args"]),
        (&json!(id), &json!("hold"), &json!(["a"]))
    );
    assert_eq!(
        (&session["running"], &session["attachedClients"], session.get("exitCode")),
        (&json!(true), &json!(0), None)
    );
    let exec = session["sessionID"].as_str().unwrap();
    {
        let state = server.node.state();
        let start = &state.sandboxes[&id.parse().unwrap()].execs[exec].start;
        assert_eq!(
            (start.timeout_ms, start.max_run_after_disconnect_ms, start.stdin),
            (None, Some(3000), true)
        );
        assert_eq!(start.shell, warren_guest_api::exec::ShellUse::WhenNeeded);
    }
    assert_eq!(server.acme.get(&path).await.json(), json!([session]));
    for bad in [json!({"signal": 65}), json!({"signal": -1}), json!({"signal": "9"})] {
        server.acme.post(&format!("{path}/{exec}/kill"), bad).await.is(400).error();
    }
    assert_eq!(
        server.acme.post(&format!("{path}/{exec}/kill"), json!({"signal": 15})).await.is(200).json(),
        json!({})
    );
    assert_eq!(
        send(server.acme.request(Method::POST, &format!("{path}/{exec}/kill"))).await.is(200).json(),
        json!({})
    );
    server.acme.post(&format!("{path}/00000000/kill"), json!({})).await.is(404);
    let listed = server.acme.get(&path).await.json();
    assert_eq!((&listed[0]["running"], &listed[0]["exitCode"]), (&json!(false), &json!(143)));
    let refused = server.acme.post(&path, json!({"cmd": "/no/such"})).await.is(400);
    assert_eq!(refused.error(), "/no/such: No such file or directory");
}

#[tokio::test]
async fn a_hostile_guest_breaks_only_its_own_answers() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let path = format!("/api/sandboxes/{id}");
    let long = json!({"kind": "unauthenticated", "message": "x".repeat(100_000), "code": "A B"}).to_string();
    for (status, body, answered) in [
        (200, "not json".to_owned(), 502),
        (200, "\u{1}\0\0\0\0\u{9}".to_owned(), 502),
        (401, long, 502),
        (500, "<html>".to_owned(), 502),
        (404, "{}".to_owned(), 404),
        (200, "[".repeat(5_000_000), 502),
    ] {
        server.node.state().guest_answer = Some((status, body));
        let answer = server.acme.get(&format!("{path}/exec")).await.is(answered);
        assert!(answer.text.len() < 2000, "what a guest says is trimmed");
        server.acme.post(&format!("{path}/exec/run"), json!({"cmd": "x"})).await.is(answered).error();
    }
    server.node.state().guest_answer = None;
    assert_eq!(run(&server, &id, "out fine").await["stdout"], "fine");
}
