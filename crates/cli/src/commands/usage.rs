//! `warren usage [SANDBOX]`: what sandboxes were given and used.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::Value;
use warren_api::usage::{SandboxUsage, Usage, UsageAmount, UsageItem};
use warren_types::SandboxId;

use super::logs::parse_time;
use crate::client::{UsageFilter, UsageWindow};
use crate::context::Context;
use crate::output::{Output, Table, pairs};
use crate::words::Pair;

#[derive(Args)]
#[command(after_help = "\
Examples:
  warren usage                                    the last 30 days, most memory first
  warren usage --by tag:team --since 2026-01-01 --until 2026-02-01
  warren usage sb-0123abcd --minutes              its last hour, minute by minute")]
pub(crate) struct UsageArgs {
    /// Only this sandbox, which may have ended [default: all of the organisation]
    #[arg(value_name = "SANDBOX", conflicts_with_all = ["by", "tag", "sort", "limit", "all"])]
    sandbox: Option<SandboxId>,
    /// What is summed: sandbox, or the values of a tag, as tag:KEY
    #[arg(long, value_name = "GROUP", default_value = "sandbox")]
    by: String,
    /// Only sandboxes with this tag; repeatable, and of several values of one tag any will do. An empty value: without the tag
    #[arg(long, short, value_name = "KEY=VALUE")]
    tag: Vec<Pair>,
    /// From this time on: a day (UTC), RFC 3339, or how long ago, such as 12h [default: 30 days ago; an hour of one sandbox]
    #[arg(long, value_name = "TIME", value_parser = parse_day_or_time)]
    since: Option<Timestamp>,
    /// Up to this time, likewise
    #[arg(long, value_name = "TIME", value_parser = parse_day_or_time)]
    until: Option<Timestamp>,
    /// Largest first by this
    #[arg(long, value_name = "WHAT", default_value = "memory")]
    sort: Sort,
    /// At most this many from the server at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: Option<u32>,
    /// All of them, however many there are
    #[arg(long, short)]
    all: bool,
    /// Of one sandbox: each minute in which it ran
    #[arg(long, requires = "sandbox")]
    minutes: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    Memory,
    Disk,
}

fn parse_day_or_time(text: &str) -> Result<Timestamp, String> {
    let midnight = |day: Date| day.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp());
    match text.parse().map(midnight) {
        Ok(Ok(time)) if text.len() == 10 => Ok(time),
        _ => parse_time(text).map_err(|said| format!("{said}, or a day, like 2026-01-31")),
    }
}

