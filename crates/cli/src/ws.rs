//! Opens WebSockets to the server. Plain or TLS with the system's root certificates; messages are bounded.

use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use warren_api::API_KEY_HEADER;

use crate::client::{CONNECT_LIMIT, refusal, unreachable};
use crate::failure::{About, Unreachable, hinted};

const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
/// The server may have to wake the sandbox before it answers.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(90);

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// An open WebSocket and the headers of the answer that opened it.
pub(crate) struct Opened {
    pub(crate) socket: Socket,
    pub(crate) headers: HeaderMap,
}

/// `url` is that of the HTTP API; `about` as in [`crate::failure::Refused`].
pub(crate) async fn open(mut url: Url, key: Option<HeaderValue>, about: About) -> anyhow::Result<Opened> {
    let secure = url.scheme() == "https";
    url.set_scheme(if secure { "wss" } else { "ws" })
        .map_err(|()| hinted(format!("{url} cannot be used for WebSockets"), "use an http or https URL"))?;
    let mut request = url.as_str().into_client_request()?;
    if let Some(key) = key {
        request.headers_mut().insert(API_KEY_HEADER, key);
    }
    let stream = tokio::time::timeout(CONNECT_LIMIT, connect(&url, secure))
        .await
        .map_err(|_| late(&url, CONNECT_LIMIT))?
        .map_err(|error| unreachable(&url, &error))?;
    // Output is written as it comes and keystrokes are small: waiting to fill packets only costs time.
    stream.set_nodelay(true).map_err(|error| unreachable(&url, &error))?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES));
    let handshake = tokio_tungstenite::client_async_tls_with_config(request, stream, Some(config), None);
    match tokio::time::timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok((socket, response))) => Ok(Opened { socket, headers: response.into_parts().0.headers }),
        Ok(Err(Error::Http(response))) => {
            let body = response.body().as_deref().unwrap_or_default();
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            Err(refusal(response.status().as_u16(), location, body, about).into())
        }
        Ok(Err(error)) => Err(unreachable(&url, &error).into()),
        Err(_) => Err(late(&url, HANDSHAKE_LIMIT).into()),
    }
}

async fn connect(url: &Url, secure: bool) -> std::io::Result<TcpStream> {
    let port = url.port().unwrap_or(if secure { 443 } else { 80 });
    // An IPv6 address stands in brackets in a URL and without them everywhere else.
    let host = url.host_str().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    TcpStream::connect((host, port)).await
}

fn late(url: &Url, limit: Duration) -> Unreachable {
    let reason = format!("no answer within {} s", limit.as_secs());
    Unreachable { url: url.origin().ascii_serialization(), reason, maybe_done: false }
}
