//! What a test needs: servers, names, a gateway, and clients whose connections it is handed.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use warren_network::egress::Destination;
use warren_network::{Authority, Gateway, GatewaySettings, Limits, Reach, Session};
use warren_node_api::{GrantedSecret, Place, SecretGrant, SecretUse, SecretUsesQuery};
use warren_types::{EgressPolicy, SandboxId, Secret};

pub(crate) type Sent = UnsyncBoxBody<Bytes, Infallible>;

pub(crate) const VALUE: &str = "sk-live+/real-value=1";

pub(crate) fn token(number: u32) -> String {
    format!("osb_sealed_{number:032x}")
}

/// A request as a server got it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) version: http::Version,
    pub(crate) method: http::Method,
    pub(crate) uri: http::Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

pub(crate) type Answer = Arc<dyn Fn(&Seen) -> Response<Sent> + Send + Sync>;

pub(crate) fn text(text: impl Into<Bytes>) -> Response<Sent> {
    Response::new(full(text))
}

pub(crate) fn full(text: impl Into<Bytes>) -> Sent {
    Sent::new(Full::new(text.into()))
}

/// A body of these pieces, one after the other.
pub(crate) fn pieces(pieces: Vec<Bytes>) -> Sent {
    let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(http_body::Frame::data(piece)));
    Sent::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
}

/// A body that a test writes piece by piece.
pub(crate) fn channel() -> (mpsc::UnboundedSender<Bytes>, Sent) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frames =
        futures_util::stream::unfold(receiver, |mut receiver: mpsc::UnboundedReceiver<Bytes>| async {
            Some((Ok::<_, Infallible>(http_body::Frame::data(receiver.recv().await?)), receiver))
        });
    (sender, Sent::new(http_body_util::StreamBody::new(frames)))
}

pub(crate) struct World {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) session: Arc<Session>,
    pub(crate) port: u16,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    authority: String,
    folder: tempfile::TempDir,
}

/// What to make.
pub(crate) struct Setting {
    pub(crate) policy: EgressPolicy,
    pub(crate) sealed: bool,
    /// What the server offers.
    pub(crate) protocols: Vec<Vec<u8>>,
    pub(crate) tls: bool,
    /// The certificate's names.
    pub(crate) names: Vec<String>,
    pub(crate) answer: Answer,
    pub(crate) limits: Limits,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            policy: EgressPolicy::default(),
            sealed: true,
            protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            tls: true,
            names: vec!["api.test".into(), "other.test".into()],
            answer: Arc::new(|_| text("fine")),
            limits: Limits::default(),
        }
    }
}

pub(crate) fn allowlist(rules: &str) -> EgressPolicy {
    let policy: EgressPolicy =
        serde_json::from_str(&format!(r#"{{"mode":"allowlist","allow":[{rules}]}}"#)).unwrap();
    policy.check().unwrap();
    policy
}

pub(crate) fn grant(value: &str, hosts: &[&str], places: &[Place]) -> SecretGrant {
    SecretGrant { secrets: vec![granted(1, value, hosts, places)], former: Vec::new() }
}

pub(crate) fn granted(number: u32, value: &str, hosts: &[&str], places: &[Place]) -> GrantedSecret {
    GrantedSecret {
        name: format!("KEY{number}"),
        token: token(number),
        value: Secret::new(value.into()),
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        places: places.to_vec(),
    }
}

impl World {
    pub(crate) async fn new(setting: Setting) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::with_listener(setting, listener).await
    }

    pub(crate) async fn with_listener(setting: Setting, listener: TcpListener) -> Self {
        let port = listener.local_addr().unwrap().port();
        let (seen, connections) = (Arc::default(), Arc::default());
        let (roots, key) = certificates(setting.names.clone());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("roots.pem"), &roots).unwrap();
        let server = Server {
            answer: setting.answer,
            seen: Arc::clone(&seen),
            connections: Arc::clone(&connections),
            tls: setting.tls.then(|| acceptor(key, setting.protocols)),
        };
        tokio::spawn(server.run(listener));
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let pem = authority.certificate_pem().to_owned();
        let settings = GatewaySettings {
            resolvers: vec![names().await],
            reach: Reach::new(vec![(Ipv4Addr::new(127, 0, 0, 0), 8)]),
            extra_roots: Some(folder.path().join("roots.pem")),
        };
        let gateway = Gateway::new(authority, settings, folder.path()).unwrap();
        let session = Session::new(SandboxId::generate(), setting.policy, setting.sealed, setting.limits);
        Self { gateway, session, port, seen, connections, authority: pem, folder }
    }

    /// One with a secret for `api.test`.
    pub(crate) async fn with_secret(places: &[Place], answer: Answer) -> Self {
        let world = Self::new(Setting { answer, ..Setting::default() }).await;
        world.session.set_grant(grant(VALUE, &["api.test"], places));
        world
    }

    /// A connection that the firewall would have turned round.
    pub(crate) fn connect(&self) -> DuplexStream {
        self.connect_to(Destination::address(Ipv4Addr::LOCALHOST, self.port))
    }

    pub(crate) fn connect_to(&self, to: Destination) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(self.gateway.clone().handle(server, to, self.session.clone()));
        client
    }

    pub(crate) async fn tls(&self, host: &str, protocols: &[&[u8]]) -> TlsStream<DuplexStream> {
        self.tls_over(self.connect(), host, protocols).await.unwrap()
    }

    /// A client that trusts the gateway's authority only.
    pub(crate) async fn tls_over<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        host: &str,
        protocols: &[&[u8]],
    ) -> std::io::Result<TlsStream<S>> {
        client_tls(stream, host, protocols, &self.authority).await
    }

    pub(crate) async fn http1(&self, host: &str) -> http1::SendRequest<Sent> {
        http1_over(self.tls(host, &[b"http/1.1"]).await).await
    }

    pub(crate) async fn http2(&self, host: &str) -> http2::SendRequest<Sent> {
        http2_over(self.tls(host, &[b"h2"]).await).await
    }

    /// Over HTTP/1.1, on a connection of its own.
    pub(crate) async fn ask(&self, request: Request<Sent>) -> Reply {
        let host = request.uri().host().unwrap().to_owned();
        let mut client = self.http1(&host).await;
        send1(&mut client, request).await
    }

    /// Whom clients trust that go to the server directly.
    pub(crate) fn server_roots(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("roots.pem")).unwrap()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().expect("a request arrived")
    }

    pub(crate) fn arrived(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn uses(&self) -> Vec<SecretUse> {
        self.gateway.take_uses(SecretUsesQuery { acknowledged: 0 }).uses
    }
}

