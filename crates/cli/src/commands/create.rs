//! `warren create`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use serde_json::Value;
use warren_api::previews::PreviewAuth;
use warren_api::sandboxes::{Sandbox, SandboxCreate};

use crate::build_source::Source;
use crate::build_view::BuildView;
use crate::context::Context;
use crate::failure::hinted;
use crate::output::{human_bytes, printable};
use crate::registry_login::RegistryArgs;
use crate::words::{Pair, map_of};

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Template to start from [default: base]
    #[arg(long)]
    template: Option<String>,
    /// Image to start from, built first unless it was built before: a manifest (.json; `-` is stdin), or one of a registry
    #[arg(long, value_name = "IMAGE", conflicts_with = "template")]
    image: Option<String>,
    /// Snapshot to start from: NAME, which is its newest version, or NAME@VERSION
    #[arg(long, value_name = "NAME", conflicts_with_all = ["template", "image"])]
    snapshot: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// vCPUs: 1, 2 or 4; follows from the memory when left out
    #[arg(long, value_name = "N")]
    cpu: Option<u32>,
    /// Memory in MiB: 1024, 4096, 8192 or 16384 [default: 4096]
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Disk in MiB, 20480 to 262144 [default: 20480]
    #[arg(long, value_name = "MIB")]
    disk: Option<u32>,
    /// Seconds without use after which it hibernates; 0 = never [default: 0]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Environment variable of everything started in it; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// Kept with the sandbox, fixed; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    metadata: Vec<Pair>,
    /// A tag to start with; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    tag: Vec<Pair>,
    /// What keeps it apart from the host: container or vm [default: the server's]
    #[arg(long, value_name = "KIND")]
    isolation: Option<String>,
    /// Shell command to start whenever the sandbox begins to run; repeatable
    #[arg(long, value_name = "COMMAND")]
    start: Vec<String>,
    /// Let it open no connections to the outside
    #[arg(long, conflicts_with = "allow_host")]
    no_network: bool,
    /// Name of a secret store: its secrets become variables with sealed tokens, its list narrows what may be reached
    #[arg(long, value_name = "NAME")]
    secret_store: Option<String>,
    /// A host it may reach, like example.com or *.example.com, and none but those that are allowed; repeatable
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Let only who shows a token open its previews; the server makes one and it is printed
    #[arg(long)]
    preview_auth: bool,
    /// The same with a token of your own, of at least 16 characters. Others on this machine can see it here
    #[arg(long, value_name = "TOKEN", conflicts_with = "preview_auth")]
    preview_auth_token: Option<String>,
    /// Makes the command repeatable: the same key gives the same sandbox
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

pub(crate) async fn run(context: &Context, args: CreateArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let preview_auth = (args.preview_auth || args.preview_auth_token.is_some())
        .then_some(PreviewAuth { scheme: Some("bearer".to_owned()), token: args.preview_auth_token });
    let registry_auth = args.registry.read(args.image.as_deref().unwrap_or_default())?;
    let body = SandboxCreate {
        registry_auth,
        image: args.image.as_deref().map(image_of).transpose()?,
        snapshot: args.snapshot,
        template_id: args.template,
        timeout: args.timeout.map(i64::from),
        envs: map_of(args.env),
        metadata: map_of(args.metadata),
        cpu_count: args.cpu.map(i64::from),
        memory_mb: args.memory.map(i64::from),
        disk_mb: args.disk.map(i64::from),
        network_enabled: args.no_network.then_some(false),
        isolation: args.isolation,
        secret_store: args.secret_store,
        egress_allowlist: (!args.allow_host.is_empty()).then_some(args.allow_host),
        tags: map_of(args.tag),
        preview_auth,
        start_commands: (!args.start.is_empty()).then_some(args.start),
        ..SandboxCreate::default()
    };
    let start = Instant::now();
    let key = args.idempotency_key.as_deref();
    let answer = if body.image.is_some() || body.snapshot.is_some() {
        // An image may have to be built first, which can take minutes.
        let mut view = BuildView::new(context.output);
        let mut events = view.meanwhile(client.create_sandbox_streamed(&body, key)).await?;
        view.follow(&mut events).await?
    } else {
        client.create_sandbox(&body, key).await?
    };
    let sandbox: Sandbox = answer.value;
    context.output.made("sandbox", &sandbox.sandbox_id, &sandbox.sandbox_id, &answer.json)?;
    context.output.note(&printable(&format!(
        "{} in {} ms: {}, {} vCPU, {}, {}",
        sandbox.status,
        start.elapsed().as_millis(),
        sandbox.template_id,
        sandbox.cpu_count,
        human_bytes(u64::from(sandbox.memory_mb) << 20),
        if sandbox.isolation.is_empty() { "isolation not stated" } else { &sandbox.isolation },
    )));
    if let Some(token) = &sandbox.preview_auth_token {
        context.output.note(&printable(&format!("preview token, shown this once: {token}")));
    }
    Ok(ExitCode::SUCCESS)
}

fn image_of(word: &str) -> anyhow::Result<Value> {
    Source::read(word)?.image().ok_or_else(|| {
        hinted(
            format!("{} has to be sent to the server first", printable(word)),
            "`warren build SOURCE --name NAME` does that; then `warren create --snapshot NAME`",
        )
    })
}
