//! The tools: what a model reads of them, what they take, and what they do.
//!
//! WHEN ADDING A TOOL: a row here, its function, its line in `docs/tools.md`, a call of it in `tests/e2e/api/test_tools.py`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};
use warren_types::{Error, SandboxId};

use super::text::{DEFAULT_BYTES, MAX_BYTES, MIN_BYTES};
use super::{
    Bound, Call, Definition, Output, Scope, exec, files, listing, machine, output, processes, reading,
    sandboxes, search,
};
use crate::app::auth::sandbox_not_found;

/// Names the sandbox, where tools are not of one.
const SANDBOX_ID: &str = "sandbox_id";
/// Text that a call may carry; the door takes no more either.
const MAX_CONTENT: usize = 4 * 1024 * 1024;
const MAX_INPUT: usize = 1024 * 1024;
const MAX_PATH: usize = 4096;

type Run = fn(Call, Value) -> Pin<Box<dyn Future<Output = Result<Output, Error>> + Send>>;

pub(super) struct Tool {
    pub name: &'static str,
    description: String,
    /// What it takes for the sandbox it is bound to.
    schema: Arc<Map<String, Value>>,
    /// With the sandbox's id.
    open_schema: Arc<Map<String, Value>>,
    needs: Needs,
    kind: Kind,
    pub run: Run,
}

/// Whom a tool is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Whoever may use the sandbox.
    Sandbox,
    /// Who has the key of the sandbox's organisation.
    Key,
    /// The same, and no sandbox that the tools are bound to.
    Unbound,
}

/// What it does to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reads,
    Adds,
    Destroys,
}

impl Tool {
    pub(super) fn is_for(&self, scope: &Scope) -> bool {
        match self.needs {
            Needs::Sandbox => true,
            Needs::Key => scope.is_organisation(),
            Needs::Unbound => scope.is_organisation() && matches!(scope.bound, Bound::No),
        }
    }

    pub(super) fn schema_for(&self, scope: &Scope) -> &Arc<Map<String, Value>> {
        if matches!(scope.bound, Bound::No) { &self.open_schema } else { &self.schema }
    }

    pub(super) fn definition(&self, scope: &Scope) -> Definition {
        Definition {
            name: self.name,
            description: self.description.clone(),
            schema: Arc::clone(self.schema_for(scope)),
            read_only: self.kind == Kind::Reads,
            destructive: self.kind == Kind::Destroys,
        }
    }
}

/// Takes the sandbox out of input that has been checked.
pub(super) fn take_sandbox(input: &mut Map<String, Value>) -> Result<Option<SandboxId>, Error> {
    match input.remove(SANDBOX_ID) {
        // What is no id names no sandbox.
        Some(Value::String(id)) => id.parse().map(Some).map_err(|_| sandbox_not_found()),
        _ => Ok(None),
    }
}

pub(super) fn all() -> &'static [Tool] {
    static ALL: LazyLock<Vec<Tool>> = LazyLock::new(make);
    &ALL
}

