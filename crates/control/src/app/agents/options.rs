//! What a session is started and told with: checked here, so that what reaches the wrapper makes sense.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use warren_api::agents::{AgentOptions, AgentPermission};
use warren_types::Error;

use super::line;

const MAX_PROMPT_BYTES: usize = 1024 * 1024;
const MAX_NAME_BYTES: usize = 256;
const MAX_PATH_BYTES: usize = 4096;
const MAX_LIST: usize = 1000;
const MAX_SERVERS: usize = 100;
const MAX_TURNS: i64 = 100_000;
const PERMISSION_MODES: [&str; 6] =
    ["default", "acceptEdits", "bypassPermissions", "plan", "dontAsk", "auto"];

/// Which agent runs in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ClaudeCode,
    Codex,
    OpenCode,
}

impl Kind {
    const ALL: [Self; 3] = [Self::ClaudeCode, Self::Codex, Self::OpenCode];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::Codex => "codex",
            Self::OpenCode => "opencode",
        }
    }

    pub(super) fn parse(name: Option<&str>) -> Result<Self, Error> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Self::ClaudeCode) };
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(|| {
            Error::invalid(format!("agent must be claude-code, codex or opencode (got {})", shown(name)))
        })
    }

    /// Arguments of the wrapper; none for Claude, as clients of the first version expect.
    pub(super) fn args(self) -> Vec<String> {
        match self {
            Self::ClaudeCode => Vec::new(),
            Self::Codex | Self::OpenCode => vec!["--agent".to_owned(), self.as_str().to_owned()],
        }
    }

    pub(super) fn of_args(args: &[String]) -> Self {
        match args {
            [flag, name, ..] if flag == "--agent" => Self::parse(Some(name)).unwrap_or(Self::ClaudeCode),
            _ => Self::ClaudeCode,
        }
    }
}

/// Options that an agent has nothing for: refused by name, because they would be taken for a limit that holds.
pub(super) fn check_kind(kind: Kind, options: &AgentOptions) -> Result<(), Error> {
    let lists = [("allowedTools", &options.allowed_tools), ("disallowedTools", &options.disallowed_tools)];
    let named = lists.into_iter().find(|(_, tools)| tools.as_ref().is_some_and(|tools| !tools.is_empty()));
    match named {
        Some((name, _)) if kind == Kind::Codex => Err(Error::invalid(format!(
            "{name}: codex has no list of tools that could be allowed or not; permissionMode says what it may do"
        ))),
        _ => Ok(()),
    }
}

/// The line that configures a session; `None` when no option says anything.
pub(super) fn configure_line(options: &AgentOptions) -> Result<Option<Vec<u8>>, Error> {
    let mut message = Map::new();
    let mut set = |name: &str, value: Value| {
        message.insert(name.to_owned(), value);
    };
    for (name, value) in [("model", &options.model), ("resume", &options.resume)] {
        if let Some(value) = said(value) {
            check_name(name, value)?;
            set(name, value.into());
        }
    }
    if let Some(prompt) = said(&options.system_prompt) {
        check_size("systemPrompt", prompt)?;
        set("systemPrompt", prompt.into());
    }
    for (name, tools) in
        [("allowedTools", &options.allowed_tools), ("disallowedTools", &options.disallowed_tools)]
    {
        if let Some(tools) = tools.as_ref().filter(|tools| !tools.is_empty()) {
            check_tools(name, tools)?;
            set(name, tools.clone().into());
        }
    }
    if let Some(mode) = said(&options.permission_mode) {
        if !PERMISSION_MODES.contains(&mode) {
            let modes = PERMISSION_MODES.join(", ");
            return Err(Error::invalid(format!(
                "permissionMode must be one of {modes} (got {})",
                shown(mode)
            )));
        }
        set("permissionMode", mode.into());
    }
    match options.max_turns {
        None | Some(0) => {}
        Some(turns @ 1..=MAX_TURNS) => set("maxTurns", turns.into()),
        Some(turns) => {
            return Err(Error::invalid(format!("maxTurns must be 1 to {MAX_TURNS} (got {turns})")));
        }
    }
    if let Some(cwd) = said(&options.cwd) {
        check_cwd(cwd)?;
        set("cwd", cwd.into());
    }
    if let Some(servers) = options.mcp_servers.as_ref().filter(|servers| !servers.is_empty()) {
        check_servers(servers)?;
        set("mcpServers", json!(servers));
    }
    if let Some(end) = options.end_when_idle {
        set("endWhenIdle", end.into());
    }
    if message.is_empty() {
        return Ok(None);
    }
    message.insert("type".to_owned(), "configure".into());
    line(&message).map(Some)
}

