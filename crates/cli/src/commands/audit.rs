//! `warren audit`: what was done, by whom; the records as a file; whether they are whole.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use warren_api::audit::AuditRecord;
use warren_control::audit::{self, Verified, VerifyError};
use warren_types::SandboxId;

use super::logs::parse_time;
use crate::client::AuditFilter;
use crate::context::Context;
use crate::endings::Endings;
use crate::failure::{hinted, usage};
use crate::output::{Output, printable};
use crate::serve::DEFAULT_DATA_DIR;

/// Of what a record says, in characters.
const DETAIL_WIDTH: usize = 100;
/// Records of a table, unless told otherwise.
const DEFAULT_LIMIT: u32 = 50;

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  warren audit sb-0123abcd
  warren audit --kind exec,file --since 1h --follow
  warren audit export > audit.jsonl && warren audit verify --file audit.jsonl"
)]
pub(crate) struct AuditArgs {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Print all records of the organisation as JSON lines that can be verified
    Export,
    /// Find records that were changed, removed, cut off or put in another order
    Verify(VerifyArgs),
}

#[derive(Args)]
struct ShowArgs {
    /// Only of this sandbox, which may be deleted [default: all of the organisation]
    #[arg(value_name = "SANDBOX")]
    sandbox: Option<SandboxId>,
    /// Only of these kinds, or of what stands before the dot in them, such as exec,file.write
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    kind: Vec<String>,
    /// Only of this actor, such as key:… or sandbox_token
    #[arg(long)]
    actor: Option<String>,
    /// From this time on: RFC 3339, or how long ago, such as 30m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Up to this time, likewise
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "follow")]
    until: Option<Timestamp>,
    /// The newest of them, 1000 at most [default: 50]
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..=1000), conflicts_with = "all")]
    limit: Option<u32>,
    /// All of them, oldest first
    #[arg(long)]
    all: bool,
    /// Go on with new ones, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Print JSON lines, as the API sends them
    #[arg(long)]
    jsonl: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Where the server keeps its data; it may be running [default: /var/lib/warren, unless a file is given]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A file that `audit export` has written; with --data-dir its seal is checked too
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl AuditArgs {
    pub(crate) fn is_server_side(&self) -> bool {
        matches!(self.command, Some(AuditCommand::Verify(_)))
    }
}

pub(crate) async fn run(context: &Context, args: AuditArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Some(AuditCommand::Export) => export(context).await,
        Some(AuditCommand::Verify(args)) => verify(context, args).await,
        None => show(context, args.show).await,
    }
}

async fn show(context: &Context, args: ShowArgs) -> anyhow::Result<ExitCode> {
    let filter = AuditFilter {
        after: None,
        kinds: args.kind,
        actor: args.actor,
        since: args.since,
        until: args.until,
        limit: (!args.all).then(|| args.limit.unwrap_or(DEFAULT_LIMIT)),
        newest: !args.all,
        follow: args.follow,
    };
    let client = context.client()?;
    let output = context.output;
    let mut endings = Endings::catch()?;
    let print = async {
        let mut stream = client.read_audit(args.sandbox.as_ref(), &filter).await?;
        let zone = TimeZone::system();
        let mut is_first = true;
        // What came together is written together.
        while let Some(records) = stream.next().await? {
            let mut text = String::new();
            for (record, line) in records {
                if output.json || args.jsonl {
                    text.push_str(&line);
                } else {
                    if std::mem::take(&mut is_first) && !output.quiet {
                        text.push_str(&heading(output));
                    }
                    text.push_str(&describe(&record, &zone, output));
                }
                text.push('\n');
            }
            output.write(text.as_bytes())?;
        }
        if is_first && !output.json && !args.jsonl {
            output.note("no records");
        }
        Ok(ExitCode::SUCCESS)
    };
    tokio::select! {
        printed = print => printed,
        code = endings.next() => Ok(ExitCode::from(code)),
    }
}

fn heading(output: Output) -> String {
    let text = format!(
        "{:>7}  {:<19}  {:<11}  {:<17}  {:<13}  {:<8}  DETAIL",
        "SEQ", "TIME", "SANDBOX", "KIND", "ACTOR", "OUTCOME"
    );
    format!("{}\n", output.painted(90, &text))
}

