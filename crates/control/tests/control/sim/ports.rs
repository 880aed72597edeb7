//! Programs that listen in simulated sandboxes: real listeners on the loopback of the test, under the port a sandbox has
//! them on.

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warren_guest_api::ports::CODE_NOTHING_LISTENING;
use warren_types::{Error, SandboxId};

use super::{Answer, SimNode};

const PIECE: usize = 16 * 1024;

/// One connection, as an agent makes it.
pub(crate) async fn call(node: &SimNode, id: &SandboxId, port: &str, request: Request) -> Answer<Response> {
    let port: u16 = port.parse().unwrap();
    let listens = node.state().listeners.get(&(id.clone(), port)).copied();
    let nothing = || Error::unavailable("nothing listens").with_code(CODE_NOTHING_LISTENING);
    let program = TcpStream::connect(listens.ok_or_else(nothing)?).await.map_err(|_| nothing())?;
    program.set_nodelay(true).unwrap();
    let (reader, mut writer) = program.into_split();
    tokio::spawn(async move {
        let mut body = request.into_body().into_data_stream();
        while let Some(Ok(bytes)) = body.next().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let pieces = stream::unfold(reader, async |mut reader| {
        let mut piece = vec![0; PIECE];
        match reader.read(&mut piece).await {
            Ok(0) => None,
            Ok(read) => {
                piece.truncate(read);
                Some((Ok(Bytes::from(piece)), reader))
            }
            Err(error) => Some((Err(error), reader)),
        }
    });
    Ok((StatusCode::OK, Body::from_stream(pieces)).into_response())
}
