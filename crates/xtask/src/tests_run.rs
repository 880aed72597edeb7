//! Runs the workspace's Rust tests and says how many there were, in the line `scripts/test` adds up.
//!
//! With cargo-nextest where it is installed: a process per test. Both ways skip only what is marked
//! `#[ignore = "reason"]`; the reasons are printed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let nextest = crate::cargo(root)
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = crate::cargo(root);
    if nextest {
        command.args(["nextest", "run", "--workspace", "--cargo-profile", "release", "--no-fail-fast"]);
        crate::for_tests(root, &mut command)?;
        // It reports on stderr; cargo's own progress goes there too and is passed on.
        command.args(["--color", "never", "--no-tests", "pass"]);
    } else {
        println!("   cargo-nextest is not installed; `cargo test` does, with less isolation");
        command.args(["test", "--workspace", "--release", "--no-fail-fast"]);
        crate::for_tests(root, &mut command)?;
    }
    let mut tally = Tally::default();
    let status = lines_of(&mut command, nextest, |line| {
        println!("{line}");
        if nextest { add_nextest(&mut tally, line) } else { add_cargo_test(&mut tally, line) }
    })?;
    if tally.skipped > 0 {
        for reason in ignored(root)? {
            println!("SKIP {reason}");
        }
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.skipped);
    if !status.success() || tally.failed > 0 {
        bail!("the tests ended with {status}");
    }
    Ok(())
}

/// Hands over each line of the stream the reports are on; the other one stays where it is.
fn lines_of(
    command: &mut Command,
    on_stderr: bool,
    mut each: impl FnMut(&str),
) -> anyhow::Result<std::process::ExitStatus> {
    if on_stderr {
        command.stderr(Stdio::piped())
    } else {
        command.stdout(Stdio::piped())
    };
    let mut child = command.spawn().context("could not start the tests")?;
    let stream: Box<dyn std::io::Read> = match (child.stderr.take(), child.stdout.take()) {
        (Some(stderr), _) => Box::new(stderr),
        (None, Some(stdout)) => Box::new(stdout),
        (None, None) => bail!("the tests have no output"),
    };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).context("lost the output of the tests")? > 0 {
        each(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    child.wait().context("lost the tests")
}

/// `Summary [ 1.2s] 20 tests run: 18 passed (1 slow), 1 failed, 1 timed out, 3 skipped`
fn add_nextest(tally: &mut Tally, line: &str) {
    if !line.trim_start().starts_with("Summary [") {
        return;
    }
    let Some((_, counts)) = line.split_once("run: ") else { return };
    for part in counts.split(',') {
        let mut words = part.split_whitespace();
        let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        match what {
            "passed" => tally.passed += count,
            "skipped" => tally.skipped += count,
            // "failed", "timed out", "exec failed"
            _ => tally.failed += count,
        }
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 17 filtered out; finished in 0.30s`
fn add_cargo_test(tally: &mut Tally, line: &str) {
    let Some(counts) = line.strip_prefix("test result: ") else { return };
    let words: Vec<&str> = counts.split_whitespace().collect();
    for pair in words.windows(2) {
        let Ok(count) = pair[0].parse::<u64>() else { continue };
        match pair[1] {
            "passed;" => tally.passed += count,
            "failed;" => tally.failed += count,
            "ignored;" => tally.skipped += count,
            _ => {}
        }
    }
}

/// `name: reason` of each ignored test.
fn ignored(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for path in crate::sizes::sources(&root.join("crates"))? {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(rest) = line.strip_prefix("#[ignore") else { continue };
            let reason = rest.split('"').nth(1).unwrap_or("no reason given");
            let name = lines[number..].iter().find_map(|line| line.split_once("fn ")?.1.split('(').next());
            found.push(format!("{}: {reason}", name.unwrap_or("a test")));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_reports_are_counted() {
        let mut tally = Tally::default();
        add_nextest(
            &mut tally,
            "     Summary [   1.234s] 22/30 tests run: 18 passed (2 slow), 3 failed, 1 timed out, 5 skipped",
        );
        add_nextest(&mut tally, "        PASS [   0.004s] warren-types tests::x");
        assert_eq!(tally, Tally { passed: 18, failed: 4, skipped: 5 });
        add_cargo_test(
            &mut tally,
            "test result: FAILED. 7 passed; 1 failed; 2 ignored; 0 measured; 9 filtered out; finished in 0s",
        );
        add_cargo_test(&mut tally, "test state::tests::x ... ok");
        assert_eq!(tally, Tally { passed: 25, failed: 5, skipped: 7 });
    }
}
