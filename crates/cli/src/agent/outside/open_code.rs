//! OpenCode: every tool is off and refused but ours.

use serde_json::json;

use super::{CALL_SECONDS, Place, Plan, SERVER, instructions, logins, variables};
use crate::agent::launch::Lines;

pub(super) fn plan(place: &Place<'_>) -> anyhow::Result<Plan> {
    let task = place.outside.task;
    let mut plan = Plan::default();
    plan.envs.extend(variables(&["ANTHROPIC_API_KEY", "OPENAI_API_KEY"]));
    if plan.envs.is_empty()
        && let Some(keys) = logins::open_code()
    {
        place.scratch.write("home/.local/share/opencode/auth.json", &keys.to_string())?;
    }
    let instructions = place.scratch.write("instructions.md", &instructions(place.outside))?;
    let ours = format!("{SERVER}_*");
    let mut command = vec![place.tools.program.clone()];
    command.extend(place.tools.arguments.iter().cloned());
    let mut config = json!({
        "autoupdate": false,
        "share": "disabled",
        "tools": { "*": false, &ours: true },
        "permission": { "*": "deny", &ours: "allow" },
        "instructions": [instructions],
        "mcp": { SERVER: {
            "type": "local", "enabled": true, "command": command, "environment": place.tools.envs, "timeout": CALL_SECONDS * 1000,
        } },
    });
    let mut providers = serde_json::Map::new();
    for (provider, variable) in [("anthropic", "ANTHROPIC_BASE_URL"), ("openai", "OPENAI_BASE_URL")] {
        if let Some((_, url)) = variables(&[variable]).next() {
            providers.insert(provider.to_owned(), json!({ "options": { "baseURL": url.to_string_lossy() } }));
        }
    }
    if !providers.is_empty() {
        config["provider"] = providers.into();
    }
    place.scratch.write("home/.config/opencode/opencode.json", &config.to_string())?;
    for name in
        ["OPENCODE_DISABLE_AUTOUPDATE", "OPENCODE_DISABLE_MODELS_FETCH", "OPENCODE_DISABLE_LSP_DOWNLOAD"]
    {
        plan.envs.insert(name.to_owned(), "1".into());
    }
    if task.prompt.is_some() {
        plan.arguments.extend(["run", "--format", "json"].map(str::to_owned));
        plan.lines = Lines::OpenCode;
    }
    if let Some(model) = task.model {
        plan.arguments.extend(["--model".to_owned(), model.to_owned()]);
    }
    Ok(plan)
}
