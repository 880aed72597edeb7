//! What the commands of a sandbox have come to, from an agent that is about to end to the one after it.
//!
//! ```text
//!   old agent ──GET──▶ execs.kept ──PUT──▶ new agent
//! ```
//!
//! Whoever waits for a command, asks for its result or attaches to it gets one answer, however the agent came to its end: by a
//! hibernation, a reboot, a power-cycle or a restore. The file is in the sandbox's folder and not on its disk, which may be
//! another one by then. It is there from shortly before the end until the next start; what it says is a guest's word, which the
//! next one reads strictly.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use tracing::debug;
use warren_guest_api::exec::KEPT_BYTES;

use crate::guest::Guest;

const FILE: &str = "execs.kept";
const PATH: &str = "/v1/exec/kept";
/// How long an agent may take over either; one that hangs is one of the reasons for a power-cycle.
const WITHIN: Duration = Duration::from_secs(2);

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Has its agent tell what commands have come to. An agent that cannot, or is of before this was so, ends without.
pub(super) async fn take_over(guest: &Guest, folder: &Path) {
    forget(folder);
    let taken = async {
        let text = ask(guest, Method::GET, Body::empty()).await?;
        // Nothing is left of a write that is cut off but an older file.
        let unfinished = folder.join("execs.unfinished");
        tokio::fs::write(&unfinished, text).await?;
        Ok::<_, Failed>(tokio::fs::rename(unfinished, folder.join(FILE)).await?)
    };
    note("kept", tokio::time::timeout(WITHIN, taken).await);
}

/// Tells the agent that runs now, if there is something to tell.
pub(super) async fn hand_on(guest: &Guest, folder: &Path) {
    let text = match tokio::fs::read(folder.join(FILE)).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return debug!(%error, "results of commands cannot be read"),
    };
    note(
        "known again",
        tokio::time::timeout(WITHIN, ask(guest, Method::PUT, text.into())).await.map(|done| done.map(drop)),
    );
    forget(folder);
}

/// They go on, or are no longer wanted.
pub(crate) fn forget(folder: &Path) {
    let _ = std::fs::remove_file(folder.join(FILE));
}

async fn ask(guest: &Guest, method: Method, body: Body) -> Result<Vec<u8>, Failed> {
    let request = Request::builder().method(method).body(body)?;
    let answer = guest.call(request, PATH).await?;
    if !answer.status().is_success() {
        return Err(format!("its agent answered {}", answer.status()).into());
    }
    let text = Limited::new(answer.into_body(), KEPT_BYTES).collect().await?;
    Ok(text.to_bytes().into())
}

fn note(what: &str, done: Result<Result<(), Failed>, tokio::time::error::Elapsed>) {
    match done {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "results of commands are not {what}"),
        Err(_) => debug!("results of commands are not {what}: it took too long"),
    }
}
