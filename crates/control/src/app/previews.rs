//! Previews: registering them, the token that opens them, links that are shared.
//!
//! A port can be opened without being registered; a registration is a line in a list. Who may open the ports of a sandbox is
//! one setting for all of them: anybody, or who shows its token ([`gate`]). How bytes get there is in [`port`], and what is under way in
//! [`open`].

pub(crate) mod gate;
pub(crate) mod open;
pub(crate) mod port;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use warren_api::previews::{
    Preview, PreviewAuth, PreviewCreate, PreviewShare, PreviewShareCreate, PreviewTokenRotated,
};
use warren_types::{Error, OrgId, SandboxId, Secret};

use super::App;
use super::audit::Kind;
use super::auth::{Caller, hash_key, sandbox_not_found};
use super::signed::{ShareKind, Shared, expires_at, expiry};
use crate::store::previews::PreviewRow;
use crate::store::sandboxes::SandboxStanding;

const BEARER: &str = "bearer";
const AUTO: &str = "auto";
const MIN_TOKEN_CHARS: usize = 16;
const MAX_TOKEN_BYTES: usize = 1024;
/// How long a link may be good for: a week.
const MAX_SHARE_SECONDS: i64 = 7 * 24 * 3600;
/// Name of the parameter that carries a link's signature.
pub(crate) const LINK_PARAMETER: &str = "_warren_share";

