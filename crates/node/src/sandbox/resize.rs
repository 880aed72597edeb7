//! More or less memory and CPU for a sandbox that runs. What it sees of itself follows: `nproc` by its CPU set, `free` by
//! lxcfs, which reads the limits.

use warren_node_api::CODE_OOM_FLOOR;
use warren_runtime::cgroup::CgroupError;
use warren_types::{Error, SandboxState, Size};

use super::actor::Actor;

impl Actor {
    pub(super) async fn resize(&mut self, wanted: Size) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Running => {}
            SandboxState::Hibernated => return Err(Error::invalid("sandbox is not running")),
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        let before = self.record.spec.size;
        let size = Size { disk_mb: before.disk_mb, ..wanted };
        if size == before {
            return Ok(());
        }
        self.apply_size(size).await?;
        if let Err(error) = self.save() {
            // What is not written down would be gone with the next wake; better refused than forgotten.
            let _ = self.apply_size(before).await;
            return Err(error);
        }
        self.note();
        Ok(())
    }

    /// Memory that was restored into a smaller sandbox than it was of, and does not fit: it keeps its size, and that is said.
    pub(super) async fn grow_to_its_memory(&mut self) {
        let before = self.record.spec.size;
        let Some(size) = self.machine.as_ref().and_then(|machine| machine.outgrown(before)) else { return };
        self.record.warning = Some(match self.apply_size(size).await {
            Ok(()) => format!(
                "it has {} MB of memory again instead of {} MB, because what runs in it needs that; end something in it and \
                 scale it",
                size.memory_mb, before.memory_mb
            ),
            Err(error) => format!("it uses more memory than the {} MB it should: {error}", before.memory_mb),
        });
        self.note();
    }

    async fn apply_size(&mut self, size: Size) -> Result<(), Error> {
        let Some(machine) = &mut self.machine else {
            return Err(Error::internal("a running sandbox has no processes"));
        };
        machine.resize(&self.host, size).await?;
        self.record.spec.size = size;
        if let Some(record) = &mut self.record.machine {
            record.cpus = machine.cpus().to_vec();
        }
        Ok(())
    }
}

pub(super) fn refused(error: CgroupError) -> Error {
    match error {
        CgroupError::InUse { used, limit } => {
            let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
            Error::conflict(format!(
                "the sandbox uses {} MB of memory, more than the {} MB asked for; end something in it first",
                megabytes(used),
                megabytes(limit)
            ))
            .with_code(CODE_OOM_FLOOR)
            .with_details([("usedBytes", used), ("limitBytes", limit)])
        }
        error => Error::unavailable(format!("the new limits could not be set: {error}")),
    }
}
