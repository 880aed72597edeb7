//! Simulated terminals: what is typed comes back; `exit` and a line end close it.

use std::sync::{Arc, Mutex};

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::frame::{Decoder, Frame};
use warren_guest_api::pty::{PtyStart, Resize};
use warren_types::{Error, PtyId, SandboxId};

use super::{Answer, SimNode, json};

pub(crate) struct Pty {
    pub(crate) size: Mutex<(u16, u16)>,
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
        ptys.insert(pty.to_string(), Arc::new(Pty { size: Mutex::new(size) }));
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
        (Method::POST, ["attach"]) => Ok(echo(request.into_body()).into_response()),
        (Method::DELETE, []) => {
            node.state().sandboxes.get_mut(id).unwrap().ptys.remove(path[0]);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Error::not_found("no such route").into()),
    }
}

fn echo(mut input: Body) -> Body {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    tokio::spawn(async move {
        let _ = sender.send(Frame::Stdout(Bytes::from_static(b"$ ")).to_bytes()).await;
        let mut decoder = Decoder::default();
        while let Some(Ok(piece)) = input.frame().await {
            decoder.push(&piece.into_data().unwrap());
            while let Some(Frame::Stdin(bytes)) = decoder.next_frame().unwrap() {
                if &bytes[..] == b"exit\n" {
                    let exit = Exit { code: 0, reason: ExitReason::Exited };
                    let _ = sender.send(Frame::Exit(exit).to_bytes()).await;
                    return;
                }
                let _ = sender.send(Frame::Stdout(bytes).to_bytes()).await;
            }
        }
    });
    Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
        Some((Ok::<_, std::io::Error>(receiver.recv().await?), receiver))
    }))
}
