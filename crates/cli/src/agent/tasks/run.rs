//! Runs tasks, so many at a time.
//!
//! Each begins as a fork of the same checkpoint. One that fails is begun anew from there, as often as asked for. When the time or
//! the money is used up, or at the first Ctrl-C, nothing new begins; what runs is stopped by its own limit or by that Ctrl-C,
//! and what it did so far is kept like any other result.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use warren_types::SandboxId;

use super::super::launch::{Launch, Lines};
use super::super::patch::base::{Sides, blobs_of, fetch_missing};
use super::super::patch::diff::diff;
use super::super::run::headless::{self, Signals};
use super::super::run::lines::{LineWriter, To, Told};
use super::super::run::prepare::{Own, Prepared};
use super::super::run::record::{Record, Run};
use super::super::run::turn::{Became, Turn};
use super::super::run::{Ended, finish, session};
use super::super::tree::cache;
use super::super::tree::root::Root;
use super::Task;
use super::view::{TICK, View};
use crate::client::Client;
use crate::failure::{LOST, chain_of};
use crate::output::{Output, printable};

pub(crate) struct Batch<'a> {
    pub(crate) client: &'a Client,
    pub(crate) output: Output,
    pub(crate) server: &'a str,
    pub(crate) root: &'a Path,
    pub(crate) agent: &'a str,
    pub(crate) prepared: Prepared,
    pub(crate) own: Own,
    /// Makes what is run of a task.
    pub(crate) launch: &'a dyn Fn(&Task) -> anyhow::Result<Launch>,
    pub(crate) parallel: usize,
    pub(crate) retries: u32,
    pub(crate) timeout: Option<u32>,
    pub(crate) budget: Option<Duration>,
    pub(crate) budget_usd: Option<f64>,
    pub(crate) out: PathBuf,
    pub(crate) include_ignored: bool,
    pub(crate) keep: bool,
}

/// How a task went.
struct Result {
    ended: Option<Ended>,
    sandbox: String,
    attempts: u32,
    /// The one that was written, if it came to that.
    patch: Option<PathBuf>,
    files: usize,
    refused: usize,
    cost: Option<f64>,
    seconds: f64,
    error: Option<String>,
}

const STOPPED: &str = "not begun: stopped";

struct Shared {
    begun: Instant,
    spent: Mutex<f64>,
    stopped: std::sync::atomic::AtomicBool,
}

