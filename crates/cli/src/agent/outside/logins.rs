//! Logins of the user's, for those who have no key in a variable.
//!
//! They are read, never moved: what renews a login stays behind, because a provider that renews a copy makes the original
//! worthless. A login that has run out is renewed by starting the agent by itself once.

use serde_json::{Value, json};

use super::{home, read_json};

/// The token of a subscription.
pub(super) fn claude_code() -> Option<String> {
    let found = read_json(&home()?.join(".claude/.credentials.json"))?;
    found.pointer("/claudeAiOauth/accessToken").and_then(Value::as_str).map(str::to_owned)
}

/// `auth.json` without what renews it.
pub(super) fn codex() -> Option<Value> {
    let folder = std::env::var_os("CODEX_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(home()?.join(".codex")))?;
    without_renewal(read_json(&folder.join("auth.json"))?)
}

fn without_renewal(mut found: Value) -> Option<Value> {
    found.as_object()?;
    if let Some(token) = found.pointer_mut("/tokens/refresh_token") {
        *token = json!("");
    }
    Some(found)
}

/// Keys it was given; logins that renew themselves stay.
pub(super) fn open_code() -> Option<Value> {
    let folder = std::env::var_os("XDG_DATA_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(home()?.join(".local/share")))?;
    only_keys(&read_json(&folder.join("opencode/auth.json"))?)
}

fn only_keys(found: &Value) -> Option<Value> {
    let keys = found
        .as_object()?
        .iter()
        .filter(|(_, login)| login.get("type").and_then(Value::as_str) == Some("api"));
    let keys: serde_json::Map<_, _> = keys.map(|(name, login)| (name.clone(), login.clone())).collect();
    (!keys.is_empty()).then(|| keys.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_renews_a_login_stays_behind() {
        let codex =
            without_renewal(json!({ "tokens": { "access_token": "a", "refresh_token": "r" } })).unwrap();
        assert_eq!(codex, json!({ "tokens": { "access_token": "a", "refresh_token": "" } }));
        let both = json!({ "openai": { "type": "api", "key": "k" }, "anthropic": { "type": "oauth", "refresh": "r" } });
        assert_eq!(only_keys(&both), Some(json!({ "openai": { "type": "api", "key": "k" } })));
        assert_eq!(only_keys(&json!({ "anthropic": { "type": "oauth", "refresh": "r" } })), None);
    }
}
