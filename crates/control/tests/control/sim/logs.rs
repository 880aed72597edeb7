//! Logs: pieces of text that a test gives, whatever was asked; live ones while the sandbox runs.

use std::sync::Mutex;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::broadcast;
use warren_guest_api::logs::Query;
use warren_types::{SandboxId, SandboxState};

use super::{Answer, SimNode, unknown};

pub(crate) struct Log {
    /// JSON lines; the blank line after them is added.
    pub(crate) history: Mutex<String>,
    pub(crate) asked: Mutex<Vec<Query>>,
    /// `None` breaks the stream off.
    pub(crate) live: broadcast::Sender<Option<String>>,
}

impl Default for Log {
    fn default() -> Self {
        Self { history: Mutex::default(), asked: Mutex::default(), live: broadcast::channel(100).0 }
    }
}

pub(super) async fn read(
    State(node): State<SimNode>,
    Path(id): Path<SandboxId>,
    Json(query): Json<Query>,
) -> Answer<Body> {
    let state = node.state();
    let sandbox = state.sandboxes.get(&id).ok_or_else(unknown)?;
    let log = &sandbox.log;
    log.asked.lock().unwrap().push(query.clone());
    let first = log.history.lock().unwrap().clone() + "\n";
    let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from(first))]);
    let follows = query.follow && sandbox.report.state == SandboxState::Running;
    let live: BoxStream<'static, _> = if follows {
        let receiver = log.live.subscribe();
        let next = async |mut receiver: broadcast::Receiver<Option<String>>| {
            let piece = receiver.recv().await.ok()?;
            let piece = piece.map(Bytes::from).ok_or_else(|| std::io::Error::other("it has ended"));
            Some((piece, receiver))
        };
        stream::unfold(receiver, next).boxed()
    } else {
        stream::empty().boxed()
    };
    Ok(Body::from_stream(first.chain(live)))
}
