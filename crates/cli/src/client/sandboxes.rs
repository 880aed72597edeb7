//! Sandboxes, their tags and their life.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::Value;
use warren_api::IDEMPOTENCY_KEY_HEADER;
use warren_api::sandboxes::{Hibernated, NEXT_CURSOR_HEADER, Sandbox, SandboxCreate, TimeoutChange, Wake};
use warren_api::tags::SandboxTags;
use warren_types::SandboxId;

use super::{Answer, Client};

/// Which sandboxes a list is to show.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListFilter {
    pub(crate) status: Option<String>,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) metadata: Vec<(String, String)>,
    pub(crate) limit: Option<u32>,
}

/// One page of a list.
pub(crate) struct Page {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) json: Vec<Value>,
    /// Set when there is more.
    pub(crate) next: Option<String>,
}

impl Client {
    pub(crate) async fn create_sandbox(
        &self,
        body: &SandboxCreate,
        key: Option<&str>,
    ) -> anyhow::Result<Answer<Sandbox>> {
        let mut request = self.request(Method::POST, &["sandboxes"])?.json(body);
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY_HEADER, key);
        }
        self.call(request).await
    }

    pub(crate) async fn list_sandboxes(
        &self,
        filter: &ListFilter,
        cursor: Option<&str>,
    ) -> anyhow::Result<Page> {
        let mut query: Vec<(String, String)> = Vec::new();
        query.extend(filter.status.iter().map(|status| ("status".to_owned(), status.clone())));
        query.extend(filter.tags.iter().map(|(key, value)| (format!("tag.{key}"), value.clone())));
        query.extend(filter.metadata.iter().map(|(key, value)| (format!("metadata.{key}"), value.clone())));
        query.extend(filter.limit.iter().map(|limit| ("limit".to_owned(), limit.to_string())));
        query.extend(cursor.map(|cursor| ("cursor".to_owned(), cursor.to_owned())));
        let answer: Answer<Vec<Sandbox>> =
            self.call(self.request(Method::GET, &["sandboxes"])?.query(&query)).await?;
        let next = answer.header(NEXT_CURSOR_HEADER);
        let json = match answer.json {
            Value::Array(items) => items,
            other => vec![other],
        };
        Ok(Page { sandboxes: answer.value, json, next })
    }

    pub(crate) async fn get_sandbox(&self, id: &SandboxId) -> anyhow::Result<Answer<Sandbox>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str()])?).await
    }

    pub(crate) async fn kill_sandbox(&self, id: &SandboxId) -> anyhow::Result<()> {
        self.call::<Value>(self.request(Method::DELETE, &["sandboxes", id.as_str()])?).await.map(drop)
    }

    pub(crate) async fn set_timeout(&self, id: &SandboxId, seconds: u32) -> anyhow::Result<()> {
        let body = TimeoutChange { timeout: Some(i64::from(seconds)) };
        let request = self.request(Method::POST, &["sandboxes", id.as_str(), "timeout"])?.json(&body);
        self.call::<Value>(request).await.map(drop)
    }

    pub(crate) async fn hibernate_sandbox(&self, id: &SandboxId) -> anyhow::Result<Answer<Hibernated>> {
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "hibernate"])?).await
    }

    pub(crate) async fn wake_sandbox(
        &self,
        id: &SandboxId,
        timeout: Option<u32>,
    ) -> anyhow::Result<Answer<Value>> {
        self.wake(id, &Wake { timeout: timeout.map(i64::from), disk: None }).await
    }

    pub(crate) async fn wake(&self, id: &SandboxId, body: &Wake) -> anyhow::Result<Answer<Value>> {
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "wake"])?.json(body)).await
    }

    pub(crate) async fn reboot_sandbox(&self, id: &SandboxId, hard: bool) -> anyhow::Result<()> {
        let verb = if hard { "power-cycle" } else { "reboot" };
        self.call::<Value>(self.request(Method::POST, &["sandboxes", id.as_str(), verb])?).await.map(drop)
    }

    pub(crate) async fn get_tags(&self, id: &SandboxId) -> anyhow::Result<Answer<SandboxTags>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "tags"])?).await
    }

    /// Replaces all tags.
    pub(crate) async fn set_tags(
        &self,
        id: &SandboxId,
        tags: &BTreeMap<String, String>,
    ) -> anyhow::Result<Answer<SandboxTags>> {
        self.call(self.request(Method::PUT, &["sandboxes", id.as_str(), "tags"])?.json(tags)).await
    }
}