fn make() -> Vec<Tool> {
    use Kind::{Adds, Destroys, Reads};
    use Needs::{Key, Sandbox, Unbound};
    let mut tools = of_commands();
    tools.extend(of_files());
    tools.extend([
        tool(
            ("sandbox_expose_port", Key, Adds),
            "Give the URL under which a port of the sandbox can be opened from outside.",
            &["port"],
            json!({
                "port": {"type": "integer", "minimum": 1, "maximum": 65535, "description": "Where a program in the sandbox listens."},
                "share_seconds": {"type": "integer", "minimum": 1, "maximum": 604_800,
                    "description": "Also make a link that opens it without a token, for so many seconds."},
            }),
            |call, input| Box::pin(machine::expose_port(call, input)),
        ),
        tool(
            ("sandbox_checkpoint", Key, Adds),
            "Take a checkpoint of the sandbox as it is now, in milliseconds, to go back to or to fork.",
            &[],
            json!({"name": {"type": "string", "minLength": 1, "maxLength": 128, "description": "Unique in this sandbox; made up when left out."}}),
            |call, input| Box::pin(machine::checkpoint(call, input)),
        ),
        tool(
            ("sandbox_restore", Key, Destroys),
            "Put the sandbox back to one of its checkpoints. What has changed since is lost, and commands that run end.",
            &["checkpoint"],
            json!({"checkpoint": {"type": "string", "minLength": 1, "maxLength": 128, "description": "Id or name of a checkpoint of this sandbox."}}),
            |call, input| Box::pin(machine::restore(call, input)),
        ),
        tool(
            ("sandbox_fork", Key, Adds),
            "Make another sandbox that starts as this one is, or as it was at a checkpoint. Returns its id.",
            &[],
            json!({"checkpoint": {"type": "string", "minLength": 1, "maxLength": 128,
                "description": "Id or name of a checkpoint of this sandbox; its present state when left out."}}),
            |call, input| Box::pin(machine::fork(call, input)),
        ),
        unbound(
            ("sandbox_create", Unbound, Adds),
            "Make a sandbox: a Linux machine of your own. Returns its id, which the other tools take as sandbox_id.",
            json!({
                "template": {"type": "string", "maxLength": 128, "description": "What to start from; base when nothing is said."},
                "image": {"type": "string", "maxLength": 512, "description": "An image of a registry, such as node:22."},
                "snapshot": {"type": "string", "maxLength": 256, "description": "A snapshot: name, or name@version."},
                "cpu_count": {"type": "integer", "minimum": 1, "maximum": 64},
                "memory_mb": {"type": "integer", "minimum": 1, "maximum": 1_048_576, "description": "MiB: 1024, 4096, 8192 or 16384."},
                "disk_mb": {"type": "integer", "minimum": 1, "maximum": 1_048_576, "description": "MiB."},
                "idle_timeout_seconds": {"type": "integer", "minimum": 0, "maximum": 31_536_000,
                    "description": "Hibernates after so long without use; 0 is never."},
                "env": variables("Environment of everything started in it."),
                "metadata": variables("Kept with it."),
                "isolation": {"type": "string", "enum": ["container", "vm"]},
                "secret_store": {"type": "string", "maxLength": 256, "description": "Its secrets become sealed variables."},
                "egress_allowlist": {"type": "array", "maxItems": 200, "items": {"type": "string", "maxLength": 256},
                    "description": "The only hosts it may reach, such as *.example.com."},
            }),
            |call, input| Box::pin(sandboxes::create(call, input)),
        ),
        unbound(
            ("sandbox_list", Unbound, Reads),
            "List the sandboxes, newest first.",
            json!({
                "status": {"type": "string", "maxLength": 200, "description": "Comma-separated: running, hibernated, stopped, error."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 200},
                "cursor": {"type": "string", "maxLength": 256, "description": "Where the page before said that it goes on."},
            }),
            |call, input| Box::pin(sandboxes::list(call, input)),
        ),
        tool(
            ("sandbox_delete", Unbound, Destroys),
            "End a sandbox and delete its disk, for good.",
            &[],
            json!({}),
            |call, input| Box::pin(sandboxes::delete(call, input)),
        ),
    ]);
    debug_assert!(tools.iter().all(|tool| tool.needs != Sandbox || tool.name.starts_with("sandbox_")));
    tools
}

