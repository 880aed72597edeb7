//! What an allowlist lets through, and what changes of a policy do.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use warren_network::egress::Destination;
use warren_node_api::Place;
use warren_types::{EgressMode, EgressPolicy};

use crate::harness::*;

async fn world(rules: impl FnOnce(u16) -> String) -> World {
    let world = World::new(Setting { sealed: false, ..Setting::default() }).await;
    world.session.set_policy(allowlist(&rules(world.port)));
    world
}

fn web(address: Ipv4Addr) -> Destination {
    Destination::address(address, 443)
}

#[tokio::test]
async fn a_host_in_no_rule_is_refused_in_words_over_both_protocols() {
    let world = world(|_| r#"{"host":"api.test"}"#.into()).await;
    let stream = world.connect_to(web(Ipv4Addr::LOCALHOST));
    let stream = world.tls_over(stream, "evil.test", &[b"h2", b"http/1.1"]).await.unwrap();
    let answer = send2(&mut http2_over(stream).await, get("https://evil.test/")).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let (error, host, rule) = answer.refusal();
    assert!(error.contains("host not in allowlist") && host == "evil.test" && rule == "allowlist", "{error}");
    let stream = world.connect_to(web(Ipv4Addr::LOCALHOST));
    let stream = world.tls_over(stream, "evil.test", &[]).await.unwrap();
    let answer = send1(&mut http1_over(stream).await, get("https://evil.test/")).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let blocked = &world.session.report().blocked[0];
    assert_eq!((blocked.host.as_str(), blocked.port, blocked.count), ("evil.test", 443, 2));
    assert_eq!(blocked.reason, "host not in allowlist");
}

#[tokio::test]
async fn methods_and_paths_are_asked_for_at_every_request() {
    let world =
        world(|port| format!(r#"{{"host":"api.test","ports":[{port}],"methods":["GET"],"paths":["/v1"]}}"#))
            .await;
    let mut client = world.http1("api.test").await;
    assert_eq!(send1(&mut client, get("https://api.test/v1/models?x=../..")).await.status, StatusCode::OK);
    assert_eq!(send1(&mut client, get("https://api.test/v2")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(send1(&mut client, get("https://api.test/v1/%2e%2e/v2")).await.status, StatusCode::FORBIDDEN);
    let post = || Request::post("https://api.test/v1").body(full("x")).unwrap();
    assert_eq!(send1(&mut client, post()).await.status, StatusCode::FORBIDDEN);
    let mut client = world.http2("api.test").await;
    assert_eq!(send2(&mut client, post()).await.status, StatusCode::FORBIDDEN);
    assert_eq!(world.arrived(), 1);
}

#[tokio::test]
async fn other_bytes_on_web_ports_and_names_that_are_missing_are_refused() {
    let world = world(|_| r#"{"host":"*.test"}"#.into()).await;
    for bytes in [
        &b"SSH-2.0-x\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x02aaaa",
        b"GET /\r\n",
    ] {
        let mut stream = world.connect_to(web(Ipv4Addr::LOCALHOST));
        stream.write_all(bytes).await.unwrap();
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
    }
    // An address has no name to be allowed by.
    assert!(world.tls_over(world.connect_to(web(Ipv4Addr::LOCALHOST)), "127.0.0.1", &[]).await.is_err());
    let reasons: Vec<_> = world.session.report().blocked.into_iter().map(|blocked| blocked.reason).collect();
    for reason in
        ["neither HTTP nor TLS", "HTTP/2 without TLS", "not a client hello", "TLS without a server name"]
    {
        assert!(reasons.iter().any(|known| known == reason), "{reason} is not in {reasons:?}");
    }
}

#[tokio::test]
async fn an_address_that_a_rule_names_is_reached_without_a_name() {
    let setting = Setting { sealed: false, names: vec!["127.0.0.1".into()], ..Setting::default() };
    let world = World::new(setting).await;
    world.session.set_policy(allowlist(&format!(r#"{{"host":"127.0.0.1","ports":[{}]}}"#, world.port)));
    let stream = world.tls("127.0.0.1", &[b"http/1.1"]).await;
    let answer = send1(&mut http1_over(stream).await, get("https://127.0.0.1/")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn where_a_name_is_comes_from_what_was_pinned_or_is_asked_again() {
    let world = world(|port| format!(r#"{{"host":"api.test","ports":[{port}]}}"#)).await;
    // Where it wants to go is not where the name is: it goes where the name says.
    let elsewhere = Destination::address(Ipv4Addr::new(127, 9, 9, 9), world.port);
    let stream = world.tls_over(world.connect_to(elsewhere.clone()), "api.test", &[]).await.unwrap();
    assert_eq!(send1(&mut http1_over(stream).await, get("https://api.test/")).await.status, StatusCode::OK);
    // Unless that is what its sandbox was told; nobody listens there.
    world.session.pin("api.test", &[Ipv4Addr::new(127, 9, 9, 9)], Duration::from_secs(1));
    let stream = world.tls_over(world.connect_to(elsewhere), "api.test", &[]).await.unwrap();
    assert_eq!(
        send1(&mut http1_over(stream).await, get("https://api.test/")).await.status,
        StatusCode::BAD_GATEWAY
    );
    // A name that was pinned to an address that nobody may reach is not reached.
    world.session.pin("api.test", &[Ipv4Addr::new(169, 254, 169, 254)], Duration::from_secs(1));
    let metadata = Destination::address(Ipv4Addr::new(169, 254, 169, 254), world.port);
    let stream = world.tls_over(world.connect_to(metadata), "api.test", &[]).await.unwrap();
    let answer = send1(&mut http1_over(stream).await, get("https://api.test/")).await;
    assert_eq!((answer.status, answer.refusal().2.as_str()), (StatusCode::FORBIDDEN, "reach"));
}

/// A server that speaks first, and says what it is told.
async fn greeter() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.unwrap();
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn raw_bytes_go_where_a_rule_names_the_port_of_a_pinned_name() {
    let port = greeter().await;
    let world = world(|_| format!(r#"{{"host":"mail.test","ports":[{port}]}},{{"host":"half.test","ports":[{port}],"methods":["GET"]}}"#)).await;
    let to = || Destination::address(Ipv4Addr::LOCALHOST, port);
    // Not before its sandbox has asked for the name.
    for name in ["half.test", "else.test"] {
        let mut stream = world.connect_to(to());
        stream.write_all(b"EHLO me\r\n").await.unwrap();
        assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
        world.session.pin(name, &[Ipv4Addr::LOCALHOST], Duration::from_secs(60));
    }
    world.session.pin("mail.test", &[Ipv4Addr::LOCALHOST], Duration::from_secs(60));
    let mut stream = world.connect_to(to());
    let mut line = [0; 11];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"220 hello\r\n");
    stream.write_all(b"EHLO me\r\n").await.unwrap();
    stream.read_exact(&mut line[..9]).await.unwrap();
    assert_eq!(&line[..9], b"EHLO me\r\n");
    // What looks like HTTP is read as such: its host is in no rule.
    let mut stream = world.connect_to(to());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn who_speaks_late_is_judged_like_who_speaks_at_once() {
    let world = world(|port| format!(r#"{{"host":"api.test","ports":[{port}]}}"#)).await;
    world.session.pin("api.test", &[Ipv4Addr::LOCALHOST], Duration::from_secs(60));
    let late = async || {
        let stream = world.connect();
        // It has been joined with the server by then.
        tokio::time::sleep(Duration::from_millis(450)).await;
        stream
    };
    for protocols in [&[&b"http/1.1"[..]][..], &[]] {
        let stream = world.tls_over(late().await, "evil.test", protocols).await.unwrap();
        let answer = send1(&mut http1_over(stream).await, get("https://evil.test/")).await;
        assert_eq!((answer.status, answer.refusal().1.as_str()), (StatusCode::FORBIDDEN, "evil.test"));
        let stream = world.tls_over(late().await, "api.test", protocols).await.unwrap();
        let answer = send1(&mut http1_over(stream).await, get("https://evil.test/")).await;
        assert_eq!(answer.status, StatusCode::MISDIRECTED_REQUEST);
    }
    let answer = send1(&mut http1_over(late().await).await, get("http://evil.test/")).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(world.arrived(), 0);
    assert_eq!(world.session.report().blocked[0].host, "evil.test");
}

#[tokio::test]
async fn a_slow_client_has_its_secrets_put_in_on_any_port() {
    let world = World::with_secret(&[Place::Header], Arc::new(|_| text("fine"))).await;
    let stream = world.connect();
    tokio::time::sleep(Duration::from_millis(450)).await;
    // It does not say that it speaks HTTP, and takes its time after the handshake too.
    let stream = world.tls_over(stream, "api.test", &[]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(450)).await;
    let answer = send1(&mut http1_over(stream).await, get_with("https://api.test/", "x", &token(1))).await;
    assert_eq!((answer.text(), world.last().header("x")), ("fine", VALUE));
}

#[tokio::test]
async fn an_open_sandbox_speaks_to_servers_that_speak_first() {
    let port = greeter().await;
    let world = World::new(Setting::default()).await;
    let mut stream = world.connect_to(Destination::address(Ipv4Addr::LOCALHOST, port));
    let mut line = [0; 11];
    stream.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"220 hello\r\n");
    let mut stream = world.connect_to(Destination::address(Ipv4Addr::new(10, 0, 0, 1), port));
    assert_eq!(stream.read(&mut line).await.unwrap(), 0);
    assert_eq!(world.session.report().blocked[0].reason, "private IP blocked");
}

async fn ends(client: &hyper::client::conn::http1::SendRequest<Sent>) {
    let closing = async {
        while !client.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closing).await.expect("it is closed");
}

#[tokio::test]
async fn a_narrower_policy_closes_what_it_does_not_allow() {
    let port = greeter().await;
    let world = world(|at| format!(r#"{{"host":"*.test","ports":[{at},{port}]}}"#)).await;
    world.session.pin("mail.test", &[Ipv4Addr::LOCALHOST], Duration::from_secs(60));
    let mut raw = world.connect_to(Destination::address(Ipv4Addr::LOCALHOST, port));
    raw.read_exact(&mut [0; 11]).await.unwrap();
    let mut kept = world.http1("api.test").await;
    let mut closed = world.http1("other.test").await;
    send1(&mut kept, get("https://api.test/")).await;
    send1(&mut closed, get("https://other.test/")).await;
    world.session.set_policy(allowlist(&format!(r#"{{"host":"api.test","ports":[{}]}}"#, world.port)));
    assert_eq!(raw.read(&mut [0; 10]).await.unwrap(), 0);
    ends(&closed).await;
    assert_eq!(send1(&mut kept, get("https://api.test/")).await.status, StatusCode::OK);
    world.session.set_policy(EgressPolicy { mode: EgressMode::None, allow: Vec::new() });
    let mut stream = world.connect();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap(), 0);
    ends(&kept).await;
}

#[tokio::test]
async fn an_unread_connection_is_closed_when_its_host_gets_a_secret() {
    let world = World::new(Setting { sealed: false, ..Setting::default() }).await;
    assert!(!world.session.is_gated());
    // Through to the server's own certificate: the client's part of the handshake is enough to see it pass.
    let mut stream = world.connect();
    let hello = {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut client =
            rustls::ClientConnection::new(Arc::new(config), "api.test".try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    };
    stream.write_all(&hello).await.unwrap();
    assert!(stream.read(&mut [0; 5]).await.unwrap() > 0);
    world.session.set_grant(grant(VALUE, &["api.test"], &[]));
    assert!(world.session.is_gated());
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest))
        .await
        .expect("closed")
        .unwrap();
}
