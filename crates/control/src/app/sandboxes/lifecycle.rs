//! Time-outs, hibernate, wake, reboot.

use std::sync::Arc;
use std::time::Duration;

use warren_api::sandboxes::{Hibernated, Wake, Woken};
use warren_node_api::{Reboot, Report, Timeout, Wake as NodeWake};
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use super::MAX_TIMEOUT_SECONDS;
use crate::app::App;
use crate::app::audit::{Kind, Who};
use crate::app::auth::{Caller, has_been_stopped, has_failed};
use crate::app::guest::from_node;
use crate::store::StoreError;
use crate::store::sandboxes::{Intent, SandboxStanding};

/// How long a node may take for one of these.
const NODE_DEADLINE: Duration = Duration::from_secs(120);

impl App {
    /// Replaces the idle time-out and restarts the timer.
    pub(crate) async fn set_timeout(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        seconds: Option<i64>,
    ) -> Result<(), Error> {
        let seconds =
            seconds.ok_or_else(|| Error::invalid("timeout is required: seconds, or 0 for never"))?;
        let seconds = checked_timeout(seconds)?;
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        let note = caller.note(Kind::SandboxTimeout).of(&id).with("seconds", seconds);
        self.change(note, async move {
            app.usable_standing(&caller, &id).await?;
            app.change_timeout(&id, seconds).await
        })
        .await
    }

