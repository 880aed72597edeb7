//! The control plane: who may do what, what is meant to be, what was seen to be.
//!
//! ```text
//!   http ─▶ app ─▶ store            requests, decisions, tables
//!            │        ▲
//!            ▼        │
//!          node ◀── tasks           reconciler, watch on the node's changes
//! ```
//!
//! Owns the SQLite file and the keys of sandbox tokens, signed URLs and secrets in its data directory, and nothing on any host: what happens
//! to a sandbox happens on its node, which is reached through `warren-node-api` alone. Intent and what was observed
//! stand side by side in the store; after a crash at any point the reconciler makes them and the node agree.

mod app;
pub mod audit;
mod config;
mod domain;
mod http;
mod keyring;
pub mod keys;
pub mod listen;
pub mod secrets;
mod store;
mod tasks;

use std::io;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warren_node_api::NodeClient;
use warren_types::Error;

pub use app::audit::export::OtlpTarget;
use app::audit::{Audit, Ends};
use app::signed::{self, UrlSigner};
use app::token::{self, TokenSigner};
use app::{App, ImageSpace, Pace, Parts};
use audit::seal::Seal;
pub use config::{AuditSettings, Config};
pub use domain::{CustomDomain, ParseCustomDomainError, ParseDomainError, SandboxDomain};
use keyring::Keyring;
pub use keyring::KeyringError;
use store::Store;
pub use store::StoreError;
use store::audit::AuditStore;

/// A control plane that is ready to serve.
#[derive(Clone)]
pub struct Control {
    app: Arc<App>,
}

/// Why the control plane cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    #[error(
        "the key of sandbox tokens, {path}, cannot be used; if it is damaged, remove it and all tokens change"
    )]
    TokenKey { path: String, source: io::Error },
    #[error("the secrets cannot be used")]
    Keyring(#[from] KeyringError),
    #[error(
        "{secrets} secrets in the database are encrypted with a key ({id}) that is not in {path}; put the old key file back, \
         or name it with --secrets-key-file"
    )]
    OtherKey { secrets: i64, id: String, path: String },
    #[error("the node cannot be used")]
    Node(#[source] Error),
    #[error("the key of signed URLs, {path}, cannot be used; if it is damaged, remove it and they all end")]
    UrlKey { path: String, source: io::Error },
    #[error(
        "the key of the audit records, {path}, cannot be used; put the old file back: without it their seals cannot be checked"
    )]
    AuditKey { path: String, source: io::Error },
    #[error("what the node has could not be compared with what is stored")]
    Reconcile(#[source] Error),
    #[error("what sandboxes may reach could not be read")]
    Access(#[source] Error),
    #[error(
        "the database in {data_dir} is new, but the node has {sandboxes} sandboxes and {checkpoints} checkpoints it would \
         delete as unknown; put the old control.sqlite back, or remove the node's volume to give them up"
    )]
    Orphans { data_dir: String, sandboxes: usize, checkpoints: usize },
}

impl Control {
    /// Opens the store, makes it agree with the node, and starts the tasks that keep it so. They run in `tasks` and end
    /// when `shutdown` is cancelled; so do streams to clients.
    pub async fn start(
        config: Config,
        node: NodeClient,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Self, StartError> {
        let is_new = !Store::exists(&config.data_dir);
        let store = Store::open(&config.data_dir).await?;
        if is_new {
            refuse_orphans(&node, &config.data_dir).await?;
        }
        let tokens = TokenSigner::open(&config.data_dir).map_err(|source| StartError::TokenKey {
            path: config.data_dir.join(token::FILE_NAME).display().to_string(),
            source,
        })?;
        let keyring = open_keyring(&config, &store).await?;
        let audit = open_audit(&config, &store).await?;
        let urls = UrlSigner::open(&config.data_dir).map_err(|source| StartError::UrlKey {
            path: config.data_dir.join(signed::FILE_NAME).display().to_string(),
            source,
        })?;
        let node_info = node.get_node().await.map_err(StartError::Node)?;
        let app = Arc::new(App::new(Parts {
            store,
            audit,
            node,
            node_info,
            tokens,
            keyring,
            urls,
            region: config.region,
            public_url: config.public_url,
            sandbox_domain: config.sandbox_domain,
            custom_domains: config.custom_domains,
            preview_auth_required: config.preview_auth_required,
            max_running_per_org: config.max_running_per_org,
            autoscale: Pace { every: config.autoscale_every, minute: config.autoscale_minute },
            usage_every: config.usage_every,
            image_space: ImageSpace {
                budget_bytes: config.image_budget_bytes,
                unused_for: config.image_unused_for,
                every: config.image_sweep_every,
            },
            shutdown,
            tasks,
        }));
        tasks::reconcile::reconcile(&app).await.map_err(StartError::Reconcile)?;
        // A node that cannot be told now is told by the sweep; until then it lets nothing sealed out.
        app.push_all_access().await.map_err(StartError::Access)?;
        app.resume_builds().await;
        tasks::spawn(&app, &config.audit);
        Ok(Self { app })
    }

    /// Compares what is stored with what the node has, now. It happens by itself as well, every half minute.
    pub async fn reconcile(&self) -> Result<(), Error> {
        tasks::reconcile::reconcile(&self.app).await
    }

    /// Writes and seals the audit records that are under way. To be called when everything else has ended.
    pub async fn finish(&self) {
        self.app.finish_audit().await;
    }

    /// All routes.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.app))
    }
}

/// The keys of secrets. A new one is made only while there is nothing that an old one would open.
async fn open_keyring(config: &Config, store: &Store) -> Result<Keyring, StartError> {
    let used = store.list_secret_keys(keyring::KEY_ID_DIGITS).await?;
    let path = secrets::key_file(&config.data_dir, config.secrets_key_file.as_deref());
    let keyring = if used.is_empty() && config.secrets_key_file.is_none() {
        Keyring::open_or_make(&path)?
    } else {
        Keyring::open(&path)?
    };
    for (id, secrets) in used {
        if !keyring.knows(&id)? {
            return Err(StartError::OtherKey { secrets, id, path: path.display().to_string() });
        }
    }
    Ok(keyring)
}

/// The audit records go on where they ended.
async fn open_audit(config: &Config, store: &Store) -> Result<Audit, StartError> {
    let seal = Seal::open(&config.data_dir).map_err(|source| StartError::AuditKey {
        path: config.data_dir.join(audit::seal::FILE_NAME).display().to_string(),
        source,
    })?;
    let records = AuditStore::open(&config.data_dir).await?;
    let ends = Ends::read(&records, store, &seal).await?;
    Ok(Audit::start(records, ends, seal, config.audit.reads))
}

/// The reconciler removes what no row knows. Over a lost database that would be everything.
async fn refuse_orphans(node: &NodeClient, data_dir: &Path) -> Result<(), StartError> {
    let sandboxes = node.list_sandboxes().await.map_err(StartError::Node)?.len();
    let checkpoints = node.list_checkpoints().await.map_err(StartError::Node)?.len();
    if sandboxes == 0 && checkpoints == 0 {
        return Ok(());
    }
    Store::remove_new(data_dir);
    Err(StartError::Orphans { data_dir: data_dir.display().to_string(), sandboxes, checkpoints })
}
