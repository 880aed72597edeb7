//! Sends records to a collector of OpenTelemetry: OTLP over HTTP, each record a log record, encoded as JSON.
//!
//! The file of records is the queue: what was sent is remembered with its number, so that nothing is lost while the collector
//! or this server is away, and requests never wait for any of it. After a crash the last batch may be sent twice; `seq` tells.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::chain::time_text;
use crate::store::StoreError;
use crate::store::audit::AuditRow;

/// Records of one request.
const BATCH: i64 = 512;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);
/// A little time for more to come along.
const GATHER: Duration = Duration::from_millis(200);
/// Records of another process are not announced.
const LOOK: Duration = Duration::from_secs(5);
/// Where logs are taken in, below the address of a collector.
const LOGS_PATH: &str = "/v1/logs";

/// Where records are sent.
#[derive(Debug, Clone)]
pub struct OtlpTarget {
    /// Of the collector, such as `http://127.0.0.1:4318`.
    pub endpoint: String,
    /// Sent with each request.
    pub headers: HeaderMap,
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the collector could not be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("the collector answered {status}")]
    Refused { status: StatusCode, wait: Option<Duration> },
    #[error("the audit records could not be read")]
    Store(#[source] StoreError),
}

impl OtlpTarget {
    fn url(&self) -> String {
        let base = self.endpoint.trim_end_matches('/');
        if base.ends_with(LOGS_PATH) { base.to_owned() } else { format!("{base}{LOGS_PATH}") }
    }
}

impl App {
    /// Sends what is written, for ever.
    pub(crate) async fn export_audit(&self, target: OtlpTarget) {
        let url = target.url();
        let client = match client(&target, &url) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "audit records cannot be sent anywhere"
                );
                return;
            }
        };
        let mut written = self.audit.written.clone();
        let mut pause = FIRST_PAUSE;
        let mut batch = BATCH;
        loop {
            match self.export_batch(&client, &url, batch).await {
                Ok(true) => {
                    if pause > FIRST_PAUSE {
                        tracing::info!(url, "audit records are sent again");
                    }
                    (pause, batch) = (FIRST_PAUSE, BATCH);
                }
                Ok(false) => {
                    let _ = tokio::time::timeout(LOOK, written.changed()).await;
                    tokio::time::sleep(GATHER).await;
                }
                Err(SendError::Refused { status: StatusCode::PAYLOAD_TOO_LARGE, .. }) if batch > 1 => {
                    batch /= 2;
                }
                Err(error) => {
                    if pause == FIRST_PAUSE {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            url,
                            "audit records could not be sent; trying again until they are"
                        );
                    }
                    let asked = match error {
                        SendError::Refused { wait, .. } => wait,
                        SendError::Unreachable(_) | SendError::Store(_) => None,
                    };
                    tokio::time::sleep(asked.unwrap_or(pause).min(LONGEST_PAUSE)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Sends what comes next; whether there was anything.
    async fn export_batch(&self, client: &reqwest::Client, url: &str, batch: i64) -> Result<bool, SendError> {
        let store = &self.audit.store;
        let after = store.find_cursor(url).await.map_err(SendError::Store)?.unwrap_or(0);
        let rows = store.list_after_id(after, batch).await.map_err(SendError::Store)?;
        let Some(last) = rows.last() else { return Ok(false) };
        let body = request(&rows).to_string();
        let sent = client.post(url).header(CONTENT_TYPE, "application/json").body(body).send().await;
        let answer = sent.map_err(|error| SendError::Unreachable(error.without_url()))?;
        if !answer.status().is_success() {
            let wait = answer.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
            return Err(SendError::Refused { status: answer.status(), wait: wait.map(Duration::from_secs) });
        }
        store.put_cursor(url, last.id).await.map_err(SendError::Store)?;
        Ok(true)
    }
}

/// Follows no redirects: what identifies us must not travel to where a collector points.
fn client(target: &OtlpTarget, url: &str) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .timeout(DEADLINE)
        .redirect(reqwest::redirect::Policy::none())
        .default_headers(target.headers.clone());
    if url.starts_with("http:") {
        // No TLS will be spoken; reading the system's certificates fails on a machine that has none.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

/// An `ExportLogsServiceRequest` in its JSON encoding: lower camel case, 64-bit numbers as strings.
fn request(rows: &[AuditRow]) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    json!({
        "resourceLogs": [{
            "resource": {"attributes": [text("service.name", "warren"), text("service.version", version)]},
            "scopeLogs": [{
                "scope": {"name": "warren.audit", "version": "1"},
                "logRecords": rows.iter().map(log_record).collect::<Vec<_>>(),
            }],
        }],
    })
}

fn log_record(row: &AuditRow) -> Value {
    let detail: Value = serde_json::from_str(&row.detail).unwrap_or_default();
    let outcome = detail.get("outcome").and_then(Value::as_str);
    let refused =
        outcome == Some("refused") || detail.get("decision").and_then(Value::as_str) == Some("refused");
    let (number, severity) = match outcome {
        Some("failed") => (17, "ERROR"),
        _ if refused => (13, "WARN"),
        _ => (9, "INFO"),
    };
    let nanos = (row.at.saturating_mul(1000)).to_string();
    let mut attributes = vec![
        text("warren.audit.kind", &row.kind),
        text("warren.audit.actor", &row.actor),
        text("warren.audit.detail", &row.detail),
        text("warren.audit.hash", &row.hash),
        json!({"key": "warren.audit.seq", "value": {"intValue": row.seq.to_string()}}),
        text("warren.org.id", &row.org),
    ];
    attributes.extend(row.sandbox.as_deref().map(|id| text("warren.sandbox.id", id)));
    attributes.extend(row.request.as_deref().map(|id| text("warren.request.id", id)));
    attributes.extend(outcome.map(|outcome| text("warren.audit.outcome", outcome)));
    json!({
        "timeUnixNano": nanos,
        "observedTimeUnixNano": nanos,
        "severityNumber": number,
        "severityText": severity,
        "eventName": format!("warren.{}", row.kind),
        "body": {"stringValue": format!("{} {} {} {}", time_text(row.at), row.actor, row.kind, row.detail)},
        "attributes": attributes,
    })
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}
