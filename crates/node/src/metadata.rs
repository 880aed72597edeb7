//! What a sandbox asks about itself, at `http://169.254.169.254`.
//!
//! ```text
//!   program in a sandbox ──▶ firewall: turned, counted ──▶ serve: one listener for all, the source says whose it is
//!                                                             │
//!        Questions ◀── region, template, another size ────────┤
//!            │                                                └── uptime, limits, use: from the sandbox's own actor
//!            └──▶ GET /v1/questions, PUT /v1/questions/{number}: the control plane
//! ```
//!
//! | path | answer |
//! | --- | --- |
//! | `GET /` | the other paths |
//! | `GET /v1/status` | `sandboxId`, `uptime` in seconds |
//! | `GET /v1/limits` | `cpuPercent` (vCPUs × 100), `memUsage`, `memLimit`, `pids`, `netInput`, `netOutput`; bytes |
//! | `GET /v1/metadata` | `region`, `template` |
//! | `POST /v1/scale` | `ok`, `memoryMB`, `cpuPercent`; takes `memoryMB` |
//!
//! Whoever asks is a guest, and hostile. What a connection may cost is bounded: the firewall says how many and how fast, and
//! [`serve`] how long, how large, and how many of all sandboxes together. Nothing here counts as use of a sandbox.

mod questions;
mod serve;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use warren_guest_api::machine::Usage;
use warren_node_api::{Answer, Subject};
use warren_runtime::cgroup::Cgroup;
use warren_types::{Error, SandboxId, SandboxState, object};

use crate::checkpoint::make::now_ms;
use crate::guest::Guest;
use crate::registry::Registry;

pub(crate) use questions::Questions;
pub(crate) use serve::{READ_WITHIN, serve};

/// A sandbox may be in the middle of something; who only wants figures does not wait for its end.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Where to read what a running sandbox uses.
pub(crate) struct Meter {
    pub(crate) cgroup: Cgroup,
    /// The host's end of its link.
    pub(crate) link: String,
    /// Of its first process: a virtual machine's QEMU.
    pub(crate) pid: i32,
    /// Who counts in a virtual machine, whose memory and processes are its own kernel's affair.
    pub(crate) guest: Option<Guest>,
}

impl Meter {
    /// Bytes of the host's memory that it uses, and whether caches of files are among them.
    pub(crate) fn memory_in_use(&self) -> (u64, bool) {
        match &self.guest {
            None => (self.cgroup.memory_in_use(), false),
            Some(_) => (resident_bytes(self.pid), true),
        }
    }
}

/// Body of `POST /v1/scale`.
#[derive(Deserialize)]
struct Scale {
    #[serde(rename = "memoryMB", default, deserialize_with = "warren_types::whole::optional")]
    memory_mb: Option<i64>,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Index,
    Status,
    Limits,
    Metadata,
    Scale,
}

impl Route {
    const ALL: [(&str, Self); 5] = [
        ("/", Self::Index),
        ("/v1/status", Self::Status),
        ("/v1/limits", Self::Limits),
        ("/v1/metadata", Self::Metadata),
        ("/v1/scale", Self::Scale),
    ];

    fn find(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(its, _)| *its == path).map(|(_, route)| route)
    }

    /// By which it is asked for.
    fn method(self) -> Method {
        match self {
            Self::Scale => Method::POST,
            Self::Index | Self::Status | Self::Limits | Self::Metadata => Method::GET,
        }
    }
}

/// Answers one request of a sandbox.
async fn answer(registry: &Registry, id: &SandboxId, route: Route, body: &[u8]) -> Result<Value, Error> {
    match route {
        Route::Index => {
            let endpoints: Vec<String> =
                Route::ALL.iter().map(|(path, route)| format!("{} {path}", route.method())).collect();
            Ok(json!({ "endpoints": endpoints }))
        }
        Route::Status => {
            let since_ms = registry.get(id)?.latest().processes_since_ms.unwrap_or_else(now_ms);
            Ok(json!({ "sandboxId": id.as_str(), "uptime": now_ms().saturating_sub(since_ms) / 1000 }))
        }
        Route::Limits => within(ANSWER_DEADLINE, limits(registry, id)).await,
        Route::Metadata => match registry.questions.ask(id, Subject::About).await? {
            Answer::About { region, template } => Ok(json!({ "region": region, "template": template })),
            other => Err(refusal(other)),
        },
        Route::Scale => {
            let memory_mb = wanted(body)?;
            match registry.questions.ask(id, Subject::Scale { memory_mb }).await? {
                Answer::Scaled { memory_mb, cpu_percent } => {
                    Ok(json!({ "ok": true, "memoryMB": memory_mb, "cpuPercent": cpu_percent }))
                }
                other => Err(refusal(other)),
            }
        }
    }
}

