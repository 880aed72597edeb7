//! The proxy that programs in a sandbox are told of: `CONNECT`, and plain HTTP by whole addresses. A convenience; it
//! allows what the gateway allows and nothing else.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::Gateway;
use super::body::Body;
use super::connection::Destination;
use super::form;
use super::io::Io;
use super::open::{Kind, Open};
use super::proxy::{Proxy, Site};
use super::refusal::{NOT_ALLOWED, PRIVATE, Refusal};
use super::session::Session;

/// Where a `CONNECT` without a port goes.
const DEFAULT_PORT: u16 = 443;

/// One connection to the proxy.
pub(crate) async fn handle<S: Io>(gateway: Arc<Gateway>, stream: S, session: Arc<Session>) {
    let places = (gateway.places.clone().try_acquire_owned(), session.places.clone().try_acquire_owned());
    let (Ok(_gateway), Ok(_session)) = places else {
        return session.note_blocked("", 0, "too many connections");
    };
    let held = session.hold(Open { host: None, address: None, port: 0, kind: Kind::Inspected });
    let site = Site {
        host: None,
        // Each request says where to.
        to: Destination { host: None, addresses: Vec::new(), port: 0 },
        secure: false,
    };
    let proxy = Proxy::new(gateway.clone(), session.clone(), held.close().clone(), site);
    let _ = held.close().run_until_cancelled(proxy.carry_plain(stream, true)).await;
}

/// Answers a `CONNECT`; what comes through the tunnel is then handled like any other connection.
pub(crate) async fn connect(
    proxy: &Proxy,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let asked = request.uri().authority().and_then(|authority| form::authority(authority.as_str()));
    let Some(asked) = asked else {
        return Err(Refusal::form("", "CONNECT names a host and a port, like example.com:443"));
    };
    let (host, port) = (asked.host, asked.port.unwrap_or(DEFAULT_PORT));
    let session = proxy.session();
    let refused = |refusal: &Refusal, reason| {
        session.note_refusal(refusal, port);
        Ok(refusal.to_connect(reason))
    };
    let policy = session.policy();
    if !policy.allows(&host, port) {
        return refused(&Refusal::not_allowed(&host, port), NOT_ALLOWED);
    }
    let addresses = match proxy.gateway().resolve(&host).await {
        Ok(addresses) => addresses,
        Err(refusal) if refusal.status == StatusCode::GATEWAY_TIMEOUT => {
            return refused(&refusal, "name not found in time");
        }
        Err(refusal) => return refused(&refusal, "name not found"),
    };
    let addresses: Vec<_> =
        addresses.into_iter().filter(|address| proxy.gateway().may_reach(*address)).collect();
    if addresses.is_empty() {
        return refused(&Refusal::private(&host), PRIVATE);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let to = Destination { host: Some(host), addresses, port };
    let (gateway, session) = (proxy.gateway().clone(), session.clone());
    proxy.then(Box::pin(async move {
        if let Ok(stream) = upgrade.await {
            gateway.handle_inner(TokioIo::new(stream), to, session).await;
        }
    }));
    Ok(Response::new(Body::default()))
}
