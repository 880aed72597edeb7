//! `warren logs ID`: what a sandbox has logged, and what it logs from now on.

use std::process::ExitCode;

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{SpanRelativeTo, Timestamp};
use warren_api::logs::LogRow;
use warren_types::SandboxId;

use crate::client::{Client, LogFilter, LogStream};
use crate::context::Context;
use crate::endings::Endings;
use crate::output::{Output, printable};

/// What is shown of a command that has ended, in characters.
const COMMAND_WIDTH: usize = 60;

#[derive(Args)]
#[command(after_help = "\
Follows until the sandbox stops running, or Ctrl-C. Neither wakes a sandbox nor keeps it awake.

Examples:
  warren logs sb-0123abcd --since 30m --grep error
  warren logs sb-0123abcd --no-tail --json | jq -r .line")]
pub(crate) struct LogsArgs {
    id: SandboxId,
    /// Print what there is and end
    #[arg(long)]
    no_tail: bool,
    /// From this time on: RFC 3339, or how long ago, such as 30m [default: all]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Up to this time, likewise; with --no-tail
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "no_tail")]
    until: Option<Timestamp>,
    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only from these
    #[arg(long, value_delimiter = ',', value_name = "SOURCE",
          value_parser = ["var_log", "exec_stdout", "exec_stderr", "agent"])]
    source: Vec<String>,
    /// Newest lines of what there is, 10000 at most [default: 1000]
    #[arg(long, value_name = "LINES", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

/// A time, or how long before now it was.
pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = text.parse::<jiff::Span>().ok().filter(|span| !span.is_negative());
    let ago = ago.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok()).ok_or_else(|| {
        "expected a time like 2026-01-31T12:00:00Z, or how long ago, like 30m or 2h".to_owned()
    })
}

pub(crate) async fn run(context: &Context, args: LogsArgs) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let filter = LogFilter {
        tail: !args.no_tail,
        since: args.since,
        until: args.until,
        text: args.grep,
        sources: args.source,
        limit: args.limit,
    };
    let mut endings = Endings::catch()?;
    tokio::select! {
        printed = print(&client, context.output, &args.id, &filter) => printed.map(|()| ExitCode::SUCCESS),
        code = endings.next() => Ok(ExitCode::from(code)),
    }
}

async fn print(client: &Client, output: Output, id: &SandboxId, filter: &LogFilter) -> anyhow::Result<()> {
    let mut stream: LogStream<'_> = client.read_logs(id, filter).await?;
    let zone = TimeZone::system();
    // What came together is written together.
    while let Some(rows) = stream.next().await? {
        let mut text = String::new();
        for (row, json) in rows {
            if output.json {
                text.push_str(&json);
            } else if output.quiet {
                text.push_str(&shown(&row.line));
            } else {
                text.push_str(&describe(&row, &zone, output));
            }
            text.push('\n');
        }
        output.write(text.as_bytes())?;
    }
    Ok(())
}

/// `2026-01-31 12:00:00.000  stdout   0123abcd  hello`
fn describe(row: &LogRow, zone: &TimeZone, output: Output) -> String {
    let time = row.time.to_zoned(zone.clone()).strftime("%F %T%.3f").to_string();
    let (label, colour) = match (row.source.as_str(), row.exit_code) {
        (_, Some(0)) => ("exit", 32),
        (_, Some(_)) => ("exit", 31),
        ("exec_stdout", None) => ("stdout", 0),
        ("exec_stderr", None) => ("stderr", 31),
        ("agent", None) => ("agent", 33),
        (other, None) => (other, 36),
    };
    let of = row.exec_id.as_deref().or(row.path.as_deref()).map(|of| format!("{}  ", printable(of)));
    let line = shown(&row.line);
    let line = match (row.exit_code, command_of(row)) {
        (Some(_), Some(command)) => format!("{line}: {command}"),
        _ => line,
    };
    let label = output.painted(colour, &format!("{:<7}", printable(label)));
    format!("{}  {label}  {}{line}", output.painted(90, &time), of.unwrap_or_default())
}

/// A command in one line, not too long.
fn command_of(row: &LogRow) -> Option<String> {
    let words = row.argv.as_ref().map(|argv| argv.join(" ")).or_else(|| row.command.clone())?;
    let words = printable(&words).into_owned();
    let short: String = words.chars().take(COMMAND_WIDTH).collect();
    Some(if short.len() < words.len() { short + "…" } else { short })
}

/// A line as a terminal may have it: it cannot steer it, but it can have columns.
fn shown(line: &str) -> String {
    line.split('\t').map(|part| printable(part).into_owned()).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_in_two_ways() {
        let time = "2026-01-31T12:00:00+01:00";
        assert_eq!(parse_time(time), Ok(time.parse().unwrap()));
        for (ago, seconds) in [("30m", 1800), ("1h30m", 5400), ("2d", 172_800), ("90s", 90), ("0s", 0)] {
            let found = Timestamp::now().as_second() - parse_time(ago).unwrap().as_second();
            assert!((seconds..seconds + 60).contains(&found), "{ago}: {found}");
        }
        for wrong in ["yesterday", "", "30", "-30m", "1000000y"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn control_characters_are_written_out_and_tabs_are_not() {
        assert_eq!(shown("a\tb\x1b[2J\r"), "a\tb\\u{1b}[2J\\r");
    }
}
