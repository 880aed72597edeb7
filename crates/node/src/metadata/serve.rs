//! The listener: HTTP/1 as a hostile client speaks it. A connection carries one request, which has to be there soon and to be
//! small; one that is not ends, and costs a few kilobytes until then.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use warren_guest_api::network::METADATA;
use warren_guest_api::status_of;
use warren_types::{Error, ErrorKind, SandboxId};

use super::{Answers, Route};

/// Connections of all sandboxes together; the firewall says how many one may have.
const MAX_CONNECTIONS: usize = 2048;
/// Longest wait for the head of a request, and for its body.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(5);
/// Longest life of a connection: a change of size takes its time.
const LIFE: Duration = Duration::from_secs(150);
/// Of the head; the least that hyper takes.
const MAX_HEAD_BYTES: usize = 8192;
const MAX_HEADERS: usize = 32;
const MAX_BODY_BYTES: usize = 1024;
/// What a client may still say after its request.
const MAX_REST_BYTES: usize = 64 * 1024;
/// After this host had no descriptor left for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop`; `whose` knows the sandbox at an address.
pub(crate) async fn serve<A: Answers + Clone>(
    listener: TcpListener,
    answers: A,
    whose: impl Fn(Ipv4Addr) -> Option<SandboxId>,
    read_within: Duration,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "what a sandbox asks about itself could not be heard");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let IpAddr::V4(source) = peer.ip() else { continue };
        let (Some(id), Ok(place)) = (whose(source), places.clone().try_acquire_owned()) else { continue };
        let (answers, stop) = (answers.clone(), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            let talk = converse(stream, &answers, &id, read_within);
            let _ = stop.run_until_cancelled(tokio::time::timeout(LIFE, talk)).await;
        });
    }
}

async fn converse<A: Answers>(stream: TcpStream, answers: &A, id: &SandboxId, read_within: Duration) {
    let service = service_fn(|request| {
        Box::pin(async { Ok::<_, Infallible>(respond(request, answers, id, read_within).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_within)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    // What a guest says that is no HTTP is no news.
    let served = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let stream = connection.into_parts().io.into_inner();
    let left = match served {
        Ok(()) => tokio::time::timeout(read_within, see_off(&stream)).await.unwrap_or(false),
        Err(_) => false,
    };
    if !left {
        // One that is not let go of would count against its sandbox until the firewall forgets it.
        let _ = stream.set_zero_linger();
    }
}

/// Waits until the client has left as well, and reads what it still says, up to a limit: otherwise the kernel might take the
/// answer back. False where it does not come to an end.
async fn see_off(stream: &TcpStream) -> bool {
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Write);
    let mut rest = [0; 1024];
    let mut heard = 0;
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut rest) {
            Ok(0) => return true,
            Ok(count) => heard += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
        if heard > MAX_REST_BYTES {
            return false;
        }
    }
    true
}

async fn respond<A: Answers>(
    request: Request<Incoming>,
    answers: &A,
    id: &SandboxId,
    read_within: Duration,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Some(route) = Route::find(head.uri.path()) else {
        return failure(&Error::not_found("there is no such path here; GET / lists those there are"));
    };
    let is_head = head.method == Method::HEAD && route.method() == Method::GET;
    if head.method != route.method() && !is_head {
        let message = format!("this path is asked for with {}", route.method());
        let mut refused = json(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": message }));
        if let Ok(allow) = HeaderValue::from_str(route.method().as_str()) {
            refused.headers_mut().insert(header::ALLOW, allow);
        }
        return refused;
    }
    let answered = async {
        check_origin(&head.headers)?;
        let body = if route.method() == Method::POST { read(body, read_within).await? } else { Bytes::new() };
        answers.answer(id, route, &body).await
    };
    match answered.await {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => failure(&error),
    }
}

/// A web page in a browser in a sandbox must not ask in its place: neither across origins, nor under a name that its owner lets
/// stand for this address.
fn check_origin(headers: &HeaderMap) -> Result<(), Error> {
    let forbidden = |message: &str| Error::new(ErrorKind::Forbidden, message);
    if headers.contains_key(header::ORIGIN) {
        return Err(forbidden("web pages may not ask for this"));
    }
    let ours = METADATA.to_string();
    match headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?")) {
        None | Some("") => Ok(()),
        Some(host) if host == ours || host.strip_suffix(":80") == Some(&ours) => Ok(()),
        Some(_) => Err(forbidden("this is asked for as http://169.254.169.254, under no other name")),
    }
}

async fn read(body: Incoming, within: Duration) -> Result<Bytes, Error> {
    match tokio::time::timeout(within, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(read)) => Ok(read.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Error::new(ErrorKind::TooLarge, format!("the body is longer than {MAX_BODY_BYTES} bytes")))
        }
        Ok(Err(_)) => Err(Error::invalid("the body broke off before its end")),
        Err(_) => Err(Error::invalid("the body did not come in time")),
    }
}

