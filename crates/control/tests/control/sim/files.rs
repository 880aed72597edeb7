//! Simulated files: a flat map from path to content. A path under `/dir` counts as a folder when it ends in `/`.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{Method, StatusCode, header};
use warren_guest_api::files::{Chmod, Entry, FileKind, Move, Stat};
use warren_types::{Error, SandboxId};

use super::{Answer, SimNode, json, parameter};

pub(crate) async fn call(
    node: &SimNode,
    id: &SandboxId,
    path: &[&str],
    request: Request,
) -> Answer<Response> {
    let file = parameter(&request, "path").unwrap_or_default();
    let mode = parameter(&request, "mode");
    let missing = || Error::not_found(format!("{file}: No such file or directory"));
    match (request.method().clone(), path) {
        (Method::PUT, []) if file.starts_with("/proc/") => Err(missing().into()),
        (Method::PUT, [] | ["archive"]) => {
            let content = axum::body::to_bytes(request.into_body(), usize::MAX).await;
            let content = content.map_err(|_| Error::invalid("the upload broke off"))?;
            let mut state = node.state();
            let sandbox = state.sandboxes.get_mut(id).unwrap();
            if let Some(mode) = mode {
                sandbox.modes.insert(file.clone(), u32::from_str_radix(&mode, 8).unwrap());
            }
            sandbox.files.insert(file, content);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (Method::GET | Method::HEAD, [] | ["archive"]) => {
            let content = node.state().sandboxes[id].files.get(&file).cloned().ok_or_else(missing)?;
            let hostile = [(header::CONTENT_TYPE, "text/html"), (header::SET_COOKIE, "a=b")];
            let Some(range) = request.headers().get(header::RANGE) else {
                let length = [(header::CONTENT_LENGTH, content.len())];
                let body = if request.method() == Method::HEAD { Body::empty() } else { Body::from(content) };
                return Ok((hostile, length, body).into_response());
            };
            let (from, to) = range.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            if from >= content.len() {
                return Err(Error::invalid("outside").with_code("range_not_satisfiable").into());
            }
            let told = format!("bytes {from}-{to}/{}", content.len());
            let range = [(header::CONTENT_RANGE, told)];
            Ok((StatusCode::PARTIAL_CONTENT, hostile, range, content.slice(from..=to)).into_response())
        }
        (Method::DELETE, []) => {
            node.state().sandboxes.get_mut(id).unwrap().files.remove(&file);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (Method::POST, ["mkdir"]) => Ok(StatusCode::NO_CONTENT.into_response()),
        (Method::GET, ["list"]) => {
            let state = node.state();
            let entries = state.sandboxes[id].files.iter().filter(|(path, _)| path.starts_with(&file));
            let entry = |(path, content): (&String, &bytes::Bytes)| Entry {
                name: path.rsplit('/').next().unwrap().to_owned(),
                path: path.clone(),
                encoded_path: None,
                is_dir: false,
                size: content.len() as u64,
            };
            let line = |entry| format!("{}\n", serde_json::to_string(&entry).unwrap());
            Ok(entries.map(entry).map(line).collect::<String>().into_response())
        }
        (Method::GET, ["stat"]) => {
            let state = node.state();
            let sandbox = &state.sandboxes[id];
            let content = sandbox.files.get(&file).ok_or_else(missing)?;
            Ok(Json(Stat {
                name: file.rsplit('/').next().unwrap().to_owned(),
                kind: FileKind::File,
                size: content.len() as u64,
                mode: sandbox.modes.get(&file).copied().unwrap_or(0o644),
                uid: 1000,
                gid: 1000,
                modified_at_ms: 1_786_000_000_123,
                link_target: None,
                encoded_path: None,
                path: file,
            })
            .into_response())
        }
        (Method::POST, ["move"]) => {
            let named: Move = json(request).await;
            let mut state = node.state();
            let files = &mut state.sandboxes.get_mut(id).unwrap().files;
            let content = files.remove(&named.from).ok_or_else(|| Error::not_found("nothing to move"))?;
            files.insert(named.to, content);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        (Method::POST, ["chmod"]) => {
            let chmod: Chmod = json(request).await;
            node.state().sandboxes.get_mut(id).unwrap().modes.insert(chmod.path, chmod.mode);
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        _ => Err(Error::not_found("no such route").into()),
    }
}
