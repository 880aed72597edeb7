//! `warren mcp`: MCP on standard input and output, relayed to `/mcp/{sandbox}` of the server.
//!
//! ```text
//!   a line in ──▶ POST ──▶ an answer in JSON, or a stream of events ──▶ lines out
//! ```
//!
//! Messages are passed on as they are. What is added are the headers of the protocol over HTTP, which repeat what the message says.
//! Without `--sandbox` a sandbox is made at the first call of a tool: until then `/mcp?tools=sandbox` says which tools there will be.

pub(crate) mod message;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::{Mutex, OnceCell, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use warren_api::sandboxes::SandboxCreate;
use warren_types::SandboxId;

use crate::build_source::Source;
use crate::build_view::BuildView;
use crate::client::{Client, McpHeaders, McpTarget};
use crate::context::Context;
use crate::failure::hinted;
use crate::output::{Output, printable};
use crate::words::{Pair, map_of};
use message::Message;

/// Longest message of a client.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// Lines that wait to be written. A client that does not read holds the calls back.
const LINES: usize = 16;
const LAST_LINES: Duration = Duration::from_secs(2);
/// What still runs when the client has sent everything gets so long to be answered.
const LAST_CALLS: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct McpArgs {
    /// The sandbox to work in [default: one is made at the first call, and kept]
    #[arg(long, value_name = "ID")]
    sandbox: Option<SandboxId>,
    /// Make it from this snapshot: NAME, or NAME@VERSION
    #[arg(long, value_name = "NAME", conflicts_with = "sandbox")]
    snapshot: Option<String>,
    /// Make it from this image: a manifest (.json), or one of a registry
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["sandbox", "snapshot"])]
    image: Option<String>,
    /// Make it from this template
    #[arg(long, conflicts_with_all = ["sandbox", "snapshot", "image"])]
    template: Option<String>,
    /// Make it with so many vCPUs
    #[arg(long, value_name = "N", conflicts_with = "sandbox")]
    cpu: Option<u32>,
    /// Make it with so much memory, in MiB
    #[arg(long, value_name = "MIB", conflicts_with = "sandbox")]
    memory: Option<u32>,
    /// Make it hibernate after so many seconds without use
    #[arg(long, value_name = "SECONDS", conflicts_with = "sandbox")]
    timeout: Option<u32>,
    /// Make it with this environment variable; repeatable
    #[arg(long, short, value_name = "KEY=VALUE", conflicts_with = "sandbox")]
    env: Vec<Pair>,
    /// Make it with the secrets of this store
    #[arg(long, value_name = "NAME", conflicts_with = "sandbox")]
    secret_store: Option<String>,
    /// Delete the sandbox that was made when the client ends
    #[arg(long, conflicts_with = "sandbox")]
    rm: bool,
    /// Offer the tools of all sandboxes instead, each of which takes a sandbox's id
    #[arg(long, conflicts_with_all = ["sandbox", "snapshot", "image", "template", "rm"])]
    all: bool,
}

/// What all messages share.
struct Relay {
    client: Client,
    output: Output,
    create: SandboxCreate,
    /// The tools of all sandboxes.
    all: bool,
    sandbox: OnceCell<SandboxId>,
    /// One is being made.
    makes: AtomicBool,
    /// None is made any more.
    ends: AtomicBool,
    headers: Mutex<McpHeaders>,
    out: mpsc::Sender<String>,
}

pub(crate) async fn run(context: &Context, args: McpArgs) -> anyhow::Result<ExitCode> {
    let (out, lines) = mpsc::channel(LINES);
    let rm = args.rm;
    let sandbox = OnceCell::new_with(args.sandbox.clone());
    let relay = Arc::new(Relay {
        client: context.client()?,
        output: context.output,
        all: args.all,
        create: body_of(args)?,
        sandbox,
        makes: false.into(),
        ends: false.into(),
        headers: Mutex::default(),
        out,
    });
    let writer = tokio::spawn(write(lines));
    let result = tokio::select! {
        result = serve(&relay) => result,
        () = asked_to_end() => Ok(()),
        // Nobody reads any more.
        () = relay.out.closed() => Ok(()),
    };
    if rm {
        relay.remove().await?;
    }
    drop(relay);
    // The last lines; a client that does not read is not waited for.
    let _ = tokio::time::timeout(LAST_LINES, writer).await;
    result.map(|()| ExitCode::SUCCESS)
}

fn body_of(args: McpArgs) -> anyhow::Result<SandboxCreate> {
    let image = match args.image.as_deref() {
        None => None,
        Some(word) => Some(Source::read(word)?.image().ok_or_else(|| {
            hinted(
                format!("{} has to be sent to the server first", printable(word)),
                "`warren build SOURCE --name NAME` does that; then --snapshot NAME",
            )
        })?),
    };
    Ok(SandboxCreate {
        snapshot: args.snapshot,
        image,
        template_id: args.template,
        cpu_count: args.cpu.map(i64::from),
        memory_mb: args.memory.map(i64::from),
        timeout: args.timeout.map(i64::from),
        envs: map_of(args.env),
        secret_store: args.secret_store,
        ..SandboxCreate::default()
    })
}