/// A body that is not there asks for nothing, which is refused in the same words as by the API.
fn wanted(body: &[u8]) -> Result<Option<i64>, Error> {
    let body = if body.is_empty() { b"{}" } else { body };
    let mut reader = serde_json::Deserializer::from_slice(body);
    object::optional::<_, Scale>(&mut reader)
        .and_then(|scale| reader.end().map(|()| scale.and_then(|scale| scale.memory_mb)))
        .map_err(|error| Error::invalid(format!("the body must be like {{\"memoryMB\": 4096}}: {error}")))
}

fn refusal(answer: Answer) -> Error {
    match answer {
        Answer::Refused(error) => error,
        Answer::About { .. } | Answer::Scaled { .. } => {
            Error::internal("the control plane answered another question")
        }
    }
}

async fn limits(registry: &Registry, id: &SandboxId) -> Result<Value, Error> {
    let handle = registry.get(id)?;
    let meter = handle.meter().await?.ok_or_else(|| Error::unavailable("the sandbox is not running"))?;
    let report = handle.latest();
    let size = report.size.filter(|_| report.state == SandboxState::Running);
    let size = size.ok_or_else(|| Error::unavailable("the sandbox is not running"))?;
    let (memory, processes) = match &meter.guest {
        // An agent of an older version does not say; nobody else can.
        Some(guest) => guest
            .json::<Usage>(Method::GET, "/v1/usage", None::<&()>)
            .await
            .map_or((None, None), |usage| (Some(usage.memory_bytes), Some(usage.processes))),
        None => (Some(meter.cgroup.memory_in_use()), Some(meter.cgroup.processes())),
    };
    Ok(json!({
        "cpuPercent": size.cpu_count * 100,
        "memUsage": memory,
        "memLimit": u64::from(size.memory_mb) << 20,
        "pids": processes,
        // What the host's end sends is what the sandbox receives.
        "netInput": counter(&meter.link, "tx_bytes"),
        "netOutput": counter(&meter.link, "rx_bytes"),
    }))
}

fn counter(link: &str, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/class/net/{link}/statistics/{name}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or_else(|_| Err(Error::unavailable("this took too long; try again shortly")))
}

/// What [`serve`] asks; a test answers in place of a registry.
pub(crate) trait Answers: Send + Sync + 'static {
    fn answer(
        &self,
        id: &SandboxId,
        route: Route,
        body: &[u8],
    ) -> impl Future<Output = Result<Value, Error>> + Send;
}

impl Answers for Arc<Registry> {
    async fn answer(&self, id: &SandboxId, route: Route, body: &[u8]) -> Result<Value, Error> {
        answer(self, id, route, body).await
    }
}

/// Memory of the host that a process has; 0 when it has ended.
fn resident_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_until_it_has_ended() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(resident_bytes(me) > 1 << 20);
        assert_eq!(resident_bytes(i32::MAX), 0);
    }

    #[test]
    fn what_is_wanted_is_a_number_or_nothing() {
        assert_eq!(wanted(b"").unwrap(), None);
        assert_eq!(wanted(b"{\"memoryMB\": 4096, \"other\": 1}").unwrap(), Some(4096));
        assert_eq!(wanted(b"{\"memoryMB\": 4096.0}").unwrap(), Some(4096));
        assert_eq!(wanted(b"{\"memoryMB\": -1}").unwrap(), Some(-1));
        for body in [
            "[]",
            "4096",
            "{\"memoryMB\": \"4096\"}",
            "{\"memoryMB\": 1e30}",
            "{\"memoryMB\": 40.5}",
            "{",
            "\u{0}",
        ] {
            assert!(wanted(body.as_bytes()).is_err(), "{body}");
        }
    }
}
