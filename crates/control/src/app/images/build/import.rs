//! Images that become templates of the node: fetched by it from a registry, or sent to it as an archive.

use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use warren_node_api::{Import, TemplateLine, TemplateReport};
use warren_types::{Error, ErrorKind};

use super::log::BuildStream;
use crate::app::guest::from_node;

/// A report of a template holds the variables of its image.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
/// A node that imports says so more often than this.
const SILENCE: Duration = Duration::from_secs(180);

/// Follows an import to its end.
pub(in crate::app::images) async fn follow(
    mut lines: Body,
    log: &BuildStream,
) -> Result<TemplateReport, Error> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            if let Some(template) = take_line(&line, log)? {
                return Ok(template);
            }
        }
        if buffer.len() > MAX_LINE_BYTES {
            return Err(broken("it sent a line that is too long"));
        }
        match tokio::time::timeout(SILENCE, lines.frame()).await {
            Err(_) => return Err(broken("it has said nothing for a long time")),
            Ok(Some(Ok(piece))) => {
                if let Ok(bytes) = piece.into_data() {
                    buffer.extend_from_slice(&bytes);
                }
            }
            Ok(Some(Err(error))) => return Err(broken(&error.to_string())),
            Ok(None) => match take_line(&buffer, log)? {
                Some(template) => return Ok(template),
                None => return Err(broken("it ended without a word")),
            },
        }
    }
}

fn take_line(line: &[u8], log: &BuildStream) -> Result<Option<TemplateReport>, Error> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(line).map_err(|error| broken(&error.to_string()))? {
        TemplateLine::Progress(import) => {
            log.say(0, "pull", told(&import));
            Ok(None)
        }
        TemplateLine::Template(template) => Ok(Some(*template)),
        TemplateLine::Error(error) => Err(from_node(error)),
    }
}

fn told(import: &Import) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    match import.total_bytes {
        Some(total) if total > 0 => {
            format!("{} ({:.1} of {:.1} MB)", import.message, megabytes(import.done_bytes), megabytes(total))
        }
        _ if import.done_bytes > 0 => format!("{} ({:.1} MB)", import.message, megabytes(import.done_bytes)),
        _ => import.message.clone(),
    }
}

fn broken(why: &str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("the node did not finish bringing the image: {why}; try again"),
    )
}