fn failure(error: &Error) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(status_of(error.kind)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut body = json!({ "error": error.message });
    if let Some(code) = &error.code {
        body["code"] = json!(code);
    }
    if let Some(details) = &error.details {
        body["details"] = json!(details);
    }
    json(status, &body)
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Says what it was asked.
    #[derive(Clone)]
    struct Echo;

    impl Answers for Echo {
        async fn answer(&self, id: &SandboxId, route: Route, body: &[u8]) -> Result<Value, Error> {
            match route {
                Route::Scale if body.is_empty() => Err(Error::invalid("nothing").with_code("none")),
                _ => Ok(json!({ "id": id.as_str(), "route": format!("{route:?}"), "body": body.len() })),
            }
        }
    }

    async fn start(whose: impl Fn(Ipv4Addr) -> Option<SandboxId> + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Echo, whose, PATIENCE, CancellationToken::new()));
        address
    }

    fn known(_: Ipv4Addr) -> Option<SandboxId> {
        Some("sb-0a1b2c3d".parse().unwrap())
    }

    /// All that comes back.
    async fn say(address: SocketAddr, said: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(said).await;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        String::from_utf8_lossy(&heard).into_owned()
    }

    fn post(body: &str) -> Vec<u8> {
        format!(
            "POST /v1/scale HTTP/1.1\r\nhost: 169.254.169.254\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    #[tokio::test]
    async fn each_path_has_its_method_and_each_connection_one_request() {
        let address = start(known).await;
        for (path, route) in Route::ALL {
            let method = route.method();
            let heard = say(address, format!("{method} {path}?a=b HTTP/1.1\r\nhost: 169.254.169.254:80\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes()).await;
            assert!(heard.starts_with("HTTP/1.1 200 OK\r\n"), "{heard}");
            assert!(heard.contains(&format!("\"route\":\"{route:?}\"")), "{heard}");
            assert!(heard.contains("content-type: application/json"), "{heard}");
        }
        let two = say(address, b"GET / HTTP/1.1\r\n\r\nGET /v1/status HTTP/1.1\r\n\r\n").await;
        assert_eq!(two.matches("HTTP/1.1").count(), 1, "{two}");
        assert!(two.contains("connection: close"), "{two}");
        let old = say(address, b"GET /v1/status HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200"), "{old}");
        let head = say(address, b"HEAD /v1/status HTTP/1.1\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        let refused = say(address, &post("")).await;
        assert!(
            refused.starts_with("HTTP/1.1 400") && refused.ends_with(r#"{"code":"none","error":"nothing"}"#),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn what_is_not_a_request_of_this_service_is_refused() {
        let address = start(known).await;
        for (said, status) in [
            ("GET /latest/meta-data/ HTTP/1.1\r\n\r\n", "404"),
            ("GET /v1/status/ HTTP/1.1\r\n\r\n", "404"),
            ("GET /v1/scale HTTP/1.1\r\n\r\n", "405"),
            ("HEAD /v1/scale HTTP/1.1\r\n\r\n", "405"),
            ("PUT / HTTP/1.1\r\n\r\n", "405"),
            ("CONNECT 10.0.0.1:80 HTTP/1.1\r\n\r\n", "404"),
            ("GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n", "403"),
            ("GET / HTTP/1.1\r\nhost: 169.254.169.254.evil.example\r\n\r\n", "403"),
            ("GET / HTTP/1.1\r\nhost: \u{e9}\r\n\r\n", "403"),
            (
                "POST /v1/scale HTTP/1.1\r\norigin: http://169.254.169.254\r\ncontent-length: 2\r\n\r\n{}",
                "403",
            ),
            ("GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "400"),
            ("nonsense\r\n\r\n", "400"),
            ("\u{16}\u{3}\u{1}\u{0}", "400"),
        ] {
            let heard = say(address, said.as_bytes()).await;
            assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{said:?}: {heard:?}");
        }
        let many: String = (0..100).map(|n| format!("x{n}: y\r\n")).collect();
        let heard = say(address, format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 431"), "{heard}");
        let heard = say(address, format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(100_000)).as_bytes()).await;
        assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 431"), "{heard}");
        let heard = say(address, &post(&" ".repeat(2000))).await;
        assert!(heard.starts_with("HTTP/1.1 413"), "{heard}");
        let chunked = format!(
            "POST /v1/scale HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n{}\r\n",
            " ".repeat(2000)
        );
        let heard = say(address, chunked.as_bytes()).await;
        assert!(heard.starts_with("HTTP/1.1 413"), "{heard}");
    }

    #[tokio::test]
    async fn who_is_no_sandbox_hears_nothing() {
        let address = start(|_| None).await;
        assert_eq!(say(address, b"GET / HTTP/1.1\r\n\r\n").await, "");
    }

    #[tokio::test]
    async fn who_does_not_stop_talking_is_not_listened_to() {
        let address = start(known).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (mut sent, piece) = (0, vec![b'x'; 64 * 1024]);
        while sent < 256 * 1024 * 1024 && stream.write_all(&piece).await.is_ok() {
            sent += piece.len();
        }
        assert!(sent < 64 * 1024 * 1024, "{sent} bytes were taken");
    }

    #[tokio::test]
    async fn who_is_slow_is_not_waited_for() {
        let address = start(known).await;
        assert!(!say(address, b"GET / HT").await.contains("200"));
        assert!(!say(address, b"").await.contains("200"));
        let heard = say(address, b"POST /v1/scale HTTP/1.1\r\ncontent-length: 9\r\n\r\n{").await;
        assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("in time"), "{heard}");
        let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
        let dripping = tokio::spawn(async move {
            while writer.write_all(b"G").await.is_ok() {
                tokio::time::sleep(PATIENCE / 10).await;
            }
        });
        let mut heard = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(30), reader.read_to_end(&mut heard)).await;
        assert!(ended.is_ok(), "a byte now and then keeps nothing open");
        dripping.abort();
    }
}
