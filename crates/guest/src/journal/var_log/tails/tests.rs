use std::io::Write as _;
use std::time::Duration;

use super::super::watch::files_in;
use super::*;

/// A folder of logs, and what was taken from it.
struct Sample {
    folder: tempfile::TempDir,
    tails: Tails,
    now: Instant,
}

impl Sample {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("log/sub")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("log").join(name), text).unwrap();
        }
        let tails = Tails::open(files_in(&folder.path().join("log")), &folder.path().join("positions"));
        Self { folder, tails, now: Instant::now() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("log").join(name)
    }

    fn add(&self, name: &str, text: impl AsRef<[u8]>) {
        let mut file = OpenOptions::new().append(true).create(true).open(self.path(name)).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    /// Looks at everything, as after a change that nobody saw.
    fn look(&mut self) -> Vec<String> {
        let all = Changed::All(files_in(&self.folder.path().join("log")));
        self.look_at(all)
    }

    fn look_at(&mut self, changed: Changed) -> Vec<String> {
        let mut seen = Vec::new();
        let root = format!("{}/", self.folder.path().join("log").display());
        self.tails.look(changed, self.now, &mut |path, taken| {
            seen.push(match taken {
                Taken::Line(line) => {
                    format!("{}: {}", path.trim_start_matches(&root), String::from_utf8_lossy(&line))
                }
                Taken::LeftOut(count) => format!("{} left out", count > 0),
            });
        });
        seen
    }

    /// Remembers what there is to remember and starts again.
    fn restart(&mut self) {
        let positions = self.folder.path().join("positions");
        if let Some(text) = self.tails.take_positions() {
            std::fs::write(&positions, text).unwrap();
        }
        self.tails = Tails::open(files_in(&self.folder.path().join("log")), &positions);
    }
}

fn nothing() -> Changed {
    Changed::Files(BTreeSet::new())
}

#[test]
fn what_the_template_brought_is_not_history_and_the_rest_is() {
    let mut sample = Sample::new(&[("old", "from the template\n"), ("unfinished", "half ")]);
    assert!(sample.look().is_empty());
    assert!(sample.tails.take_positions().is_none(), "nothing is written down before something is logged");
    sample.add("old", "added\nand ");
    sample.add("unfinished", "whole\n");
    sample.add("new", "one\n");
    sample.add("sub/deep", "two\n");
    assert_eq!(sample.look(), ["new: one", "sub/deep: two", "old: added", "unfinished: whole"]);
    sample.add("old", "more\n");
    assert_eq!(sample.look(), ["old: and more"]);
    assert!(sample.look().is_empty());
}

#[test]
fn a_restart_neither_loses_nor_doubles() {
    let mut sample = Sample::new(&[("old", "from the template\n")]);
    sample.restart();
    sample.add("old", "one\nhal");
    assert_eq!(sample.look(), ["old: one"]);
    sample.restart();
    sample.add("old", "f\n");
    sample.add("late", "two\n");
    // The first look after a start takes in what nobody told of.
    assert_eq!(sample.look_at(nothing()), ["old: half"]);
    assert_eq!(sample.look(), ["late: two"]);
    sample.restart();
    assert!(sample.look().is_empty());
    std::fs::write(sample.folder.path().join("positions"), "garbage").unwrap();
    sample.restart();
    assert!(sample.look().is_empty(), "what is there is where it begins");
}

#[test]
fn rotation_and_truncation_are_followed() {
    let long = "a first line that is rather long, so that nobody takes it for another's\n".repeat(20);
    for (renamed, text) in [(true, "short\n"), (true, &long), (false, &long)] {
        let mut sample = Sample::new(&[]);
        sample.add("app.log", text);
        assert_eq!(sample.look().len(), text.lines().count());
        sample.add("app.log", "last\n");
        if renamed {
            std::fs::rename(sample.path("app.log"), sample.path("app.log.1")).unwrap();
        } else {
            // By copying, as for programs that keep their file open.
            sample.look();
            std::fs::copy(sample.path("app.log"), sample.path("app.log.1")).unwrap();
            std::fs::write(sample.path("app.log"), "").unwrap();
        }
        sample.add("app.log", "fresh\n");
        let seen = sample.look();
        let last = if renamed { vec!["app.log.1: last"] } else { vec![] };
        assert_eq!(seen, [last, vec!["app.log: fresh"]].concat(), "{renamed} {}", text.len());
        assert!(sample.look().is_empty());
    }
    let mut sample = Sample::new(&[("a", "from the template\n")]);
    std::fs::write(sample.path("a"), "new\n").unwrap();
    assert_eq!(sample.look(), ["a: new"], "shorter than it was");
    std::fs::write(sample.path("a"), "something else, and longer\n").unwrap();
    assert_eq!(sample.look(), ["a: something else, and longer"]);
}

#[test]
fn files_that_begin_alike_are_still_two() {
    let mut sample = Sample::new(&[]);
    sample.add("a", "started\n");
    assert_eq!(sample.look(), ["a: started"]);
    sample.add("b", "started\nand more\n");
    assert_eq!(sample.look(), ["b: started", "b: and more"]);
}

#[test]
fn what_is_no_text_is_passed_over() {
    let mut sample = Sample::new(&[]);
    sample.add("wtmp", b"\x07\0\0\0text\n".repeat(10));
    sample.add("app.log.2.gz", b"\x1f\x8b\x08\x08text\ntext\n");
    sample.add("broken", b"\xff\xfe not text but close\n");
    std::os::unix::fs::symlink("/etc/passwd", sample.path("link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, sample.path("pipe"), rustix::fs::Mode::from_raw_mode(0o600))
        .unwrap();
    assert_eq!(sample.look(), ["broken: \u{fffd}\u{fffd} not text but close"]);
    sample.add("wtmp", "more\n");
    let named: BTreeSet<PathBuf> = ["link", "pipe", "wtmp", "none"].map(|name| sample.path(name)).into();
    assert!(sample.look_at(Changed::Files(named)).is_empty());
}

#[test]
fn a_flood_is_cut_off_and_told() {
    let mut sample = Sample::new(&[]);
    sample.add("flood", "x".repeat(99) + "\n");
    sample.look();
    sample.add("flood", ("x".repeat(99) + "\n").repeat(100_000));
    let taken = sample.look().len();
    assert!(taken > 1000 && taken < 10_486, "{taken}");
    assert!(sample.tails.is_due());
    assert!(sample.look_at(nothing()).is_empty(), "too early");
    sample.now += Duration::from_secs(2);
    assert_eq!(sample.look_at(nothing()), ["true left out"]);
    assert!(!sample.tails.is_due());
    sample.add("flood", "whole\n");
    assert_eq!(sample.look(), ["flood: whole"]);
}

#[test]
fn more_files_than_can_be_followed_are_told_once() {
    let mut sample = Sample::new(&[]);
    for number in 0..MAX_FILES + 5 {
        sample.add(&format!("{number:04}"), format!("{number}\n"));
    }
    let seen = sample.look();
    assert_eq!(seen.len(), MAX_FILES + 1);
    assert!(seen[MAX_FILES].contains("not logged"), "{}", seen[MAX_FILES]);
    std::fs::remove_file(sample.path("0000")).unwrap();
    assert_eq!(sample.look(), [format!("{MAX_FILES:04}: {MAX_FILES}")], "room for another");
}