/// Runs them all; how many did not succeed. `signals`: also those that came before.
pub(crate) async fn run(batch: &Batch<'_>, tasks: &[Task], signals: &mut Signals) -> anyhow::Result<usize> {
    cache::make_private(&batch.out)?;
    let view = View::new(batch.output);
    let shared = Shared { begun: Instant::now(), spent: Mutex::default(), stopped: false.into() };
    let (known, shown) = (&shared, &view);
    let all = stream::iter(tasks)
        .map(|task| async move { (task, batch.task(task, known, shown).await) })
        .buffer_unordered(batch.parallel)
        .map(|(task, result)| batch.tell(task, &result, &view).map(|()| result.is_success()))
        .collect::<Vec<_>>();
    tokio::pin!(all);
    let mut ticks = tokio::time::interval(TICK);
    let results = loop {
        tokio::select! {
            results = &mut all => break results,
            _ = signals.any() => {
                if !shared.stopped.swap(true, std::sync::atomic::Ordering::Relaxed) && !batch.output.json {
                    batch.output.note("\nstopping the agents; what they did so far is kept. Ctrl-C again leaves at once");
                }
            }
            _ = ticks.tick() => view.draw(),
        }
    };
    let mut failed = 0;
    for result in results {
        failed += usize::from(!result?);
    }
    Ok(failed)
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Result {
    fn is_success(&self) -> bool {
        self.ended == Some(Ended::Exit(0)) && self.error.is_none()
    }

    fn skipped(why: &str) -> Self {
        Self {
            ended: None,
            sandbox: String::new(),
            attempts: 0,
            patch: None,
            files: 0,
            refused: 0,
            cost: None,
            seconds: 0.0,
            error: Some(why.to_owned()),
        }
    }
}

impl Batch<'_> {
    async fn task(&self, task: &Task, shared: &Shared, view: &View) -> Result {
        let mut result = Result::skipped(STOPPED);
        // What comes while it is being begun counts too.
        let mut signals = match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return Result::skipped(&chain_of(&error)),
        };
        for attempt in 1..=self.retries + 1 {
            if let Some(why) = self.no_more(shared) {
                // What an earlier attempt brought is better than nothing.
                if attempt == 1 {
                    result = Result::skipped(why);
                }
                break;
            }
            let begun = Instant::now();
            let told: Arc<Mutex<Told>> = Arc::default();
            let what =
                if attempt == 1 { "begins".to_owned() } else { format!("begins again, attempt {attempt}") };
            view.begin(&task.name, what, &told);
            let tried = match self.attempt(task, attempt, shared, (&told, &mut signals)).await.transpose() {
                Some(tried) => tried,
                // It is said why before the next.
                None => continue,
            };
            let cost = told.lock().unwrap_or_else(PoisonError::into_inner).cost;
            *shared.spent.lock().unwrap_or_else(PoisonError::into_inner) += cost.unwrap_or_default();
            let earlier = result.patch.take();
            result = tried.unwrap_or_else(|error| Result::skipped(&chain_of(error.as_ref())));
            result.patch = result.patch.or(earlier);
            (result.attempts, result.cost, result.seconds) = (attempt, cost, begun.elapsed().as_secs_f64());
            // Of one whose work could not be brought here the work is not done again.
            let is_kept = result.error.is_some() && !result.sandbox.is_empty();
            if is_kept || result.is_success() || matches!(result.ended, Some(Ended::Stopped | Ended::Left(_)))
            {
                break;
            }
            if attempt <= self.retries {
                view.end(&task.name, &format!("{}; once more", said(&result)));
            }
        }
        result
    }

    /// Why nothing new begins.
    fn no_more(&self, shared: &Shared) -> Option<&'static str> {
        if shared.is_stopped() {
            return Some(STOPPED);
        }
        // Limits are in whole seconds.
        let elapsed = shared.begun.elapsed() + Duration::from_secs(1);
        if self.budget.is_some_and(|budget| elapsed > budget) {
            return Some("not begun: the time is used up");
        }
        let spent = *shared.spent.lock().unwrap_or_else(PoisonError::into_inner);
        self.budget_usd.is_some_and(|budget| spent >= budget).then_some("not begun: the money is used up")
    }

    /// None when it was stopped before its program began.
    async fn attempt(
        &self,
        task: &Task,
        attempt: u32,
        shared: &Shared,
        (told, signals): (&Arc<Mutex<Told>>, &mut Signals),
    ) -> anyhow::Result<Option<Result>> {
        let quiet = Output::new(self.output.json, true);
        let launch = (self.launch)(task)?;
        let copies = tempfile::tempdir().context("could not make a temporary folder")?;
        let (sandbox, delta) = self.prepared.start(self.client, quiet, &self.own, copies.path()).await?;
        // To send the tree may have taken long.
        if shared.is_stopped() {
            finish::kill(self.client, &sandbox).await?;
            return Ok(None);
        }
        let begun = async {
            let mut run = self.record(task, shared, &launch, &sandbox)?;
            run.save_delta(&delta)?;
            run.keep_copies(copies.path())?;
            session::start(self.client, &mut run, &launch).await?;
            anyhow::Ok(run)
        };
        let mut run = match begun.await {
            Ok(run) => run,
            Err(error) => {
                finish::kill(self.client, &sandbox).await?;
                if let Ok(run) = Run::find(&sandbox) {
                    run.forget();
                }
                return Err(error);
            }
        };
        let mut result = Result { sandbox: sandbox.to_string(), error: None, ..Result::skipped("") };
        if let Err(error) = self.work(task, attempt, &mut run, &launch, (told, signals), &mut result).await {
            let _ = self.client.hibernate_sandbox(&sandbox).await;
            result.error = Some(format!(
                "{}; the work is kept in {sandbox}, asleep: `warren agent patch {sandbox}` brings it",
                chain_of(error.as_ref())
            ));
        }
        Ok(Some(result))
    }

    fn record(
        &self,
        task: &Task,
        shared: &Shared,
        launch: &Launch,
        sandbox: &SandboxId,
    ) -> anyhow::Result<Run> {
        let mut record = Record::new(
            self.server,
            sandbox,
            (self.root, self.prepared.folder.as_str()),
            self.agent,
            launch.argv.clone(),
            launch.lines,
            &self.prepared.tree,
            self.limit(task, shared)?,
        );
        (record.include_ignored, record.keep) = (self.include_ignored, self.keep);
        Run::create(record, &self.prepared.place.folder)
    }

    /// Follows a program to its end and brings its work home.
    async fn work(
        &self,
        task: &Task,
        attempt: u32,
        run: &mut Run,
        launch: &Launch,
        (told, signals): (&Arc<Mutex<Told>>, &mut Signals),
        result: &mut Result,
    ) -> anyhow::Result<()> {
        let sandbox = run.sandbox()?;
        let turn = Turn::of(run)?;
        let ended = self.follow(task, run, &turn, launch, (told, signals)).await?;
        result.ended = Some(ended);
        if let Ended::Left(_) = ended {
            result.error = match turn.became(run) {
                Became::Paused => Some(format!("paused; `warren agent attach {sandbox}` goes on with it")),
                Became::Gone(word) => Some(word.text),
                Became::Goes | Became::Ended(_) => None,
            };
            return Ok(());
        }
        turn.take(|| ()).await;
        run.record.ended = Some(ended.code());
        run.save()?;
        let changes = finish::brought(self.client, run).await?;
        let root =
            Root::open(self.root).with_context(|| format!("could not open {}", self.root.display()))?;
        let blobs = blobs_of(&run.dir)?;
        let sides = Sides { root: Some(&root), blobs: &blobs };
        fetch_missing(self.client, &sides, &changes.changes, (&run.record.checkpoint, &run.record.folder))
            .await;
        let path = self.out.join(format!("{}.patch", task.name));
        cache::write(&path, &diff(&changes.changes, &sides, true))?;
        result.patch = Some(path.clone());
        (result.files, result.refused) = (changes.changes.len(), changes.refused.len());
        let is_last = attempt > self.retries || result.is_success();
        if self.keep && is_last || result.refused > 0 {
            let _ = self.client.hibernate_sandbox(&sandbox).await;
        } else {
            finish::kill(self.client, &sandbox).await?;
            if result.files == 0 || !is_last {
                turn.leave_word(&format!("its patch is in {}", path.display()), run.record.ended)?;
                run.forget();
            }
        }
        Ok(())
    }

    /// Its own limit, or what is left for all.
    fn limit(&self, task: &Task, shared: &Shared) -> anyhow::Result<Option<u32>> {
        let own = match &task.timeout {
            Some(text) => {
                Some(super::super::super::words::parse_duration(text).map_err(crate::failure::usage)?)
            }
            None => None,
        };
        let left = self.budget.map(|budget| budget.saturating_sub(shared.begun.elapsed()).as_secs().max(1));
        let left = left.map(|left| u32::try_from(left).unwrap_or(u32::MAX));
        Ok([own.or(self.timeout), left].into_iter().flatten().min())
    }

    async fn follow(
        &self,
        task: &Task,
        run: &Run,
        turn: &Turn,
        launch: &Launch,
        (told, signals): (&Arc<Mutex<Told>>, &mut Signals),
    ) -> anyhow::Result<Ended> {
        let exec = headless::exec_of(run).context("a task has no terminal")?;
        let sandbox = run.sandbox()?;
        let path = self.out.join(format!("{}.log", task.name));
        let log =
            std::fs::File::create(&path).with_context(|| format!("could not write {}", path.display()))?;
        let log = Arc::new(Mutex::new(log));
        let to = |stream| {
            let log = Arc::clone(&log);
            if self.output.json {
                To::Json { stream, task: Some((task.name.clone(), log)) }
            } else {
                To::File(log)
            }
        };
        let (stdout, stderr) = (to("stdout"), to("stderr"));
        let quiet = Output::new(self.output.json, true);
        let goes_on = || turn.became(run) == Became::Goes;
        let stream =
            headless::stream(self.client, quiet, (&sandbox, &exec), launch.prompt_on_stdin.as_deref())
                .only_while(goes_on)
                .writing_to(
                    LineWriter::new(launch.lines, stdout, told),
                    LineWriter::new(Lines::Plain, stderr, told),
                );
        let followed = headless::follow(self.client, quiet, (&sandbox, &exec), stream, signals).await?;
        Ok(match turn.became(run) {
            // It is another command's now, which has the sandbox sleep, has ended it or brought its work home.
            Became::Paused | Became::Gone(_) => Ended::Left(LOST),
            Became::Goes | Became::Ended(_) => followed,
        })
    }

    fn tell(&self, task: &Task, result: &Result, view: &View) -> anyhow::Result<()> {
        view.end(&task.name, &said(result));
        if !self.output.json {
            return Ok(());
        }
        let code = result.ended.map(Ended::code);
        let event = json!({
            "type": "task", "task": task.name, "success": result.is_success(), "exitCode": code, "timedOut": result.ended == Some(Ended::TimedOut),
            "attempts": result.attempts, "sandbox": result.sandbox, "files": result.files, "refused": result.refused, "costUsd": result.cost,
            "seconds": result.seconds, "patch": result.patch, "error": result.error,
        });
        self.output.line(&event.to_string())
    }
}

fn said(result: &Result) -> String {
    let mut text = match (&result.error, result.ended) {
        (Some(error), _) => return printable(error).into_owned(),
        (None, Some(Ended::Exit(0))) => "done".to_owned(),
        (None, Some(Ended::Exit(code))) => format!("ended with {code}"),
        (None, Some(Ended::TimedOut)) => "its time was up".to_owned(),
        (None, Some(Ended::Stopped)) => "stopped".to_owned(),
        (None, Some(Ended::Left(_)) | None) => {
            let id = &result.sandbox;
            return format!("left running in {id}; `warren agent attach {id}` goes on with it");
        }
    };
    let files = if result.files == 1 { "file" } else { "files" };
    text.push_str(&format!(" in {:.0} s, {} {files} changed", result.seconds, result.files));
    if let Some(cost) = result.cost {
        text.push_str(&format!(", {cost:.2} USD"));
    }
    if result.refused > 0 {
        text.push_str(&format!(", {} files stay in {}", result.refused, result.sandbox));
    }
    text
}