    pub(crate) async fn hibernate(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<Hibernated, Error> {
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        self.change(caller.note(Kind::SandboxHibernate).of(&id), async move {
            let standing = app.standing_in_any_state(&caller, &id).await?;
            match standing.observed {
                // The row may be a moment behind, so the node is asked in both cases.
                SandboxState::Running | SandboxState::Hibernated => {}
                SandboxState::Creating | SandboxState::Stopped | SandboxState::Error => {
                    return Err(Error::invalid("sandbox is not running"));
                }
            }
            let report = app.on_node(&id, app.node.ensure_hibernated(&id)).await?;
            app.store.set_intent(&id, Intent::Hibernated).await?;
            reached(&report, SandboxState::Hibernated)?;
            Ok(Hibernated {
                sandbox_id: id.to_string(),
                status: report.state.to_string(),
                keeps: if report.memory_kept { "memory" } else { "disk" }.to_owned(),
            })
        })
        .await
    }

    /// Wakes it. A time-out that is sent replaces the stored one; waking alone changes no setting.
    pub(crate) async fn wake(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        body: Wake,
        base: String,
    ) -> Result<Woken, Error> {
        let timeout = body.timeout.map(checked_timeout).transpose()?;
        let previous_disk = match body.disk.as_deref() {
            None | Some("" | "latest") => false,
            Some("previous") => true,
            Some(_) => return Err(Error::invalid("disk must be latest or previous")),
        };
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        let note = caller.note(Kind::SandboxWake).of(&id).with("previousDisk", previous_disk);
        self.change(note.with("timeout", timeout), async move {
            let before = app.startable_standing(&caller, &id).await?;
            if let Some(seconds) = timeout {
                app.change_timeout(&id, seconds).await?;
            }
            let report = app.on_node(&id, app.node.ensure_awake(&id, NodeWake { previous_disk })).await?;
            app.store.set_intent(&id, Intent::Running).await?;
            reached(&report, SandboxState::Running)?;
            let sandbox = app.get_sandbox(&caller, &id, &base).await?;
            // The row may have been a moment behind; the generation tells whether anything happened.
            let processes = match before.observed {
                SandboxState::Running if report.generation == before.generation => "running",
                _ if report.memory_kept => "kept",
                _ => "restarted",
            };
            Ok(Woken { sandbox, processes: processes.to_owned() })
        })
        .await
    }

    /// Ends everything in it and starts it again on the same disk; `hard` without asking first. One that hibernates or has
    /// failed is started.
    pub(crate) async fn reboot(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        hard: bool,
    ) -> Result<(), Error> {
        let (app, caller, id) = (Arc::clone(self), caller.clone(), id.clone());
        self.change(caller.note(Kind::SandboxReboot).of(&id).with("hard", hard), async move {
            app.startable_standing(&caller, &id).await?;
            let report = app.on_node(&id, app.node.reboot(&id, Reboot { hard })).await?;
            app.store.set_intent(&id, Intent::Running).await?;
            reached(&report, SandboxState::Running)
        })
        .await
    }

    /// Where a sandbox of ours stands that can be used.
    pub(in crate::app) async fn usable_standing(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<SandboxStanding, Error> {
        let found = self.standing_in_any_state(caller, id).await?;
        usable(&found).map(|()| found)
    }

    /// Where a sandbox of ours stands that can be told to run: one that has failed too, its disk is kept.
    async fn startable_standing(&self, caller: &Caller, id: &SandboxId) -> Result<SandboxStanding, Error> {
        let found = self.standing_in_any_state(caller, id).await?;
        match found.observed {
            SandboxState::Error => Ok(found),
            _ => usable(&found).map(|()| found),
        }
    }

    /// The node first: what is stored is what counts there.
    async fn change_timeout(&self, id: &SandboxId, seconds: u32) -> Result<(), Error> {
        self.on_node(id, self.node.ensure_timeout(id, Timeout { timeout_seconds: seconds })).await?;
        Ok(self.store.set_timeout(id, seconds).await?)
    }

    /// Waits for a node's answer about a sandbox and writes it down.
    pub(in crate::app) async fn on_node(
        &self,
        id: &SandboxId,
        call: impl Future<Output = Result<Report, Error>>,
    ) -> Result<Report, Error> {
        let report = tokio::time::timeout(NODE_DEADLINE, call)
            .await
            .unwrap_or_else(|_| {
                Err(Error::unavailable("the node took too long; ask for the sandbox to see where it stands"))
            })
            .map_err(from_node);
        let report = self.unless_ended(id, report).await?;
        match report.state {
            // That is never what was asked for, so nobody else records it.
            SandboxState::Error => self.take_report(&report).await?,
            _ => drop(self.store.apply_report(&report).await?),
        }
        Ok(report)
    }

    /// Writes down what a node says of a sandbox by itself, and that it has become something else.
    pub(crate) async fn take_report(&self, report: &Report) -> Result<(), StoreError> {
        // Not one of ours, or nothing new: then no row changes, and the reconciler sees to what should not be there.
        let before = self.store.find_standing(&report.id).await?;
        let changed = self.store.apply_report(report).await?;
        if let Some(before) = before.filter(|before| changed && before.observed != report.state) {
            let note = Who::server(before.org).note(Kind::SandboxState).of(&report.id);
            let note = note.with("state", report.state.as_str()).with("generation", report.generation);
            self.audit.tell(note.with("reason", report.reason.clone())).await;
        }
        Ok(())
    }
}

fn checked_timeout(seconds: i64) -> Result<u32, Error> {
    if seconds < 0 {
        return Err(Error::invalid("timeout must be non-negative"));
    }
    match u32::try_from(seconds) {
        Ok(seconds) if seconds <= MAX_TIMEOUT_SECONDS => Ok(seconds),
        _ => Err(Error::invalid(format!("timeout must be at most {MAX_TIMEOUT_SECONDS} seconds"))),
    }
}

fn usable(found: &SandboxStanding) -> Result<(), Error> {
    match found.observed {
        SandboxState::Running | SandboxState::Hibernated => Ok(()),
        SandboxState::Creating => {
            Err(Error::unavailable("the sandbox is still being made; try again in a moment"))
        }
        SandboxState::Stopped => Err(has_been_stopped(&found.id)),
        SandboxState::Error => Err(has_failed(&found.id, found.reason.as_deref())),
    }
}

fn reached(report: &Report, wanted: SandboxState) -> Result<(), Error> {
    if report.state == wanted {
        return Ok(());
    }
    let reason = report.reason.as_deref().unwrap_or("its node gave no reason");
    Err(Error::new(
        ErrorKind::SandboxFailed,
        format!("the sandbox is {} instead of {wanted}: {reason}", report.state),
    ))
}
