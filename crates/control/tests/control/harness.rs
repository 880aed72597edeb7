//! A control plane that serves on a port of its own, and clients for it.

use std::path::Path;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warren_control::listen::Listener;
use warren_control::{Config, Control, keys};

use crate::sim::SimNode;

/// A control plane over a simulated node, with keys of two organisations.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) control: Control,
    pub(crate) node: SimNode,
    pub(crate) dir: TempDir,
    pub(crate) acme: Api,
    pub(crate) rival: Api,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// A client with one API key, or none.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) base: String,
    pub(crate) key: Option<String>,
    pub(crate) http: reqwest::Client,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The sentence of an error; every error must have one.
    pub(crate) fn error(&self) -> String {
        let body = self.json();
        assert!(!self.status.is_success(), "{self:?}");
        body["error"].as_str().filter(|error| !error.is_empty()).expect("an error has a sentence").to_owned()
    }

    /// Asserts the status, showing the whole answer when it is another.
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(SimNode::new(), TempDir::new().unwrap(), |_| {}).await
    }

    pub(crate) async fn start_with(node: SimNode, dir: TempDir, configure: impl FnOnce(&mut Config)) -> Self {
        let acme = key(dir.path(), "acme").await;
        let rival = key(dir.path(), "rival").await;
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let mut config = Config::new(dir.path());
        configure(&mut config);
        let control =
            Control::start(config, node.client(), shutdown.clone(), tasks.clone()).await.expect("it starts");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let listener = Listener::new(listener, None, shutdown.clone()).unwrap();
        tasks.spawn(listener.serve(control.router()));
        Self {
            acme: Api::new(&address, Some(acme)),
            rival: Api::new(&address, Some(rival)),
            address,
            control,
            node,
            dir,
            shutdown,
            tasks,
        }
    }

    /// Ends it as a signal would, and waits until it has ended.
    pub(crate) async fn stop(self) -> (SimNode, TempDir) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await.expect("everything ends");
        (self.node, self.dir)
    }

    pub(crate) fn shut_down(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn anonymous(&self) -> Api {
        Api::new(&self.address, None)
    }
}

pub(crate) async fn key(dir: &Path, org: &str) -> String {
    let (key, _) = keys::open(dir).await.unwrap().create(org, None).await.unwrap();
    key.expose().clone()
}

impl Api {
    pub(crate) fn new(address: &str, key: Option<String>) -> Self {
        Self { base: format!("http://{address}"), key, http: reqwest::Client::new() }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.header("x-api-key", key),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        send(self.request(Method::DELETE, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::POST, path).json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        send(self.request(Method::PUT, path).json(&body)).await
    }

    /// A running sandbox.
    pub(crate) async fn sandbox(&self) -> String {
        self.create(serde_json::json!({})).await["sandboxID"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn create(&self, body: Value) -> Value {
        self.post("/api/sandboxes", body).await.is(201).json()
    }

    pub(crate) async fn status(&self, id: &str) -> String {
        self.get(&format!("/api/sandboxes/{id}")).await.is(200).json()["status"].as_str().unwrap().to_owned()
    }
}

pub(crate) async fn send(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the server answers");
    let (status, headers) = (response.status(), response.headers().clone());
    assert!(headers.contains_key("x-request-id"), "every answer has a request id");
    Answer { status, headers, text: response.text().await.expect("the body arrives whole") }
}

/// Waits until `probe` gives a value.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
