//! Calls to the agent inside a sandbox, by way of its node, which wakes it first.
//!
//! The agent is a guest: what it answers is hostile. Answers are bounded and parsed strictly, its errors are
//! trimmed and cannot claim to be about the caller's credentials, its headers are not passed on here.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method};
use serde::Serialize;
use serde::de::DeserializeOwned;
use warren_guest_api::files::encoded_path;
use warren_node_api::Wake;
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use super::App;
use super::audit::Kind;
use super::auth::{Live, has_been_stopped};

/// Longest sentence of a guest that is passed on, in bytes.
const MAX_MESSAGE_BYTES: usize = 1000;

impl App {
    pub(crate) async fn guest(
        &self,
        live: &Live,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response, Error> {
        self.wake_for(live).await?;
        let answer = self.node.guest(live.id(), method, path, headers, body).await;
        self.unless_ended(live.id(), answer.map_err(from_node)).await
    }

    pub(crate) async fn guest_json<T: DeserializeOwned>(
        &self,
        live: &Live,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        self.wake_for(live).await?;
        let answer = self.node.guest_json(live.id(), method, path, body).await;
        self.unless_ended(live.id(), answer.map_err(from_node)).await
    }

    /// The same, unless a sandbox has ended during the call: then that is why it failed, and trying again is of no use.
    pub(super) async fn unless_ended<T>(&self, id: &SandboxId, answer: Result<T, Error>) -> Result<T, Error> {
        let Err(error) = answer else { return answer };
        if !matches!(error.kind, ErrorKind::SandboxFailed | ErrorKind::Unavailable | ErrorKind::NotFound) {
            return Err(error);
        }
        Err(match self.store.find_standing(id).await {
            Ok(Some(found)) if found.observed == SandboxState::Stopped => has_been_stopped(id),
            _ => error,
        })
    }

    /// Wakes what is stored as hibernated and writes it down before the call. The call alone would wake it too, but
    /// who asks right after it could still read the old state.
    pub(super) async fn wake_for(&self, live: &Live) -> Result<(), Error> {
        if live.is_asleep() {
            let note = live.note(Kind::SandboxWake).with("by", "use");
            let wake = self.on_node(live.id(), self.node.ensure_awake(live.id(), Wake::default()));
            self.audit.around(note, wake).await?;
            live.has_woken();
        }
        Ok(())
    }
}

/// An error of a node or a guest as the caller may read it.
pub(crate) fn from_node(error: Error) -> Error {
    let kind = match error.kind {
        // Who may do what is decided here, not in a sandbox.
        ErrorKind::Unauthenticated => ErrorKind::SandboxFailed,
        kind => kind,
    };
    let mut message = error.message;
    if message.len() > MAX_MESSAGE_BYTES {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
        message.push('…');
    }
    let name = |code: &String| {
        code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let details =
        error.details.filter(|details| details.len() <= 16 && details.keys().all(|key| key.len() <= 64));
    Error { kind, message, code: error.code.filter(name), details }
}

/// Percent-encodes a value for a query, so that any reader of queries gets it back.
pub(crate) fn query_value(text: &str) -> String {
    encoded_path(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_speak_about_credentials_or_at_length() {
        let error = from_node(Error::new(ErrorKind::Unauthenticated, "é".repeat(2000)).with_code("Bad Code"));
        assert_eq!(error.kind, ErrorKind::SandboxFailed);
        assert!(error.message.len() < 1010);
        assert_eq!(error.code, None);
    }

    #[test]
    fn query_values_survive_strict_and_form_decoders() {
        assert_eq!(query_value("/a b+c&d=é%"), "/a%20b%2Bc%26d%3D%C3%A9%25");
    }
}