impl App {
    /// Registers a port; true when it was not registered before.
    pub(crate) async fn create_preview(
        &self,
        caller: &Caller,
        id: &SandboxId,
        body: PreviewCreate,
        base: &str,
    ) -> Result<(Preview, bool), Error> {
        self.usable_standing(caller, id).await?;
        let port = body.port.ok_or_else(|| Error::invalid("port is required: 1 to 65535"))?;
        let port = checked_port(u16::try_from(port).ok())?;
        let domain = match body.domain.filter(|domain| !domain.is_empty()) {
            Some(domain) => {
                let own = self.find_own_domain(caller.org(), &domain).await?;
                Some(own.ok_or_else(|| not_own(&domain))?)
            }
            None => None,
        };
        let is_set = |config: &serde_json::Value| match config {
            serde_json::Value::Null => false,
            serde_json::Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        if body.auth_config.as_ref().is_some_and(is_set) {
            return Err(Error::invalid(
                "authConfig is not supported by this server; leave it out and set previewAuth when the sandbox is created",
            ));
        }
        let (row, is_new) = self.store.ensure_preview(id, port, domain).await?;
        self.end_other_names(id, port, row.domain.as_deref());
        let note = caller.note(Kind::Preview).of(id).with("action", "register").with("port", port);
        self.audit.note(note.with("outcome", "done")).await?;
        Ok((self.preview(caller, id, row, base), is_new))
    }

    /// By port. None of a sandbox that was stopped.
    pub(crate) async fn list_previews(
        &self,
        caller: &Caller,
        id: &SandboxId,
        base: &str,
    ) -> Result<Vec<Preview>, Error> {
        self.standing_in_any_state(caller, id).await?;
        let rows = self.store.list_previews(id).await?;
        Ok(rows.into_iter().map(|row| self.preview(caller, id, row, base)).collect())
    }

    pub(crate) async fn delete_preview(
        &self,
        caller: &Caller,
        id: &SandboxId,
        port: &str,
    ) -> Result<(), Error> {
        self.standing_in_any_state(caller, id).await?;
        let port = parse_port(port)?;
        if self.store.remove_preview(id, port).await? {
            self.end_other_names(id, port, None);
            let note = caller.note(Kind::Preview).of(id).with("action", "delete").with("port", port);
            self.audit.note(note.with("outcome", "done")).await?;
            return Ok(());
        }
        Err(Error::not_found(format!("port {port} of this sandbox is not registered")))
    }

    /// A new token, from here on the only one; also for a sandbox whose previews were open.
    pub(crate) async fn rotate_preview_token(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<PreviewTokenRotated, Error> {
        self.usable_standing(caller, id).await?;
        let token = generate_token();
        self.store.set_preview_hash(id, &hash_key(token.expose())).await?;
        self.open_previews.end(id, |_| true);
        let note = caller.note(Kind::Preview).of(id).with("action", "rotate_token");
        self.audit.note(note.with("outcome", "done")).await?;
        Ok(PreviewTokenRotated { preview_auth_token: token.expose().clone(), scheme: BEARER.to_owned() })
    }

    /// A link that opens one port in a browser.
    pub(crate) async fn share_preview(
        &self,
        caller: &Caller,
        id: &SandboxId,
        port: &str,
        body: &PreviewShareCreate,
        base: &str,
    ) -> Result<PreviewShare, Error> {
        let standing = self.usable_standing(caller, id).await?;
        let port = parse_port(port)?;
        let Some(preview_hash) = &standing.preview_hash else {
            return Err(Error::conflict(
                "previews of this sandbox are open to everybody, so there is nothing to share; rotate its token to close them",
            ));
        };
        let expires = expiry(body.expires_in, MAX_SHARE_SECONDS);
        let signed = self.urls.sign_share(ShareKind::Link, Shared { id, port, preview_hash }, expires);
        let url = self.preview_url(id, port, base);
        let note = caller.note(Kind::Preview).of(id).with("action", "share").with("port", port);
        self.audit.note(note.with("outcome", "done").with("expiresAt", expires_at(expires))).await?;
        Ok(PreviewShare { url: format!("{url}/?{LINK_PARAMETER}={signed}"), expires_at: expires_at(expires) })
    }

    /// Ends what came by another name below a domain of the organisation's than the one the port has now.
    fn end_other_names(&self, id: &SandboxId, port: u16, domain: Option<&str>) {
        self.open_previews.end(id, |opened| {
            opened.port == port && opened.domain.is_some() && opened.domain.as_deref() != domain
        });
    }

    /// A domain that the operator says is the organisation's.
    async fn find_own_domain(&self, org: &OrgId, domain: &str) -> Result<Option<&str>, Error> {
        let wanted = domain.to_ascii_lowercase();
        let Some(known) = self.custom_domains.iter().find(|known| known.name() == wanted) else {
            return Ok(None);
        };
        Ok(self.store.is_org_named(org, &known.org).await?.then(|| known.name()))
    }

    /// Whether a preview has a name below that domain: it was asked for when the port was registered, and the domain is still
    /// its organisation's.
    pub(crate) async fn is_preview_at(
        &self,
        standing: &SandboxStanding,
        port: u16,
        domain: &str,
    ) -> Result<bool, Error> {
        Ok(self.find_own_domain(&standing.org, domain).await?.is_some()
            && self.store.has_preview_at(&standing.id, port, domain).await?)
    }

    /// The domain of previews as a client of `base` sees it.
    pub(crate) fn shown_domain(&self, base: &str) -> String {
        self.sandbox_domain.shown(base)
    }

    fn preview_url(&self, id: &SandboxId, port: u16, base: &str) -> String {
        let scheme = base.split_once("://").map_or("http", |(scheme, _)| scheme);
        format!("{scheme}://{id}-p{port}.{}", self.shown_domain(base))
    }

    fn preview(&self, caller: &Caller, id: &SandboxId, row: PreviewRow, base: &str) -> Preview {
        let custom = row
            .domain
            .map(|domain| format!("{id}-p{}.{}", row.port, self.sandbox_domain.named(&domain).shown(base)));
        Preview {
            id: row.id,
            sandbox_id: id.to_string(),
            org_id: caller.org().to_string(),
            hostname: format!("{id}-p{}.{}", row.port, self.shown_domain(base)),
            custom_hostname: custom,
            port: row.port,
            // The word for a host name that can be used at once, which every name of ours can.
            ssl_status: "active".to_owned(),
            auth_config: Default::default(),
            created_at: row.created_at,
            url: self.preview_url(id, row.port, base),
        }
    }
}

fn not_own(domain: &str) -> Error {
    let domain: String = domain.chars().filter(|c| !c.is_control()).take(100).collect();
    Error::invalid(format!(
        "custom domain {domain:?} is not known to be your organisation's; leave domain out, or ask who runs this server"
    ))
}

/// The token a create or a fork asks for.
pub(crate) fn wanted_token(auth: Option<PreviewAuth>) -> Result<Option<Secret<String>>, Error> {
    let Some(auth) = auth else { return Ok(None) };
    if auth.scheme.as_deref().is_some_and(|scheme| scheme != BEARER) {
        return Err(Error::invalid("previewAuth.scheme must be bearer"));
    }
    let token = match auth.token {
        None => return Ok(Some(generate_token())),
        Some(token) if token.is_empty() || token == AUTO => return Ok(Some(generate_token())),
        Some(token) => Secret::new(token),
    };
    let visible = token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    if token.expose().len() < MIN_TOKEN_CHARS || token.expose().len() > MAX_TOKEN_BYTES || !visible {
        return Err(Error::invalid(format!(
            "previewAuth.token must have {MIN_TOKEN_CHARS} to {MAX_TOKEN_BYTES} visible ASCII characters, or be auto"
        )));
    }
    Ok(Some(token))
}

/// 256 random bits, in 43 characters.
pub(crate) fn generate_token() -> Secret<String> {
    Secret::new(URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

fn checked_port(port: Option<u16>) -> Result<u16, Error> {
    port.filter(|port| *port != 0).ok_or_else(|| Error::invalid("port must be between 1 and 65535"))
}

/// Of a path: digits, spelled in one way.
fn parse_port(text: &str) -> Result<u16, Error> {
    let plain = !text.starts_with(['0', '+']);
    checked_port(text.parse().ok().filter(|_| plain))
}

/// Part of a preview's name: `{id}-p{port}`, spelled in one way.
pub(crate) fn parse_label(label: &str) -> Option<(SandboxId, u16)> {
    let (id, port) = label.rsplit_once("-p")?;
    Some((id.parse().ok()?, parse_port(port).ok()?))
}

/// As for an id that nobody has.
pub(crate) fn no_such_sandbox(id: &SandboxId) -> Error {
    Error { message: format!("sandbox {id} not found"), ..sandbox_not_found() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_made_or_taken_or_refused() {
        let auth = |scheme: Option<&str>, token: Option<&str>| {
            let auth = PreviewAuth { scheme: scheme.map(str::to_owned), token: token.map(str::to_owned) };
            wanted_token(Some(auth)).map(|token| token.unwrap().expose().clone())
        };
        assert!(wanted_token(None).unwrap().is_none());
        for token in [None, Some(""), Some("auto")] {
            let made = auth(Some("bearer"), token).unwrap();
            assert_eq!(made.len(), 43);
            assert_ne!(made, auth(None, token).unwrap());
        }
        assert_eq!(auth(None, Some("0123456789abcdef")).unwrap(), "0123456789abcdef");
        let long = "x".repeat(1025);
        for bad in ["0123456789abcde", "0123456789 abcdef", "0123456789abcdé", "0123456789abcd\n", &long] {
            assert!(auth(None, Some(bad)).is_err(), "{bad}");
        }
        for scheme in ["", "basic", "Bearer"] {
            assert!(auth(Some(scheme), None).is_err(), "{scheme:?}");
        }
    }

    #[test]
    fn a_label_is_spelled_in_one_way() {
        let id: SandboxId = "sb-0123abcd".parse().unwrap();
        assert_eq!(parse_label("sb-0123abcd-p80"), Some((id.clone(), 80)));
        assert_eq!(parse_label("sb-0123abcd-p65535"), Some((id, 65535)));
        for bad in [
            "",
            "-p80",
            "sb-0123abcd",
            "sb-0123abcd-p",
            "sb-0123abcd-p0",
            "sb-0123abcd-p080",
            "sb-0123abcd-p+80",
            "sb-0123abcd-p65536",
            "sb-0123abcd-p80-p80",
            "sb-0123abcd-p 80",
            "SB-0123abcd-p80",
            "sb-0123abc-p80",
            "sb-0123abcd-p80x",
            "x-p80",
        ] {
            assert_eq!(parse_label(bad), None, "{bad}");
        }
    }
}
