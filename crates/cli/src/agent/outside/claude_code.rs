//! Claude Code: `--tools ""` leaves it none of its own, `--strict-mcp-config` only ours.

use serde_json::json;

use super::{CALL_SECONDS, Place, Plan, SERVER, instructions, logins, variables};
use crate::agent::launch::Lines;

/// By name as well, should `--tools ""` mean something else one day.
const DISALLOWED: &str = "Bash,BashOutput,KillShell,Read,Write,Edit,MultiEdit,NotebookEdit,Glob,Grep,LS,WebFetch,WebSearch,Task,Agent,Skill,Workflow,Monitor";

pub(super) fn plan(place: &Place<'_>) -> anyhow::Result<Plan> {
    let task = place.outside.task;
    let servers = json!({ "mcpServers": { SERVER: place.tools.as_json() } });
    let servers = place.scratch.write("mcp.json", &servers.to_string())?;
    let mut plan = Plan::default();
    plan.envs.extend(variables(&[
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_BASE_URL",
        "CLAUDE_CODE_OAUTH_TOKEN",
    ]));
    if plan.envs.is_empty()
        && let Some(token) = logins::claude_code()
    {
        plan.envs.insert("CLAUDE_CODE_OAUTH_TOKEN".to_owned(), token.into());
    }
    for (name, value) in [
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
        ("DISABLE_AUTOUPDATER", "1".to_owned()),
        ("MCP_TOOL_TIMEOUT", format!("{CALL_SECONDS}000")),
    ] {
        plan.envs.insert(name.to_owned(), value.into());
    }
    let key =
        plan.envs.get("ANTHROPIC_API_KEY").map(|key| key.to_string_lossy().into_owned()).unwrap_or_default();
    place
        .scratch
        .write("home/.claude.json", &answers(&key, &place.scratch.path("work").to_string_lossy()))?;
    if task.prompt.is_some() {
        plan.arguments.extend(["--print", "--output-format", "stream-json", "--verbose"].map(str::to_owned));
        plan.lines = Lines::ClaudeCode;
    }
    let tools = format!("mcp__{SERVER}");
    let instructions = instructions(place.outside);
    let servers = servers.to_string_lossy();
    for (flag, value) in [
        ("--tools", ""),
        ("--disallowedTools", DISALLOWED),
        ("--mcp-config", &servers),
        ("--allowedTools", &tools),
        ("--setting-sources", ""),
        ("--permission-mode", "dontAsk"),
        ("--append-system-prompt", &instructions),
    ] {
        // In one word: some take several values, and would take what follows too.
        plan.arguments.push(format!("{flag}={value}"));
    }
    plan.arguments.extend(["--strict-mcp-config", "--disable-slash-commands"].map(str::to_owned));
    if let Some(model) = task.model {
        plan.arguments.push(format!("--model={model}"));
    }
    Ok(plan)
}

/// What it would ask a person at its first start.
fn answers(key: &str, folder: &str) -> String {
    let end = key.char_indices().rev().nth(19).map_or(0, |(at, _)| at);
    json!({
        "hasCompletedOnboarding": true,
        "theme": "dark",
        "customApiKeyResponses": { "approved": [key.get(end..).unwrap_or_default()], "rejected": [] },
        "projects": { folder: { "hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true } },
    })
    .to_string()
}