pub(crate) async fn client_tls<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    protocols: &[&[u8]],
    roots_pem: &str,
) -> std::io::Result<TlsStream<S>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(roots_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub(crate) async fn http1_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
) -> http1::SendRequest<Sent> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) async fn http2_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
) -> http2::SendRequest<Sent> {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// What is in a refusal: the error, the host, the rule.
    pub(crate) fn refusal(&self) -> (String, String, String) {
        assert_eq!(self.headers["x-warren-egress"], "refused");
        assert_eq!(self.headers["content-type"], "application/json");
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let field = |name: &str| body[name].as_str().unwrap().to_owned();
        (field("error"), field("host"), field("rule"))
    }
}

pub(crate) async fn reply(response: Response<Incoming>) -> Reply {
    let (parts, body) = response.into_parts();
    let whole = body.collect().await.unwrap();
    let trailers = whole.trailers().cloned();
    Reply { status: parts.status, headers: parts.headers, body: whole.to_bytes(), trailers }
}

/// In origin form with a `Host`, as clients do; the address of `request` is whole.
pub(crate) async fn send1(client: &mut http1::SendRequest<Sent>, mut request: Request<Sent>) -> Reply {
    let host = request.uri().authority().map(ToString::to_string);
    if let Some(host) = host {
        request.headers_mut().entry("host").or_insert(host.parse().unwrap());
        *request.uri_mut() = request.uri().path_and_query().unwrap().clone().into();
    }
    client.ready().await.unwrap();
    reply(client.send_request(request).await.unwrap()).await
}

pub(crate) async fn send2(client: &mut http2::SendRequest<Sent>, request: Request<Sent>) -> Reply {
    client.ready().await.unwrap();
    reply(client.send_request(request).await.unwrap()).await
}

pub(crate) fn get(uri: &str) -> Request<Sent> {
    Request::get(uri).body(full("")).unwrap()
}

/// With one header.
pub(crate) fn get_with(uri: &str, name: &str, value: &str) -> Request<Sent> {
    Request::get(uri).header(name, value).body(full("")).unwrap()
}

// === The server ===

#[derive(Clone)]
struct Server {
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    tls: Option<TlsAcceptor>,
}

impl Server {
    async fn run(self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            self.connections.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).unwrap();
            let server = self.clone();
            tokio::spawn(async move {
                match &server.tls {
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        server.serve(stream).await;
                    }
                    None => server.serve(stream).await,
                }
            });
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let server = self.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
        builder.http2().max_frame_size(Some(16 * 1024));
        let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Response<Sent> {
        if request.uri().path() == "/count" {
            return count(request).await;
        }
        if request.headers().contains_key("upgrade") {
            return super::upgrades::accept(&mut request, &self.seen);
        }
        let (parts, body) = request.into_parts();
        let Ok(whole) = body.collect().await else { return text("") };
        let trailers = whole.trailers().cloned();
        let seen = Seen {
            version: parts.version,
            method: parts.method,
            uri: parts.uri,
            headers: parts.headers,
            body: whole.to_bytes(),
            trailers,
        };
        self.seen.lock().unwrap().push(seen.clone());
        (self.answer)(&seen)
    }
}

/// How many bytes a body had; keeps none.
async fn count(request: Request<Incoming>) -> Response<Sent> {
    let mut body = request.into_body();
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
    text(count.to_string())
}

type Key = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// An authority in PEM, and a server's key with a certificate of it.
fn certificates(names: Vec<String>) -> (String, Key) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    (issuer.pem(), (vec![certificate.der().clone()], der))
}

fn acceptor((chain, key): Key, protocols: Vec<Vec<u8>>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols;
    TlsAcceptor::from(Arc::new(config))
}

/// Everything below `test` is here; `private.test` is at an address nobody may reach, `nowhere.test` is not.
async fn names() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
            let Ok(mut message) = Message::from_vec(&buffer[..length]).map(Message::into_response) else {
                continue;
            };
            let name = message.queries[0].name().clone();
            let at = match name.to_ascii().as_str() {
                "nowhere.test." => None,
                "private.test." => Some(Ipv4Addr::new(10, 0, 0, 1)),
                _ => Some(Ipv4Addr::LOCALHOST),
            };
            if let Some(at) = at {
                message.add_answer(Record::from_rdata(name, 60, RData::A(at.into())));
            } else {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            let _ = socket.send_to(&message.to_vec().unwrap(), peer).await;
        }
    });
    address
}
