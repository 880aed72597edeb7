use std::fs::File;
use std::io::Write as _;

use proptest::prelude::*;
use warren_types::ExecId;

use super::*;
use crate::logs::{Filter, MAX_TIME_MS, Row};

fn file_of(text: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text).unwrap();
    file
}

fn part(text: &[u8]) -> Part {
    Part { file: file_of(text), length: text.len() as u64 }
}

fn new_row(time_ms: u64, line: &str) -> NewRow<'_> {
    NewRow { time_ms, source: Source::ExecStdout, line, path: None, command: None, exit_code: None }
}

fn rows(mut history: History) -> Vec<Row> {
    let mut all = Vec::new();
    loop {
        // As little as possible at a time.
        let lines = history.next_lines(1).unwrap();
        if lines.is_empty() {
            return all;
        }
        all.extend(parsed(&lines));
    }
}

fn parsed(lines: &[u8]) -> Vec<Row> {
    lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).unwrap()).collect()
}

fn find(parts: Vec<Part>, filter: &Filter, limit: usize) -> Vec<Row> {
    rows(History::find(parts, filter, limit).unwrap())
}

fn lines(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| row.line.as_str()).collect()
}

/// Rows of two commands, each written down before its first row.
fn sample() -> Vec<u8> {
    let ids: [ExecId; 2] = ["00000001".parse().unwrap(), "00000002".parse().unwrap()];
    let mut text = HEADER.to_vec();
    let mut starts = [0, 0];
    for (at, id) in ids.iter().enumerate() {
        starts[at] = text.len();
        write_command(&mut text, id, &format!("cmd {at}"), &["sh".to_owned(), at.to_string()]);
    }
    for number in 0..6 {
        let at = number % 2;
        let distance = (text.len() - starts[at]) as u64;
        let exit_code = (number >= 4).then_some(7);
        let line = format!("line {number}");
        let row =
            NewRow { command: Some((&ids[at], distance)), exit_code, ..new_row(1000 + number as u64, &line) };
        row.write(&mut text);
    }
    text
}

#[test]
fn the_newest_rows_are_found_and_read_oldest_first_with_their_commands() {
    let found = find(vec![part(&sample())], &Filter::default(), 4);
    assert_eq!(lines(&found), ["line 2", "line 3", "line 4", "line 5"]);
    assert_eq!(found[0].command.as_deref(), Some("cmd 0"));
    assert_eq!(found[1].argv, ["sh", "1"]);
    assert_eq!(found[1].exec_id, Some("00000002".parse().unwrap()));
    assert_eq!((found[1].exit_code, found[3].exit_code), (None, Some(7)));
    assert!(find(vec![part(&sample())], &Filter::default(), 0).is_empty());
}

#[test]
fn files_are_read_as_one_apart_or_together() {
    let whole = [sample(), sample()].concat();
    let apart = find(vec![part(&sample()), part(&sample())], &Filter::default(), 100);
    let together = find(vec![part(&whole)], &Filter::default(), 100);
    assert_eq!(apart, together);
    assert_eq!(apart.len(), 12);
    assert!(apart.iter().all(|row| row.command.is_some()), "distances hold in a file of files");
    assert_eq!(find(vec![part(&sample()), part(&sample())], &Filter::default(), 7), apart[5..]);
}

#[test]
fn reading_on_gives_each_row_once() {
    let text = sample();
    let file = file_of(&text);
    let (mut at, mut seen, mut commands) = (0, Vec::new(), Commands::default());
    let ends: Vec<u64> =
        text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u64 + 1).collect();
    for end in ends {
        while at < end {
            at = read_on((&file, 1), (at, end), 1, &Filter::default(), &mut commands, &mut seen).unwrap();
        }
    }
    assert_eq!(parsed(&seen), find(vec![part(&text)], &Filter::default(), 100));
}

