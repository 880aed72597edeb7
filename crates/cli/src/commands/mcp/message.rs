//! A message of a client, as far as it has to be understood.

use serde_json::{Value, json};

/// Where the protocol without `initialize` says its version.
const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const INVALID_REQUEST: i32 = -32600;
const PARSE_ERROR: i32 = -32700;
const INTERNAL_ERROR: i32 = -32603;

pub(crate) struct Message {
    pub(crate) raw: String,
    /// Absent for a notification.
    pub(crate) id: Option<Value>,
    pub(crate) method: String,
    params: Value,
}

impl Message {
    /// `None` for what needs no answer; an answer for what is no message.
    pub(super) fn parse(line: &[u8]) -> Result<Option<Self>, String> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(None);
        }
        let no_id = Value::Null;
        let raw = std::str::from_utf8(line)
            .map_err(|_| failed(&no_id, PARSE_ERROR, "the message is not UTF-8"))?
            .to_owned();
        let json: Value = serde_json::from_str(&raw)
            .map_err(|error| failed(&no_id, PARSE_ERROR, &format!("the message is not JSON: {error}")))?;
        let id = json.get("id").filter(|id| !id.is_null()).cloned();
        let Some(fields) = json.as_object() else {
            return Err(failed(&no_id, INVALID_REQUEST, "a message is one JSON object on one line"));
        };
        let Some(method) = fields.get("method").and_then(Value::as_str) else {
            // An answer: nothing was asked.
            let is_answer = fields.contains_key("result") || fields.contains_key("error");
            let message = "a message needs a method";
            return if is_answer {
                Ok(None)
            } else {
                Err(failed(id.as_ref().unwrap_or(&no_id), INVALID_REQUEST, message))
            };
        };
        let params = fields.get("params").cloned().unwrap_or_default();
        Ok(Some(Self { method: method.to_owned(), id, params, raw }))
    }

    pub(super) fn is_initialize(&self) -> bool {
        self.method == "initialize"
    }

    pub(super) fn is_call(&self) -> bool {
        self.method == "tools/call"
    }

    /// The request that it takes back.
    pub(super) fn cancels(&self) -> Option<String> {
        let is_it = self.method == "notifications/cancelled";
        is_it.then(|| self.params.get("requestId").map(Value::to_string)).flatten()
    }

    /// The version it says itself.
    pub(crate) fn version(&self) -> Option<&str> {
        self.params.get("_meta")?.get(VERSION)?.as_str()
    }

    /// What it is about, where there is a header for that.
    pub(crate) fn name(&self) -> Option<&str> {
        self.params.get("name").or_else(|| self.params.get("uri"))?.as_str()
    }
}

/// The version that an answer to `initialize` settles.
pub(super) fn version_of(line: &str) -> Option<String> {
    let json: Value = serde_json::from_str(line).ok()?;
    json.get("result")?.get("protocolVersion")?.as_str().map(str::to_owned)
}

/// The answer to a request that could not be passed on.
pub(super) fn error(id: &Value, message: &str) -> String {
    failed(id, INTERNAL_ERROR, message)
}

fn failed(id: &Value, code: i32, message: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_message_gets_an_answer() {
        for (line, code) in [("{", "-32700"), ("[]", "-32600"), ("1", "-32600"), ("{\"id\": 3}", "-32600")] {
            let answer = Message::parse(line.as_bytes()).err().unwrap();
            assert!(answer.contains(code), "{line}: {answer}");
        }
        assert!(Message::parse(b"\xff").err().unwrap().contains("UTF-8"));
        for quiet in ["", " \r", "{\"id\": 1, \"result\": {}}"] {
            assert!(Message::parse(quiet.as_bytes()).unwrap().is_none(), "{quiet}");
        }
    }

    #[test]
    fn headers_come_from_the_message() {
        let line = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call",
            "params": {"name": "sandbox_exec", "_meta": {VERSION: "2026-07-28"}}});
        let message = Message::parse(line.to_string().as_bytes()).unwrap().unwrap();
        assert!(message.is_call() && !message.is_initialize());
        assert_eq!((message.version(), message.name()), (Some("2026-07-28"), Some("sandbox_exec")));
        let cancel = br#"{"method":"notifications/cancelled","params":{"requestId":"a"}}"#;
        assert_eq!(
            Message::parse(cancel).unwrap().unwrap().cancels().unwrap(),
            message.id.unwrap().to_string()
        );
    }
}
