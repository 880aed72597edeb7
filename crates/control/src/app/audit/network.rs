//! What the gateways of nodes have decided, and what secrets were used for, as records.
//!
//! A node tells the first of a kind in a minute at once and counts the others of it ([`warren_node_api::NetworkEvents`]).

use warren_node_api::{NetworkEvent, NetworkEventKind, NetworkEventsQuery};
use warren_types::{Error, OrgId, SandboxId};

use super::{Kind, Note, Who};
use crate::app::App;

const MAX_HOST_BYTES: usize = 255;
const MAX_WORD_BYTES: usize = 300;

impl App {
    /// Takes the next batch from the node: the one to acknowledge next, and whether there was anything in it. `all`: also
    /// what is still being counted.
    pub(crate) async fn take_network_events(
        &self,
        acknowledged: u64,
        all: bool,
    ) -> Result<(u64, bool), Error> {
        let batch = self.node.take_network_events(NetworkEventsQuery { acknowledged, all }).await?;
        let any = !batch.events.is_empty();
        for event in batch.events {
            // One that is not known is of a build, or not ours at all.
            let Some(org) = self.org_of(&event.sandbox).await? else { continue };
            self.audit.tell(note_of(org, event)).await;
        }
        // Acknowledged only when written.
        self.audit.flush_order().await;
        Ok((batch.batch, any))
    }

    pub(crate) async fn org_of(&self, sandbox: &SandboxId) -> Result<Option<OrgId>, Error> {
        Ok(self.store.find_standing(sandbox).await?.map(|found| found.org))
    }
}

/// Hosts and paths come from a guest: what cannot be shown is left out, what is too long is cut.
fn note_of(org: OrgId, event: NetworkEvent) -> Note {
    let plain = |text: String, max: usize| -> String {
        text.chars().filter(|letter| !letter.is_control()).take(max).collect()
    };
    let who = Who::sandbox(org);
    let note = match event.kind {
        NetworkEventKind::SecretUse { name } => {
            who.note(Kind::SecretUse).with("name", plain(name, MAX_WORD_BYTES))
        }
        NetworkEventKind::Allowed { method } => {
            let note = who.note(Kind::Network).with("decision", "allowed");
            match method {
                Some(method) => note.with("method", plain(method, 16)),
                None => note,
            }
        }
        NetworkEventKind::Refused { rule } => {
            who.note(Kind::Network).with("decision", "refused").with("rule", plain(rule, MAX_WORD_BYTES))
        }
    };
    let note = match event.port {
        // A question for a name has no port.
        0 => note.with("question", true),
        port => note.with("port", port),
    };
    let note =
        note.of(&event.sandbox).with("host", plain(event.host, MAX_HOST_BYTES)).with("count", event.count);
    if event.folded { note.with("folded", true) } else { note }
}
