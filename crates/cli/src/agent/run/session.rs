//! Starts a program in its sandbox and follows it, in whichever way it is shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use warren_types::SandboxId;

use super::super::launch::{Launch, Lines};
use super::headless::{self, Signals};
use super::lines::{LineWriter, To, Told};
use super::record::{Run, Session};
use super::turn::{Became, Turn};
use super::{Ended, keys, terminal};
use crate::client::Client;
use crate::failure::{Hinted, Refused, hinted};
use crate::output::Output;

/// Metadata of sandboxes of agents; the value is what works in it.
pub(crate) const METADATA: &str = "warren.agent";
pub(crate) const METADATA_FOLDER: &str = "warren.agent.folder";
/// Tag: the session, as another machine could attach to it.
const TAG_SESSION: &str = "warren.agent.session";

pub(crate) fn metadata(agent: &str, root: &std::path::Path, store: Option<&str>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([
        (METADATA.to_owned(), agent.to_owned()),
        (METADATA_FOLDER.to_owned(), root.display().to_string()),
        // A value of a checkpoint's sandbox would be taken over.
        (keys::METADATA_STORE.to_owned(), store.unwrap_or_default().to_owned()),
    ]);
    if store.is_none() {
        metadata.insert(keys::METADATA_STORE.to_owned(), "-".to_owned());
    }
    metadata
}

/// Starts it and notes where; from here on it can be found again.
pub(crate) async fn start(client: &Client, run: &mut Run, launch: &Launch) -> anyhow::Result<()> {
    let sandbox = run.sandbox()?;
    let (folder, limit) = (run.record.folder.clone(), run.record.timeout);
    let started = if launch.interactive {
        terminal::start(client, &sandbox, launch, &folder, limit).await
    } else {
        let exec = headless::start(client, &sandbox, launch, &folder, limit).await;
        exec.map(|exec| Session::Exec { id: exec.to_string() })
    };
    let session = started.map_err(|error| {
        let is_refused = error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 400);
        // A known agent that was to be in a snapshot.
        if !is_refused || launch.install.is_empty() {
            return error;
        }
        error.context(Hinted {
            message: "the agent could not be started".to_owned(),
            hint: "does the snapshot have it? `warren agent install KIND --image snapshot:NAME` makes one that does"
                .to_owned(),
        })
    })?;
    let word = match &session {
        Session::Exec { id } => format!("exec:{id}"),
        Session::Pty { id, .. } => format!("pty:{id}"),
    };
    run.record.session = Some(session);
    run.record.prompt.clone_from(&launch.prompt_on_stdin);
    run.save()?;
    // Only for who looks from elsewhere.
    let _ = client.set_tags(&sandbox, &BTreeMap::from([(TAG_SESSION.to_owned(), word)])).await;
    Ok(())
}

/// Follows it on our own output.
pub(crate) async fn follow(
    client: &Client,
    output: Output,
    run: &Run,
    turn: &Turn,
    prompt: Option<&str>,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    let sandbox: SandboxId = run.sandbox()?;
    let goes_on = || turn.became(run) == Became::Goes;
    match &run.record.session {
        Some(Session::Pty { id, exit_file }) => {
            terminal::follow(client, output, &sandbox, (id, exit_file), goes_on, signals).await
        }
        Some(Session::Exec { .. }) => {
            let exec = headless::exec_of(run).ok_or_else(|| no_session(run))?;
            let told: Arc<Mutex<Told>> = Arc::default();
            let (stdout, stderr) = if output.json {
                let to = |stream| To::Json { stream, task: None };
                (to("stdout"), to("stderr"))
            } else {
                (To::Stdout, To::Stderr)
            };
            let stream =
                headless::stream(client, output, (&sandbox, &exec), prompt).only_while(goes_on).writing_to(
                    LineWriter::new(run.record.lines(), stdout, &told),
                    LineWriter::new(Lines::Plain, stderr, &Arc::default()),
                );
            headless::follow(client, output, (&sandbox, &exec), stream, signals).await
        }
        None => Err(no_session(run)),
    }
}

fn no_session(run: &Run) -> anyhow::Error {
    hinted(
        format!("nothing was started in {}", run.record.sandbox),
        format!("`warren agent rm {}` ends it", run.record.sandbox),
    )
}