fn of_commands() -> Vec<Tool> {
    use Kind::{Destroys, Reads};
    use Needs::Sandbox;
    let command = || json!({"type": "string", "minLength": 1, "maxLength": MAX_INPUT, "description": "Read by bash, or by sh where there is no bash."});
    let cwd = || json!({"type": "string", "minLength": 1, "maxLength": MAX_PATH, "description": "Must exist. Relative to, and when left out, the home folder."});
    let id = |what: &str| json!({"type": "string", "minLength": 1, "maxLength": 64, "description": what});
    vec![
        tool(
            ("sandbox_exec", Sandbox, Destroys),
            "Run a shell command in the sandbox and wait until it ends. Returns what it wrote, standard output and error as \
             they came, and its exit code. Of long output the beginning and the end are returned; sandbox_read_output reads \
             the rest. Every call is a new shell: cd and variables do not carry over. For what does not end by itself use \
             sandbox_start_process.",
            &["command"],
            json!({
                "command": command(), "cwd": cwd(), "env": variables("Environment variables for it."),
                "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": 3600,
                    "description": "Ends it and all it started; 120 when left out."},
                "max_bytes": bytes(),
            }),
            |call, input| Box::pin(exec::run(call, input)),
        ),
        tool(
            ("sandbox_read_output", Sandbox, Reads),
            "Read more of the output of a command that sandbox_exec ran, by byte offset. Output is kept for 10 minutes after the \
             command has ended.",
            &["exec_id"],
            json!({"exec_id": id("As sandbox_exec gave it."), "offset": offset(), "max_bytes": bytes()}),
            |call, input| Box::pin(output::read(call, input)),
        ),
        tool(
            ("sandbox_start_process", Sandbox, Destroys),
            "Start a program that goes on running, such as a server, and return its id at once.",
            &["command"],
            json!({"command": command(), "cwd": cwd(), "env": variables("Environment variables for it.")}),
            |call, input| Box::pin(processes::start(call, input)),
        ),
        tool(
            ("sandbox_process_output", Sandbox, Reads),
            "Read what a process has written, from a byte offset on, and whether it still runs. With wait_seconds it waits for \
             new output.",
            &["process_id"],
            json!({
                "process_id": id("As sandbox_start_process gave it."), "offset": offset(), "max_bytes": bytes(),
                "wait_seconds": {"type": "integer", "minimum": 0, "maximum": 300,
                    "description": "How long to wait for output or for the end; 0 when left out."},
            }),
            |call, input| Box::pin(output::read(call, input)),
        ),
        tool(
            ("sandbox_process_input", Sandbox, Destroys),
            "Write to the standard input of a process. A line needs its \\n.",
            &["process_id", "input"],
            json!({
                "process_id": id("As sandbox_start_process gave it."),
                "input": {"type": "string", "maxLength": MAX_INPUT},
                "close": {"type": "boolean", "description": "Also end its input."},
            }),
            |call, input| Box::pin(processes::feed(call, input)),
        ),
        tool(
            ("sandbox_kill_process", Sandbox, Destroys),
            "End a process, or send it a signal.",
            &["process_id"],
            json!({
                "process_id": id("As sandbox_start_process gave it."),
                "signal": {"type": "string", "enum": ["KILL", "TERM", "INT", "HUP", "QUIT", "USR1", "USR2"],
                    "description": "KILL, which ends all it has started too, when left out."},
            }),
            |call, input| Box::pin(processes::kill(call, input)),
        ),
        tool(
            ("sandbox_list_processes", Sandbox, Reads),
            "List the commands and processes that run, and those that have ended within the last 10 minutes.",
            &[],
            json!({}),
            |call, input| Box::pin(processes::list(call, input)),
        ),
    ]
}

fn of_files() -> Vec<Tool> {
    use Kind::{Destroys, Reads};
    use Needs::Sandbox;
    let path = |what: &str| json!({"type": "string", "minLength": 1, "maxLength": MAX_PATH, "description": format!("{what} Relative to the home folder unless it starts with /.")});
    vec![
        tool(
            ("sandbox_read_file", Sandbox, Reads),
            "Read lines of a text file in the sandbox, numbered. Says where to go on when there is more.",
            &["path"],
            json!({
                "path": path("The file."),
                "offset": {"type": "integer", "minimum": 1, "description": "The first line; 1 when left out."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 100_000, "description": "How many lines; 2000 when left out."},
                "numbered": {"type": "boolean", "description": "false: as the file has them, and long lines whole. true when left out."},
                "max_bytes": bytes(),
            }),
            |call, input| Box::pin(reading::read(call, input)),
        ),
        tool(
            ("sandbox_write_file", Sandbox, Destroys),
            "Write a file in the sandbox, whole, and the folders above it. What was there is replaced.",
            &["path", "content"],
            json!({
                "path": path("The file."),
                "content": {"type": "string", "maxLength": MAX_CONTENT},
                "mode": {"type": "string", "minLength": 3, "maxLength": 5,
                    "description": "Octal permission bits such as 0755. When left out a file keeps its own, and a new one gets 0644."},
            }),
            |call, input| Box::pin(files::write(call, input)),
        ),
        tool(
            ("sandbox_edit_file", Sandbox, Destroys),
            "Replace a piece of text in a file of the sandbox. The piece must be in the file exactly once, or replace_all be set.",
            &["path", "old_string", "new_string"],
            json!({
                "path": path("The file."),
                "old_string": {"type": "string", "minLength": 1, "maxLength": MAX_INPUT, "description": "As it stands in the file, without line numbers."},
                "new_string": {"type": "string", "maxLength": MAX_INPUT},
                "replace_all": {"type": "boolean", "description": "Replace every one."},
            }),
            |call, input| Box::pin(files::edit(call, input)),
        ),
        tool(
            ("sandbox_list_files", Sandbox, Reads),
            "List a folder of the sandbox, and what is below it as deep as asked for. Symbolic links are not followed.",
            &[],
            json!({
                "path": path("The folder; the home folder when left out."),
                "depth": {"type": "integer", "minimum": 1, "maximum": 50,
                    "description": "1 is the folder alone. 1 when left out, 10 with glob."},
                "glob": {"type": "string", "minLength": 1, "maxLength": 256,
                    "description": "Only what matches: *.rs by name at any depth, src/**/*.rs by path; {a,b}, [a-z], ?."},
                "max_results": {"type": "integer", "minimum": 1, "maximum": 5000, "description": "500 when left out."},
            }),
            |call, input| Box::pin(listing::list(call, input)),
        ),
        tool(
            ("sandbox_search_code", Sandbox, Reads),
            "Search files of the sandbox for a regular expression, with ripgrep where it is there, else with grep -E. Returns \
             path:line:text.",
            &["pattern"],
            json!({
                "pattern": {"type": "string", "minLength": 1, "maxLength": 4096},
                "path": path("A file or folder; the home folder when left out."),
                "glob": {"type": "string", "minLength": 1, "maxLength": 256, "description": "Only files with such a name, such as *.py."},
                "ignore_case": {"type": "boolean"},
                "context": {"type": "integer", "minimum": 0, "maximum": 20, "description": "Lines around each match; 0 when left out."},
                "max_results": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "100 when left out."},
            }),
            |call, input| Box::pin(search::search(call, input)),
        ),
    ]
}

