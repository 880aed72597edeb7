//! More or less memory: by hand, by itself ([`crate::tasks::autoscale`] decides), and the lock that forbids both.

use std::sync::Arc;

use warren_api::scaling::{Autoscale, AutoscaleChange, Scale, Scaled, ScalingLock, ScalingLockChange};
use warren_node_api::Answer;
use warren_types::size::TIERS;
use warren_types::{Error, ErrorKind, SandboxId, SandboxState, Size};

use super::App;
use super::audit::{Kind, Who};
use super::auth::{Caller, sandbox_not_found};
use crate::store::sandboxes::SandboxStanding;
use crate::store::scaling::Scaling;

impl App {
    pub(crate) async fn scale(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        body: Scale,
    ) -> Result<Scaled, Error> {
        let standing = self.usable_standing(caller, id).await?;
        self.scale_for(caller.who(), &standing, body.memory_mb).await
    }

    /// What a program in it asks for, under the same conditions.
    pub(crate) async fn scale_itself(
        self: &Arc<Self>,
        id: &SandboxId,
        memory_mb: Option<i64>,
    ) -> Result<Answer, Error> {
        let standing = self.store.find_standing(id).await?.ok_or_else(sandbox_not_found)?;
        let scaled = self.scale_for(&Who::sandbox(standing.org.clone()), &standing, memory_mb).await?;
        Ok(Answer::Scaled { memory_mb: scaled.memory_mb, cpu_percent: scaled.cpu_percent })
    }

    async fn scale_for(
        self: &Arc<Self>,
        who: &Who,
        standing: &SandboxStanding,
        memory_mb: Option<i64>,
    ) -> Result<Scaled, Error> {
        let id = &standing.id;
        let memory_mb = memory_mb
            .filter(|memory| *memory > 0)
            .ok_or_else(|| Error::invalid("memoryMB is required and must be positive"))?;
        let row = self.store.find_sandbox(&standing.org, id).await?.ok_or_else(sandbox_not_found)?;
        let size = row.size.with_memory(memory_mb)?;
        if self.scaling(id).await?.locked {
            return Err(locked());
        }
        if standing.observed != SandboxState::Running {
            return Err(Error::invalid("sandbox is not running"));
        }
        let (app, id) = (Arc::clone(self), id.clone());
        self.change(who.note(Kind::SandboxScale).of(&id).with("memoryMB", size.memory_mb), async move {
            let size = app.resize(&id, size).await?;
            let autoscale_disabled = app.store.stop_autoscale(&id).await?;
            Ok(Scaled {
                sandbox_id: id.to_string(),
                worker_id: row.node_id,
                memory_mb: size.memory_mb,
                cpu_percent: size.cpu_count * 100,
                migrated: false,
                ok: true,
                autoscale_disabled,
            })
        })
        .await
    }

    /// Puts other limits in force, and writes them down as the node reports them.
    pub(crate) async fn resize(&self, id: &SandboxId, size: Size) -> Result<Size, Error> {
        let report = self.on_node(id, self.node.ensure_size(id, size)).await?;
        Ok(report.size.unwrap_or(size))
    }

    pub(crate) async fn get_autoscale(&self, caller: &Caller, id: &SandboxId) -> Result<Autoscale, Error> {
        self.standing_in_any_state(caller, id).await?;
        Ok(autoscale(id, self.scaling(id).await?))
    }

    pub(crate) async fn set_autoscale(
        &self,
        caller: &Caller,
        id: &SandboxId,
        body: AutoscaleChange,
    ) -> Result<Autoscale, Error> {
        self.usable_standing(caller, id).await?;
        let enabled = body.enabled.ok_or_else(|| Error::invalid("enabled is required: true or false"))?;
        if enabled {
            let (smallest, largest) = (TIERS[0].0, TIERS[TIERS.len() - 1].0);
            let min = bound("minMemoryMB", body.min_memory_mb, smallest)?;
            let max = bound("maxMemoryMB", body.max_memory_mb, largest)?;
            if min > max {
                return Err(Error::invalid(format!(
                    "minMemoryMB must not exceed maxMemoryMB (got {min} and {max})"
                )));
            }
            if !self.store.start_autoscale(id, min, max).await? {
                return Err(locked());
            }
        } else {
            self.store.stop_autoscale(id).await?;
        }
        let note = caller.note(Kind::SandboxScale).of(id).with("outcome", "done").with("autoscale", enabled);
        self.audit.note(note).await?;
        Ok(autoscale(id, self.scaling(id).await?))
    }

    pub(crate) async fn get_scaling_lock(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<ScalingLock, Error> {
        self.standing_in_any_state(caller, id).await?;
        Ok(ScalingLock { sandbox_id: id.to_string(), locked: self.scaling(id).await?.locked })
    }

    /// Locking ends scaling by itself; unlocking does not bring it back.
    pub(crate) async fn set_scaling_lock(
        &self,
        caller: &Caller,
        id: &SandboxId,
        body: ScalingLockChange,
    ) -> Result<ScalingLock, Error> {
        self.usable_standing(caller, id).await?;
        let locked = body.locked.ok_or_else(|| Error::invalid("locked is required: true or false"))?;
        self.store.set_scaling_lock(id, locked).await?;
        let note = caller.note(Kind::SandboxScale).of(id).with("outcome", "done").with("locked", locked);
        self.audit.note(note).await?;
        Ok(ScalingLock { sandbox_id: id.to_string(), locked })
    }

    async fn scaling(&self, id: &SandboxId) -> Result<Scaling, Error> {
        self.store.find_scaling(id).await?.ok_or_else(sandbox_not_found)
    }
}

fn bound(field: &str, value: Option<i64>, default: u32) -> Result<u32, Error> {
    let Some(value) = value.filter(|value| *value != 0) else { return Ok(default) };
    TIERS.iter().map(|tier| tier.0).find(|tier| i64::from(*tier) == value).ok_or_else(|| {
        Error::invalid(format!("{field} must be one of: 1024, 4096, 8192, 16384 (got {value})"))
    })
}

fn autoscale(id: &SandboxId, scaling: Scaling) -> Autoscale {
    Autoscale {
        sandbox_id: id.to_string(),
        enabled: scaling.autoscale,
        min_memory_mb: scaling.min_mb,
        max_memory_mb: scaling.max_mb,
    }
}

fn locked() -> Error {
    Error::new(ErrorKind::Forbidden, "scaling is locked on this sandbox; unlock it first")
        .with_code("scaling_locked")
}
