//! One request of MCP: what the server says it is, its tools, and a call.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestMethod, CallToolRequestParams, CallToolResponse, CallToolResult, ConstString as _,
    ContentBlock, CustomRequest, CustomResult, ErrorCode, Implementation, InitializeRequestParams,
    InitializeResult, InitializeResultMethod, ListToolsRequestMethod, ListToolsResult, MetaObject,
    PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion, ServerCapabilities, ServerConfig,
    Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer};
use tokio::time::{Instant, interval_at};

use crate::app::App;
use crate::app::tools::{Bound, Definition, Output, Scope};

/// How often a client that wants to know hears that a call still runs; it may take silence for a failure.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Where [`Output::structured`] goes. As structured content some clients would show it to their models instead of the text.
const STRUCTURED: &str = "warren/structured";

#[derive(Clone)]
pub(super) struct Door {
    pub app: Arc<App>,
    pub scope: Scope,
    /// The name under which this call can be cancelled.
    pub call: Option<String>,
}

impl ServerHandler for Door {
    fn get_info(&self) -> ServerConfig {
        let instructions = match self.scope.bound {
            Bound::No => {
                "Tools to work in sandboxes: Linux machines of your own. Each tool takes the id of a sandbox; sandbox_create makes one."
            }
            Bound::To(_) | Bound::Later => {
                "Tools to work in a sandbox: a Linux machine of your own. Nothing you do there touches the machine you are talked to from."
            }
        };
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("warren", env!("CARGO_PKG_VERSION")))
            .with_instructions(instructions)
    }

    /// All but the one whose servers must take several messages at once, which this one does not.
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        let known = ProtocolVersion::KNOWN_VERSIONS.iter();
        known.filter(|version| **version != ProtocolVersion::V_2025_03_26).cloned().collect()
    }

    /// Who asks for the one that is left out may know none that is newer.
    async fn initialize(
        &self,
        mut request: InitializeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<InitializeResult, ErrorData> {
        context.peer.set_peer_info(request.clone());
        if request.protocol_version == ProtocolVersion::V_2025_03_26 {
            request.protocol_version = ProtocolVersion::V_2024_11_05;
        }
        self.negotiate_initialize(&request)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.app.list_tools(&self.scope).into_iter().map(tool).collect();
        Ok(ListToolsResult::with_all_items(tools))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.app.find_tool(&self.scope, name).map(tool)
    }

    /// What the library could not read as a request it knows: the method may be one, and then its parameters are wrong.
    async fn on_custom_request(
        &self,
        request: CustomRequest,
        _: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        match request.method.as_str() {
            CallToolRequestMethod::VALUE | ListToolsRequestMethod::VALUE | InitializeResultMethod::VALUE => {
                let text = format!("the parameters of {} are not what MCP says they are", request.method);
                Err(ErrorData::invalid_params(text, None))
            }
            _ => Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, request.method, None)),
        }
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let cancellable = self.call.clone().map(|name| self.app.tools.cancellable(name));
        let cancelled = async {
            match &cancellable {
                Some(call) => call.token.cancelled().await,
                None => std::future::pending().await,
            }
        };
        let call = self.app.call_tool(&self.scope, &request.name, request.arguments.unwrap_or_default());
        let output = tokio::select! {
            // A tool that is not there is the model's mistake like any other.
            output = call => output.unwrap_or_else(Output::from),
            () = context.ct.cancelled() => return Err(given_up("the client has left")),
            () = cancelled => return Err(given_up("the client has cancelled it")),
            () = tell_progress(&context) => return Err(given_up("the client has left")),
        };
        Ok(result(output).into())
    }
}

fn given_up(why: &'static str) -> ErrorData {
    ErrorData::internal_error(format!("the call was given up: {why}"), None)
}

/// Says from time to time that the call still runs; returns only when nobody hears it.
async fn tell_progress(context: &RequestContext<RoleServer>) {
    let Some(token) = context.meta.get_progress_token() else { return std::future::pending().await };
    let started = Instant::now();
    let mut ticks = interval_at(started + PROGRESS_EVERY, PROGRESS_EVERY);
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs();
        let mut progress = ProgressNotificationParam::new(token.clone(), started.elapsed().as_secs_f64());
        progress.message = Some(format!("running for {seconds} s"));
        if context.peer.notify_progress(progress).await.is_err() {
            return;
        }
    }
}

fn tool(definition: Definition) -> Tool {
    let annotations = ToolAnnotations::new()
        .read_only(definition.read_only)
        .destructive(definition.destructive)
        .open_world(true);
    Tool::new(definition.name, definition.description, definition.schema).with_annotations(annotations)
}

fn result(output: Output) -> CallToolResult {
    let content = vec![ContentBlock::text(output.text)];
    let mut result =
        if output.is_error { CallToolResult::error(content) } else { CallToolResult::success(content) };
    let mut meta = MetaObject::default();
    meta.insert(STRUCTURED.to_owned(), output.structured);
    result.meta = Some(meta);
    result
}
