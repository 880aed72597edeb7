//! Claude Code, which is proprietary: installed from npm at the operator's word, never shipped.
//!
//! The package of its Agent SDK brings the same program as `@anthropic-ai/claude-code` does (byte for byte), so that one serves both
//! a terminal and agent sessions.

use crate::agent::kinds::Task;
use crate::agent::launch::{Launch, Lines};

pub(super) const PACKAGE: &str = "@anthropic-ai/claude-agent-sdk";
/// Brings Claude Code 2.1.332.
pub(super) const VERSION: &str = "0.3.332";

/// What is given to npm, and the program among what it installs. The package names builds for glibc and for musl; npm before version
/// 10 takes both (400 MB each), and the SDK would then choose the wrong one.
pub(super) fn installed(version: &str) -> (String, String) {
    let libc = "$(if ls /lib/ld-musl-* >/dev/null 2>&1; then echo -musl; fi)";
    let build = format!("{PACKAGE}-$build{libc}");
    (format!("--omit=optional \"{PACKAGE}@{version}\" \"{build}@{version}\""), format!("{build}/claude"))
}

/// Answers what Claude Code asks a person at its first start: the look, whether the folder and a key from the environment may be
/// used, and whether it is understood that nothing asks for permission. Files that are there stay as they are.
const ANSWERS: &str = r#"mkdir -p "$HOME/.claude"
test -e "$HOME/.claude.json" || printf '{"hasCompletedOnboarding":true,"theme":"dark","customApiKeyResponses":{"approved":["%s"],"rejected":[]},"projects":{"%s":{"hasTrustDialogAccepted":true,"hasCompletedProjectOnboarding":true}}}' "$(printf %s "$ANTHROPIC_API_KEY" | tail -c 20)" "$PWD" > "$HOME/.claude.json"
test -e "$HOME/.claude/settings.json" || echo '{"skipDangerousModePermissionPrompt":true}' > "$HOME/.claude/settings.json"
exec claude "$@""#;

pub(super) fn launch(task: Task<'_>) -> Launch {
    let mut argv: Vec<String> = if task.prompt.is_some() {
        ["claude", "--print", "--output-format", "stream-json", "--verbose"].map(str::to_owned).into()
    } else {
        ["sh", "-c", ANSWERS, "claude"].map(str::to_owned).into()
    };
    argv.push("--dangerously-skip-permissions".to_owned());
    if let Some(model) = task.model {
        argv.extend(["--model".to_owned(), model.to_owned()]);
    }
    argv.extend(task.arguments.iter().cloned());
    let envs = [
        // Without it the flag above is refused to root, which many images are.
        ("IS_SANDBOX", "1"),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
    ];
    Launch {
        argv,
        envs: envs.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        lines: if task.prompt.is_some() { Lines::ClaudeCode } else { Lines::Plain },
        ..Launch::default()
    }
}
