//! The journal: what commands and files leave in it, and how it is read.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use http::Method;
use serde_json::{Value, json};
use warren_guest_api::exec::Exec;
use warren_guest_api::logs::journal::{History, Part};
use warren_guest_api::logs::{Filter, Query, Row, Source};

use crate::client::{Agent, Pieces, until};

fn query(filter: Filter) -> Query {
    Query { filter, limit: 10_000, follow: false }
}

async fn rows(agent: &Agent, query: &Query) -> Vec<Row> {
    let answer = agent.call(Method::POST, "/v1/logs", serde_json::to_string(query).unwrap()).await;
    assert_eq!(answer.status, 200);
    let text = std::str::from_utf8(&answer.body).unwrap();
    let text = text.strip_suffix('\n').expect("a blank line ends the history");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn all(agent: &Agent) -> Vec<Row> {
    rows(agent, &query(Filter::default())).await
}

fn lines(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.line.as_str()).collect()
}

fn append(agent: &Agent, name: &str, text: &str) {
    let path = agent.path("log").join(name);
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn what_commands_write_is_logged_line_by_line_with_their_end() {
    let Some(agent) = Agent::start().await else { return };
    assert!(all(&agent).await.is_empty());
    assert!(!agent.path("journal").exists(), "reading makes nothing");
    let script = "echo one; echo oops >&2; sleep 0.05; printf 'two\\r\\nno end'; exit 3";
    let exec = agent.exec("sh", &["-c", script], Value::Null).await;
    agent.wait(&exec).await;
    agent.run("kill -9 $$", Value::Null).await;
    agent.run("true; sleep 60", json!({"timeout_ms": 50})).await;
    let rows = all(&agent).await;
    let (ours, rest) = rows.split_at(5);
    // The two streams are two pipes: between them there is no order.
    let out: Vec<&Row> = ours.iter().filter(|row| row.source == Source::ExecStdout).collect();
    assert_eq!(
        out.iter().map(|row| row.line.as_str()).collect::<Vec<_>>(),
        ["one", "two", "no end", "exited with code 3"]
    );
    assert_eq!(ours.iter().find(|row| row.source == Source::ExecStderr).unwrap().line, "oops");
    assert!(ours.is_sorted_by_key(|row| row.time_ms));
    assert!(exec.started_at_ms <= ours[0].time_ms && ours[4].time_ms - ours[0].time_ms >= 40);
    for row in ours {
        assert_eq!(row.exec_id.as_ref(), Some(&exec.id));
        assert_eq!(row.command.as_deref(), Some("sh"));
        assert_eq!(row.argv, ["sh", "-c", script]);
        assert_eq!(row.path, None);
    }
    assert_eq!(ours.iter().map(|row| row.exit_code).collect::<Vec<_>>(), [None, None, None, None, Some(3)]);
    assert_eq!(lines(rest), ["ended by signal 9 (code 137)", "ended by its time limit (code -1)"]);
    assert_eq!(rest[0].command.as_deref(), Some("kill -9 $$"));
    assert!(rest[0].argv.is_empty(), "a shell read it");
    assert_eq!((rest[0].exit_code, rest[1].exit_code), (Some(137), Some(-1)));
}

#[tokio::test(flavor = "current_thread")]
async fn filters_and_limits_pick_rows() {
    let Some(agent) = Agent::start().await else { return };
    agent.run("seq 1 100; echo wrong >&2", Value::Null).await;
    let first = all(&agent).await;
    let last_ms = first.last().unwrap().time_ms;
    until("time passes", || async {
        agent.run("true", Value::Null).await;
        all(&agent).await.last().unwrap().time_ms > last_ms
    })
    .await;
    let some = |filter: Filter| async { rows(&agent, &query(filter)).await };
    let newest =
        rows(&agent, &Query { limit: 2, ..query(Filter { until_ms: Some(last_ms), ..Filter::default() }) })
            .await;
    assert_eq!(newest, first[first.len() - 2..], "the newest, oldest first");
    assert_eq!(lines(&some(Filter { text: Some("99".to_owned()), ..Filter::default() }).await), ["99"]);
    let wrong = some(Filter { sources: vec![Source::ExecStderr], ..Filter::default() }).await;
    assert_eq!(lines(&wrong), ["wrong"]);
    let late = some(Filter { since_ms: Some(last_ms + 1), ..Filter::default() }).await;
    assert!(!late.is_empty() && late.iter().all(|row| row.line == "exited with code 0"), "{late:?}");
    assert!(some(Filter { sources: vec![Source::Agent], ..Filter::default() }).await.is_empty());
    for (body, says) in
        [("{}", "missing field"), ("", "EOF"), (r#"{"filter":{"sources":["x"]},"limit":1}"#, "x")]
    {
        let error = agent.call(Method::POST, "/v1/logs", body).await.error(400);
        assert!(error.message.contains(says), "{}", error.message);
    }
    agent.call(Method::GET, "/v1/logs", "").await.error(405);
    agent.call(Method::POST, "/v1/logs/journal", "").await.error(405);
    agent.call(Method::GET, "/v1/logs/x", "").await.error(404);
}

#[tokio::test(flavor = "current_thread")]
async fn history_goes_over_into_live_rows_without_a_seam() {
    let Some(agent) = Agent::start().await else { return };
    // Writes all the time while readers come.
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; sleep 0.3; echo end";
    let exec = agent.exec("sh", &["-c", script], Value::Null).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        let follow = Query { follow: true, ..query(Filter { until_ms: Some(0), ..Filter::default() }) };
        let body = serde_json::to_string(&follow).unwrap();
        readers.push(Pieces::of(agent.stream(Method::POST, "/v1/logs", body).await));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    agent.wait(&exec).await;
    for mut reader in readers {
        let mut seen = Vec::new();
        let mut blank = 0;
        while seen.last().is_none_or(|row: &Row| row.exit_code.is_none()) {
            match reader.line().await.as_str() {
                "" => blank += 1,
                line => seen.push(serde_json::from_str(line).unwrap()),
            }
        }
        let expected: Vec<String> = (0..3000)
            .map(|number| number.to_string())
            .chain(["end", "exited with code 0"].map(str::to_owned))
            .collect();
        assert!(lines(&seen) == expected, "{} rows", seen.len());
        assert_eq!(blank, 1, "one end of the history");
        assert!(seen.iter().all(|row| row.command.as_deref() == Some("sh")));
    }
    until("nobody is left", || async {
        // Readers that have left make room for others.
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(
                agent.stream(Method::POST, "/v1/logs", r#"{"filter":{},"limit":0,"follow":true}"#).await,
            );
        }
        held.iter().all(|answer| answer.status() == 200)
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_flood_reaches_its_readers_whole_and_the_journal_in_part() {
    let Some(agent) = Agent::start().await else { return };
    let total = 64 << 20;
    let exec = agent
        .exec(
            "sh",
            &["-c", &format!("yes {} | head -c {total}; echo; sleep 1.7; echo after", "0123456".repeat(20))],
            Value::Null,
        )
        .await;
    let (_input, mut frames) = agent.attach(&format!("/v1/exec/{}/attach?offset=0", exec.id)).await;
    let (_, replayed) = frames.replay().await;
    let rest = frames.rest().await;
    assert_eq!(replayed.stdout.len() + rest.stdout.len(), total + "\nafter\n".len());
    let rows = all(&agent).await;
    let left_out: Vec<&Row> = rows.iter().filter(|row| row.line.contains("not logged")).collect();
    assert!(
        (1..=3).contains(&left_out.len()),
        "{:?}",
        left_out.iter().map(|row| &row.line).collect::<Vec<_>>()
    );
    let mut bytes = 0;
    for row in &rows[..rows.len() - 1] {
        let told = row
            .line
            .split_once(" bytes of output are not logged")
            .map(|(count, _)| count.parse::<usize>().unwrap());
        bytes += told.unwrap_or(row.line.len() + 1);
    }
    assert_eq!(bytes, total + "\nafter\n".len(), "every byte is logged or counted");
    assert_eq!(rows[rows.len() - 2].line, "after");
}

#[tokio::test(flavor = "current_thread")]
async fn text_files_under_var_log_are_followed() {
    let Some(agent) = Agent::start().await else { return };
    append(&agent, "template.log", "added\n");
    append(&agent, "new.log", "one\ntwo\n");
    std::fs::create_dir(agent.path("log/sub")).unwrap();
    append(&agent, "sub/deep.log", "deep\n");
    std::fs::create_dir(agent.path("log/sub/deeper")).unwrap();
    append(&agent, "sub/deeper/no.log", "too deep\n");
    append(&agent, "binary", "\0\0\0\n");
    let path = |name: &str| Some(agent.path("log").join(name).to_str().unwrap().to_owned());
    let seen = |count: usize| {
        let agent = &agent;
        async move { all(agent).await.len() >= count }
    };
    until("files are read", || seen(4)).await;
    let mut rows = all(&agent).await;
    rows.sort_by_key(|row| row.path.clone());
    assert!(rows.iter().all(|row| row.source == Source::VarLog && row.exec_id.is_none()));
    let found: Vec<_> = rows.iter().map(|row| (row.path.clone(), row.line.as_str())).collect();
    let expected =
        [("new.log", "one"), ("new.log", "two"), ("sub/deep.log", "deep"), ("template.log", "added")];
    assert_eq!(found, expected.map(|(name, line)| (path(name), line)));

    append(&agent, "sub/deep.log", "more\n");
    std::fs::rename(agent.path("log/new.log"), agent.path("log/new.log.1")).unwrap();
    append(&agent, "new.log", "fresh\n");
    until("they are followed", || seen(6)).await;
    let rows = all(&agent).await;
    let mut last = lines(&rows[4..]);
    last.sort_unstable();
    assert_eq!(last, ["fresh", "more"]);

    // All of it goes and comes back.
    std::fs::rename(agent.path("log"), agent.path("gone")).unwrap();
    std::fs::create_dir(agent.path("log")).unwrap();
    append(&agent, "back.log", "back\n");
    until("it is watched again", || seen(7)).await;
    append(&agent, "back.log", "again\n");
    until("it is watched again", || seen(8)).await;
    assert_eq!(lines(&all(&agent).await[6..]), ["back", "again"]);
}

#[tokio::test(flavor = "current_thread")]
async fn root_can_do_to_the_journal_what_it_likes() {
    let Some(agent) = Agent::start().await else { return };
    agent.run("echo before", Value::Null).await;
    assert_eq!(all(&agent).await.len(), 2);
    let files = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(agent.path("journal")).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|of| of == "journal"))
            .collect()
    };
    let [first] = &files()[..] else { panic!("{:?}", files()) };
    let mut text = std::fs::read(first).unwrap();
    text.extend_from_slice(b"{\"t\":1,\"s\":\"agent\",\"l\":\"forged\"}\n\xff\0garbage\n{\"t\":");
    std::fs::write(first, &text).unwrap();
    agent.run("echo after", Value::Null).await;
    let seen = all(&agent).await;
    let expected = ["before", "exited with code 0", "forged", "after", "exited with code 0"];
    assert_eq!(lines(&seen), expected, "what is no row is passed over");
    std::fs::remove_dir_all(agent.path("journal")).unwrap();
    std::fs::write(agent.path("journal"), "in the way").unwrap();
    assert_eq!(agent.run("echo lost", Value::Null).await.text(), "lost\n", "commands do not notice");
    let none = all(&agent).await;
    assert!(none.is_empty(), "{none:?}");
    std::fs::remove_file(agent.path("journal")).unwrap();
    agent.run("echo kept", Value::Null).await;
    let seen = all(&agent).await;
    assert!(seen[0].line.starts_with("2 rows were not logged: "), "{seen:?}");
    assert_eq!(seen[0].source, Source::Agent);
    assert_eq!(lines(&seen[1..]), ["kept", "exited with code 0"]);
    assert_eq!(seen[1].command.as_deref(), Some("echo kept"));
}

#[tokio::test(flavor = "current_thread")]
async fn the_journal_can_be_taken_away_and_read_elsewhere() {
    let Some(agent) = Agent::start().await else { return };
    let exec: Exec = agent.exec("sh", &["-c", "seq 1 5000"], Value::Null).await;
    agent.wait(&exec).await;
    let copy = agent.get("/v1/logs/journal").await;
    assert_eq!(copy.status, 200);
    let path = agent.path("copy");
    std::fs::write(&path, &copy.body).unwrap();
    let part = Part { file: std::fs::File::open(path).unwrap(), length: copy.body.len() as u64 };
    let mut history = History::find(vec![part], &Filter::default(), 10_000).unwrap();
    let read = history.next_lines(usize::MAX).unwrap();
    let read: Vec<Row> = read
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(read, all(&agent).await);
    assert_eq!(read.len(), 5001);
}
