//! Creates from images: what is built, what is found again, what is said meanwhile, what is left behind.

use std::time::Duration;

use http::{Method, header};
use serde_json::{Value, json};
use warren_types::{CheckpointId, Error, ErrorKind};

use crate::harness::{Answer, Api, Server, eventually, send};
use crate::sim::SimNode;

pub(crate) fn run(script: &str) -> Value {
    json!({"type": "run", "args": {"commands": [script]}})
}

pub(crate) fn image(steps: &[Value]) -> Value {
    json!({"base": "base", "steps": steps})
}

/// The events of an answer: names and data.
pub(crate) fn events(answer: &Answer) -> Vec<(String, Value)> {
    assert_eq!(answer.headers["content-type"], "text/event-stream", "{answer:?}");
    let blocks = answer.text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    blocks
        .map(|block| {
            let (event, data) = block.split_once('\n').expect("two lines");
            let name = event.strip_prefix("event: ").expect("a name").to_owned();
            (name, serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON"))
        })
        .collect()
}

pub(crate) async fn stream(api: &Api, path: &str, body: &Value) -> Answer {
    send(api.request(Method::POST, path).header(header::ACCEPT, "text/event-stream").json(body)).await
}

/// Messages of a build, and its result.
pub(crate) async fn built(api: &Api, body: &Value) -> (Vec<(i64, String, String)>, Value) {
    let answer = stream(api, "/api/sandboxes", body).await;
    let mut events = events(&answer);
    let (name, result) = events.pop().expect("an end");
    assert_eq!(name, "result", "{answer:?}");
    (log(&events), result)
}

fn log(events: &[(String, Value)]) -> Vec<(i64, String, String)> {
    events
        .iter()
        .map(|(name, data)| {
            assert_eq!(name, "build_log");
            let text = |field: &str| data[field].as_str().unwrap().to_owned();
            (data["step"].as_i64().unwrap(), text("type"), text("message"))
        })
        .collect()
}

/// Shell scripts that were run, in order.
pub(crate) fn scripts(node: &SimNode) -> Vec<String> {
    let ran = node.state().ran.clone();
    ran.iter().filter(|ran| ran.start.cmd == "/bin/sh").map(|ran| ran.start.args[1].clone()).collect()
}

pub(crate) async fn nothing_is_left(server: &Server, sandboxes: usize) {
    eventually("the sandboxes of builds are gone", async || {
        (server.node.state().sandboxes.len() == sandboxes).then_some(())
    })
    .await;
}

fn whole() -> Value {
    image(&[
        json!({"type": "apt_install", "args": {"packages": ["curl", "it's"]}}),
        json!({"type": "apt_install", "args": {"packages": ["git"]}}),
        json!({"type": "pip_install", "packages": ["pandas>=2, <3"]}),
        json!({"type": "env", "args": {"vars": {"B": "2", "A": "é"}}}),
        json!({"type": "workdir", "args": {"path": "/work"}}),
        json!({"type": "run", "args": {"commands": ["raw 610a", "raw 620a"]}}),
        json!({"type": "add_file", "args": {"path": "/work/a b.txt", "content": "aGk=", "encoding": "base64"}}),
        json!({"type": "add_dir", "args": {"path": "/d/", "files": [
            {"relativePath": "x/y", "content": "eQ=="}, {"relativePath": "z", "content": ""}
        ]}}),
    ])
}

#[tokio::test]
async fn steps_are_run_as_they_stand_and_all_of_it_is_told() {
    let server = Server::start().await;
    let body = json!({
        "image": whole(), "envs": {"A": "mine", "C": "3"}, "metadata": {"m": "1"}, "tags": {"t": "1"}, "alias": "al",
        "timeout": 77, "memoryMB": 8192, "startCommands": ["out started"], "previewAuth": {"scheme": "bearer", "token": "auto"}
    });
    let (log, sandbox) = built(&server.acme, &body).await;
    let says = |step: i64, kind: &str, message: &str| {
        assert!(
            log.iter().any(|line| line.0 == step && line.1 == kind && line.2 == message),
            "{step} {kind} {message}: {log:#?}"
        );
    };
    assert_eq!((log[0].0, log[0].1.as_str()), (0, "resolve"));
    says(0, "build", "Building image with 8 steps");
    says(1, "apt_install", "Step 1/8: apt install curl it's");
    says(1, "apt_install", "apt-get update");
    says(1, "apt_install", "apt-get install -y -- curl it's");
    says(2, "apt_install", "apt-get install -y -- git");
    says(3, "pip_install", "python3 -m pip install -- pandas>=2, <3");
    says(4, "env", "Step 4/8: env A, B");
    says(6, "run", "b");
    says(6, "run", "Step 6/8 completed");
    says(8, "add_dir", "Step 8/8: add folder /d/ (2 files)");
    assert_eq!((log[log.len() - 2].0, log[log.len() - 2].1.as_str()), (9, "checkpoint"));
    assert_eq!((log[log.len() - 1].0, log[log.len() - 1].1.as_str()), (0, "create"));

    for (field, value) in [
        ("status", json!("running")),
        ("templateID", json!("base")),
        ("alias", json!("al")),
        ("metadata", json!({"m": "1"})),
        ("tags", json!({"t": "1"})),
        ("timeout", json!(77)),
        ("memoryMB", json!(8192)),
        ("cpuCount", json!(2)),
    ] {
        assert_eq!(sandbox[field], value, "{field}");
    }
    assert!(sandbox["token"].is_string() && sandbox["previewAuthToken"].is_string());
    nothing_is_left(&server, 1).await;

    let state = server.node.state();
    let ran: Vec<_> = state.ran.iter().map(|ran| ran.start.clone()).collect();
    assert_eq!(ran.iter().filter(|start| start.args == ["update"]).count(), 1, "once for each sandbox");
    let apt = &ran[1];
    assert_eq!(apt.args, ["install", "-y", "--", "curl", "it's"]);
    assert!(apt.as_root && apt.envs["DEBIAN_FRONTEND"] == "noninteractive");
    let pip = ran.iter().find(|start| start.cmd == "python3").unwrap();
    assert_eq!(pip.args, ["-m", "pip", "install", "--", "pandas>=2, <3"]);
    assert!(pip.as_root);
    let script = ran.iter().find(|start| start.cmd == "/bin/sh").unwrap();
    assert_eq!(script.args, ["-c", "raw 610a && raw 620a"]);
    assert_eq!((script.as_root, script.cwd.as_deref()), (false, Some("/work")));
    assert_eq!((script.envs["A"].as_str(), script.envs["B"].as_str()), ("é", "2"));
    assert_eq!(script.timeout_ms.map(|ms| ms / 1000), Some(299));

    let made = state.sandboxes.values().next().unwrap();
    let files: Vec<_> = made.files.iter().map(|(path, content)| (path.as_str(), &content[..])).collect();
    assert_eq!(files, [("/d/x/y", &b"y"[..]), ("/d/z", b""), ("/work/a b.txt", b"hi")]);
    assert_eq!(
        (made.spec.envs["A"].as_str(), made.spec.envs["B"].as_str(), made.spec.envs["C"].as_str()),
        ("mine", "2", "3")
    );
    assert_eq!(made.spec.image.workdir.as_deref(), Some("/work"));
    assert_eq!(made.spec.start_commands, ["out started"]);
}

#[tokio::test]
async fn what_was_built_is_not_built_again_whoever_sends_it() {
    let server = Server::start().await;
    let (_, first) = built(&server.acme, &json!({"image": whole()})).await;
    assert_eq!((&first["memoryMB"], &first["cpuCount"]), (&json!(4096), &json!(1)));
    let ran = server.node.state().ran.len();
    // As Python has it: keys in another order, and a size of the builder that changes nothing.
    let mut other = whole();
    other["builderMemoryMB"] = json!(16384);
    let (log, second) = built(&server.acme, &json!({"image": other, "memoryMB": 1024})).await;
    let kinds: Vec<&str> = log.iter().map(|line| line.1.as_str()).collect();
    assert_eq!(kinds, ["resolve", "cache_hit", "create"]);
    assert_eq!(server.node.state().ran.len(), ran, "nothing is run");
    assert_eq!(second["memoryMB"], 1024, "an image that does not say has the smallest as its floor");
    let plain = server.acme.post("/api/sandboxes", json!({"image": whole()})).await.is(201).json();
    assert_eq!(plain["fromCheckpointId"], second["fromCheckpointId"]);
    let images = server.acme.get("/api/images").await.is(200).json();
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!((&images[0]["status"], &images[0]["name"]), (&json!("ready"), &Value::Null));
    // Another organisation builds its own.
    built(&server.rival, &json!({"image": whole()})).await;
    assert!(server.node.state().ran.len() > ran);
}

#[tokio::test]
async fn only_what_comes_after_a_change_is_run() {
    let server = Server::start().await;
    built(&server.acme, &json!({"image": image(&[run("out 1"), run("out 2"), run("out 3")])})).await;
    assert_eq!(scripts(&server.node), ["out 1", "out 2", "out 3"]);
    let changed = image(&[run("out 1"), run("out 2"), run("out 4")]);
    let (log, _) = built(&server.acme, &json!({"image": changed})).await;
    assert_eq!(scripts(&server.node)[3..], ["out 4"]);
    let cached: Vec<i64> = log.iter().filter(|line| line.1 == "cache_hit").map(|line| line.0).collect();
    assert_eq!(cached, [1, 2]);
    // Configuration at the end needs no sandbox at all.
    let env = json!({"type": "env", "args": {"vars": {"A": "1"}}});
    let creates = server.node.state().creates;
    let (_, made) = built(&server.acme, &json!({"image": image(&[run("out 1"), env])})).await;
    assert_eq!(scripts(&server.node).len(), 4);
    assert_eq!(server.node.state().creates, creates + 1);
    let spec =
        server.node.state().sandboxes[&made["sandboxID"].as_str().unwrap().parse().unwrap()].spec.clone();
    assert_eq!(spec.envs["A"], "1");
    // A layer that is gone does not count.
    let layers: Vec<CheckpointId> = server.node.state().checkpoints.keys().cloned().collect();
    server.node.state().checkpoints.clear();
    assert!(layers.len() > 5);
    server.control.reconcile().await.unwrap();
    built(&server.acme, &json!({"image": image(&[run("out 1"), run("out 2"), run("out 5")])})).await;
    assert_eq!(scripts(&server.node)[4..], ["out 1", "out 2", "out 5"]);
}

#[tokio::test]
async fn a_layer_that_is_damaged_is_built_anew() {
    let server = Server::start().await;
    built(&server.acme, &json!({"image": image(&[run("out 1"), run("out 2")])})).await;
    for checkpoint in server.node.state().checkpoints.values_mut() {
        checkpoint.damaged = true;
    }
    built(&server.acme, &json!({"image": image(&[run("out 1"), run("out 3")])})).await;
    assert_eq!(scripts(&server.node)[2..], ["out 1", "out 3"]);
}

#[tokio::test]
async fn those_who_ask_at_once_share_one_build() {
    let server = Server::start().await;
    // Longer than it takes them all to ask, on a busy machine too.
    let body = json!({"image": image(&[run("out slow;sleep 900")])});
    let creates = (0..5).map(|_| built(&server.acme, &body));
    let all = futures_util::future::join_all(creates).await;
    assert_eq!(scripts(&server.node).len(), 1);
    for (log, made) in &all {
        assert!(log.iter().any(|line| line.2 == "slow"), "late ones hear it from the beginning: {log:?}");
        assert_eq!(made["fromCheckpointId"], all[0].1["fromCheckpointId"]);
    }
    nothing_is_left(&server, 5).await;
}

#[tokio::test]
async fn builds_that_come_to_the_same_state_leave_one_layer_of_it() {
    let server = Server::start().await;
    let bodies =
        ["out a", "out b"].map(|last| json!({"image": image(&[run("out same;sleep 200"), run(last)])}));
    futures_util::future::join_all(bodies.iter().map(|body| built(&server.acme, body))).await;
    eventually("three states and two images", async || {
        (server.node.state().checkpoints.len() == 5).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_failed_build_says_why_and_is_in_nobodys_way() {
    let server = Server::start().await;
    let long = "é".repeat(600);
    for (steps, says) in [
        (
            vec![run("out fine"), run(&format!("err {long};exit 3"))],
            format!("step 1 (run) failed (exit 3): {}\nThe command was `err é", "é".repeat(500)),
        ),
        (
            vec![run("timeout")],
            "step 0 (run) failed (exit -1): it did not end within 300 s, which is what a step may take\n\
             The command was `timeout`."
                .into(),
        ),
        (
            vec![json!({"type": "apt_install", "args": {"packages": ["nonsense"]}})],
            "step 0 (apt_install) failed (exit 100): E: Unable to locate package nonsense\n\
             The command was `apt-get install -y -- nonsense`."
                .into(),
        ),
        (vec![run("exit 7")], "step 0 (run) failed (exit 7): `exit 7` wrote nothing".into()),
        (
            vec![run("raw 6f6e650a;out two;exit 7")],
            "step 0 (run) failed (exit 7): `raw 6f6e650a;out two;exit 7` wrote no error, and last:\n  one\n  two"
                .into(),
        ),
        (
            vec![json!({"type": "add_file", "args": {"path": "/proc/1/x", "content": ""}})],
            "step 0 (add_file) failed: /proc/1/x: No such file or directory".into(),
        ),
        (vec![run("lose")], "step 0 (run) failed: the output of the command was lost".into()),
    ] {
        let body = json!({"image": image(&steps)});
        let answer = stream(&server.acme, "/api/sandboxes", &body).await.is(200);
        let (name, data) = events(&answer).pop().unwrap();
        assert_eq!(name, "error");
        let error = data["error"].as_str().unwrap();
        assert!(error.starts_with(says.trim()), "{error}");
        nothing_is_left(&server, 0).await;
        let status = if says.contains("lost") { 502 } else { 400 };
        let plain = server.acme.post("/api/sandboxes", body).await.is(status);
        assert_eq!(plain.error(), error, "it is tried again");
    }
    let listed = server.acme.get("/api/images").await.json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["status"]), (7, &json!("failed")));
    assert_eq!(server.acme.get("/api/sandboxes").await.json(), json!([]));

    // What went well before is not run again, and once the node is well the image is built.
    server.node.state().checkpoint_error = Some(Error::new(ErrorKind::Unavailable, "no room"));
    let body = json!({"image": image(&[run("out fine"), run("out well")])});
    let failed = server.acme.post("/api/sandboxes", body.clone()).await.is(503).error();
    assert!(failed.contains("no room"), "{failed}");
    built(&server.acme, &body).await;
    nothing_is_left(&server, 1).await;
    assert_eq!(scripts(&server.node).iter().filter(|script| *script == "out fine").count(), 1);
}

#[tokio::test]
async fn what_cannot_be_built_is_refused_before_anything_happens() {
    let server = Server::start().await;
    for (body, status, says) in [
        (json!({"image": 5}), 400, "image must be an object"),
        (json!({"image": {"steps": [{"type": "copy"}]}}), 400, "step 0 (copy): unknown step type: copy"),
        (json!({"image": "a b"}), 400, "image.base"),
        (json!({"image": "template:oci-1"}), 400, "image.base"),
        (json!({"image": image(&[]), "snapshot": "x"}), 400, "image and snapshot are both set"),
        (json!({"image": image(&[]), "envs": {"A=": "1"}}), 400, "envs"),
        (json!({"image": image(&[]), "secretStore": "nope"}), 400, "secret store not found: nope"),
        (json!({"image": image(&[]), "cpuCount": 3}), 400, "cpuCount must be one of"),
        (json!({"image": image(&[]), "isolation": "vm"}), 501, "this server has no isolation vm"),
        (json!({"image": "snapshot:nope"}), 400, "snapshot \"nope\" not found"),
        (json!({"image": "checkpoint:01234567-89ab-4def-8123-456789abcdef"}), 400, "checkpoint not found"),
        (json!({"snapshot": "nope"}), 400, "snapshot \"nope\" not found"),
        (json!({"snapshot": "a/b"}), 400, "snapshot \"a/b\" not found"),
        (json!({"templateID": "nope"}), 404, "template not found: nope"),
        (json!({"image": {"steps": vec![run("true"); 129]}}), 413, "128 steps"),
    ] {
        for streams in [true, false] {
            let answer = if streams {
                stream(&server.acme, "/api/sandboxes", &body).await
            } else {
                server.acme.post("/api/sandboxes", body.clone()).await
            };
            let error = answer.is(status).error();
            assert!(error.contains(says), "{body}: {error}");
        }
    }
    let huge = format!("{{\"image\": {{\"x\": \"{}\"}}}}", "x".repeat(64 << 20));
    send(server.acme.request(Method::POST, "/api/sandboxes").body(huge)).await.is(413).error();
    assert_eq!(server.node.state().creates, 0);
    assert_eq!(server.acme.get("/api/images").await.json(), json!([]));
}

#[tokio::test]
async fn events_are_exactly_as_the_readers_want_them() {
    let server = Server::start().await;
    let body = json!({"image": image(&[run("raw 610d620a22c3a9ff0a63")])});
    let answer = stream(&server.acme, "/api/sandboxes", &body).await.is(200);
    assert!(!answer.text.contains('\r') && answer.text.ends_with("}\n\n"));
    for line in [
        "event: build_log\ndata: {\"step\":0,\"type\":\"build\",\"message\":\"Building image with 1 steps\"}\n\n",
        "event: build_log\ndata: {\"step\":1,\"type\":\"run\",\"message\":\"b\"}\n\n",
        "event: build_log\ndata: {\"step\":1,\"type\":\"run\",\"message\":\"\\\"é\u{fffd}\"}\n\n",
        "event: build_log\ndata: {\"step\":1,\"type\":\"run\",\"message\":\"c\"}\n\n",
        "event: result\ndata: {\"sandboxID\":\"sb-",
    ] {
        assert!(answer.text.contains(line), "{line:?} in {:?}", answer.text);
    }
    assert_eq!(answer.headers["cache-control"], "no-cache");
    // Anything but exactly that header is answered with JSON; without an image it is passed over.
    for accept in ["text/event-stream, */*", "application/json", "*/*"] {
        let request = server.acme.request(Method::POST, "/api/sandboxes").header(header::ACCEPT, accept);
        send(request.json(&body)).await.is(201).json();
    }
    stream(&server.acme, "/api/sandboxes", &json!({})).await.is(201).json();
}

#[tokio::test]
async fn a_key_makes_one_sandbox_of_an_image() {
    let server = Server::start().await;
    let body = json!({"image": image(&[run("out x")])});
    let keyed = |body: &Value| {
        server.acme.request(Method::POST, "/api/sandboxes").header("idempotency-key", "k").json(body)
    };
    let first = send(keyed(&body)).await.is(201).json();
    let again = send(keyed(&body)).await.is(201).json();
    assert_eq!(first["sandboxID"], again["sandboxID"]);
    let streamed = send(keyed(&body).header(header::ACCEPT, "text/event-stream")).await.is(200);
    assert_eq!(events(&streamed).pop().unwrap().1["sandboxID"], first["sandboxID"]);
    send(keyed(&json!({"image": image(&[run("out y")])}))).await.is(409).error();
    assert_eq!(server.acme.get("/api/sandboxes").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn who_hangs_up_does_not_end_the_build() {
    let server = Server::start().await;
    let body = json!({"image": image(&[run("sleep 400;out done")])});
    let request =
        server.acme.request(Method::POST, "/api/sandboxes").header(header::ACCEPT, "text/event-stream");
    let mut answer = request.json(&body).send().await.unwrap();
    assert!(answer.chunk().await.unwrap().is_some(), "it has begun to tell");
    drop(answer);
    eventually("it is built all the same", async || {
        (server.acme.get("/api/images").await.json()[0]["status"] == "ready").then_some(())
    })
    .await;
    nothing_is_left(&server, 0).await;
    assert_eq!(server.acme.get("/api/sandboxes").await.json(), json!([]), "nobody would know of it");
}

#[tokio::test]
async fn images_of_registries_bring_their_user_folder_and_variables() {
    let server = Server::start().await;
    let body = json!({
        "image": {"base": "ghcr.io/a/b:1", "steps": [run("out x")]},
        "registryAuth": {"username": "me", "password": "secret"}
    });
    let (log, made) = built(&server.acme, &body).await;
    assert!(log.contains(&(0, "pull".into(), "fetching (1.5 of 3.0 MB)".into())), "{log:?}");
    let told = "Its command is not started by itself: serve --port 80";
    assert!(log.contains(&(0, "resolve".into(), told.into())), "{log:?}");
    assert_eq!(made["templateID"], "ghcr.io/a/b:1");
    assert_eq!(
        server.node.state().templates.imports,
        [("ghcr.io/a/b:1".to_owned(), Some("secret".to_owned()))]
    );
    {
        let state = server.node.state();
        let spec = &state.sandboxes[&made["sandboxID"].as_str().unwrap().parse().unwrap()].spec;
        assert!(spec.template.starts_with("oci-"));
        assert_eq!(spec.envs["FROM_IMAGE"], "ghcr.io/a/b:1");
        assert_eq!(spec.image.user.as_ref().map(|user| user.uid), Some(7));
        assert_eq!(spec.image.workdir.as_deref(), Some("/srv/app"));
        assert_eq!(state.ran[0].start.cwd.as_deref(), Some("/srv/app"));
    }
    // Nobody can name what somebody else brought.
    let template = server.node.state().templates.imported.keys().next().unwrap().clone();
    server.rival.post("/api/sandboxes", json!({"templateID": template})).await.is(404);
    server.acme.post("/api/sandboxes", json!({"image": "node:22"})).await.is(201);
    server.node.state().templates.import_error =
        Some(Error::new(ErrorKind::Forbidden, "the registry wants a login"));
    let refused = server.acme.post("/api/sandboxes", json!({"image": "private/x"})).await.is(403).error();
    assert!(refused.contains("wants a login"), "{refused}");
}

#[tokio::test]
async fn variables_that_no_sandbox_could_have_are_refused_before_anything_is_built() {
    let server = Server::start().await;
    // As many as steps may set; those of the base come on top.
    let vars: serde_json::Map<String, Value> =
        (0..10).map(|number| (format!("V{number}"), Value::from("x".repeat(104_853)))).collect();
    let steps = [json!({"type": "env", "args": {"vars": vars}}), run("out x")];
    let image = |base: &str| json!({"image": {"base": base, "steps": steps}});
    let refused = server.acme.post("/api/sandboxes", image("a.example/b:1")).await.is(400).error();
    assert!(refused.starts_with("the variables of the image: envs may have"), "{refused}");
    assert!(scripts(&server.node).is_empty());
    server.acme.post("/api/sandboxes", image("base")).await.is(201);
}

#[tokio::test]
async fn steps_with_nothing_in_them_do_nothing() {
    let server = Server::start().await;
    let empty = |kind: &str, list: &str| json!({"type": kind, "args": {list: []}});
    let nothing =
        [empty("apt_install", "packages"), empty("pip_install", "packages"), empty("run", "commands")];
    let steps = [&nothing[..], &[json!({"type": "env", "args": {"vars": {}}})]].concat();
    built(&server.acme, &json!({"image": image(&steps)})).await;
    built(&server.acme, &json!({"image": image(&[&steps[..], &[run("out x")]].concat())})).await;
    let ran = server.node.state().ran.iter().map(|ran| ran.start.cmd.clone()).collect::<Vec<_>>();
    assert_eq!(ran, ["/bin/sh"], "the one step that has something in it");
}

/// What the template of a sandbox was made of.
fn digest_in(server: &Server, made: &Value) -> String {
    let id = made["sandboxID"].as_str().unwrap().parse().unwrap();
    server.node.state().sandboxes[&id].spec.envs["DIGEST"].clone()
}

#[tokio::test]
async fn what_was_built_from_a_tag_stays_what_it_was() {
    let node = SimNode::new();
    node.state().offers_machines = true;
    let server = Server::start_with(node, tempfile::tempdir().unwrap(), |_| {}).await;
    let image = json!({"base": "a.example/b:1", "steps": [run("sleep 300;out x")]});
    let auth = json!({"username": "me", "password": "secret"});
    let body = json!({"name": "n", "image": image, "isolation": "container", "registryAuth": auth});
    server.acme.post("/api/snapshots?async=1", body).await.is(202);
    eventually("it is at it", async || (!scripts(&server.node).is_empty()).then_some(())).await;
    let key = server.acme.key.clone();
    let (node, dir) = server.stop().await;
    // The tag moves, and the registry lets in nobody without a login, which is not kept.
    {
        let templates = &mut node.state().templates;
        templates.moved.insert("a.example/b:1".to_owned(), "sha256:02".to_owned());
        templates.registry_error = Some(Error::new(ErrorKind::Invalid, "it wants a login"));
    }
    let server = Server::start_with(node, dir, |_| {}).await;
    let acme = Api { key, ..server.acme.clone() };
    eventually("the build goes on", async || {
        let status = acme.get("/api/snapshots/n").await.json()["status"].clone();
        assert_ne!(status, "failed");
        (status == "ready").then_some(())
    })
    .await;
    let own = acme.post("/api/sandboxes", json!({"snapshot": "n"})).await.is(201).json();
    let other = json!({"snapshot": "n@1", "isolation": "vm"});
    let other = acme.post("/api/sandboxes", other).await.is(201).json();
    assert_eq!(other["isolation"], "vm");
    assert!(digest_in(&server, &own).len() > 20, "not that of the tag now");
    assert_eq!(digest_in(&server, &other), digest_in(&server, &own));
    server.node.state().templates.registry_error = None;
    let now = acme.post("/api/sandboxes", json!({"image": image})).await.is(201).json();
    assert_eq!(digest_in(&server, &now), "sha256:02");
}

#[tokio::test]
async fn a_login_is_used_for_what_the_node_has_not_kept_and_only_for_ones_own() {
    let node = SimNode::new();
    node.state().offers_machines = true;
    let server = Server::start_with(node, tempfile::tempdir().unwrap(), |_| {}).await;
    let body = json!({"name": "n", "image": "a.example/b:1", "isolation": "container"});
    server.acme.post("/api/snapshots", body).await.is(201);
    server.acme.post("/api/snapshots/n/publish", json!({})).await.is(200);
    let passwords = || -> Vec<Option<String>> {
        server.node.state().templates.imports.drain(..).map(|(_, password)| password).collect()
    };
    assert_eq!(passwords(), [None]);
    server.node.state().templates.imported.clear();
    server.node.state().templates.import_error = Some(Error::new(ErrorKind::Unavailable, "busy"));
    let auth = json!({"username": "me", "password": "secret"});
    let body = json!({"snapshot": "n", "isolation": "vm", "registryAuth": auth});
    server.rival.post("/api/sandboxes", body.clone()).await.is(503);
    assert_eq!(passwords(), [None], "whoever published it says where it is from");
    server.acme.post("/api/sandboxes", body).await.is(201);
    assert_eq!(passwords(), [Some("secret".to_owned())]);
}

#[tokio::test]
async fn while_a_registry_does_not_answer_its_last_word_holds() {
    let server = Server::start().await;
    let (acme, rival) = (&server.acme, &server.rival);
    let body = |steps: &[Value]| json!({"image": {"base": "a.example/b:1", "steps": steps}});
    acme.post("/api/sandboxes", body(&[])).await.is(201);
    for digest in ["sha256:03", "sha256:01", "sha256:02"] {
        server.node.state().templates.moved.insert("a.example/b:1".into(), digest.into());
        let made = acme.post("/api/sandboxes", body(&[])).await.is(201).json();
        assert_eq!(digest_in(&server, &made), digest);
    }
    server.node.state().templates.registry_error =
        Some(Error::new(ErrorKind::Unavailable, "it does not answer"));
    for steps in [&[][..], &[run("out new")]] {
        let made = acme.post("/api/sandboxes", body(steps)).await.is(201).json();
        assert_eq!(digest_in(&server, &made), "sha256:02");
    }
    let refused = rival.post("/api/sandboxes", body(&[])).await.is(503).error();
    assert!(refused.contains("does not answer"), "nobody has let it in: {refused}");
}

#[tokio::test]
async fn a_checkpoint_and_a_snapshot_can_be_the_base() {
    let server = Server::start().await;
    let acme = &server.acme;
    let sandbox =
        acme.create(json!({"envs": {"FROM": "parent"}})).await["sandboxID"].as_str().unwrap().to_owned();
    let taken = acme
        .post(&format!("/api/sandboxes/{sandbox}/checkpoints"), json!({"name": "c"}))
        .await
        .is(201)
        .json();
    let id = taken["id"].as_str().unwrap();
    let base = json!({"image": {"base": format!("checkpoint:{id}"), "steps": [run("out on top")]}});
    let made = eventually("the checkpoint is ready", async || {
        let answer = acme.post("/api/sandboxes", base.clone()).await;
        (answer.status == 201).then(|| answer.json())
    })
    .await;
    let spec =
        server.node.state().sandboxes[&made["sandboxID"].as_str().unwrap().parse().unwrap()].spec.clone();
    assert_eq!(spec.envs["FROM"], "parent");
    let error = server.rival.post("/api/sandboxes", base).await.is(400).error();
    assert!(error.contains("checkpoint not found"), "{error}");

    acme.post("/api/snapshots", json!({"name": "one", "image": image(&[run("out first")])})).await.is(201);
    let over = json!({"image": {"base": "snapshot:one", "steps": [run("out second")]}});
    acme.post("/api/sandboxes", over.clone()).await.is(201);
    assert_eq!(scripts(&server.node)[1..], ["out first", "out second"]);
    // A newer version of the base is another image.
    let newer = json!({"name": "one", "newVersion": true, "image": image(&[run("out newer")])});
    acme.post("/api/snapshots", newer).await.is(201);
    acme.post("/api/sandboxes", over).await.is(201);
    assert_eq!(scripts(&server.node)[3..], ["out newer", "out second"]);
}

#[tokio::test]
async fn machines_are_started_once_and_kept_with_their_memory() {
    let node = SimNode::new();
    node.state().offers_machines = true;
    let server = Server::start_with(node, tempfile::tempdir().unwrap(), |_| {}).await;
    let manifest = image(&[run("out x")]);
    let body = json!({"image": manifest, "isolation": "vm"});
    let (_, made) = built(&server.acme, &body).await;
    assert_eq!(made["isolation"], "vm");
    let checkpoint: CheckpointId = made["fromCheckpointId"].as_str().unwrap().parse().unwrap();
    {
        let state = server.node.state();
        let origin = &state.checkpoints[&checkpoint].origin;
        assert_eq!(origin.spec.isolation, warren_types::Isolation::Vm);
        assert!(origin.spec.from_checkpoint.is_some(), "it was started from the last layer");
        assert!(!state.checkpoints[&checkpoint].disk_only);
        assert!(
            state.checkpoints.iter().any(|(id, one)| *id != checkpoint && one.disk_only),
            "layers are disks"
        );
    }
    nothing_is_left(&server, 1).await;
    // What starts from something that was deleted cannot be built for the other one.
    let body = json!({"name": "first", "image": image(&[run("out base")]), "isolation": "vm"});
    server.acme.post("/api/snapshots", body).await.is(201);
    let body = json!({"name": "second", "image": {"base": "snapshot:first", "steps": []}, "isolation": "vm"});
    server.acme.post("/api/snapshots", body).await.is(201);
    server.acme.delete("/api/snapshots/first").await.is(204);
    server.acme.post("/api/sandboxes", json!({"snapshot": "second"})).await.is(201);
    let body = json!({"snapshot": "second", "isolation": "container"});
    let refused = server.acme.post("/api/sandboxes", body).await.is(409).error();
    assert!(refused.contains("was deleted, so it cannot be built as container"), "{refused}");
    let before = scripts(&server.node).len();
    // The other isolation has a build of its own, and a snapshot serves both.
    server
        .acme
        .post("/api/snapshots", json!({"name": "s", "image": manifest, "isolation": "vm"}))
        .await
        .is(201);
    assert_eq!(scripts(&server.node).len(), before);
    let own = server.acme.post("/api/sandboxes", json!({"snapshot": "s"})).await.is(201).json();
    assert_eq!(own["isolation"], "vm");
    let other =
        server.acme.post("/api/sandboxes", json!({"snapshot": "s", "isolation": "container"})).await.is(201);
    assert_eq!(other.json()["isolation"], "container");
    assert_eq!(scripts(&server.node).len(), before + 1);
    server.acme.post("/api/sandboxes", json!({"snapshot": "s", "isolation": "container"})).await.is(201);
    assert_eq!(scripts(&server.node).len(), before + 1);
}

#[tokio::test]
async fn what_is_not_used_goes_when_the_budget_is_spent() {
    let server = Server::start_with(SimNode::new(), tempfile::tempdir().unwrap(), |config| {
        config.image_budget_bytes = Some(4 * crate::sim::templates::EACH);
        config.image_unused_for = Duration::ZERO;
        config.image_sweep_every = Duration::from_millis(30);
    })
    .await;
    let acme = &server.acme;
    acme.post("/api/snapshots", json!({"name": "kept", "image": image(&[run("out 1"), run("out 2")])}))
        .await
        .is(201);
    let sandbox = acme.post("/api/sandboxes", json!({"snapshot": "kept"})).await.is(201).json();
    for name in ["a/b", "c/d"] {
        // Here nothing counts as used a moment ago, so the image may go before the sandbox is made; then it is asked for again.
        eventually("there is a sandbox of it", async || {
            let body = json!({"image": {"base": name, "steps": [run("out x")]}});
            (acme.post("/api/sandboxes", body).await.status == 201).then_some(())
        })
        .await;
    }
    eventually("the budget is kept", async || {
        let usage = acme.get("/api/images/usage").await.is(200).json();
        assert_eq!(usage["budgetBytes"], 4000);
        (usage["usedBytes"].as_u64().unwrap() <= 4000).then_some(())
    })
    .await;
    let left = acme.get("/api/images").await.json();
    assert!(left.as_array().unwrap().iter().any(|image| image["name"] == "kept"));
    acme.post("/api/sandboxes", json!({"snapshot": "kept"})).await.is(201);
    assert_eq!(acme.status(sandbox["sandboxID"].as_str().unwrap()).await, "running");
    // Templates of sandboxes that run stay.
    assert_eq!(server.node.state().templates.imported.len(), 2);
}