/// One line for people; `--jsonl` has everything.
fn describe(record: &AuditRecord, zone: &TimeZone, output: Output) -> String {
    let time = record
        .at
        .parse::<Timestamp>()
        .map_or_else(|_| record.at.clone(), |at| at.to_zoned(zone.clone()).strftime("%F %T").to_string());
    let field = |name: &str| record.detail.get(name).and_then(Value::as_str);
    let outcome = field("outcome").or_else(|| field("decision")).unwrap_or("-");
    let colour = match outcome {
        "refused" => 33,
        "failed" => 31,
        _ => 0,
    };
    // The beginning of a key's id is enough to tell keys apart.
    let actor: String = record.actor.chars().take(13).collect();
    format!(
        "{:>7}  {}  {:<11}  {:<17}  {:<13}  {}  {}",
        record.seq,
        printable(&time),
        printable(record.sandbox_id.as_deref().unwrap_or("-")),
        printable(&record.kind),
        printable(&actor),
        output.painted(colour, &format!("{:<8}", printable(outcome))),
        printable(&summary(&record.detail)),
    )
}

/// What was done, in a few words.
fn summary(detail: &Value) -> String {
    let Some(fields) = detail.as_object() else { return detail.to_string() };
    let mut words = Vec::new();
    if let Some(cmd) = fields.get("cmd").and_then(Value::as_str) {
        words.push(cmd.to_owned());
        let args = fields.get("args").and_then(Value::as_array);
        words.extend(args.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    }
    for (name, value) in fields {
        if matches!(name.as_str(), "outcome" | "decision" | "cmd" | "args" | "timeoutMs" | "mode")
            || value.is_null()
        {
            continue;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        words.push(format!("{name}={value}"));
    }
    let whole = words.join(" ");
    let short: String = whole.chars().take(DETAIL_WIDTH).collect();
    if short.len() < whole.len() { short + "…" } else { short }
}

async fn export(context: &Context) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let output = context.output;
    let about = client.get_audit_export().await?;
    output.line(&serde_json::to_string(&about.json)?)?;
    let (after, head) = (about.value.after, about.value.head.seq);
    if head <= after {
        return Ok(ExitCode::SUCCESS);
    }
    let filter = AuditFilter { after: Some(after), ..AuditFilter::default() };
    let mut stream = client.read_audit(None, &filter).await?;
    let mut last = after;
    while last < head {
        let Some(records) = stream.next().await? else { break };
        let mut text = String::new();
        for (record, line) in records.into_iter().filter(|(record, _)| record.seq <= head) {
            last = record.seq;
            text.push_str(&line);
            text.push('\n');
        }
        output.write(text.as_bytes())?;
    }
    if last < head {
        return Err(anyhow::anyhow!("the server sent records up to {last} and has {head}; export again"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn verify(context: &Context, args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let found = match (args.file, args.data_dir) {
        (Some(file), data_dir) => vec![audit::verify_file(&file, data_dir.as_deref()).map_err(told)?],
        (None, data_dir) => {
            let data_dir = data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into());
            audit::verify_data_dir(&data_dir).await.map_err(told)?
        }
    };
    let is_whole = found.iter().all(Verified::is_whole);
    let output = context.output;
    if output.json {
        output.json(&found.iter().map(as_json).collect())?;
    } else {
        for one in &found {
            tell(output, one)?;
        }
    }
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(output: Output, found: &Verified) -> anyhow::Result<()> {
    let org = printable(&found.org).into_owned();
    let range = match (found.first, found.last) {
        (Some(first), Some(last)) => format!("{} records, {first} to {last}", found.records),
        _ => "no records".to_owned(),
    };
    if found.is_whole() {
        return output.line(&format!("{org}: whole ({range})"));
    }
    output.line(&format!("{org}: NOT whole ({range})"))?;
    for finding in &found.findings {
        output.line(&format!("  {}", printable(&finding.to_string())))?;
    }
    if found.more > 0 {
        output.line(&format!("  and {} more", found.more))?;
    }
    Ok(())
}

fn as_json(found: &Verified) -> Value {
    json!({
        "org": found.org,
        "whole": found.is_whole(),
        "records": found.records,
        "first": found.first,
        "last": found.last,
        "findings": found.findings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "more": found.more,
    })
}

fn told(error: VerifyError) -> anyhow::Error {
    match error {
        VerifyError::Absent { .. } => {
            hinted(error.to_string(), "--data-dir names the folder that `warren serve` was given")
        }
        VerifyError::NoExport { .. } => usage(error.to_string()),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_told_in_a_line() {
        let detail = json!({"cmd": "make", "args": ["-j2"], "outcome": "begun", "cwd": "/w", "of": null});
        assert_eq!(summary(&detail), "make -j2 cwd=/w");
        assert!(summary(&json!({"path": "p".repeat(5000)})).chars().count() <= DETAIL_WIDTH + 1);
    }
}