fn bytes() -> Value {
    json!({"type": "integer", "minimum": MIN_BYTES, "maximum": MAX_BYTES,
        "description": format!("How much text to return; {DEFAULT_BYTES} when left out.")})
}

fn offset() -> Value {
    json!({"type": "integer", "minimum": 0, "description": "The first byte, over both streams; the newest output when left out."})
}

fn variables(what: &str) -> Value {
    json!({"type": "object", "additionalProperties": {"type": "string"}, "description": what})
}

fn tool(
    (name, needs, kind): (&'static str, Needs, Kind),
    description: &str,
    required: &[&str],
    properties: Value,
    run: Run,
) -> Tool {
    let mut open = json!({SANDBOX_ID: {"type": "string", "minLength": 1, "maxLength": 64, "description": "Which sandbox."}});
    if let (Some(open), Some(fields)) = (open.as_object_mut(), properties.as_object()) {
        open.extend(fields.clone());
    }
    let with_id: Vec<&str> = std::iter::once(SANDBOX_ID).chain(required.iter().copied()).collect();
    Tool {
        name,
        description: description.to_owned(),
        schema: schema(required, properties),
        open_schema: schema(&with_id, open),
        needs,
        kind,
        run,
    }
}

/// A tool that is about no sandbox in particular.
fn unbound(head: (&'static str, Needs, Kind), description: &str, properties: Value, run: Run) -> Tool {
    let made = tool(head, description, &[], properties, run);
    Tool { open_schema: Arc::clone(&made.schema), ..made }
}

fn schema(required: &[&str], properties: Value) -> Arc<Map<String, Value>> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), properties);
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    Arc::new(schema)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_tool_has_a_name_of_its_own_and_a_strict_schema() {
        let names: HashSet<&str> = all().iter().map(|tool| tool.name).collect();
        assert_eq!(names.len(), all().len());
        for tool in all() {
            assert!(
                tool.name.len() <= 64
                    && tool.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            );
            for schema in [&tool.schema, &tool.open_schema] {
                assert_eq!(schema["additionalProperties"], json!(false), "{}", tool.name);
                let fields = schema["properties"].as_object().unwrap();
                let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
                assert!(
                    required.iter().all(|name| fields.contains_key(name.as_str().unwrap())),
                    "{}",
                    tool.name
                );
                for (name, field) in fields {
                    let kind = field["type"].as_str().unwrap();
                    assert!(["string", "integer", "boolean", "object", "array"].contains(&kind), "{name}");
                }
            }
            assert_eq!(tool.schema["properties"].get(SANDBOX_ID), None);
        }
    }
}
