//! What has to be known of a message before it is served: whether it makes a call that may be cancelled, or cancels one.
//!
//! A call is named by whose it is, by the session id the client was given when it initialised, and by the number the client gave to the
//! request. Ids of sessions are random: nobody cancels what is not theirs. Nothing is kept but calls that run.

use serde::Deserialize;
use serde_json::Value;

use crate::app::auth::Identity;
use crate::app::tools::Scope;

#[derive(Debug, Default, Deserialize)]
pub(super) struct Message {
    method: Option<String>,
    id: Option<Value>,
    params: Option<Params>,
}

#[derive(Debug, Default, Deserialize)]
struct Params {
    #[serde(rename = "requestId")]
    request_id: Option<Value>,
}

impl Message {
    /// What is no message is answered by who serves them.
    pub(super) fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    pub(super) fn is_initialize(&self) -> bool {
        self.method.as_deref() == Some("initialize")
    }

    /// The call it makes.
    pub(super) fn call(&self, scope: &Scope, session: Option<&str>) -> Option<String> {
        if self.method.as_deref() != Some("tools/call") {
            return None;
        }
        Some(name(scope, session?, self.id.as_ref()?))
    }

    /// The call it cancels.
    pub(super) fn cancels(&self, scope: &Scope, session: Option<&str>) -> Option<String> {
        if self.method.as_deref() != Some("notifications/cancelled") {
            return None;
        }
        Some(name(scope, session?, self.params.as_ref()?.request_id.as_ref()?))
    }
}

fn name(scope: &Scope, session: &str, id: &Value) -> String {
    let org = match &scope.identity {
        Identity::Org(caller) => caller.org(),
        Identity::Sandbox(claims) => &claims.org_id,
    };
    format!("{} {session} {id}", org.0)
}
