//! Who is asking, as typed proof. A [`Caller`] acts for an organisation; a [`Live`] may use the data plane of one
//! sandbox. Neither can be made but here, from a credential that was checked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use warren_api::identity::IdentityToken;
use warren_types::{Error, ErrorKind, OrgId, SandboxId, SandboxState};

use super::App;
use super::audit::{Kind, Who};
use super::previews::gate::Admitted;
use super::signed::FileUse;
use super::token::{IDENTITY_SECONDS, Token, TokenClaims};
use crate::store::keys::ActiveKey;
use crate::store::now_micros;
use crate::store::sandboxes::SandboxStanding;

const KEY_PREFIX: &str = "osb_";
const KEY_HEX: usize = 64;

/// Proof that an API key of an organisation was shown, or a token that stands for one.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    org: OrgId,
    org_name: String,
    key_id: String,
    /// What was shown is a token.
    by_token: bool,
    who: Who,
}

/// Proof that whoever asks may use the commands, files and terminals of a sandbox that can be used.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    id: SandboxId,
    /// Stored as hibernated, and not woken since by whoever holds this.
    asleep: Arc<AtomicBool>,
    who: Who,
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

    /// As audit records name whoever asks.
    pub(crate) fn who(&self) -> &Who {
        &self.who
    }

    /// Says which request it is that is made with this.
    pub(crate) fn in_request(mut self, id: Option<Arc<str>>) -> Self {
        self.who = self.who.in_request(id);
        self
    }
}

impl Identity {
    /// As audit records name whoever asks.
    pub(crate) fn who(&self) -> Who {
        match self {
            Self::Org(caller) => caller.who.clone(),
            Self::Sandbox(claims) => Who::sandbox_token(claims.org_id.clone()),
        }
    }

    /// Says which request it is that is made with this.
    pub(crate) fn in_request(self, id: Option<Arc<str>>) -> Self {
        match self {
            Self::Org(caller) => Self::Org(caller.in_request(id)),
            token @ Self::Sandbox(_) => token,
        }
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

    /// As audit records name whoever asks.
    pub(crate) fn who(&self) -> &Who {
        &self.who
    }

    /// Says which request it is that is made with this.
    pub(crate) fn in_request(mut self, id: Option<Arc<str>>) -> Self {
        self.who = self.who.in_request(id);
        self
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
    /// Checks a credential: an API key, a token that stands for one, or a sandbox token.
    pub(crate) async fn authenticate(&self, credential: &str) -> Result<Identity, Error> {
        if is_api_key(credential) {
            let key = self.store.find_active_key(&hash_key(credential)).await?.ok_or_else(bad_credential)?;
            return Ok(Identity::Org(self.caller(key, false)));
        }
        match self.tokens.verify(credential).ok_or_else(bad_credential)? {
            Token::Sandbox(claims) => Ok(Identity::Sandbox(claims)),
            Token::Identity { org, key_id } => {
                let key = self.store.find_active_key_of_id(&key_id).await?;
                let key = key.filter(|key| key.org_id == org.as_str()).ok_or_else(bad_credential)?;
                Ok(Identity::Org(self.caller(key, true)))
            }
        }
    }

    fn caller(&self, key: ActiveKey, by_token: bool) -> Caller {
        self.used_keys.touch(&key.id);
        let org = OrgId(key.org_id);
        let who = Who::key(org.clone(), &key.id);
        Caller { org, org_name: key.org_name, key_id: key.id, by_token, who }
    }

    /// A token that stands for the caller's key for a while. Keys alone make them: a token that could would never be over.
    pub(crate) async fn make_identity_token(&self, caller: &Caller) -> Result<IdentityToken, Error> {
        if caller.by_token {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "a token does not make another; use the API key it was made with",
            ));
        }
        let note = caller.note(Kind::ApiKey).with("action", "token").with("key", caller.key_id.as_str());
        self.audit.note(note).await?;
        let token = self.tokens.sign_identity(&caller.org, &caller.key_id);
        Ok(IdentityToken { token, expires_in: IDENTITY_SECONDS })
    }

    /// Lets somebody at the data plane of a sandbox: theirs, and able to be used.
    pub(crate) async fn reach(&self, identity: &Identity, id: &SandboxId) -> Result<Live, Error> {
        let (org, who) = match identity {
            Identity::Org(caller) => (&caller.org, caller.who.clone()),
            Identity::Sandbox(claims) if claims.sandbox_id != *id => {
                let note = Who::sandbox_token(claims.org_id.clone()).note(Kind::Access);
                let note = note.of(&claims.sandbox_id).with("asked", id.as_str());
                self.audit
                    .tell_folded(note.with("outcome", "refused").with("why", "token of another sandbox"));
                return Err(Error::new(ErrorKind::Forbidden, "this token is for another sandbox"));
            }
            Identity::Sandbox(claims) => (&claims.org_id, Who::sandbox_token(claims.org_id.clone())),
        };
        let found = self.store.find_standing(id).await?.filter(|found| found.org == *org);
        live(found.ok_or_else(|| self.not_theirs(&who, id))?, who)
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
        let checked = self.urls.check_file(id, path, use_, expires, signature);
        let found = self.store.find_standing(id).await?;
        if let (Err(error), Some(found)) = (&checked, &found) {
            let note = Who::signed_url(found.org.clone()).note(Kind::Access).of(id);
            // The path is whoever's words; it is not counted by.
            self.audit.tell_folded(note.with("outcome", "refused").with("why", error.message.as_str()));
        }
        checked?;
        let found = found.ok_or_else(sandbox_not_found)?;
        let who = Who::signed_url(found.org.clone());
        live(found, who)
    }

    /// Of a sandbox that somebody asked for who has none of that id.
    pub(crate) fn not_theirs(&self, who: &Who, id: &SandboxId) -> Error {
        let note = who.note(Kind::Access).of(id).with("outcome", "refused");
        self.audit.tell_folded(note.with("why", "no sandbox of this organisation"));
        sandbox_not_found()
    }

    /// Lets in whoever was admitted to a preview of that sandbox.
    pub(crate) fn reach_preview(&self, found: SandboxStanding, admitted: &Admitted) -> Result<Live, Error> {
        let who = Who::preview(found.org.clone(), admitted.as_str());
        live(found, who)
    }
}

/// A sandbox that can be used, to somebody who may.
fn live(found: SandboxStanding, who: Who) -> Result<Live, Error> {
    let id = &found.id;
    match found.observed {
        SandboxState::Running | SandboxState::Hibernated => {
            let asleep = AtomicBool::new(found.observed == SandboxState::Hibernated);
            Ok(Live { id: found.id, asleep: Arc::new(asleep), who })
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
    format!("{KEY_PREFIX}{}", warren_types::hex(&rand::random::<[u8; KEY_HEX / 2]>()))
}

pub(crate) fn hash_key(key: &str) -> String {
    warren_types::hex(&Sha256::digest(key.as_bytes()))
}

pub(crate) fn no_credential() -> Error {
    Error::new(ErrorKind::Unauthenticated, "missing API key")
}

/// Clients tell by the words what is wrong: with "missing" among them, Crabbox looks for a fault in its configuration.
fn bad_credential() -> Error {
    Error::new(ErrorKind::Unauthenticated, "invalid API key")
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
