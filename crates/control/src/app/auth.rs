//! Who is asking, as typed proof. A [`Caller`] acts for an organisation; a [`Live`] may use the data plane of one
//! sandbox. Neither can be made but here, from a credential that was checked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use warren_types::{Error, ErrorKind, OrgId, SandboxId, SandboxState};

use super::App;
use super::previews::gate::Admitted;
use super::signed::FileUse;
use super::token::TokenClaims;
use crate::store::now_micros;
use crate::store::sandboxes::SandboxStanding;

const KEY_PREFIX: &str = "osb_";
const KEY_HEX: usize = 64;

/// Proof that an API key of an organisation was shown.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    org: OrgId,
    org_name: String,
    key_id: String,
}

/// Proof that whoever asks may use the commands, files and terminals of a sandbox that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    id: SandboxId,
    /// Stored as hibernated, and not woken since by whoever holds this.
    asleep: Arc<AtomicBool>,
}

/// What a credential turned out to be.
#[derive(Debug, Clone)]
pub(crate) enum Identity {
    Org(Caller),
    /// Good for the data plane of the sandbox it names.
    Sandbox(TokenClaims),
}

/// When keys were last used. Kept in memory and written down by the sweep, not on each request.
#[derive(Debug, Default)]
pub(crate) struct UsedKeys(Mutex<HashMap<String, i64>>);

// === impl Caller ===

impl Caller {
    pub(crate) fn org(&self) -> &OrgId {
        &self.org
    }

    pub(crate) fn org_name(&self) -> &str {
        &self.org_name
    }

    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }
}

impl TryFrom<Identity> for Caller {
    type Error = Error;

    fn try_from(identity: Identity) -> Result<Self, Error> {
        match identity {
            Identity::Org(caller) => Ok(caller),
            Identity::Sandbox(_) => Err(Error::new(
                ErrorKind::Forbidden,
                "a sandbox token opens the commands, files and terminals of its sandbox only; use an API key here",
            )),
        }
    }
}

// === impl Live ===

impl Live {
    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }

    pub(super) fn has_woken(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}

// === impl UsedKeys ===

impl UsedKeys {
    fn touch(&self, key_id: &str) {
        let mut used = self.0.lock().expect("nothing panics while it holds this lock");
        match used.get_mut(key_id) {
            Some(at) => *at = now_micros(),
            None => drop(used.insert(key_id.to_owned(), now_micros())),
        }
    }

    pub(crate) fn take(&self) -> Vec<(String, i64)> {
        self.0.lock().expect("nothing panics while it holds this lock").drain().collect()
    }
}

// === impl App ===

impl App {
    /// Checks a credential: an API key, or a sandbox token.
    pub(crate) async fn authenticate(&self, credential: &str) -> Result<Identity, Error> {
        if is_api_key(credential) {
            let key = self.store.find_active_key(&hash_key(credential)).await?.ok_or_else(unauthenticated)?;
            self.used_keys.touch(&key.id);
            return Ok(Identity::Org(Caller {
                org: OrgId(key.org_id),
                org_name: key.org_name,
                key_id: key.id,
            }));
        }
        self.tokens.verify(credential).map(Identity::Sandbox).ok_or_else(unauthenticated)
    }

    /// Lets somebody at the data plane of a sandbox: theirs, and able to be used.
    pub(crate) async fn reach(&self, identity: &Identity, id: &SandboxId) -> Result<Live, Error> {
        let org = match identity {
            Identity::Org(caller) => &caller.org,
            Identity::Sandbox(claims) if claims.sandbox_id != *id => {
                return Err(Error::new(ErrorKind::Forbidden, "this token is for another sandbox"));
            }
            Identity::Sandbox(claims) => &claims.org_id,
        };
        let found = self.store.find_standing(id).await?.filter(|found| found.org == *org);
        live(found.ok_or_else(sandbox_not_found)?)
    }

    /// Lets in whoever shows a URL that was signed for a file: whoever asked for it owned the sandbox.
    pub(crate) async fn reach_signed(
        &self,
        id: &SandboxId,
        path: &str,
        use_: FileUse,
        expires: i64,
        signature: &str,
    ) -> Result<Live, Error> {
        self.urls.check_file(id, path, use_, expires, signature)?;
        live(self.store.find_standing(id).await?.ok_or_else(sandbox_not_found)?)
    }

    /// Lets in whoever was admitted to a preview of that sandbox.
    pub(crate) fn reach_preview(&self, found: SandboxStanding, _: &Admitted) -> Result<Live, Error> {
        live(found)
    }
}

/// A sandbox that can be used, to somebody who may.
fn live(found: SandboxStanding) -> Result<Live, Error> {
    let id = &found.id;
    match found.observed {
        SandboxState::Running | SandboxState::Hibernated => {
            let asleep = AtomicBool::new(found.observed == SandboxState::Hibernated);
            Ok(Live { id: found.id, asleep: Arc::new(asleep) })
        }
        SandboxState::Creating => {
            Err(Error::unavailable(format!("sandbox {id} is still being made; try again in a moment")))
        }
        SandboxState::Stopped => Err(has_been_stopped(id)),
        SandboxState::Error => Err(has_failed(id, found.reason.as_deref())),
    }
}

/// Whether it has the form of a key; what has another is not looked up.
fn is_api_key(text: &str) -> bool {
    text.strip_prefix(KEY_PREFIX).is_some_and(|hex| {
        hex.len() == KEY_HEX && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A new key: 256 random bits.
pub(crate) fn generate_key() -> String {
    format!("{KEY_PREFIX}{}", hex(&rand::random::<[u8; KEY_HEX / 2]>()))
}

pub(crate) fn hash_key(key: &str) -> String {
    hex(&Sha256::digest(key.as_bytes()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

pub(crate) fn unauthenticated() -> Error {
    Error::new(ErrorKind::Unauthenticated, "missing or invalid API key")
}

pub(crate) fn sandbox_not_found() -> Error {
    Error::not_found("sandbox not found")
}

pub(crate) fn has_been_stopped(id: &SandboxId) -> Error {
    Error::new(ErrorKind::Gone, format!("sandbox {id} has been stopped"))
}

pub(crate) fn has_failed(id: &SandboxId, reason: Option<&str>) -> Error {
    let reason = reason.unwrap_or("it failed");
    Error::new(ErrorKind::Gone, format!("sandbox {id} has been stopped: {reason}"))
}
