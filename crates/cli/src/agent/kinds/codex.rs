//! Codex (Apache-2.0).

use crate::agent::kinds::Task;
use crate::agent::launch::{Launch, Lines};

pub(super) const PACKAGE: &str = "@openai/codex";
pub(super) const VERSION: &str = "0.171.0";

pub(super) fn installed(version: &str) -> (String, String) {
    (format!("\"{PACKAGE}@{version}\""), ".bin/codex".to_owned())
}

/// OpenAI by a name of our own, because the key of the one that is built in is not looked for in the environment. Answers come as streams:
/// over a WebSocket the gateway could not take a key out of a single message.
const PROVIDER: &str = r#"model_providers.warren={name="OpenAI",base_url="https://api.openai.com/v1",env_key="OPENAI_API_KEY",wire_api="responses",supports_websockets=false}"#;

pub(super) fn launch(task: Task<'_>) -> Launch {
    let mut argv = vec!["codex".to_owned()];
    if task.prompt.is_some() {
        argv.extend(["exec", "--json", "--skip-git-repo-check"].map(str::to_owned));
    }
    argv.push("--dangerously-bypass-approvals-and-sandbox".to_owned());
    for setting in [
        PROVIDER,
        r#"model_provider="warren""#,
        "check_for_update_on_startup=false",
        "analytics.enabled=false",
    ] {
        argv.extend(["-c".to_owned(), setting.to_owned()]);
    }
    if let Some(model) = task.model {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    argv.extend(task.arguments.iter().cloned());
    if task.prompt.is_some() {
        // From standard input.
        argv.push("-".to_owned());
    }
    Launch {
        argv,
        lines: if task.prompt.is_some() { Lines::Codex } else { Lines::Plain },
        ..Launch::default()
    }
}
