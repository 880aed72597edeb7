//! OpenCode (MIT).

use serde_json::json;

use crate::agent::kinds::Task;
use crate::agent::launch::{Launch, Lines};

pub(super) const PACKAGE: &str = "opencode-ai";
pub(super) const VERSION: &str = "1.18.33";

/// Of its builds for many processors its own installer fetches the right one when npm has fetched none.
pub(super) fn installed(version: &str) -> (String, String) {
    (format!("--omit=optional \"{PACKAGE}@{version}\""), ".bin/opencode".to_owned())
}

pub(super) fn launch(task: Task<'_>) -> Launch {
    let mut argv = vec!["opencode".to_owned()];
    if task.prompt.is_some() {
        argv.extend(["run", "--format", "json", "--auto"].map(str::to_owned));
    }
    if let Some(model) = task.model {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    argv.extend(task.arguments.iter().cloned());
    let config = json!({ "autoupdate": false, "share": "disabled", "permission": { "*": "allow" } });
    let envs = [
        ("OPENCODE_CONFIG_CONTENT", config.to_string()),
        ("OPENCODE_DISABLE_AUTOUPDATE", "1".to_owned()),
        // The list of models it brings is taken, rather than one from yet another host.
        ("OPENCODE_DISABLE_MODELS_FETCH", "1".to_owned()),
        ("OPENCODE_DISABLE_LSP_DOWNLOAD", "1".to_owned()),
    ];
    Launch {
        argv,
        envs: envs.map(|(name, value)| (name.to_owned(), value)).into(),
        lines: if task.prompt.is_some() { Lines::OpenCode } else { Lines::Plain },
        ..Launch::default()
    }
}
