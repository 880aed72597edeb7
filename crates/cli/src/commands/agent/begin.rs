//! Everything of `warren agent run` up to the program's start.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;

use super::run::RunArgs;
use crate::agent::launch::Launch;
use crate::agent::program::Program;
use crate::agent::run::prepare::{METADATA_TOKEN, Machine, Own, Preparing, id_of};
use crate::agent::run::record::{Record, Run};
use crate::agent::run::{finish, keys, random, session};
use crate::agent::tree::ScanOptions;
use crate::client::{Client, ListFilter};
use crate::output::Output;
use crate::words::map_of;

/// A request that was under way when we were interrupted may still be carried out.
const UNDER_WAY: Duration = Duration::from_millis(700);

pub(super) struct Beginning<'a> {
    pub(super) client: &'a Client,
    pub(super) output: Output,
    pub(super) args: &'a RunArgs,
    pub(super) server: &'a str,
    pub(super) root: &'a Path,
    pub(super) program: &'a Program,
}

pub(super) fn new_token() -> anyhow::Result<String> {
    Ok(format!("{:016x}", random()?))
}

impl Beginning<'_> {
    pub(super) async fn begin(&self, launch: &Launch, token: &str) -> anyhow::Result<Run> {
        let Self { client, output, args, root, .. } = *self;
        let started = Instant::now();
        let name = self.program.name();
        let (own, store) = own(client, args, root, &name, launch, token).await?;
        let begun = self.start(launch, &name, &own, store.as_deref()).await;
        if let (Err(_), Some(store)) = (&begun, &store) {
            keys::delete(client, store, "").await;
        }
        let run = begun?;
        let (id, ms) = (&run.record.sandbox, started.elapsed().as_millis());
        if output.json {
            let event = json!({"type": "started", "sandbox": id, "agent": name, "folder": run.record.folder, "ms": ms});
            output.line(&event.to_string())?;
        } else {
            output.note(&format!("{name} works in {id} on {}, begun in {ms} ms", run.record.folder));
        }
        Ok(run)
    }

    async fn start(
        &self,
        launch: &Launch,
        name: &str,
        own: &Own,
        store: Option<&str>,
    ) -> anyhow::Result<Run> {
        let Self { client, output, args, server, root, .. } = *self;
        let (machine, options) = machine(client, args, self.program, launch).await;
        let fresh = args.machine.fresh;
        let preparing =
            Preparing { client, output, server, root, options: &options, machine: &machine, fresh };
        let prepared = preparing.prepare(own).await?;
        let copies = tempfile::tempdir().context("could not make a temporary folder")?;
        let (sandbox, delta) = prepared.start(client, output, own, copies.path()).await?;
        let at = (root, prepared.folder.as_str());
        let (argv, tree) = (launch.argv.clone(), &prepared.tree);
        let mut record = Record::new(server, &sandbox, at, name, argv, launch.lines, tree, args.timeout);
        (record.include_ignored, record.keep) = (args.include_ignored, args.keep);
        record.store = store.map(str::to_owned);
        let recorded = async {
            let mut run = Run::create(record, &prepared.place.folder)?;
            run.save_delta(&delta)?;
            run.keep_copies(copies.path())?;
            if !matches!(self.program, Program::Outside(_)) {
                session::start(client, &mut run, launch).await?;
            }
            anyhow::Ok(run)
        }
        .await;
        if recorded.is_err() {
            let _ = finish::kill(client, &sandbox).await;
            if let Ok(run) = Run::find(&sandbox) {
                run.forget();
            }
        }
        recorded
    }
}

/// Ends what a command made that was interrupted before its program was started.
pub(super) async fn abandon(client: &Client, token: &str) {
    let filter = ListFilter {
        status: Some("creating,running".to_owned()),
        metadata: vec![(METADATA_TOKEN.to_owned(), token.to_owned())],
        ..ListFilter::default()
    };
    for _ in 0..2 {
        let made = client.list_sandboxes(&filter, None).await.map(|page| page.sandboxes).unwrap_or_default();
        for sandbox in made.iter().filter_map(|sandbox| id_of(&sandbox.sandbox_id).ok()) {
            let _ = client.kill_sandbox(&sandbox).await;
            if let Ok(run) = Run::find(&sandbox) {
                run.forget();
            }
        }
        tokio::time::sleep(UNDER_WAY).await;
    }
    keys::delete_of(client, token).await;
}

/// An agent is in the snapshot that is named, or in the one that `agent install` made; else it is installed in the image.
pub(super) async fn machine(
    client: &Client,
    args: &RunArgs,
    program: &Program,
    launch: &Launch,
) -> (Machine, ScanOptions) {
    let given = &args.machine;
    let mut snapshot = given.snapshot.clone();
    if let (None, None, Some(usual)) = (&given.image, &snapshot, program.usual_snapshot()) {
        let known = client.get_snapshot(&usual).await;
        snapshot = known.is_ok_and(|known| known.value.status == "ready").then_some(usual);
    }
    let machine = Machine {
        image: given.image.clone(),
        install: if snapshot.is_none() { launch.install.clone() } else { Vec::new() },
        snapshot,
        cpu: given.cpu,
        memory: given.memory,
        disk: given.disk,
        isolation: given.isolation.clone(),
    };
    (machine, ScanOptions { git: !given.no_git, max_file: given.max_file_mb.saturating_mul(1 << 20) })
}

/// What is this sandbox's own, and the store that was made for it.
pub(super) async fn own(
    client: &Client,
    args: &RunArgs,
    root: &Path,
    name: &str,
    launch: &Launch,
    token: &str,
) -> anyhow::Result<(Own, Option<String>)> {
    let given = &args.own;
    let store = match &given.secret_store {
        Some(_) => None,
        None => keys::seal(client, &given.key, &launch.keys, token).await?,
    };
    let mut envs = launch.envs.clone();
    envs.extend(map_of(given.env.to_vec()).unwrap_or_default());
    let mut metadata = session::metadata(name, root, store.as_deref());
    metadata.insert(METADATA_TOKEN.to_owned(), token.to_owned());
    let own = Own {
        envs,
        metadata,
        secret_store: given.secret_store.clone().or_else(|| store.clone()),
        allow_host: given.allow_host.clone(),
    };
    Ok((own, store))
}
