//! What a sandbox may reach, changed while it is there.

use warren_types::{EgressPolicy, Error, SandboxState};

use super::actor::Actor;

impl Actor {
    /// What is no longer allowed ends, connections that are open too; what has become allowed is from now on.
    pub(super) async fn set_egress(&mut self, policy: EgressPolicy) -> Result<(), Error> {
        match self.record.state {
            SandboxState::Running | SandboxState::Hibernated => {}
            SandboxState::Error | SandboxState::Stopped | SandboxState::Creating => return Err(self.gone()),
        }
        let before = std::mem::replace(&mut self.record.spec.egress, policy);
        if self.record.spec.egress == before {
            return Ok(());
        }
        let mut changed = self.save();
        if changed.is_ok()
            && let Some(machine) = &self.machine
        {
            changed = machine.set_gate(&self.host, &self.record).await;
        }
        if changed.is_err() {
            self.record.spec.egress = before;
            let _ = self.save();
            return changed;
        }
        self.session.set_policy(self.record.spec.egress.clone());
        self.note();
        Ok(())
    }
}