#[test]
fn what_root_has_changed_is_passed_over() {
    let good = |line: &str| {
        let mut text = Vec::new();
        new_row(1, line).write(&mut text);
        text
    };
    let text = [
        HEADER,
        &good("one")[..],
        b"\n\0\0\0\0garbage {\n[1,2]\n{\"t\":-1,\"s\":\"exec_stdout\",\"l\":\"\"}\n{\"t\":1,\"s\":\"nonsense\",\"l\":\"\"}\n\xff\xfe\n",
        // Too long to be a record, in both directions.
        &[b'x'; 600_000],
        b"\n",
        &good("two"),
        // Distances that lead nowhere: before the file, to no command, to another command's.
        b"{\"t\":1,\"s\":\"exec_stdout\",\"x\":\"00000001\",\"d\":99999999999,\"l\":\"three\"}\n",
        b"{\"t\":1,\"s\":\"exec_stdout\",\"x\":\"00000001\",\"d\":1,\"l\":\"four\"}\n",
        b"{\"x\":\"00000002\",\"c\":\"other\"}\n{\"t\":1,\"s\":\"exec_stdout\",\"x\":\"00000001\",\"d\":31,\"l\":\"five\"}\n",
        b"{\"t\":1,\"s\":\"exec_stdout\",\"x\":\"not an id\",\"l\":\"six\"}\n",
        b"{\"t\":1,\"s\":\"exec_stdout\",\"l\":\"cut o",
    ]
    .concat();
    let expected = ["one", "two", "three", "four", "five", "six"];
    let found = find(vec![part(&text)], &Filter::default(), 100);
    assert_eq!(lines(&found), expected);
    assert!(found.iter().all(|row| row.command.is_none()), "no command is invented");
    assert_eq!(found[5].exec_id, None);

    let (file, mut at, mut seen) = (file_of(&text), 0, Vec::new());
    while at < text.len() as u64 {
        let range = (at, text.len() as u64);
        at = read_on((&file, 1), range, 1, &Filter::default(), &mut Commands::default(), &mut seen).unwrap();
    }
    assert_eq!(lines(&parsed(&seen)), expected);

    // A row and a command that are too long together, and a time that is none.
    let id = "00000001".parse().unwrap();
    let mut text = Vec::new();
    write_command(&mut text, &id, &"c".repeat(8000), &[]);
    let (distance, line) = (text.len() as u64, "x".repeat(MAX_RECORD - 4000));
    NewRow { command: Some((&id, distance)), ..new_row(1, &line) }.write(&mut text);
    new_row(u64::MAX, "late").write(&mut text);
    new_row(MAX_TIME_MS, "seven").write(&mut text);
    assert_eq!(lines(&find(vec![part(&text)], &Filter::default(), 100)), ["seven"]);

    // Less is there than was said.
    let short = Part { file: file_of(&text[..HEADER.len() + 10]), length: text.len() as u64 };
    assert!(find(vec![short], &Filter::default(), 100).is_empty());
    let mut history = History::find(vec![part(&text)], &Filter::default(), 100).unwrap();
    history.parts[0].file.set_len(0).unwrap();
    assert!(history.next_lines(1000).unwrap().is_empty());
}

fn any_line() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "\\PC{0,30}",
        2 => "[\\x00-\\x1f]{0,5}",
        1 => Just("x".repeat(300_000)),
    ]
}

proptest! {
    #[test]
    fn any_lines_come_back(
        given in prop::collection::vec((any_line(), any::<u32>()), 0..12),
        limit in 0usize..14,
    ) {
        let mut text = HEADER.to_vec();
        for (line, time) in &given {
            new_row(u64::from(*time), line).write(&mut text);
        }
        // What is longer than a row can be is no row.
        let kept: Vec<_> = given.iter().filter(|(line, _)| line.len() < MAX_RECORD).collect();
        let expected: Vec<&str> = kept.iter().map(|(line, _)| line.as_str()).collect();
        let found = find(vec![part(&text)], &Filter::default(), limit);
        prop_assert_eq!(lines(&found), &expected[expected.len().saturating_sub(limit)..]);
    }

    #[test]
    fn noise_is_read_without_harm(noise in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400)) {
        let found = find(vec![part(&noise)], &Filter::default(), 10);
        prop_assert!(found.len() <= 10);
    }
}
