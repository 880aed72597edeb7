//! Simulated terminals: what is typed comes back; `exit` and a line end close it.

use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode};
use tokio::sync::{broadcast, mpsc};
use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::frame::Frame;
use warren_guest_api::pty::{PtyStart, Resize};
use warren_types::{Error, PtyId, SandboxId};

use super::exec::take_input;
use super::{Answer, SimNode, json};

pub(crate) struct Pty {
    pub(crate) size: Mutex<(u16, u16)>,
    typed: broadcast::Sender<Bytes>,
}

pub(crate) async fn call(
    node: &SimNode,
    id: &SandboxId,
    path: &[&str],
    request: Request,
) -> Answer<Response> {
    if path.is_empty() {
        let start: PtyStart = json(request).await;
        let size = (start.cols.unwrap_or(80), start.rows.unwrap_or(24));
        let pty = PtyId::generate();
        let mut state = node.state();
        let ptys = &mut state.sandboxes.get_mut(id).unwrap().ptys;
        ptys.insert(
            pty.to_string(),
            Arc::new(Pty { size: Mutex::new(size), typed: broadcast::channel(64).0 }),
        );
        let described = warren_guest_api::pty::Pty {
            id: pty,
            cols: size.0,
            rows: size.1,
            started_at_ms: 0,
            attached_clients: 0,
        };
        return Ok((StatusCode::CREATED, Json(described)).into_response());
    }
    let found = node.state().sandboxes[id].ptys.get(path[0]).cloned();
    let pty = found.ok_or_else(|| Error::not_found("no such terminal"))?;
    match (request.method().clone(), &path[1..]) {
        (Method::POST, ["resize"]) => {
            let resize: Resize = json(request).await;
            *pty.size.lock().unwrap() = (resize.cols, resize.rows);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (Method::POST, ["attach"]) => Ok(echo(&pty).into_response()),
        (Method::POST, ["input"]) => {
            let take = move |frame| {
                if let Frame::Stdin(bytes) = frame {
                    let _ = pty.typed.send(bytes);
                }
            };
            Ok(take_input(request.into_body(), true, take).into_response())
        }
        (Method::DELETE, []) => {
            node.state().sandboxes.get_mut(id).unwrap().ptys.remove(path[0]);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Error::not_found("no such route").into()),
    }
}

fn echo(pty: &Pty) -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let mut typed = pty.typed.subscribe();
    tokio::spawn(async move {
        let _ = sender.send(Frame::Stdout(Bytes::from_static(b"$ ")).to_bytes()).await;
        while let Ok(bytes) = typed.recv().await {
            if &bytes[..] == b"exit\n" {
                let exit = Exit { code: 0, reason: ExitReason::Exited };
                let _ = sender.send(Frame::Exit(exit).to_bytes()).await;
                return;
            }
            let _ = sender.send(Frame::Stdout(bytes).to_bytes()).await;
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
    }))
}
