//! `warren agent ls`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::json;

use super::server_of;
use crate::agent::run::record::{Run, Session};
use crate::agent::run::session::{METADATA, METADATA_FOLDER};
use crate::client::{Client, ListFilter};
use crate::context::Context;
use crate::failure::Refused;
use crate::output::{Table, human_age};

const PAGE: u32 = 200;
/// More sandboxes than these are not looked through.
const PAGES: usize = 20;

/// Whether its program still runs. Who asks wakes nothing: the sandbox runs.
async fn at_work(client: &Client, run: &Run) -> &'static str {
    let Ok(sandbox) = run.sandbox() else { return "unknown" };
    let is_over = match &run.record.session {
        None => return "outside",
        Some(Session::Exec { id }) => client.list_execs(&sandbox).await.map(|execs| {
            execs.value.iter().find(|exec| exec.session_id == *id).is_none_or(|exec| !exec.running)
        }),
        Some(Session::Pty { exit_file, .. }) => match client.stat_file(&sandbox, exit_file).await {
            Ok(_) => Ok(true),
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404) => {
                Ok(false)
            }
            Err(error) => Err(error),
        },
    };
    match is_over {
        Ok(true) => "done",
        Ok(false) => "working",
        Err(_) => "unknown",
    }
}

pub(crate) async fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let client = context.client()?;
    let output = context.output;
    let runs = Run::all(&server_of(context)?);
    let filter = ListFilter {
        status: Some("running,hibernated,error".to_owned()),
        limit: Some(PAGE),
        ..ListFilter::default()
    };
    let mut sandboxes = BTreeMap::new();
    let mut cursor = None;
    for _ in 0..PAGES {
        let page = client.list_sandboxes(&filter, cursor.as_deref()).await?;
        let agents = page.sandboxes.into_iter().filter(|sandbox| sandbox.metadata.contains_key(METADATA));
        sandboxes.extend(agents.map(|sandbox| (sandbox.sandbox_id.clone(), sandbox)));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let mut table = Table::new(&["ID", "AGENT", "FOLDER", "SANDBOX", "AGENT IS", "AGE"]);
    let mut list = Vec::new();
    let mut add = |id: &str,
                   agent: &str,
                   folder: String,
                   status: &str,
                   state: &str,
                   since: jiff::Timestamp| {
        list.push(json!({"sandbox": id, "agent": agent, "folder": folder, "status": status, "state": state, "startedAt": since}));
        table.row([
            id.to_owned(),
            agent.to_owned(),
            folder,
            status.to_owned(),
            state.to_owned(),
            human_age(since),
        ]);
    };
    for run in &runs {
        let record = &run.record;
        let sandbox = sandboxes.remove(&record.sandbox);
        let status = sandbox.map_or("gone".to_owned(), |sandbox| sandbox.status);
        let state = match (record.ended, status.as_str()) {
            (Some(code), _) => format!("ended ({code})"),
            (None, "gone") => "lost".to_owned(),
            (None, "hibernated") => "paused".to_owned(),
            (None, "running") => at_work(&client, run).await.to_owned(),
            (None, _) => "unknown".to_owned(),
        };
        add(
            &record.sandbox,
            &record.agent,
            record.root.display().to_string(),
            &status,
            &state,
            record.started,
        );
    }
    for (id, sandbox) in &sandboxes {
        let value = |key: &str| sandbox.metadata.get(key).cloned().unwrap_or_default();
        add(
            id,
            &value(METADATA),
            value(METADATA_FOLDER),
            &sandbox.status,
            "of another machine",
            sandbox.started_at,
        );
    }
    if output.json {
        output.json(&json!(list))?;
    } else if list.is_empty() {
        output.note("no agents; `warren agent run` starts one");
    } else if output.quiet {
        let ids: Vec<_> = list.iter().filter_map(|one| one["sandbox"].as_str()).collect();
        output.line(&ids.join("\n"))?;
    } else {
        output.table(&table)?;
    }
    Ok(ExitCode::SUCCESS)
}
