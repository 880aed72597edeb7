//! The sandboxes of a build. They have no rows: their ids are held until they are gone from the node, and if this server ends
//! before that, the reconciler of the next one removes them.

use std::sync::Mutex;
use std::time::Duration;

use warren_node_api::SandboxSpec;
use warren_types::{Error, ErrorKind, SandboxId, SandboxState};

use crate::app::App;
use crate::app::guest::from_node;
use crate::app::in_flight::Flight;

/// A virtual machine of a size that was not asked for before is booted for it.
const NODE_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How long the end of the server may be held up.
const REMOVED_WITHIN: Duration = Duration::from_secs(3);
const ID_TRIES: usize = 8;

#[derive(Debug)]
pub(super) struct Workshop {
    flights: Mutex<Vec<Flight>>,
}

impl Workshop {
    pub(super) fn new() -> Self {
        Self { flights: Mutex::default() }
    }

    fn keep(&self, flight: Flight) {
        self.flights.lock().expect("nothing panics while it holds this lock").push(flight);
    }

    /// A sandbox that runs.
    pub(super) async fn open(&self, app: &App, spec: &SandboxSpec) -> Result<SandboxId, Error> {
        let flight = free_id(app).await?;
        let id = flight.id().clone();
        // From here on it is removed whatever comes.
        self.keep(flight);
        let made = tokio::time::timeout(NODE_DEADLINE, app.node.ensure_sandbox(&id, spec)).await;
        let report = made
            .unwrap_or_else(|_| {
                Err(Error::unavailable("the node took too long to make the sandbox of the build"))
            })
            .map_err(from_node)?;
        if report.state != SandboxState::Running {
            let reason = report.reason.unwrap_or_else(|| format!("it is {}", report.state));
            return Err(Error::new(
                ErrorKind::SandboxFailed,
                format!("the sandbox of the build could not be made: {reason}"),
            ));
        }
        Ok(id)
    }

    /// Removes all of them.
    pub(super) async fn close(&self, app: &App) {
        let flights =
            std::mem::take(&mut *self.flights.lock().expect("nothing panics while it holds this lock"));
        for flight in flights {
            let removing = app.ensure_absent(flight.id());
            let removed = if app.shutdown.is_cancelled() {
                tokio::time::timeout(REMOVED_WITHIN, removing)
                    .await
                    .unwrap_or_else(|_| Err(Error::unavailable("the server ends before it is gone")))
            } else {
                removing.await
            };
            if let Err(error) = removed {
                tracing::warn!(sandbox = %flight.id(), %error, "the sandbox of a build is not gone yet; trying again soon");
            }
        }
    }
}

/// An id nobody has, held from here on.
async fn free_id(app: &App) -> Result<Flight, Error> {
    for _ in 0..ID_TRIES {
        let id = SandboxId::generate();
        let Some(flight) = app.in_flight.begin(&id) else { continue };
        if app.store.find_standing(&id).await?.is_none() {
            return Ok(flight);
        }
    }
    Err(Error::unavailable("no free sandbox id was found; try again"))
}
