use std::os::unix::fs::symlink;

use warren_guest_api::logs::journal::History;
use warren_guest_api::logs::{Filter, Row};

use super::*;

/// A store of small files in a folder of its own.
struct Sample {
    folder: tempfile::TempDir,
    store: Store,
}

const SMALL: u64 = 4096;

fn command(id: &str) -> Arc<CommandOrigin> {
    CommandOrigin::new(id.parse().unwrap(), "sh".to_owned(), vec!["sh".to_owned(), "-c".to_owned()])
}

fn entry(line: &str, origin: Origin) -> Entry {
    Entry { time_ms: 1, source: Source::ExecStdout, line: line.as_bytes().to_vec(), origin, exit_code: None }
}

fn batch(entries: impl IntoIterator<Item = Entry>) -> Batch {
    Batch { entries: entries.into_iter().collect(), ..Batch::default() }
}

impl Sample {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("journal"), SMALL);
        Self { folder, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn rows(&mut self) -> Vec<Row> {
        let parts = parts(&self.path(), self.store.end());
        let mut history = History::find(parts, &Filter::default(), 1_000_000).unwrap();
        let lines = history.next_lines(usize::MAX).unwrap();
        let lines = lines.split_inclusive(|byte| *byte == b'\n');
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    fn lines(&mut self) -> Vec<String> {
        self.rows().into_iter().map(|row| row.line).collect()
    }

    fn restart(&mut self) {
        self.store = Store::new(self.path(), SMALL);
    }
}

#[test]
fn looking_makes_nothing_and_writing_makes_what_it_needs() {
    let mut sample = Sample::new();
    assert_eq!(sample.store.end(), Position::default());
    assert!(!sample.path().exists());
    let end = sample.store.write(&batch([entry("one", Origin::Journal)]));
    assert_eq!(end.file, 1);
    assert_eq!(sample.lines(), ["one"]);
    sample.restart();
    assert_eq!(sample.store.end(), end, "the next start goes on where this one ended");
    sample.store.write(&batch([entry("two", Origin::File("/var/log/x".into()))]));
    let rows = sample.rows();
    assert_eq!((rows[1].line.as_str(), rows[1].path.as_deref()), ("two", Some("/var/log/x")));
}

#[test]
fn files_are_rotated_and_each_names_its_commands() {
    let mut sample = Sample::new();
    let (one, two) = (command("00000001"), command("00000002"));
    let mut ends = Vec::new();
    for number in 0..200 {
        let origin = Origin::Command(Arc::clone(if number % 3 == 0 { &one } else { &two }));
        ends.push(sample.store.write(&batch([entry(&format!("line {number} {}", "x".repeat(60)), origin)])));
    }
    assert!(ends.is_sorted(), "positions grow");
    assert_eq!(numbers(&sample.path()).len(), 2);
    let rows = sample.rows();
    let sizes: u64 = parts(&sample.path(), sample.store.end()).iter().map(|part| part.length).sum();
    assert!(sizes <= 2 * SMALL + 512, "{sizes}");
    assert!(rows.len() > 20 && rows.last().unwrap().line.starts_with("line 199 "), "{}", rows.len());
    for (at, row) in rows.iter().enumerate() {
        let number = 200 - rows.len() + at;
        assert!(row.line.starts_with(&format!("line {number} ")));
        let expected = if number.is_multiple_of(3) { "00000001" } else { "00000002" };
        assert_eq!(row.exec_id.as_ref().unwrap().as_str(), expected);
        assert_eq!(row.command.as_deref(), Some("sh"));
    }
}

#[test]
fn what_was_dropped_for_want_of_memory_is_told() {
    let mut sample = Sample::new();
    sample.store.write(&Batch { overrun: 7, ..batch([entry("after", Origin::Journal)]) });
    let rows = sample.rows();
    assert_eq!(rows[0].line, "7 rows were not logged: they came faster than they could be written");
    assert_eq!(rows[0].source, Source::Agent);
    assert_eq!(rows[1].line, "after");
}

#[test]
fn rows_that_cannot_be_written_are_counted_until_they_can_be_told_of() {
    let mut sample = Sample::new();
    // Each batch needs a file of its own, and soon there is no folder for it.
    sample.store = Store::new(sample.path(), 1);
    sample.store.write(&batch([entry("before", Origin::Journal)]));
    std::fs::rename(sample.path(), sample.folder.path().join("away")).unwrap();
    std::fs::write(sample.path(), "in the way").unwrap();
    let origin = command("00000001");
    let row = |line: &str| entry(line, Origin::Command(Arc::clone(&origin)));
    sample.store.write(&batch([row("lost"), row("lost")]));
    sample.store.write(&batch([row("lost")]));
    std::fs::remove_file(sample.path()).unwrap();
    std::fs::rename(sample.folder.path().join("away"), sample.path()).unwrap();
    sample.store.write(&batch([row("kept")]));
    let rows = sample.rows();
    let lines: Vec<&str> = rows.iter().map(|row| row.line.as_str()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!((lines[0], lines[2]), ("before", "kept"));
    assert!(lines[1].starts_with("3 rows were not logged: "), "{lines:?}");
    assert_eq!(rows[2].command.as_deref(), Some("sh"));
}

#[test]
fn a_journal_that_root_has_changed_goes_on_in_a_new_file() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("cut", |path| drop(OpenOptions::new().write(true).open(path).unwrap().set_len(30))),
        ("emptied", |path| drop(OpenOptions::new().write(true).open(path).unwrap().set_len(0))),
        ("added to", |path| {
            OpenOptions::new().append(true).open(path).unwrap().write_all(b"\xff{\"broken").unwrap();
        }),
        ("removed", |path| std::fs::remove_file(path).unwrap()),
        ("replaced by a link", |path| {
            std::fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
        ("replaced by a folder", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
    ];
    for (what, change) in changes {
        for restarted in [false, true] {
            let mut sample = Sample::new();
            let mut origin = command("00000001");
            let row = |line: &str, origin: &Arc<CommandOrigin>| {
                batch([entry(line, Origin::Command(Arc::clone(origin)))])
            };
            let first = sample.store.write(&row("one", &origin));
            change(&path_of(&sample.path(), first.file));
            if restarted {
                sample.restart();
                // Commands do not outlive an agent.
                origin = command("00000001");
            }
            let before = sample.store.end();
            let end = sample.store.write(&row("two", &origin));
            assert!(end > before && end.file <= 2, "{what}: {end:?}");
            let rows = sample.rows();
            let last = rows.last().unwrap();
            assert_eq!(
                (last.line.as_str(), last.command.as_deref()),
                ("two", Some("sh")),
                "{what}, {restarted}"
            );
        }
    }
}

#[test]
fn strange_names_in_the_folder_are_left_alone() {
    let mut sample = Sample::new();
    std::fs::create_dir_all(sample.path()).unwrap();
    for name in
        ["18446744073709551615.journal", "99999999999999999999.journal", "x.journal", "-1.journal", "5"]
    {
        std::fs::write(sample.path().join(name), "").unwrap();
    }
    assert_eq!(sample.store.write(&batch([entry("one", Origin::Journal)])).file, 1);
    assert_eq!(sample.lines(), ["one"]);
}

#[test]
fn positions_are_replaced_whole() {
    let mut sample = Sample::new();
    for text in ["first, longer", "second"] {
        sample.store.write(&Batch { positions: Some(text.as_bytes().to_vec()), ..Batch::default() });
        assert_eq!(std::fs::read_to_string(positions_path(&sample.path())).unwrap(), text);
    }
    assert_eq!(sample.store.end(), Position::default(), "no rows, no journal");
}
