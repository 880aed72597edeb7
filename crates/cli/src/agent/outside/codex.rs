//! Codex: its shell and other tools are features that are off; what is left, patches to files, its own sandbox refuses.

use serde_json::json;

use super::{CALL_SECONDS, Place, Plan, SERVER, instructions, logins, variables};
use crate::agent::launch::Lines;

/// Names it does not know are nothing to it.
const OFF: [&str; 20] = [
    "apps",
    "browser_use",
    "browser_use_external",
    "browser_use_full_cdp_access",
    "computer_use",
    "goals",
    "hooks",
    "image_generation",
    "in_app_browser",
    "memories",
    "multi_agent",
    "multi_agent_v2",
    "plugins",
    "remote_plugin",
    "shell_snapshot",
    "shell_tool",
    "skill_search",
    "unified_exec",
    "view_image",
    "workspace_dependencies",
];

pub(super) fn plan(place: &Place<'_>) -> anyhow::Result<Plan> {
    let task = place.outside.task;
    let mut plan = Plan::default();
    plan.envs.extend(variables(&["OPENAI_API_KEY"]));
    let base = variables(&["OPENAI_BASE_URL"]).next().map(|(_, url)| url.to_string_lossy().into_owned());
    let mut provider = None;
    if plan.envs.contains_key("OPENAI_API_KEY") {
        provider = Some(json!({
            "name": "OpenAI", "base_url": base.as_deref().unwrap_or("https://api.openai.com/v1"), "env_key": "OPENAI_API_KEY",
            "wire_api": "responses", "supports_websockets": false,
        }));
    } else if let Some(login) = logins::codex() {
        place.scratch.write("home/.codex/auth.json", &login.to_string())?;
    }
    let off: serde_json::Map<_, _> = OFF.iter().map(|name| ((*name).to_owned(), json!(false))).collect();
    let mut config = json!({
        "approval_policy": "never",
        "sandbox_mode": "read-only",
        "web_search": "disabled",
        "check_for_update_on_startup": false,
        "analytics": { "enabled": false },
        "developer_instructions": instructions(place.outside),
        "features": off,
        "projects": { place.scratch.path("work").to_string_lossy(): { "trust_level": "trusted" } },
        "mcp_servers": { SERVER: place.tools.as_json() },
    });
    if let Some(server) = config.pointer_mut(&format!("/mcp_servers/{SERVER}")) {
        // It may call our tools without asking anybody; they are the sandbox's.
        server["default_tools_approval_mode"] = json!("approve");
        server["tool_timeout_sec"] = json!(CALL_SECONDS);
        server["startup_timeout_sec"] = json!(60);
    }
    if let Some(provider) = provider {
        config["model_provider"] = json!("warren");
        config["model_providers"] = json!({ "warren": provider });
    }
    place.scratch.write("home/.codex/config.toml", &toml::to_string(&config)?)?;
    if task.prompt.is_some() {
        plan.arguments.extend(["exec", "--json", "--skip-git-repo-check"].map(str::to_owned));
        plan.lines = Lines::Codex;
    }
    plan.arguments.extend(["--sandbox", "read-only"].map(str::to_owned));
    if let Some(model) = task.model {
        plan.arguments.extend(["--model".to_owned(), model.to_owned()]);
    }
    // The prompt is read from standard input when there is none among the arguments.
    Ok(plan)
}
