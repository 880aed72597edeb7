//! `warren egress get|set ID`: what a sandbox may reach.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use warren_api::egress::{AllowedHosts, EgressChange};
use warren_types::{EgressMode, EgressPolicy, EgressRule, HostPattern, SandboxId};

use crate::context::Context;
use crate::failure::usage;
use crate::output::{Output, Table, human_age, printable};

#[derive(Subcommand)]
pub(crate) enum EgressCommand {
    /// Show what a sandbox may reach, and what was refused of late
    Get(GetArgs),
    /// Change what a running sandbox may reach
    Set(SetArgs),
}

#[derive(Args)]
pub(crate) struct GetArgs {
    id: SandboxId,
}

#[derive(Args)]
pub(crate) struct SetArgs {
    id: SandboxId,
    /// A host it may reach, and none but those that are allowed: example.com, *.example.com, example.com:8443; repeatable
    #[arg(long, value_name = "HOST[:PORT]", required_unless_present_any = ["open", "none", "policy"])]
    allow_host: Vec<String>,
    /// Everything but what no sandbox may reach; lists of its secret stores still count
    #[arg(long, conflicts_with_all = ["allow_host", "none", "policy"])]
    open: bool,
    /// Nothing
    #[arg(long, conflicts_with_all = ["allow_host", "policy"])]
    none: bool,
    /// A policy as JSON, as the API has it
    #[arg(long, value_name = "JSON", conflicts_with = "allow_host")]
    policy: Option<String>,
}

pub(crate) async fn run(context: &Context, command: EgressCommand) -> anyhow::Result<ExitCode> {
    match command {
        EgressCommand::Get(args) => get(context, &args.id).await?,
        EgressCommand::Set(args) => set(context, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(context: &Context, id: &SandboxId) -> anyhow::Result<()> {
    let answer = context.client()?.allowed_hosts(id).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    show(context.output, &answer.value)
}

async fn set(context: &Context, args: &SetArgs) -> anyhow::Result<()> {
    let body = change(args)?;
    let answer = context.client()?.set_egress(&args.id, &body).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    show_policy(context.output, &answer.value.effective)
}

fn change(args: &SetArgs) -> anyhow::Result<EgressChange> {
    if let Some(json) = &args.policy {
        return serde_json::from_str(json).context("--policy is not a policy");
    }
    let mode = match (args.open, args.none) {
        (true, _) => EgressMode::Open,
        (_, true) => EgressMode::None,
        (false, false) => EgressMode::Allowlist,
    };
    let allow = args.allow_host.iter().map(|text| rule(text)).collect::<anyhow::Result<_>>()?;
    Ok(EgressChange { mode: Some(mode), allow })
}

/// `host` or `host:port`.
fn rule(text: &str) -> anyhow::Result<EgressRule> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().map_err(|_| usage(format!("{port:?} in {text:?} is no port")))?;
            (host, Some(port))
        }
        None => (text, None),
    };
    let host = host.parse::<HostPattern>().map_err(|error| usage(format!("{error}")))?;
    Ok(EgressRule { ports: port.into_iter().collect(), ..EgressRule::host(host) })
}

fn show(output: Output, answer: &AllowedHosts) -> anyhow::Result<()> {
    show_policy(output, &answer.policy)?;
    let stores: Vec<&str> =
        answer.secret_store.iter().chain(&answer.base_secret_store).map(String::as_str).collect();
    if !stores.is_empty() {
        output.note(&printable(&format!("secret stores: {}", stores.join(", "))));
    }
    for (name, hosts) in &answer.per_secret_allowed_hosts {
        output.note(&printable(&format!("{name} is put in for {}", hosts.join(", "))));
    }
    if answer.blocked.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["REFUSED", "PORT", "TIMES", "LAST", "WHY"]);
    for one in &answer.blocked {
        let port = if one.port == 0 { "-".to_owned() } else { one.port.to_string() };
        let last = format!("{} ago", human_age(one.at));
        table.row([one.host.clone(), port, one.count.to_string(), last, one.reason.clone()]);
    }
    output.table(&table)
}

fn show_policy(output: Output, policy: &EgressPolicy) -> anyhow::Result<()> {
    let text = match (policy.mode, policy.allow.as_slice()) {
        (EgressMode::Open, _) => "it may reach everything but private networks and this host",
        (EgressMode::None, _) | (EgressMode::Allowlist, []) => "it may reach nothing",
        (EgressMode::Allowlist, _) => "it may reach what is listed",
    };
    output.note(text);
    if policy.allow.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["HOST", "PORTS", "METHODS", "PATHS"]);
    for rule in &policy.allow {
        let ports = rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let or = |text: String, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text };
        table.row([
            rule.host.to_string(),
            or(ports, "80,443"),
            or(rule.methods.join(","), "all"),
            or(rule.paths.join(","), "all"),
        ]);
    }
    output.table(&table)
}
