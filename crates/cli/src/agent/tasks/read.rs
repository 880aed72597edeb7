//! Tasks from a file: TOML, JSON, JSON lines, or a prompt on each line.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::failure::{hinted, usage};

const MAX_FILE: u64 = 16 << 20;
const MAX_TASKS: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Task {
    /// Also what its files are called.
    #[serde(default)]
    pub(crate) name: String,
    pub(crate) prompt: String,
    /// How long it may take, like `30m`.
    #[serde(default)]
    pub(crate) timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tasks {
    #[serde(alias = "tasks")]
    task: Vec<Task>,
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Task>> {
    let failed = || format!("could not read {}", path.display());
    if std::fs::metadata(path).with_context(failed)?.len() > MAX_FILE {
        return Err(usage(format!("{} is too large for a list of tasks", path.display())));
    }
    let text = std::fs::read_to_string(path).with_context(failed)?;
    let kind = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    // Some editors begin a file with a mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let tasks = parse(kind, text).map_err(|why| {
        hinted(
            format!("{}: {why}", path.display()),
            "in TOML: [[task]] with name, prompt and timeout; in .jsonl: {\"name\": …, \"prompt\": …} on each line, in .json an array of them; in text: a prompt on each line",
        )
    })?;
    named(tasks).map_err(|why| usage(format!("{}: {why}", path.display())))
}

fn parse(kind: &str, text: &str) -> Result<Vec<Task>, String> {
    match kind {
        "toml" => {
            toml::from_str::<Tasks>(text).map(|tasks| tasks.task).map_err(|error| error.message().to_owned())
        }
        "jsonl" | "ndjson" => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            lines
                .map(|(number, line)| {
                    serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
                })
                .collect()
        }
        "json" => serde_json::from_str(text).map_err(|error| error.to_string()),
        // A line of it would be a prompt like any other.
        _ if is_json(text) => Err("this is JSON; the name of its file ends with .json or .jsonl".to_owned()),
        _ => {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            Ok(lines
                .map(|prompt| Task { name: String::new(), prompt: prompt.to_owned(), timeout: None })
                .collect())
        }
    }
}

/// Whether the text, or its first line, is an array or an object.
fn is_json(text: &str) -> bool {
    let holds = |text: &str| {
        serde_json::from_str::<serde_json::Value>(text).is_ok_and(|json| json.is_array() || json.is_object())
    };
    holds(text) || text.lines().find(|line| !line.trim().is_empty()).is_some_and(holds)
}

/// Gives every task a name that can be a file's.
fn named(mut tasks: Vec<Task>) -> Result<Vec<Task>, String> {
    if tasks.is_empty() {
        return Err("there are no tasks in it".to_owned());
    }
    if tasks.len() > MAX_TASKS {
        return Err(format!("there are more than {MAX_TASKS} tasks in it"));
    }
    let given: BTreeSet<String> = tasks.iter().map(|task| task.name.clone()).collect();
    let mut names = BTreeSet::new();
    for (index, task) in tasks.iter_mut().enumerate() {
        if task.name.is_empty() {
            let mut free = (index + 1..).map(|number| format!("task-{number}"));
            let is_free = |name: &String| !given.contains(name) && !names.contains(name);
            task.name = free.find(is_free).expect("numbers do not end");
        }
        if task.prompt.trim().is_empty() {
            return Err(format!("{:?} says nothing to do: its prompt is empty", task.name));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !task.name.chars().all(is_plain) || task.name.starts_with('.') || task.name.len() > 100 {
            return Err(format!("{:?} cannot be a name: letters, digits, -, _ and .", task.name));
        }
        if !names.insert(task.name.clone()) {
            return Err(format!("two tasks are called {}", task.name));
        }
    }
    Ok(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_given_is_not_given_to_another() {
        let tasks = ["task-2", "", "task-3", "", "A"].map(|name| Task {
            name: name.to_owned(),
            prompt: "x".to_owned(),
            timeout: None,
        });
        let names: Vec<_> = named(tasks.to_vec()).unwrap().into_iter().map(|task| task.name).collect();
        assert_eq!(names, ["task-2", "task-4", "task-3", "task-5", "A"]);
    }

    #[test]
    fn a_mark_at_the_beginning_is_no_part_of_a_prompt() {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in [("a.txt", "\u{feff}do it\n"), ("a.json", "\u{feff}[{\"prompt\": \"do it\"}]")] {
            let path = home.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap()[0].prompt, "do it", "{name}");
        }
    }

    #[test]
    fn tasks_are_read_from_four_kinds_of_files() {
        let names = |kind: &str, text: &str| {
            let tasks = named(parse(kind, text)?)?;
            Ok::<_, String>(
                tasks.into_iter().map(|task| format!("{}:{}", task.name, task.prompt)).collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            names("toml", "[[task]]\nname = \"a\"\nprompt = \"x\"\n[[task]]\nprompt = \"y\"\n").unwrap(),
            ["a:x", "task-2:y"]
        );
        assert_eq!(
            names("jsonl", "{\"prompt\": \"x\"}\n\n{\"name\": \"b\", \"prompt\": \"y\"}\n").unwrap(),
            ["task-1:x", "b:y"]
        );
        assert_eq!(
            names("json", "[\n{\"prompt\": \"x\"},\n{\"name\": \"b\", \"prompt\": \"y\"}\n]").unwrap(),
            ["task-1:x", "b:y"]
        );
        assert_eq!(names("txt", "[WIP] go on\n").unwrap(), ["task-1:[WIP] go on"]);
        assert_eq!(
            names("txt", "# these\nfix it\n\ntest it\n").unwrap(),
            ["task-1:fix it", "task-2:test it"]
        );
        for (kind, text) in [
            ("toml", "x"),
            ("jsonl", "{}"),
            ("txt", ""),
            ("jsonl", "{\"name\":\"../x\",\"prompt\":\"a\"}"),
            ("jsonl", "{\"name\":\"a\",\"prompt\":\" \\n\"}"),
            ("toml", "[[task]]\nprompt=\"\""),
            ("txt", "[\n{\"prompt\": \"a\"}\n]"),
            ("txt", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n"),
            ("json", "{\"prompt\": \"a\"}"),
            ("toml", "[[task]]\nprompt=\"a\"\nextra=1"),
        ] {
            assert!(names(kind, text).is_err(), "{kind} {text}");
        }
    }
}
