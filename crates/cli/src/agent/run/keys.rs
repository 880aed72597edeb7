//! Keys of models: they stay outside of the sandbox, in a secret store that is made for the run and deleted with it.
//!
//! A run that was cut off leaves its store; the next run sweeps it when no sandbox has it any more.

use std::time::Duration;

use warren_api::secrets::{SecretSet, SecretStoreCreate};
use warren_types::Secret;

use super::super::launch::ModelKey;
use crate::client::{Client, ListFilter};
use crate::failure::usage;

/// Names of stores of runs begin so; the time of their making follows.
const PREFIX: &str = "agent-run-";
/// A store may be without a sandbox for so long while a run begins.
const GRACE: Duration = Duration::from_mins(15);
/// Metadata of a sandbox: the store that goes when it goes.
pub(crate) const METADATA_STORE: &str = "warren.agent.store";

/// A key as the command line has it: `ENV` or `ENV=host,host`.
pub(crate) fn parse(word: &str) -> Result<ModelKey, String> {
    let (env, hosts) = word.split_once('=').unwrap_or((word, ""));
    let is_name = !env.is_empty() && env.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err("expected the name of a variable, like ANTHROPIC_API_KEY, or NAME=host,host".to_owned());
    }
    let hosts: Vec<String> =
        hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned).collect();
    let known = match env {
        _ if !hosts.is_empty() => hosts,
        "ANTHROPIC_API_KEY" => vec!["api.anthropic.com".to_owned()],
        "OPENAI_API_KEY" => vec!["api.openai.com".to_owned()],
        _ => return Err(format!("say which hosts get it: {env}=api.example.com")),
    };
    Ok(ModelKey { env: env.to_owned(), hosts: known })
}

/// The keys that are here, sealed in a store; its name. None when there are none.
pub(crate) async fn seal(
    client: &Client,
    asked: &[ModelKey],
    usual: &[ModelKey],
    token: &str,
) -> anyhow::Result<Option<String>> {
    let mut found = Vec::new();
    for (key, must_be) in asked.iter().map(|key| (key, true)).chain(usual.iter().map(|key| (key, false))) {
        match std::env::var(&key.env).ok().filter(|value| !value.is_empty()) {
            Some(_) if found.iter().any(|(known, _): &(&ModelKey, _)| known.env == key.env) => {}
            Some(value) => found.push((key, Secret::new(value))),
            None if must_be => return Err(usage(format!("there is no variable {} here", key.env))),
            None => {}
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let now = jiff::Timestamp::now().as_second();
    let name = format!("{PREFIX}{now}-{token}");
    let body = SecretStoreCreate { name: Some(name.clone()), egress_allowlist: None };
    let store = client.create_secret_store(&body).await?.value;
    for (key, value) in found {
        let body = SecretSet { value: Some(value), allowed_hosts: Some(key.hosts.clone()), places: None };
        if let Err(error) = client.set_secret(&store.id, &key.env, &body).await {
            let _ = client.delete_secret_store(&store.id).await;
            return Err(error.context(format!("could not seal {}", key.env)));
        }
    }
    Ok(Some(name))
}

/// Deletes the store of a run, unless a fork of its sandbox has it too; one that is gone is as good.
pub(crate) async fn delete(client: &Client, name: &str, sandbox: &str) {
    let is_own = |users: Vec<String>| users.iter().all(|user| user == sandbox);
    if users(client, name).await.is_ok_and(is_own)
        && let Ok(id) = client.find_secret_store(name).await
    {
        let _ = client.delete_secret_store(&id).await;
    }
}

/// Deletes what was made for a run that never began.
pub(crate) async fn delete_of(client: &Client, token: &str) {
    let stores = client.list_secret_stores().await.map(|answer| answer.value).unwrap_or_default();
    for store in stores.iter().filter(|store| store.name.starts_with(PREFIX) && store.name.ends_with(token)) {
        let _ = client.delete_secret_store(&store.id).await;
    }
}

/// Sandboxes that have a store of a run.
async fn users(client: &Client, name: &str) -> anyhow::Result<Vec<String>> {
    let filter = ListFilter {
        status: Some("running,hibernated,creating,error".to_owned()),
        metadata: vec![(METADATA_STORE.to_owned(), name.to_owned())],
        ..ListFilter::default()
    };
    let page = client.list_sandboxes(&filter, None).await?;
    Ok(page.sandboxes.into_iter().map(|sandbox| sandbox.sandbox_id).collect())
}

/// Deletes stores of runs that were cut off.
pub(crate) async fn sweep(client: &Client) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now().as_second();
    for store in client.list_secret_stores().await?.value {
        let made =
            store.name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<i64>().ok());
        let Some(made) = made else { continue };
        if u64::try_from(now - made).is_ok_and(|age| age < GRACE.as_secs()) {
            continue;
        }
        if users(client, &store.name).await?.is_empty() {
            client.delete_secret_store(&store.id).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_hosts() {
        assert_eq!(parse("OPENAI_API_KEY").unwrap().hosts, ["api.openai.com"]);
        assert_eq!(parse("MY_KEY=a.example, b.example").unwrap().hosts, ["a.example", "b.example"]);
        for wrong in ["MY_KEY", "", "=x", "A B=x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
