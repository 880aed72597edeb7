//! The proxy that programs in a sandbox are told of: `CONNECT`, and plain HTTP by whole addresses. A convenience; it
//! allows what the gateway allows and nothing else.

use std::net::Ipv4Addr;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::Gateway;
use super::body::Body;
use super::connection::{Destination, WEB_PORTS};
use super::form;
use super::io::Io;
use super::meter::Metered;
use super::open::{Kind, Open};
use super::proxy::{Proxy, Site};
use super::refusal::Refusal;
use super::request::is_of;
use super::session::Session;

/// Where a `CONNECT` without a port goes.
const DEFAULT_PORT: u16 = 443;
/// Below it there are protocols of all kinds, above it mostly HTTP over TLS.
const FIRST_FREE_PORT: u16 = 1024;
/// What programs call themselves that show what hosts answer, and of a proxy's answer the status at most: what uses libcurl.
const HIDE_ANSWERS: [&str; 3] = ["curl/", "git/", "cargo"];

/// One connection to the proxy.
pub(crate) async fn handle<S: Io>(gateway: Arc<Gateway>, stream: S, session: Arc<Session>) {
    let Some(_place) = gateway.place(&session) else {
        return session.note_blocked("", 0, "too many connections");
    };
    let stream = Metered::new(stream, session.meter.clone());
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
///
/// Where it may not go the answer says so. Some programs do not show that; theirs is agreed to, and refused in what follows: see
/// [`Gateway::refuse_inner`].
pub(crate) async fn connect(
    proxy: &Proxy,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let asked = request.uri().authority().and_then(|authority| form::authority(authority.as_str()));
    let Some(asked) = asked else {
        return Err(Refusal::form("", "CONNECT names a host and a port, like example.com:443"));
    };
    let (host, port) = (asked.host, asked.port.unwrap_or(DEFAULT_PORT));
    let found = find(proxy, &host, port).await;
    if let Err(refusal) = &found {
        proxy.session().note_refusal(refusal, port);
        if !is_of(&request, &HIDE_ANSWERS) || !is_refused_inside(&host, port) {
            return Ok(refusal.to_connect());
        }
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (gateway, session) = (proxy.gateway().clone(), proxy.session().clone());
    proxy.then(Box::pin(async move {
        let Ok(stream) = upgrade.await.map(TokioIo::new) else { return };
        let to = |addresses| Destination { host: Some(host), addresses, port };
        match found {
            Ok(addresses) => gateway.handle_inner(stream, to(addresses), session).await,
            Err(refusal) => gateway.refuse_inner(stream, to(Vec::new()), session, refusal).await,
        }
    }));
    Ok(Response::new(Body::default()))
}

/// Where that host is, if it may be reached; else why not.
async fn find(proxy: &Proxy, host: &str, port: u16) -> Result<Vec<Ipv4Addr>, Refusal> {
    if !proxy.session().policy().allows(host, port) {
        return Err(Refusal::not_allowed(host, port));
    }
    let addresses = proxy.gateway().resolve(host).await?;
    let reachable = addresses.into_iter().filter(|address| proxy.gateway().may_reach(*address));
    let reachable: Vec<_> = reachable.collect();
    if reachable.is_empty() { Err(Refusal::private(host)) } else { Ok(reachable) }
}

/// Whether what follows the `CONNECT` is likely to be something that a refusal can be said in.
fn is_refused_inside(host: &str, port: u16) -> bool {
    host.parse::<Ipv4Addr>().is_err() && (WEB_PORTS.contains(&port) || port >= FIRST_FREE_PORT)
}
