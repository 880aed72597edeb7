//! A virtual machine whose disk finds no room on the volume. QEMU stops it before the write; it stands still, its agent with
//! it, until there is room, and goes on as if nothing had been. (What a container writes is the host's to keep; see
//! [`super::hibernate`].)

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};
use warren_types::Error;

use super::actor::Actor;
use super::machine::Machine;

/// Between two looks at whether there is room again.
const LOOK: Duration = Duration::from_secs(1);
/// Between two glances at one that nobody uses, while there is little room.
const GLANCE: Duration = Duration::from_secs(2);
/// Bytes free on the volume with which none comes to stand still between two glances.
const LITTLE_BYTES: u64 = 1 << 30;
/// Bytes that must be free for it to go on.
const ROOM_BYTES: u64 = 128 << 20;
const WARNING: &str = "it stands still, because the node's volume is full; it goes on when there is room";

impl Actor {
    /// When to look whether it stands still though nobody has noticed: what it was doing is to go on all the same.
    pub(super) fn next_glance(&self) -> Option<Instant> {
        let can_stand_still = self.machine.as_ref().is_some_and(Machine::can_suspend);
        (can_stand_still && self.look_for_room.is_none()).then(|| self.glanced + GLANCE)
    }

    pub(super) async fn glance_at_room(&mut self) {
        let there_was_little =
            std::mem::replace(&mut self.there_was_little_room, self.host.disks.free_bytes() < LITTLE_BYTES);
        self.glanced = Instant::now();
        // The room may have come back since.
        if there_was_little || self.there_was_little_room {
            let _ = self.check_room().await;
        }
    }

    /// Refuses to use one that stands still for want of room. One that has room again goes on.
    pub(super) async fn check_room(&mut self) -> Result<(), Error> {
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let stood_still = self.look_for_room.take().is_some();
        if machine.has_no_room().await {
            let free = self.host.disks.free_bytes();
            if free < ROOM_BYTES {
                self.look_for_room = Some(Instant::now() + LOOK);
                if !stood_still {
                    warn!("a virtual machine stands still, because its disk finds no room");
                    self.record.warning = Some(WARNING.to_owned());
                    self.note();
                }
                return Err(Error::unavailable(format!(
                    "the sandbox stands still, because the node's volume is full ({} MiB free); it goes on when there is room",
                    free >> 20
                )));
            }
            machine.go_on().await;
        }
        if self.record.warning.as_deref() == Some(WARNING) {
            info!("a virtual machine goes on that stood still");
            self.record.warning = None;
            self.note();
        }
        Ok(())
    }
}
