//! Tells nodes what sandboxes may reach and which secrets they have, after a change.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use warren_types::{Error, ErrorKind, OrgId, SandboxId, SandboxState};

use super::Told;
use super::policy::effective;
use crate::app::App;
use crate::app::guest::from_node;

/// How long a node may take for one sandbox.
const NODE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a change waits for all of its sandboxes before the rest is left to the sweep.
const ALL_DEADLINE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 16;

/// How far a change has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub done: usize,
    /// Their node could not be told yet.
    pub pending: usize,
}

impl App {
    /// After stores or secrets have changed, and were counted: tells the nodes of these sandboxes.
    pub(in crate::app) async fn push_access(&self, sandboxes: &[(OrgId, SandboxId)], told: Told) -> Pushed {
        for (org, id) in sandboxes {
            self.access_changes.put_off(org, id, told);
        }
        self.push_put_off(sandboxes).await;
        let pending = sandboxes.iter().filter(|(_, id)| self.access_changes.is_untold(id)).count();
        Pushed { done: sandboxes.len() - pending, pending }
    }

    /// Tells the node everything about every sandbox: it keeps no secrets over a restart, and may have missed policies.
    pub(crate) async fn push_all_access(&self) -> Result<(), Error> {
        let sandboxes = self.store.list_with_access().await?;
        for (org, id) in &sandboxes {
            self.access_changes.put_off(org, id, Told::BOTH);
        }
        self.push_put_off(&sandboxes).await;
        Ok(())
    }

    /// Tells what could not be told before.
    pub(crate) async fn push_untold_access(&self) {
        let untold = self.access_changes.all_untold();
        if !untold.is_empty() {
            self.push_put_off(&untold).await;
        }
    }

    /// After a create: what it read may have changed before its row could be found.
    pub(in crate::app) async fn push_if_changed(
        self: &Arc<Self>,
        org: &OrgId,
        id: &SandboxId,
        read_at: Option<u64>,
    ) {
        if read_at.is_some_and(|read_at| read_at != self.access_changes.now()) {
            self.access_changes.put_off(org, id, Told::BOTH);
            self.push_put_off(&[(org.clone(), id.clone())]).await;
        }
    }

    async fn push_put_off(&self, sandboxes: &[(OrgId, SandboxId)]) {
        let pushes = async {
            for some in sandboxes.chunks(AT_ONCE) {
                let pushes: Vec<_> = some.iter().map(|(org, id)| self.push_one(org, id)).collect();
                join_all(pushes).await;
            }
        };
        if tokio::time::timeout(ALL_DEADLINE, pushes).await.is_err() {
            tracing::warn!("not every sandbox has its new secrets or policy yet; trying again soon");
        }
    }

    async fn push_one(&self, org: &OrgId, id: &SandboxId) {
        let _turn = self.access_changes.turn(id).await;
        // Taken before the look at what is stored: a change after that is put off anew.
        let told = self.access_changes.take(id);
        if told == Told::default() {
            return;
        }
        // Put off again unless it is said otherwise, also when whoever waits for this stops.
        let mut unfinished = PutOff { app: self, org, id, told };
        match self.tell_node(org, id, told).await {
            Ok(()) => unfinished.told = Told::default(),
            Err(error) => {
                tracing::warn!(sandbox = %id, %error, "a sandbox does not have its new secrets or policy yet; trying again soon");
            }
        }
    }

    async fn tell_node(&self, org: &OrgId, id: &SandboxId, told: Told) -> Result<(), Error> {
        let Some(access) = self.store.find_access(org, id).await? else { return Ok(()) };
        match access.observed {
            SandboxState::Running | SandboxState::Hibernated | SandboxState::Error => {}
            // Its create looks for changes when it is done.
            SandboxState::Creating | SandboxState::Stopped => return Ok(()),
        }
        if told.secrets {
            let grant = self.grant_what_opens(&access);
            in_time(self.node.ensure_secrets(id, &grant)).await?;
        }
        if told.policy {
            let lists = access.stores.iter().map(|store| store.egress_allowlist.as_slice());
            let policy = effective(access.policy.as_ref(), lists);
            match in_time(self.node.ensure_egress(id, &policy)).await {
                Ok(report) => self.store.apply_report(&report).await.map(drop)?,
                // It has ended, or is lost; the reconciler sees to that.
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Gone) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Puts off what was not told when it is dropped.
struct PutOff<'a> {
    app: &'a App,
    org: &'a OrgId,
    id: &'a SandboxId,
    told: Told,
}

impl Drop for PutOff<'_> {
    fn drop(&mut self) {
        if self.told != Told::default() {
            self.app.access_changes.put_off(self.org, self.id, self.told);
        }
    }
}

pub(super) async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let answered = tokio::time::timeout(NODE_DEADLINE, call).await;
    answered.unwrap_or_else(|_| Err(Error::unavailable("the node took too long"))).map_err(from_node)
}