pub(crate) async fn run(context: &Context, args: UsageArgs) -> anyhow::Result<ExitCode> {
    let window = UsageWindow { from: args.since, to: args.until };
    match &args.sandbox {
        Some(id) => of_sandbox(context, id, window, args.minutes).await?,
        None => of_all(context, &args, window).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn of_sandbox(
    context: &Context,
    id: &SandboxId,
    window: UsageWindow,
    minutes: bool,
) -> anyhow::Result<()> {
    let answer = context.client()?.get_sandbox_usage(id, window).await?;
    if context.output.json {
        return context.output.json(&answer.json);
    }
    if minutes { show_minutes(context.output, &answer.value) } else { show(context.output, &answer.value) }
}

fn show(output: Output, usage: &SandboxUsage) -> anyhow::Result<()> {
    let totals = &usage.totals;
    let mut table = Table::new(&["FIELD", "VALUE"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("sandbox", usage.sandbox_id.clone());
    if let Some(alias) = &usage.alias {
        row("alias", alias.clone());
    }
    row("from", usage.from.to_string());
    row("to", usage.to.to_string());
    row("ran", format!("{} s", totals.uptime_seconds));
    row("memory given", format!("{} GB s", amount(totals.memory_allocated_gb_seconds)));
    row("memory used", format!("{} GB s", amount(totals.memory_used_gb_seconds)));
    row("most given", format!("{} MB", totals.memory_allocated_peak_mb));
    row("most used", format!("{} MB", totals.memory_used_peak_mb));
    output.table(&table)
}

fn show_minutes(output: Output, usage: &SandboxUsage) -> anyhow::Result<()> {
    let mut table = Table::new(&["MINUTE", "RAN S", "GIVEN MB", "USED MB", "MOST USED MB"]);
    for point in &usage.points {
        table.row([
            point.ts.to_string(),
            point.uptime_seconds.to_string(),
            point.allocated_memory_mb.to_string(),
            point.used_memory_mb_avg.to_string(),
            point.used_memory_mb_peak.to_string(),
        ]);
    }
    output.table(&table)
}

async fn of_all(context: &Context, args: &UsageArgs, window: UsageWindow) -> anyhow::Result<()> {
    let client = context.client()?;
    let sort = match args.sort {
        Sort::Memory => "-memoryGbSeconds",
        Sort::Disk => "-diskOverageGbSeconds",
    };
    let filter =
        UsageFilter { group_by: args.by.clone(), window, tags: filters(&args.tag), sort, limit: args.limit };
    let answer = client.get_usage(&filter, None).await?;
    let (mut usage, mut json) = (answer.value, answer.json);
    while args.all
        && let Some(cursor) = usage.next_cursor.take()
    {
        let page = client.get_usage(&filter, Some(&cursor)).await?;
        anyhow::ensure!(
            page.value.next_cursor.as_ref() != Some(&cursor),
            "the server's list does not end: it repeats a page"
        );
        usage.items.extend(page.value.items);
        usage.next_cursor = page.value.next_cursor;
        if let (Some(Value::Array(all)), Some(Value::Array(more))) =
            (json.get_mut("items"), page.json.get("items"))
        {
            all.extend(more.iter().cloned());
        }
        json["nextCursor"] = page.json["nextCursor"].clone();
    }
    if context.output.json {
        context.output.json(&json)?;
    } else {
        show_all(context.output, &usage)?;
    }
    if usage.next_cursor.is_some() {
        context.output.note("there are more; --all lists them all, and the total is of all");
    }
    Ok(())
}

/// One filter for each tag, its values with commas.
fn filters(tags: &[Pair]) -> Vec<(String, String)> {
    let mut filters: Vec<(String, String)> = Vec::new();
    for tag in tags {
        match filters.iter_mut().find(|(key, _)| *key == tag.key) {
            Some((_, values)) => {
                values.push(',');
                values.push_str(&tag.value);
            }
            None => filters.push((tag.key.clone(), tag.value.clone())),
        }
    }
    filters
}

fn show_all(output: Output, usage: &Usage) -> anyhow::Result<()> {
    const GIVEN: [&str; 2] = ["MEMORY GB S", "DISK OVER 20 GB, GB S"];
    let numbers = |of: &UsageAmount| [amount(of.memory_gb_seconds), amount(of.disk_overage_gb_seconds)];
    let [memory, disk] = numbers(&usage.total);
    let mut table = match usage.group_by.strip_prefix("tag:") {
        Some(key) => Table::new(&[key, "SANDBOXES", GIVEN[0], GIVEN[1]]),
        None => Table::new(&["SANDBOX", "ALIAS", "STATUS", "TAGS", GIVEN[0], GIVEN[1]]),
    };
    for item in &usage.items {
        match item {
            UsageItem::Sandbox(of) => {
                let [memory, disk] = numbers(&of.amount);
                let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
                let (alias, status) = (or_none(&of.alias), or_none(&of.status));
                table.row([of.sandbox_id.clone(), alias, status, pairs(&of.tags), memory, disk]);
            }
            UsageItem::Tag(of) => {
                let [memory, disk] = numbers(&of.usage.amount);
                table.row([of.tag_value.clone(), of.usage.sandbox_count.to_string(), memory, disk]);
            }
        }
    }
    let none = || "-".to_owned();
    match &usage.untagged {
        Some(untagged) => {
            let [without_memory, without_disk] = numbers(&untagged.amount);
            table.row([
                "(without it)".to_owned(),
                untagged.sandbox_count.to_string(),
                without_memory,
                without_disk,
            ]);
            table.row(["(total)".to_owned(), none(), memory, disk]);
        }
        None => table.row(["(total)".to_owned(), none(), none(), none(), memory, disk]),
    }
    output.table(&table)
}

/// Two digits behind the point are enough for people.
fn amount(gb_seconds: f64) -> String {
    format!("{gb_seconds:.2}")
}
