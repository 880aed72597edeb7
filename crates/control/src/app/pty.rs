//! Terminals.

use http::Method;
use warren_api::pty::{PtyCreate, PtyResize, PtySession};
use warren_guest_api::pty::{Pty, PtyStart, Resize};
use warren_types::{Error, PtyId};

use super::App;
use super::audit::{Kind, facts};
use super::auth::Live;

const MAX_SIDE: i64 = 1000;

pub(crate) fn pty_not_found() -> Error {
    Error::not_found("terminal session not found")
}

impl App {
    pub(crate) async fn create_pty(&self, live: &Live, body: PtyCreate) -> Result<PtySession, Error> {
        let shell = body.shell.filter(|shell| !shell.is_empty());
        if shell.as_ref().is_some_and(|shell| shell.contains('\0')) {
            return Err(Error::invalid("shell must not contain NUL characters"));
        }
        let side = |name, value: Option<i64>| {
            value.filter(|value| *value != 0).map(|value| side(name, value)).transpose()
        };
        let start = PtyStart { cols: side("cols", body.cols)?, rows: side("rows", body.rows)?, shell };
        let note = live.note(Kind::Pty).with("shell", start.shell.clone());
        let told = |pty: &Pty| facts([("pty", pty.id.as_str().into())]);
        let make = self.guest_json(live, Method::POST, "pty", Some(&start));
        let pty: Pty = self.audit.around_with(note, make, told).await?;
        Ok(PtySession { session_id: pty.id.to_string(), sandbox_id: live.id().to_string() })
    }

    pub(crate) async fn resize_pty(&self, live: &Live, pty: &PtyId, body: &PtyResize) -> Result<(), Error> {
        let resize = Resize { cols: side("cols", body.cols)?, rows: side("rows", body.rows)? };
        self.guest_json::<()>(live, Method::POST, &format!("pty/{pty}/resize"), Some(&resize)).await
    }

    pub(crate) async fn delete_pty(&self, live: &Live, pty: &PtyId) -> Result<(), Error> {
        let path = format!("pty/{pty}");
        let close = self.guest_json::<()>(live, Method::DELETE, &path, None::<&()>);
        self.audit.around(live.note(Kind::PtyClose).with("pty", pty.as_str()), close).await
    }
}

fn side(name: &str, value: i64) -> Result<u16, Error> {
    u16::try_from(value)
        .ok()
        .filter(|side| (1..=MAX_SIDE).contains(&i64::from(*side)))
        .ok_or_else(|| Error::invalid(format!("{name} must be 1 to {MAX_SIDE}")))
}
