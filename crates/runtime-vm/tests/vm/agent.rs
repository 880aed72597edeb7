//! A node's end of the agent, in a few lines.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use warren_guest_api::boot::Boot;
use warren_guest_api::frame::{Decoder, Frame};
use warren_guest_api::handshake;
use warren_guest_api::machine::{ENTROPY_BYTES, Identity, Renew, Renewed};

use crate::lab::Lab;

pub(crate) struct Agent {
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Agent {
    pub(crate) async fn connect(folder: &Path) -> Self {
        let mut stream = UnixStream::connect(folder.join("agent.sock")).await.unwrap();
        let connected = handshake::connect_port(&mut stream, rand());
        tokio::time::timeout(std::time::Duration::from_secs(10), connected).await.unwrap().unwrap();
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, connection }
    }

    /// Hangs up, whatever is under way.
    pub(crate) async fn leave(self) {
        self.connection.abort();
        let _ = self.connection.await;
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Bytes) {
        self.call(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> (u16, Bytes) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://guest{path}"))
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let answer = self.sender.clone().send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    }

    pub(crate) async fn renew(&self, lab: &Lab, identity: Identity) -> Renewed {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let renew = Renew {
            boot: Boot {
                sandbox_id: warren_types::SandboxId::generate(),
                envs: BTreeMap::from([("WHO".to_owned(), "me".to_owned())]),
                user: warren_guest_api::boot::User::default(),
                workdir: None,
            },
            identity,
            hostname: "sandbox".into(),
            unix_time_us: u64::try_from(now.as_micros()).unwrap(),
            entropy: (0..ENTROPY_BYTES / 4).flat_map(|_| rand().to_ne_bytes()).collect(),
            mtu: lab.mtu,
        };
        let (status, body) = self.call(Method::POST, "/v1/renew", json!(renew)).await;
        assert_eq!(status, 200, "{body:?}");
        serde_json::from_slice(&body).unwrap()
    }

    /// What a shell command prints.
    pub(crate) async fn run(&self, command: &str) -> String {
        let body = json!({ "cmd": "bash", "args": ["-c", command] });
        let (status, body) = self.call(Method::POST, "/v1/exec/run", body).await;
        assert_eq!(status, 200, "{body:?}");
        let mut decoder = Decoder::default();
        decoder.push(&body);
        let mut output = Vec::new();
        while let Some(frame) = decoder.next_frame().unwrap() {
            if let Frame::Stdout(bytes) | Frame::Stderr(bytes) = frame {
                output.extend_from_slice(&bytes);
            }
        }
        String::from_utf8(output).unwrap()
    }
}

fn rand() -> u32 {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u32::from_ne_bytes(bytes)
}