pub(super) fn prompt_line(text: &str, resume: Option<&str>) -> Result<Vec<u8>, Error> {
    check_size("the prompt", text)?;
    let mut message = json!({"type": "prompt", "text": text});
    if let Some(resume) = resume.filter(|resume| !resume.is_empty()) {
        check_name("resume", resume)?;
        message["resume"] = resume.into();
    }
    line(&message)
}

pub(super) fn permission_line(body: &AgentPermission) -> Result<Vec<u8>, Error> {
    let id = said(&body.id).ok_or_else(|| {
        Error::invalid("id is required: it is that of the permission_request event to be answered")
    })?;
    check_name("id", id)?;
    let behavior = match body.behavior.as_deref() {
        Some(behavior @ ("allow" | "deny")) => behavior,
        _ => return Err(Error::invalid("behavior must be allow or deny")),
    };
    let mut message = json!({"type": "permission_response", "id": id, "behavior": behavior});
    if let Some(text) = said(&body.message) {
        check_size("message", text)?;
        message["message"] = text.into();
    }
    if let Some(input) = &body.updated_input {
        if behavior == "deny" {
            return Err(Error::invalid("updatedInput goes with behavior allow only"));
        }
        message["updatedInput"] = Value::Object(input.clone());
    }
    line(&message)
}

fn said(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn check_size(what: &str, text: &str) -> Result<(), Error> {
    if text.len() > MAX_PROMPT_BYTES {
        return Err(Error::invalid(format!(
            "{what} must be at most {MAX_PROMPT_BYTES} bytes (got {}); put what is longer into a file",
            text.len()
        )));
    }
    Ok(())
}

/// A word that goes to the agent's command line: never one that could be taken for a flag.
fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let fits = name.len() <= MAX_NAME_BYTES && !name.starts_with('-') && !name.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{what} must be at most {MAX_NAME_BYTES} printable characters and not begin with - (got {})",
        shown(name)
    )))
}

fn check_tools(what: &str, tools: &[String]) -> Result<(), Error> {
    if tools.len() > MAX_LIST {
        return Err(Error::invalid(format!(
            "{what} must name at most {MAX_LIST} tools (got {})",
            tools.len()
        )));
    }
    match tools.iter().find(|tool| tool.is_empty()) {
        Some(_) => Err(Error::invalid(format!("{what} must not hold empty names"))),
        None => tools.iter().try_for_each(|tool| check_name(what, tool)),
    }
}

fn check_cwd(cwd: &str) -> Result<(), Error> {
    if !cwd.starts_with('/') || cwd.len() > MAX_PATH_BYTES || cwd.contains('\0') {
        return Err(Error::invalid(format!(
            "cwd must be an absolute path of at most {MAX_PATH_BYTES} bytes (got {})",
            shown(cwd)
        )));
    }
    Ok(())
}

fn check_servers(servers: &BTreeMap<String, Value>) -> Result<(), Error> {
    if servers.len() > MAX_SERVERS {
        return Err(Error::invalid(format!(
            "mcpServers must name at most {MAX_SERVERS} servers (got {})",
            servers.len()
        )));
    }
    servers.iter().try_for_each(|(name, server)| {
        check_server(name, server)
            .map_err(|wrong| Error::invalid(format!("mcpServers: the server {} {wrong}", shown(name))))
    })
}

fn check_server(name: &str, server: &Value) -> Result<(), String> {
    let names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(names) {
        return Err("must be named with 1 to 64 letters, digits, -, _ or .".to_owned());
    }
    let server = server.as_object().ok_or("must be an object such as {\"command\": \"…\"}")?;
    let text = |field: &str| server.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let is_map = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
    match server.get("type").map_or(Some("stdio"), Value::as_str) {
        Some("stdio") => {
            text("command").ok_or("needs a command")?;
            let is_list =
                |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
            if !server.get("args").is_none_or(is_list) {
                return Err("must have a list of strings as args".to_owned());
            }
            if !server.get("env").is_none_or(is_map) {
                return Err("must have an object of strings as env".to_owned());
            }
        }
        Some("http" | "sse") => {
            let url = text("url").ok_or("needs a url")?;
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err("must have a url that begins with http:// or https://".to_owned());
            }
            if !server.get("headers").is_none_or(is_map) {
                return Err("must have an object of strings as headers".to_owned());
            }
        }
        _ => return Err("must be of type stdio, http or sse".to_owned()),
    }
    Ok(())
}