/// Relays until the client has sent everything, and has its answers or does not get them in time.
async fn serve(relay: &Arc<Relay>) -> anyhow::Result<()> {
    let mut input = BufReader::new(tokio::io::stdin());
    let mut calls = JoinSet::new();
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut input).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await;
        if read.map_err(|error| anyhow::anyhow!("could not read standard input: {error}"))? == 0 {
            break;
        }
        if line.len() > MAX_LINE {
            return Err(hinted("a message is larger than 16 MiB", "write large files in parts"));
        }
        while calls.try_join_next().is_some() {}
        running.retain(|_, call| !call.is_finished());
        let message = match Message::parse(&line) {
            Ok(None) => continue,
            Ok(Some(message)) => message,
            Err(error) => {
                relay.say(error).await;
                continue;
            }
        };
        if let Some(call) = message.cancels().and_then(|id| running.remove(&id)) {
            // Leaving is what tells the server.
            call.abort();
            continue;
        }
        let (id, in_turn) = (message.id.clone(), message.is_initialize());
        let call = {
            let relay = Arc::clone(relay);
            calls.spawn(relay.pass(message))
        };
        if in_turn {
            // What comes next builds on it.
            all_of(&mut calls).await;
        } else if let Some(id) = id {
            running.insert(id.to_string(), call);
        }
    }
    // Who waits longer leaves the input open: one that is gone must not keep what it asked for.
    while tokio::time::timeout(LAST_CALLS, all_of(&mut calls)).await.is_err() {
        // The calls that wait for it have not had their time.
        if !relay.makes.load(Ordering::Relaxed) {
            relay.output.note("the input has ended; what still runs is cancelled");
            calls.shutdown().await;
        }
    }
    Ok(())
}

async fn all_of(calls: &mut JoinSet<()>) {
    while calls.join_next().await.is_some() {}
}

impl Relay {
    async fn say(&self, line: String) {
        // Who does not listen any more is noticed where lines are written.
        let _ = self.out.send(line).await;
    }

    /// Passes a message on and its answers back. Who waits for one gets one.
    async fn pass(self: Arc<Self>, message: Message) {
        if let Err(error) = self.try_pass(&message).await
            && let Some(id) = &message.id
        {
            self.say(message::error(id, &format!("{error:#}"))).await;
        }
    }

    async fn try_pass(self: &Arc<Self>, message: &Message) -> anyhow::Result<()> {
        let target = if self.all {
            McpTarget::All
        } else if message.is_call() {
            McpTarget::Sandbox(self.sandbox().await?)
        } else {
            self.sandbox.get().cloned().map_or(McpTarget::Later, McpTarget::Sandbox)
        };
        let headers = self.headers.lock().await.clone();
        let mut answer = self.client.mcp(&target, &headers, message).await?;
        if message.is_initialize() {
            self.headers.lock().await.session = answer.session();
        }
        while let Some(line) = answer.next(&self.client).await? {
            if message.is_initialize()
                && let Some(version) = message::version_of(&line)
            {
                self.headers.lock().await.version = Some(version);
            }
            self.say(line).await;
        }
        Ok(())
    }

    /// The sandbox, which is made when there is none. A call that is cancelled meanwhile leaves it to the next one.
    async fn sandbox(self: &Arc<Self>) -> anyhow::Result<SandboxId> {
        let relay = Arc::clone(self);
        tokio::spawn(async move { relay.made().await }).await?
    }

    /// Runs in a task of its own, which nobody aborts.
    async fn made(&self) -> anyhow::Result<SandboxId> {
        let made = self.sandbox.get_or_try_init(async || {
            anyhow::ensure!(!self.ends.load(Ordering::Relaxed), "the program ends");
            self.makes.store(true, Ordering::Relaxed);
            let made = self.make().await;
            self.makes.store(false, Ordering::Relaxed);
            made
        });
        made.await.cloned()
    }

    async fn make(&self) -> anyhow::Result<SandboxId> {
        let made = if self.create.image.is_some() || self.create.snapshot.is_some() {
            // What is said about the image goes where no message is.
            let mut view = BuildView::new(self.output);
            let mut events = view.meanwhile(self.client.create_sandbox_streamed(&self.create, None)).await?;
            view.follow(&mut events).await?
        } else {
            self.client.create_sandbox(&self.create, None).await?
        };
        let id = made.value.sandbox_id;
        self.output.note(&printable(&format!("made sandbox {id}")));
        id.parse::<SandboxId>()
            .map_err(|error| anyhow::anyhow!("the server named the sandbox {id:?}: {error}"))
    }

    /// Deletes the sandbox, also one that is only being made. Who asks once more to end does not wait for that.
    async fn remove(&self) -> anyhow::Result<()> {
        self.ends.store(true, Ordering::Relaxed);
        let removed = async {
            match self.made().await {
                Ok(id) => self.client.kill_sandbox(&id).await,
                Err(_) => Ok(()),
            }
        };
        tokio::select! {
            removed = removed => removed,
            () = asked_to_end() => Ok(()),
        }
    }
}

/// One message, one line.
async fn write(mut lines: mpsc::Receiver<String>) {
    let mut out = tokio::io::stdout();
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        let written = async {
            out.write_all(line.as_bytes()).await?;
            out.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

async fn asked_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminated), Ok(mut interrupted)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
}
