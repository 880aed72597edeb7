//! A row as clients see it.

use warren_api::sandboxes::Sandbox;
use warren_types::SandboxState;

use crate::app::App;
use crate::store::sandboxes::SandboxRow;

impl App {
    /// Without credentials, as lists show it.
    pub(super) fn view(&self, row: SandboxRow) -> Sandbox {
        let running = row.observed == SandboxState::Running;
        Sandbox {
            sandbox_id: row.id.to_string(),
            status: row.observed.to_string(),
            template_id: row.template,
            alias: row.alias,
            region: self.region.clone(),
            worker_id: running.then_some(row.node_id),
            cpu_count: row.size.cpu_count,
            memory_mb: row.size.memory_mb,
            disk_mb: row.size.disk_mb,
            timeout: row.timeout_seconds,
            started_at: row.created_at,
            end_at: row.ended_at,
            metadata: row.metadata,
            tags: row.tags,
            tags_last_updated_at: row.tags_updated_at,
            token: None,
            connect_url: None,
            sandbox_domain: None,
            preview_auth_token: None,
            hibernation_keeps: hibernation_keeps(&row.isolation).to_owned(),
            isolation: row.isolation,
            status_reason: row.reason,
            generation: row.generation,
            warning: row.warning,
            from_checkpoint_id: row.from_checkpoint.map(|id| id.to_string()),
            patch_error: row.patch_error,
            processes_since: row.processes_since.filter(|_| running),
        }
    }

    /// With where its previews are, and while the sandbox runs with the token and the URL it is for. Those two come
    /// together or not at all: a client that has only one of them builds URLs that do not work.
    pub(super) fn view_with_token(&self, row: SandboxRow, base: &str) -> Sandbox {
        let access = (row.observed == SandboxState::Running)
            .then(|| (self.tokens.sign(&row.org, &row.id, &row.node_id), format!("{base}/api")));
        let (token, connect_url) = access.unzip();
        Sandbox { token, connect_url, sandbox_domain: Some(self.shown_domain(base)), ..self.view(row) }
    }
}

/// What a sandbox of that kind keeps when it hibernates.
fn hibernation_keeps(isolation: &str) -> &'static str {
    if isolation == "vm" { "memory" } else { "disk" }
}