/// What somebody sent, as it can stand in a sentence.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(64).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(options: Value) -> Result<Option<Value>, String> {
        let options: AgentOptions = serde_json::from_value(options).unwrap();
        let line = configure_line(&options).map_err(|error| error.message)?;
        Ok(line.map(|line| serde_json::from_slice(&line).unwrap()))
    }

    #[test]
    fn only_options_that_say_something_are_passed_on() {
        let empty = json!({"model": "", "allowedTools": [], "maxTurns": 0, "mcpServers": {}, "cwd": ""});
        assert_eq!(configured(empty).unwrap(), None);
        let all = json!({
            "model": "m", "systemPrompt": "s", "allowedTools": ["Bash(git *)"], "disallowedTools": ["Read"],
            "permissionMode": "plan", "maxTurns": 3, "cwd": "/srv", "resume": "r", "endWhenIdle": true,
            "mcpServers": {"a": {"command": "x", "args": ["y"], "env": {"K": "v"}}, "b": {"type": "http", "url": "http://h"}},
        });
        let mut expected = all.clone();
        expected["type"] = "configure".into();
        assert_eq!(configured(all).unwrap(), Some(expected));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_sentence() {
        for (options, says) in [
            (json!({"permissionMode": "yolo"}), "permissionMode must be one of default"),
            (json!({"maxTurns": -1}), "maxTurns must be 1 to 100000 (got -1)"),
            (json!({"maxTurns": 100_001}), "maxTurns must be 1"),
            (json!({"cwd": "src"}), "cwd must be an absolute path"),
            (json!({"model": "--dangerously"}), "model must be"),
            (json!({"resume": "a\nb"}), "resume must be"),
            (json!({"allowedTools": [""]}), "allowedTools must not hold empty names"),
            (json!({"allowedTools": vec!["x"; 1001]}), "allowedTools must name at most 1000"),
            (json!({"mcpServers": {"a": 1}}), "the server \"a\" must be an object"),
            (json!({"mcpServers": {"a": {}}}), "the server \"a\" needs a command"),
            (json!({"mcpServers": {"a b": {"command": "x"}}}), "must be named with"),
            (json!({"mcpServers": {"a": {"command": "x", "args": "y"}}}), "list of strings as args"),
            (json!({"mcpServers": {"a": {"command": "x", "env": {"K": 1}}}}), "object of strings as env"),
            (json!({"mcpServers": {"a": {"type": "http"}}}), "needs a url"),
            (json!({"mcpServers": {"a": {"type": "http", "url": "file:///x"}}}), "begins with http"),
            (json!({"mcpServers": {"a": {"type": 7}}}), "must be of type"),
            (json!({"systemPrompt": "x".repeat(MAX_PROMPT_BYTES + 1)}), "systemPrompt must be at most"),
        ] {
            let error = configured(options.clone()).unwrap_err();
            assert!(error.contains(says), "{options}: {error}");
        }
    }

    #[test]
    fn lists_of_tools_are_refused_where_they_would_mean_nothing() {
        for (name, options) in [
            ("allowedTools", json!({"allowedTools": ["Bash"]})),
            ("disallowedTools", json!({"disallowedTools": ["Bash"]})),
        ] {
            let options: AgentOptions = serde_json::from_value(options).unwrap();
            let refused = check_kind(Kind::Codex, &options).unwrap_err();
            assert!(refused.message.starts_with(name), "{}", refused.message);
            assert!(
                check_kind(Kind::ClaudeCode, &options).is_ok()
                    && check_kind(Kind::OpenCode, &options).is_ok()
            );
        }
        let none: AgentOptions = serde_json::from_value(json!({"allowedTools": [], "model": "m"})).unwrap();
        assert!(check_kind(Kind::Codex, &none).is_ok());
    }

    #[test]
    fn kinds_and_arguments_belong_together() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(Some(kind.as_str())).unwrap(), kind);
            assert_eq!(Kind::of_args(&kind.args()), kind);
        }
        assert_eq!(Kind::parse(None).unwrap(), Kind::ClaudeCode);
        assert!(Kind::parse(Some("gemini")).is_err());
        assert!(Kind::ClaudeCode.args().is_empty());
    }
}
