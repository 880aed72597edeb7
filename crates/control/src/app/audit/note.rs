//! A record that is to be: who, what, about which sandbox.

use std::sync::Arc;

use serde_json::{Map, Value};
use warren_types::{OrgId, SandboxId};

use super::{Kind, detail};
use crate::audit::chain;

/// Who did something, and for which request.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(super) org: OrgId,
    pub(super) actor: Arc<str>,
    request: Option<Arc<str>>,
}

impl Who {
    pub(crate) fn key(org: OrgId, key_id: &str) -> Self {
        Self { org, actor: format!("key:{key_id}").into(), request: None }
    }

    pub(crate) fn sandbox_token(org: OrgId) -> Self {
        Self { org, actor: "sandbox_token".into(), request: None }
    }

    pub(crate) fn signed_url(org: OrgId) -> Self {
        Self { org, actor: "signed_url".into(), request: None }
    }

    /// Whoever opened a preview, and with what.
    pub(crate) fn preview(org: OrgId, with: &str) -> Self {
        Self { org, actor: format!("preview:{with}").into(), request: None }
    }

    /// A program in a sandbox.
    pub(crate) fn sandbox(org: OrgId) -> Self {
        Self { org, actor: "sandbox".into(), request: None }
    }

    pub(crate) fn server(org: OrgId) -> Self {
        Self { org, actor: "server".into(), request: None }
    }

    /// Whoever has the server's own files.
    pub(crate) fn operator(org: OrgId) -> Self {
        Self { org, actor: "operator".into(), request: None }
    }

    pub(crate) fn in_request(mut self, id: Option<Arc<str>>) -> Self {
        self.request = id;
        self
    }

    pub(crate) fn note(&self, kind: Kind) -> Note {
        Note { who: self.clone(), kind, sandbox: None, detail: Map::new() }
    }
}

/// A record that is to be.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(super) who: Who,
    pub(super) kind: Kind,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) detail: Map<String, Value>,
}

impl Note {
    /// The sandbox it is about.
    pub(crate) fn of(mut self, sandbox: &SandboxId) -> Self {
        self.sandbox = Some(sandbox.clone());
        self
    }

    /// A fact; null is none. Text is cut where it is longer than a detail takes.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if !value.is_null() {
            self.detail.insert(name.to_owned(), detail::bounded(value));
        }
        self
    }

    pub(crate) fn with_all(mut self, facts: Map<String, Value>) -> Self {
        self.detail.extend(facts);
        self
    }

    /// A record like this one of what came of it.
    pub(super) fn ended(&self, of: Option<i64>, outcome: &str, facts: Map<String, Value>) -> Self {
        let mut detail = facts;
        detail.insert("outcome".to_owned(), outcome.into());
        detail.insert("of".to_owned(), of.into());
        Self { detail, ..self.clone() }
    }

    pub(super) fn entry(self) -> Entry {
        Entry {
            org: self.who.org.to_string(),
            sandbox: self.sandbox.map(|id| id.to_string()),
            kind: self.kind.as_str(),
            actor: self.who.actor,
            request: self.who.request,
            detail: chain::canonical(&Value::Object(self.detail)),
        }
    }
}

/// What the writer makes a record of.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) org: String,
    pub(super) sandbox: Option<String>,
    pub(super) kind: &'static str,
    pub(super) actor: Arc<str>,
    pub(super) request: Option<Arc<str>>,
    pub(super) detail: String,
}
