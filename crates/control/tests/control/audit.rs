//! Audit records: who did what, in one chain; what finds that it was tampered with; where it is sent.

use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Executor, SqlitePool};
use tempfile::TempDir;
use tokio::net::TcpListener;
use warren_control::audit::{Finding, Verified, verify_data_dir, verify_file};
use warren_control::{AuditSettings, OtlpTarget};
use warren_node_api::{NetworkEvent, NetworkEventKind};

use crate::harness::{Api, Server, eventually, send};
use crate::sim::SimNode;

async fn records(api: &Api, query: &str) -> Vec<Value> {
    let answer = api.get(&format!("/api/audit?limit=1000&{query}")).await.is(200);
    answer.json().as_array().unwrap().clone()
}

fn kinds(records: &[Value]) -> Vec<(&str, &str)> {
    let word = |value: &'_ Value| -> String { value.as_str().unwrap_or("-").to_owned() };
    records
        .iter()
        .map(|record| {
            assert!(!word(&record["actor"]).is_empty());
            (record["kind"].as_str().unwrap(), record["detail"]["outcome"].as_str().unwrap_or("-"))
        })
        .collect()
}

#[tokio::test]
async fn what_is_done_is_recorded_with_who_did_it_and_what_came_of_it() {
    let server = Server::start().await;
    let api = &server.acme;
    let made = api.create(json!({"envs": {"SECRET_VALUE": "hunter2"}})).await;
    let id = made["sandboxID"].as_str().unwrap();
    let run = json!({"cmd": "sh", "args": ["-c", "exit 3"], "envs": {"TOKEN": "hunter2"}, "cwd": "/w"});
    let request = api.request(Method::POST, &format!("/api/sandboxes/{id}/exec/run")).json(&run);
    send(request.header("x-request-id", "mine-1")).await;
    api.post(&format!("/api/sandboxes/{id}/hibernate"), json!({})).await.is(200);
    api.post(&format!("/api/sandboxes/{id}/scale"), json!({"memoryMB": 7})).await;
    api.delete(&format!("/api/sandboxes/{id}")).await.is(204);

    let of_sandbox = api.get(&format!("/api/sandboxes/{id}/audit")).await.is(200).json();
    let of_sandbox = of_sandbox.as_array().unwrap();
    let told = kinds(of_sandbox);
    assert_eq!(&told[..2], [("sandbox.create", "begun"), ("sandbox.create", "done")]);
    for kind in ["exec", "sandbox.hibernate", "sandbox.kill"] {
        assert!(told.iter().filter(|(found, _)| *found == kind).count() >= 2, "{kind}: {told:?}");
    }
    let exec = of_sandbox.iter().find(|record| record["kind"] == "exec").unwrap();
    assert_eq!(exec["requestID"], "mine-1");
    assert!(exec["actor"].as_str().unwrap().starts_with("key:"), "{exec}");
    assert_eq!(exec["detail"]["args"], json!(["-c", "exit 3"]));
    assert_eq!(exec["detail"]["envNames"], json!(["TOKEN"]));
    let end = of_sandbox.iter().find(|record| record["detail"]["of"] == exec["seq"]).unwrap();
    assert_eq!(end["kind"], "exec");

    let all = records(api, "").await;
    assert!(!serde_json::to_string(&all).unwrap().contains("hunter2"), "values are not recorded");
    assert_eq!(all[0]["kind"], "api_key", "the key that was made first");
    let seqs: Vec<i64> = all.iter().map(|record| record["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=all.len() as i64).collect::<Vec<_>>(), "without a gap");
    assert_eq!(records(api, "after=2").await[0]["seq"], 3);
    assert_eq!(records(api, "kind=sandbox.kill").await.len(), 2);
    assert!(records(api, "kind=sandbox").await.len() > 4, "by what stands before the dot");
    assert_eq!(records(api, "kind=sand").await.len(), 0);
    let newest = api.get("/api/audit?newest=true&limit=1").await.is(200).json();
    assert_eq!(newest[0]["seq"], all[all.len() - 1]["seq"]);
    for bad in
        ["limit=0", "limit=1001", "after=-1", "after=x", "follow=x", "since=x", "kind=a%20b", "newest=2"]
    {
        api.get(&format!("/api/audit?{bad}")).await.is(400).error();
    }
    let lines =
        send(api.request(Method::GET, "/api/audit").header("accept", "application/x-ndjson")).await.is(200);
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = lines.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, all);
}

#[tokio::test]
async fn records_are_their_organisations_and_those_who_may_not_are_in_them() {
    let server = Server::start().await;
    let (ours, theirs) = (server.acme.create(json!({})).await, server.rival.sandbox().await);
    let id = ours["sandboxID"].as_str().unwrap();
    server.rival.get(&format!("/api/sandboxes/{id}/audit")).await.is(404);
    server.rival.get(&format!("/api/audit?sandbox={id}")).await.is(404);
    server.acme.get("/api/audit?sandbox=nonsense").await.is(404);
    let rival = records(&server.rival, "").await;
    assert!(rival.iter().all(|record| record["org"] == rival[0]["org"]));
    assert!(
        !kinds(&rival).is_empty()
            && rival.iter().all(|record| record["sandboxID"] != json!(id) || record["kind"] == "access")
    );

    // Asked again and again, it is told once and counted.
    let token = ours["token"].as_str().or(ours["connectToken"].as_str());
    for _ in 0..5 {
        server.acme.get(&format!("/api/sandboxes/{theirs}/files?path=/x")).await.is(404);
        if let Some(token) = token {
            let other = Api { key: Some(token.to_owned()), ..server.acme.clone() };
            other.get(&format!("/api/sandboxes/{theirs}/files?path=/x")).await.is(403);
            other.get("/api/audit").await.is(403);
        }
    }
    let access = records(&server.acme, "kind=access").await;
    let whys: Vec<&str> = access.iter().map(|one| one["detail"]["why"].as_str().unwrap()).collect();
    assert!(whys.contains(&"no sandbox of this organisation"), "{access:?}");
    assert_eq!(access.len(), whys.iter().collect::<std::collections::BTreeSet<_>>().len(), "once each");
    server.control.finish().await;
    let counted = records(&server.acme, "kind=access").await;
    assert!(counted.iter().any(|one| one["detail"]["count"] == 4), "{counted:?}");
}

#[tokio::test]
async fn decisions_of_the_network_and_uses_of_secrets_are_recorded() {
    let server = Server::start().await;
    let id = server.acme.sandbox().await;
    let event = |kind, host: &str, port, count| NetworkEvent {
        sandbox: id.parse().unwrap(),
        kind,
        host: host.into(),
        port,
        count,
        folded: false,
    };
    server.node.state().egress.events = vec![
        event(NetworkEventKind::Allowed { method: Some("GET".into()) }, "a.example", 443, 3),
        event(NetworkEventKind::Refused { rule: "host not in allowlist".into() }, "b.example\u{1b}[2J", 0, 1),
        event(NetworkEventKind::SecretUse { name: "KEY".into() }, "a.example", 443, 2),
        NetworkEvent {
            sandbox: "sb-00000000".parse().unwrap(),
            ..event(NetworkEventKind::Allowed { method: None }, "c", 1, 1)
        },
    ];
    let told = eventually("they are recorded", async || {
        let told = records(&server.acme, "kind=network,secret.use").await;
        (told.len() == 3).then_some(told)
    })
    .await;
    let detail = |at: usize| told[at]["detail"].clone();
    assert_eq!(
        detail(0),
        json!({"decision": "allowed", "method": "GET", "host": "a.example", "port": 443, "count": 3})
    );
    assert_eq!(
        detail(1),
        json!({"decision": "refused", "rule": "host not in allowlist", "host": "b.example[2J", "question": true, "count": 1})
    );
    assert_eq!(detail(2), json!({"name": "KEY", "host": "a.example", "port": 443, "count": 2}));
    assert!(told.iter().all(|one| one["actor"] == "sandbox" && one["sandboxID"] == json!(id)));
}

async fn database(dir: &Path, name: &str) -> SqlitePool {
    SqlitePool::connect_with(SqliteConnectOptions::new().filename(dir.join(name))).await.unwrap()
}

async fn findings(dir: &Path) -> Vec<Finding> {
    verify_data_dir(dir).await.unwrap().into_iter().flat_map(|one| one.findings).collect()
}

/// A server that has done something and has ended.
async fn ended() -> (TempDir, String) {
    let server = Server::start().await;
    for _ in 0..3 {
        server.acme.sandbox().await;
    }
    let org = records(&server.acme, "").await[0]["org"].as_str().unwrap().to_owned();
    server.control.finish().await;
    let (_, dir) = server.stop().await;
    (dir, org)
}

#[tokio::test]
async fn whoever_tampers_with_the_file_is_found_out() {
    let (dir, org) = ended().await;
    assert_eq!(findings(dir.path()).await, []);
    let records = database(dir.path(), "audit.db").await;
    let change = format!("UPDATE audit SET detail = '{{}}' WHERE org = '{org}' AND seq = 3");
    records.execute(sqlx::AssertSqlSafe(change.clone())).await.unwrap_err();
    records.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    let count: i64 = sqlx::query_scalar("SELECT max(seq) FROM audit WHERE org = $1")
        .bind(&org)
        .fetch_one(&records)
        .await
        .unwrap();
    assert!(count > 5);
    // Each on a copy of its own.
    let seq = |seq: i64| format!("org = '{org}' AND seq = {seq}");
    for (statements, expected) in [
        (vec![change], Finding::Changed { seq: 3 }),
        (vec![format!("UPDATE audit SET at = at + 1 WHERE {}", seq(3))], Finding::Changed { seq: 3 }),
        (vec![format!("UPDATE audit SET actor = 'server' WHERE {}", seq(3))], Finding::Changed { seq: 3 }),
        (vec![format!("DELETE FROM audit WHERE {}", seq(3))], Finding::Missing { from: 3, to: 3 }),
        (vec![format!("DELETE FROM audit WHERE {}", seq(1))], Finding::Missing { from: 1, to: 1 }),
        (vec![format!("DELETE FROM audit WHERE {}", seq(count))], Finding::CutOff { from: count, to: count }),
        (
            vec![
                format!("UPDATE audit SET seq = 1000 WHERE {}", seq(2)),
                format!("UPDATE audit SET seq = 2 WHERE {}", seq(3)),
                format!("UPDATE audit SET seq = 3 WHERE {}", seq(1000)),
            ],
            Finding::Changed { seq: 2 },
        ),
    ] {
        let copy = TempDir::new().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        let damaged = database(copy.path(), "audit.db").await;
        for statement in &statements {
            damaged.execute(sqlx::AssertSqlSafe(statement.clone())).await.unwrap();
        }
        let found = findings(copy.path()).await;
        assert!(found.contains(&expected), "{statements:?}: {found:?}");
    }
    // The seals as well.
    let store = database(dir.path(), "control.sqlite").await;
    store
        .execute(sqlx::AssertSqlSafe(format!("UPDATE audit_heads SET seq = seq - 1 WHERE org = '{org}'")))
        .await
        .unwrap();
    assert!(findings(dir.path()).await.contains(&Finding::FalseSeal { what: "newest" }));
    store.execute(sqlx::AssertSqlSafe(format!("DELETE FROM audit_heads WHERE org = '{org}'"))).await.unwrap();
    assert_eq!(findings(dir.path()).await, [Finding::Unsealed]);
}

#[tokio::test]
async fn an_end_that_was_cut_off_stays_missing_when_the_server_goes_on() {
    let (dir, org) = ended().await;
    let records = database(dir.path(), "audit.db").await;
    let cut = format!("DELETE FROM audit WHERE org = '{org}' AND seq > 4");
    records.execute(sqlx::AssertSqlSafe(cut)).await.unwrap();
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    server.acme.sandbox().await;
    server.control.finish().await;
    let found = findings(server.dir.path()).await;
    assert!(matches!(found[..], [Finding::Broken { .. }, Finding::Missing { from: 5, .. }]), "{found:?}");
}

/// What a server that ended so, and whoever went on after it, leaves to be found.
async fn findings_after_going_on(dir: TempDir) -> Vec<Finding> {
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    server.acme.sandbox().await;
    server.control.finish().await;
    let first = findings(server.dir.path()).await;
    let (_, dir) = server.stop().await;
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    server.acme.sandbox().await;
    server.control.finish().await;
    assert_eq!(findings(server.dir.path()).await, first, "for ever, and recorded once");
    first
}

fn breaks(found: &[Finding]) -> usize {
    found.iter().filter(|one| matches!(one, Finding::Broken { .. })).count()
}

/// Writes a chain anew from a record on, hashes and all.
async fn rewrite(dir: &Path, org: &str, from: i64) {
    let records = database(dir, "audit.db").await;
    records.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    let mut hash: String = sqlx::query_scalar("SELECT hash FROM audit WHERE org = $1 AND seq = $2 - 1")
        .bind(org)
        .bind(from)
        .fetch_one(&records)
        .await
        .unwrap();
    sqlx::query("UPDATE audit SET detail = '{}', actor = 'server', sandbox = NULL, request = NULL, at = 1577836800000000 WHERE org = $1 AND seq >= $2")
        .bind(org)
        .bind(from)
        .execute(&records)
        .await
        .unwrap();
    let rest: Vec<(i64, String)> =
        sqlx::query_as("SELECT seq, kind FROM audit WHERE org = $1 AND seq >= $2 ORDER BY seq")
            .bind(org)
            .bind(from)
            .fetch_all(&records)
            .await
            .unwrap();
    for (seq, kind) in rest {
        hash = hash_of(
            &hash,
            &format!(
                r#"{{"actor":"server","at":"2020-01-01T00:00:00Z","detail":{{}},"kind":"{kind}","org":"{org}","request":null,"sandbox":null,"seq":{seq},"v":1}}"#
            ),
        );
        sqlx::query("UPDATE audit SET hash = $3 WHERE org = $1 AND seq = $2")
            .bind(org)
            .bind(seq)
            .bind(&hash)
            .execute(&records)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_chain_that_was_written_anew_is_found_also_after_the_next_record() {
    for is_stripped in [false, true] {
        let (dir, org) = ended().await;
        rewrite(dir.path(), &org, 5).await;
        if is_stripped {
            // As if they were all from before records had seals.
            let records = database(dir.path(), "audit.db").await;
            records.execute("UPDATE audit SET mac = NULL").await.unwrap();
        }
        let found = findings_after_going_on(dir).await;
        assert!(breaks(&found) >= 1, "{found:?}");
        assert_eq!(found.contains(&Finding::Forged { seq: 5 }), !is_stripped, "{found:?}");
    }
}

#[tokio::test]
async fn an_end_that_was_cut_off_together_with_its_seal_is_found_also_after_the_next_record() {
    for what in ["seq > 4", "TRUE"] {
        let (dir, org) = ended().await;
        let records = database(dir.path(), "audit.db").await;
        let cut = format!("DELETE FROM audit WHERE org = '{org}' AND {what}");
        records.execute(sqlx::AssertSqlSafe(cut)).await.unwrap();
        let store = database(dir.path(), "control.sqlite").await;
        let unseal = format!("DELETE FROM audit_heads WHERE org = '{org}'");
        store.execute(sqlx::AssertSqlSafe(unseal)).await.unwrap();
        // Also of one with no record left: it has keys.
        assert_eq!(findings(dir.path()).await, [Finding::Unsealed], "{what}");
        let found = findings_after_going_on(dir).await;
        assert_eq!((breaks(&found), found.len()), (1, 1), "{what}: {found:?}");
    }
}

#[tokio::test]
async fn a_record_that_somebody_else_puts_beside_a_running_server_is_found() {
    let server = Server::start().await;
    server.acme.sandbox().await;
    let org = records(&server.acme, "").await[0]["org"].as_str().unwrap().to_owned();
    let stored = database(server.dir.path(), "audit.db").await;
    write_old(server.dir.path(), &org, 1).await;
    stored.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    stored.execute("UPDATE audit SET mac = NULL WHERE at < 1600000000000000").await.unwrap();
    // A seal is not to be had for it by asking for an export.
    let seq: i64 =
        sqlx::query_scalar("SELECT seq FROM audit WHERE mac IS NULL").fetch_one(&stored).await.unwrap();
    let about = server.acme.get("/api/audit/export").await.is(200).json();
    assert_eq!(about["head"]["seq"], seq - 1);
    server.acme.sandbox().await;
    server.control.finish().await;
    let (_, dir) = server.stop().await;
    let found = findings_after_going_on(dir).await;
    assert!(found.contains(&Finding::Forged { seq }) && breaks(&found) == 1, "{found:?}");
}

#[tokio::test]
async fn a_break_outlasts_the_records_that_are_removed_for_their_age() {
    let (dir, org) = ended().await;
    let records = database(dir.path(), "audit.db").await;
    records.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    let old = format!("UPDATE audit SET at = 0 WHERE org = '{org}' AND seq <= 3");
    records.execute(sqlx::AssertSqlSafe(old)).await.unwrap();
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    eventually("they are gone", async || {
        let first: i64 = sqlx::query_scalar("SELECT min(seq) FROM audit WHERE org = $1")
            .bind(&org)
            .fetch_one(&records)
            .await
            .unwrap();
        (first > 3).then_some(())
    })
    .await;
    server.control.finish().await;
    let found = findings(server.dir.path()).await;
    assert_eq!((breaks(&found), found.len()), (1, 1), "{found:?}");
}

#[tokio::test]
async fn a_server_that_was_killed_before_it_could_seal_is_not_accused() {
    let server = Server::start().await;
    let org = records(&server.acme, "").await[0]["org"].as_str().unwrap().to_owned();
    let store = database(server.dir.path(), "control.sqlite").await;
    let sealed: (i64, String, String) =
        sqlx::query_as("SELECT seq, hash, mac FROM audit_heads WHERE org = $1")
            .bind(&org)
            .fetch_one(&store)
            .await
            .unwrap();
    for _ in 0..3 {
        server.acme.sandbox().await;
    }
    server.control.finish().await;
    let (_, dir) = server.stop().await;
    sqlx::query("UPDATE audit_heads SET seq = $1, hash = $2, mac = $3 WHERE org = $4")
        .bind(sealed.0)
        .bind(sealed.1)
        .bind(sealed.2)
        .bind(&org)
        .execute(&store)
        .await
        .unwrap();
    assert_eq!(findings_after_going_on(dir).await, []);
    // Nor one whose first record was never written.
    let (dir, _) = ended().await;
    let records = database(dir.path(), "audit.db").await;
    records.execute("DELETE FROM audit").await.unwrap();
    let store = database(dir.path(), "control.sqlite").await;
    let orgs: Vec<String> = sqlx::query_scalar("SELECT id FROM orgs").fetch_all(&store).await.unwrap();
    for org in orgs {
        sqlx::query("UPDATE audit_heads SET seq = 0, hash = $1, mac = $2 WHERE org = $3")
            .bind("0".repeat(64))
            .bind(mac_of(dir.path(), "head", &org, 0, &"0".repeat(64)))
            .bind(&org)
            .execute(&store)
            .await
            .unwrap();
    }
    assert_eq!(findings_after_going_on(dir).await, []);
}

#[tokio::test]
async fn records_from_before_they_had_seals_are_whole() {
    let (dir, org) = ended().await;
    let records = database(dir.path(), "audit.db").await;
    records.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    records.execute("UPDATE audit SET mac = NULL").await.unwrap();
    assert_eq!(findings_after_going_on(dir).await, [], "{org}");
}

#[tokio::test]
async fn an_export_says_by_itself_whether_it_is_whole() {
    let server = Server::start().await;
    server.acme.sandbox().await;
    let about = server.acme.get("/api/audit/export").await.is(200).text;
    let lines =
        send(server.acme.request(Method::GET, "/api/audit").header("accept", "application/x-ndjson")).await;
    let whole = format!("{about}\n{}", lines.text);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("export.jsonl");
    let verify = |text: &str, data_dir: Option<&Path>| -> Verified {
        std::fs::write(&path, text).unwrap();
        verify_file(&path, data_dir).unwrap()
    };
    let own = server.dir.path();
    assert_eq!(verify(&whole, Some(own)).findings, []);
    assert_eq!(
        verify(&whole, Some(dir.path())).findings,
        [Finding::FalseSeal { what: "newest" }],
        "of another server"
    );
    let lines: Vec<&str> = whole.lines().collect();
    let without = |at: usize| {
        let kept: Vec<&str> =
            lines.iter().enumerate().filter(|(line, _)| *line != at).map(|(_, line)| *line).collect();
        kept.join("\n")
    };
    assert_eq!(verify(&without(2), None).findings, [Finding::Missing { from: 2, to: 2 }]);
    let last = i64::try_from(lines.len()).unwrap() - 1;
    assert_eq!(verify(&without(lines.len() - 1), None).findings, [Finding::CutOff { from: last, to: last }]);
    let mut swapped = lines.clone();
    swapped.swap(1, 2);
    assert_eq!(verify(&swapped.join("\n"), None).findings, [Finding::OutOfOrder { seq: 1, after: 2 }]);
    let changed = whole.replacen("\"begun\"", "\"done\"", 1);
    assert!(matches!(verify(&changed, None).findings[..], [Finding::Changed { .. }]));
    let broken = whole.replacen("\"kind\":\"sandbox.create\"", "\"kind\":7", 1);
    assert!(matches!(verify(&broken, None).findings[..], [Finding::Unreadable { .. }, ..]));
    // Its beginning removed, or all of it, as if it had been for its age.
    for kept in [3, lines.len()] {
        let last: Value = serde_json::from_str(lines[kept - 1]).unwrap();
        let mut first: Value = serde_json::from_str(lines[0]).unwrap();
        first["after"] = last["seq"].clone();
        first["afterHash"] = last["hash"].clone();
        for mac in [Value::Null, first["head"]["mac"].clone()] {
            first["afterMac"] = mac;
            let cut = format!("{first}\n{}", lines[kept..].join("\n"));
            assert_eq!(verify(&cut, Some(own)).findings, [Finding::FalseSeal { what: "oldest" }], "{cut}");
        }
    }
    for more in [
        whole.replacen("{\"version\"", "{\"x\":1,\"version\"", 1),
        whole.replacen("\"mac\"", "\"x\":1,\"mac\"", 1),
    ] {
        assert_ne!(more, whole);
        std::fs::write(&path, more).unwrap();
        assert!(
            verify_file(&path, None).unwrap_err().to_string().contains("\"x\" is none of the first line")
        );
    }
    std::fs::write(&path, lines[1]).unwrap();
    verify_file(&path, None).unwrap_err();
}

fn hash_of(previous: &str, record: &str) -> String {
    Sha256::digest(format!("{previous}\n{record}")).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The seal of this installation, for who has its key.
fn mac_of(dir: &Path, place: &str, org: &str, seq: i64, hash: &str) -> String {
    let key = std::fs::read(dir.join("audit.key")).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("warren audit {place} 1\n{org}\n{seq}\n{hash}").as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Old records, chained and sealed as the documentation has it.
async fn write_old(dir: &Path, org: &str, count: i64) {
    let records = database(dir, "audit.db").await;
    let (mut seq, mut hash): (i64, String) =
        sqlx::query_as("SELECT seq, hash FROM audit WHERE org = $1 ORDER BY seq DESC LIMIT 1")
            .bind(org)
            .fetch_one(&records)
            .await
            .unwrap();
    for second in 0..count {
        seq += 1;
        let record = format!(
            r#"{{"actor":"server","at":"2020-01-01T00:00:{second:02}Z","detail":{{}},"kind":"audit","org":"{org}","request":null,"sandbox":null,"seq":{seq},"v":1}}"#
        );
        hash = hash_of(&hash, &record);
        sqlx::query("INSERT INTO audit (org, seq, at, kind, actor, detail, hash, mac) VALUES ($1, $2, $3, 'audit', 'server', '{}', $4, $5)")
            .bind(org)
            .bind(seq)
            .bind((1_577_836_800 + second) * 1_000_000)
            .bind(&hash)
            .bind(mac_of(dir, "record", org, seq, &hash))
            .execute(&records)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_is_too_old_goes_and_the_rest_still_verifies() {
    let (dir, org) = ended().await;
    // Those of the keys and sandboxes are from now, so they are taken away first.
    let records = database(dir.path(), "audit.db").await;
    records.execute("DROP TRIGGER audit_is_append_only").await.unwrap();
    write_old(dir.path(), &org, 20).await;
    let keep_all = AuditSettings { retention_days: 0, ..AuditSettings::default() };
    let server = Server::start_with(SimNode::new(), dir, |config| config.audit = keep_all).await;
    server.acme.sandbox().await;
    server.control.finish().await;
    assert_eq!(findings(server.dir.path()).await, [], "old ones that are chained by hand are as good as any");
    let (_, dir) = server.stop().await;
    // Only the oldest go, up to the first that is young.
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    server.control.finish().await;
    assert_eq!(findings(server.dir.path()).await, []);
    let first: i64 = sqlx::query_scalar("SELECT min(seq) FROM audit WHERE org = $1")
        .bind(&org)
        .fetch_one(&records)
        .await
        .unwrap();
    assert_eq!(first, 1, "a young record keeps what stands behind it");
    let (_, dir) = server.stop().await;

    // A chain that begins with old ones.
    let org = "old-org";
    sqlx::query("INSERT INTO audit (org, seq, at, kind, actor, detail, hash) VALUES ($1, 0, 0, 'audit', 'server', '{}', $2)")
        .bind(org)
        .bind("0".repeat(64))
        .execute(&records)
        .await
        .unwrap();
    let store = database(dir.path(), "control.sqlite").await;
    sqlx::query("INSERT INTO audit_heads (org, seq, hash, mac, at) VALUES ($1, 0, $2, $3, 0)")
        .bind(org)
        .bind("0".repeat(64))
        .bind(mac_of(dir.path(), "head", org, 0, &"0".repeat(64)))
        .execute(&store)
        .await
        .unwrap();
    write_old(dir.path(), org, 20).await;
    records.execute("DELETE FROM audit WHERE seq = 0").await.unwrap();
    let server = Server::start_with(SimNode::new(), dir, |_| {}).await;
    eventually("the old records are gone and it is recorded", async || {
        let detail: Vec<String> = sqlx::query_scalar("SELECT detail FROM audit WHERE org = $1 ORDER BY seq")
            .bind(org)
            .fetch_all(&records)
            .await
            .unwrap();
        (detail.len() == 2 && detail[1].contains("\"until\":19")).then_some(())
    })
    .await;
    server.control.finish().await;
    assert_eq!(findings(server.dir.path()).await, []);
    records.execute("UPDATE audit_anchors SET seq = 18").await.unwrap();
    assert!(findings(server.dir.path()).await.contains(&Finding::FalseSeal { what: "oldest" }));
}

/// A collector that refuses now and then, and what it has taken in.
#[derive(Clone, Default)]
struct Collector {
    asked: Arc<Mutex<u32>>,
    taken: Arc<Mutex<Vec<Value>>>,
}

async fn collect(
    State(collector): State<Collector>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> StatusCode {
    assert_eq!(headers["authorization"], "Bearer of-ours");
    assert_eq!(headers["content-type"], "application/json");
    let mut asked = collector.asked.lock().unwrap();
    *asked += 1;
    if *asked % 2 == 1 {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let resource = &body["resourceLogs"][0];
    assert_eq!(
        resource["resource"]["attributes"][0],
        json!({"key": "service.name", "value": {"stringValue": "warren"}})
    );
    collector
        .taken
        .lock()
        .unwrap()
        .extend(resource["scopeLogs"][0]["logRecords"].as_array().unwrap().clone());
    StatusCode::OK
}

fn attribute(record: &Value, name: &str) -> Value {
    let found = record["attributes"].as_array().unwrap().iter().find(|one| one["key"] == name);
    found.map_or(Value::Null, |found| found["value"].as_object().unwrap().values().next().unwrap().clone())
}

#[tokio::test]
async fn records_are_sent_to_a_collector_and_none_is_lost() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = || {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer of-ours".parse().unwrap());
        let otlp = Some(OtlpTarget { endpoint: format!("http://{address}/"), headers });
        AuditSettings { otlp, ..AuditSettings::default() }
    };
    // Nobody answers yet, and nobody waits for that.
    let server =
        Server::start_with(SimNode::new(), TempDir::new().unwrap(), |config| config.audit = target()).await;
    let first = server.acme.sandbox().await;
    let router = Router::new().route("/v1/logs", post(collect)).with_state(collector.clone());
    drop(listener);
    let listener = TcpListener::bind(address).await.unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let has = async |server: &Server, what: &str| {
        let all = records(&server.acme, "").await;
        let org = all[0]["org"].clone();
        eventually(what, async || {
            let taken = collector.taken.lock().unwrap();
            let ours: Vec<Value> =
                taken.iter().filter(|one| attribute(one, "warren.org.id") == org).cloned().collect();
            (ours.len() >= all.len()).then_some(ours)
        })
        .await
    };
    let ours = has(&server, "all are sent").await;
    let (node, dir) = server.stop().await;
    let server = Server::start_with(node, dir, |config| config.audit = target()).await;
    server.acme.sandbox().await;
    let again = has(&server, "those after a restart too").await;
    assert!(again.len() > ours.len());
    let mut seqs: Vec<i64> = again
        .iter()
        .map(|one| attribute(one, "warren.audit.seq").as_str().unwrap().parse().unwrap())
        .collect();
    // A stop may come between the collector's taking a batch and its answer; that batch comes again.
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs, (1..=i64::try_from(seqs.len()).unwrap()).collect::<Vec<_>>(), "none is left out");
    let create = again.iter().find(|one| attribute(one, "warren.audit.kind") == "sandbox.create").unwrap();
    assert_eq!(attribute(create, "warren.sandbox.id"), json!(first));
    assert_eq!(
        (&create["eventName"], &create["severityText"]),
        (&json!("warren.sandbox.create"), &json!("INFO"))
    );
    assert!(create["timeUnixNano"].as_str().unwrap().parse::<u64>().unwrap() > 1_700_000_000_000_000_000);
    serving.abort();
}
