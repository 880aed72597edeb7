//! Tools: what a model does in a sandbox, implemented once. MCP, the OpenAI and Anthropic styles and the CLI are doors to them.
//!
//! ```text
//!   /mcp, /mcp/{id} ────┐
//!   …/{id}/tools        ├─▶ call_tool ─▶ schema ─▶ function ─▶ the operations behind the other routes
//!   warren mcp (relay) ─┘
//! ```
//!
//! A tool is a row of [`table`]: a name, a description, a strict schema, a function. Input that the schema does not allow is
//! refused by the name of the field. What goes wrong in a tool is an [`Output`] that says so, because a model reads that and a
//! status code nobody shows it; only a tool that does not exist is an error. Output is bounded, and says how the rest is read.

mod exec;
mod files;
mod glob;
mod input;
mod listing;
mod machine;
mod output;
mod processes;
mod reading;
mod running;
mod sandboxes;
mod schema;
mod search;
mod table;
mod text;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use warren_types::{Error, ErrorKind, SandboxId};

use super::App;
use super::audit::Kind;
use super::auth::{Caller, Identity, Live};
use super::turns::Turns;

/// Whose tools, and of which sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub identity: Identity,
    pub bound: Bound,
    /// Where the client reaches this server.
    pub base: String,
}

/// Which sandbox the tools work on.
#[derive(Debug, Clone)]
pub(crate) enum Bound {
    To(SandboxId),
    /// One that will be made when it is first needed, by whoever asks: its tools can be listed and not yet called.
    Later,
    /// The one that each call names.
    No,
}

/// What a tool says to a model.
#[derive(Debug)]
pub(crate) struct Output {
    pub text: String,
    /// The same for programs, without what is long.
    pub structured: Value,
    pub is_error: bool,
}

/// A tool as a list shows it.
#[derive(Debug, Clone)]
pub(crate) struct Definition {
    pub name: &'static str,
    pub description: String,
    pub schema: Arc<Map<String, Value>>,
    pub read_only: bool,
    pub destructive: bool,
}

/// What outlasts one call.
#[derive(Debug, Default)]
pub(crate) struct Tools {
    /// Edits of one sandbox wait for each other: each reads a file and writes it back.
    edits: Turns<SandboxId>,
    running: Mutex<HashMap<String, CancellationToken>>,
}

/// A call that can be cancelled by its name for as long as this is held.
#[derive(Debug)]
pub(crate) struct Cancellable<'a> {
    tools: &'a Tools,
    name: String,
    pub token: CancellationToken,
}

/// One call of a tool.
struct Call {
    app: Arc<App>,
    identity: Identity,
    base: String,
    sandbox: Option<SandboxId>,
}

// === impl Scope ===

impl Scope {
    /// Whether what asks may do more than use one sandbox.
    fn is_organisation(&self) -> bool {
        matches!(self.identity, Identity::Org(_))
    }
}

// === impl Output ===

impl Output {
    fn new(text: impl Into<String>, structured: Value) -> Self {
        Self { text: text.into(), structured, is_error: false }
    }

    fn error(message: impl Into<String>) -> Self {
        Self { text: message.into(), structured: json!({}), is_error: true }
    }
}

impl From<Error> for Output {
    fn from(error: Error) -> Self {
        if error.kind == ErrorKind::Internal {
            tracing::error!(error = %error.message, "a tool failed");
        }
        let retry = if error.kind.retryable() { " (this may work if you try again)" } else { "" };
        Self::error(format!("{}{retry}", error.message))
    }
}

// === impl Tools ===

impl Tools {
    /// Makes a call one that [`Tools::cancel`] finds.
    pub(crate) fn cancellable(&self, name: String) -> Cancellable<'_> {
        let token = CancellationToken::new();
        let mut running = self.running.lock().expect("nothing panics while it holds this lock");
        running.insert(name.clone(), token.clone());
        Cancellable { tools: self, name, token }
    }

    pub(crate) fn cancel(&self, name: &str) {
        let running = self.running.lock().expect("nothing panics while it holds this lock");
        if let Some(token) = running.get(name) {
            token.cancel();
        }
    }
}

impl Drop for Cancellable<'_> {
    fn drop(&mut self) {
        self.tools.running.lock().expect("nothing panics while it holds this lock").remove(&self.name);
    }
}

// === impl Call ===

impl Call {
    fn id(&self) -> Result<&SandboxId, Error> {
        self.sandbox.as_ref().ok_or_else(|| Error::internal("a tool of a sandbox was called without one"))
    }

    async fn live(&self) -> Result<Live, Error> {
        self.app.reach(&self.identity, self.id()?).await
    }

    fn caller(&self) -> Result<Caller, Error> {
        self.identity.clone().try_into()
    }
}

// === impl App ===

impl App {
    /// The tools that whoever asks can call.
    pub(crate) fn list_tools(&self, scope: &Scope) -> Vec<Definition> {
        table::all().iter().filter(|tool| tool.is_for(scope)).map(|tool| tool.definition(scope)).collect()
    }

    pub(crate) fn find_tool(&self, scope: &Scope, name: &str) -> Option<Definition> {
        table::all()
            .iter()
            .find(|tool| tool.name == name && tool.is_for(scope))
            .map(|tool| tool.definition(scope))
    }

    /// Calls a tool. Dropping this gives the call up, and ends the command it waits for. The one place where every call of a
    /// tool passes, by whichever door it came.
    pub(crate) async fn call_tool(
        self: &Arc<Self>,
        scope: &Scope,
        name: &str,
        input: Map<String, Value>,
    ) -> Result<Output, Error> {
        let Some(tool) = table::all().iter().find(|tool| tool.name == name && tool.is_for(scope)) else {
            return Err(unknown_tool(name, &self.list_tools(scope)));
        };
        tracing::debug!(tool = tool.name, "a tool is called");
        Ok(self.call_known(scope, tool, input).await.unwrap_or_else(Output::from))
    }

    async fn call_known(
        self: &Arc<Self>,
        scope: &Scope,
        tool: &table::Tool,
        mut input: Map<String, Value>,
    ) -> Result<Output, Error> {
        // A model that has nothing to say about a field sends null.
        input.retain(|_, value| !value.is_null());
        schema::check(tool.name, tool.schema_for(scope), &mut input)?;
        let sandbox = match &scope.bound {
            Bound::To(id) => Some(id.clone()),
            Bound::Later => {
                return Err(Error::unavailable("there is no sandbox yet; it is made at the first call"));
            }
            Bound::No => table::take_sandbox(&mut input)?,
        };
        let (identity, base) = (scope.identity.clone(), scope.base.clone());
        let mut note = identity.who().note(Kind::ToolCall).with("tool", tool.name);
        if let Some(sandbox) = &sandbox {
            note = note.of(sandbox);
        }
        // What it does is recorded where it is done.
        let run = (tool.run)(Call { app: Arc::clone(self), identity, base, sandbox }, Value::Object(input));
        let told = |output: &Output| Map::from_iter([("isError".to_owned(), output.is_error.into())]);
        self.audit.around_with(note, run, told).await
    }
}

fn unknown_tool(name: &str, tools: &[Definition]) -> Error {
    let name: String = name.chars().filter(|character| !character.is_control()).take(100).collect();
    let names: Vec<&str> = tools.iter().map(|tool| tool.name).collect();
    Error::not_found(format!("there is no tool {name:?}; there are: {}", names.join(", ")))
}
