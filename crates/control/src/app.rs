//! Decisions: who may do what, whether it can be done, in which order. Takes typed proofs of who asks
//! ([`auth::Caller`], [`auth::Live`]) and knows nothing of HTTP beyond bodies that are passed on untouched.
//!
//! Whatever changes a sandbox runs as a task of its own ([`App::to_the_end`]), so that a client that hangs up half-way
//! leaves no half-made thing.

pub(crate) mod access;
pub(crate) mod agents;
pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod checkpoints;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod guest;
pub(crate) mod idempotency;
pub(crate) mod identity;
pub(crate) mod images;
pub(crate) mod in_flight;
pub(crate) mod key_file;
pub(crate) mod logs;
pub(crate) mod previews;
pub(crate) mod pty;
pub(crate) mod sandboxes;
pub(crate) mod scaling;
pub(crate) mod secrets;
pub(crate) mod signed;
pub(crate) mod tags;
pub(crate) mod token;
pub(crate) mod tools;
pub(crate) mod turns;
pub(crate) mod usage;

use std::future::Future;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use warren_node_api::{NodeClient, NodeInfo};
use warren_types::{CheckpointId, Error, OrgId};

use crate::domain::{CustomDomain, SandboxDomain};
use crate::keyring::Keyring;
use crate::store::Store;
use access::Changes as AccessChanges;
use audit::{Audit, Note, Refusal};
use auth::UsedKeys;
use images::build::Builds;
use in_flight::{CheckpointsInFlight, InFlight};
use previews::open::OpenPreviews;
use previews::port::PortClient;
use signed::UrlSigner;
use token::TokenSigner;
use turns::Turns;

/// How long a node may take to say what it is.
const NODE_ANSWER: Duration = Duration::from_secs(2);

pub(crate) struct App {
    pub(crate) store: Store,
    pub(crate) audit: Audit,
    pub(crate) node: NodeClient,
    pub(crate) in_flight: InFlight,
    pub(crate) checkpoints_in_flight: CheckpointsInFlight,
    /// Told when a checkpoint is seen to have changed.
    pub(crate) checkpoint_changed: Notify,
    /// What nodes are to be told of secrets and policies.
    pub(crate) access_changes: AccessChanges,
    pub(crate) builds: Builds,
    pub(crate) image_space: ImageSpace,
    pub(crate) keyring: Keyring,
    pub(crate) used_keys: UsedKeys,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) public_url: Option<String>,
    pub(crate) sandbox_domain: SandboxDomain,
    pub(crate) custom_domains: Vec<CustomDomain>,
    pub(crate) ports: PortClient,
    pub(crate) open_previews: OpenPreviews,
    pub(crate) autoscale: Pace,
    pub(crate) usage_every: Duration,
    pub(crate) tools: tools::Tools,
    node_info: RwLock<Arc<NodeInfo>>,
    tokens: TokenSigner,
    urls: UrlSigner,
    /// Every new sandbox gets a token for its previews, asked for or not.
    preview_auth_required: bool,
    /// Of creates with the same key, in one organisation.
    key_turns: Turns<(OrgId, String)>,
    /// Of changes to the patches of a checkpoint.
    patch_turns: Turns<CheckpointId>,
    region: String,
    max_running_per_org: u32,
}

/// How often sandboxes that scale by themselves are looked at, and what counts as a minute there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub every: Duration,
    pub minute: Duration,
}

/// When what images take is given back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageSpace {
    /// Bytes above which what is not used is removed; 0 = never. Half of the volume when absent.
    pub budget_bytes: Option<u64>,
    /// What was used since then is kept.
    pub unused_for: Duration,
    pub every: Duration,
}

/// What an [`App`] is made of.
pub(crate) struct Parts {
    pub store: Store,
    pub audit: Audit,
    pub node: NodeClient,
    pub node_info: NodeInfo,
    pub tokens: TokenSigner,
    pub keyring: Keyring,
    pub urls: UrlSigner,
    pub region: String,
    pub public_url: Option<String>,
    pub sandbox_domain: SandboxDomain,
    pub custom_domains: Vec<CustomDomain>,
    pub preview_auth_required: bool,
    pub max_running_per_org: u32,
    pub autoscale: Pace,
    pub usage_every: Duration,
    pub image_space: ImageSpace,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
}

// === impl App ===

impl App {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            audit: parts.audit,
            ports: PortClient::new(parts.node.clone()),
            open_previews: OpenPreviews::default(),
            node: parts.node,
            in_flight: InFlight::default(),
            checkpoints_in_flight: CheckpointsInFlight::default(),
            checkpoint_changed: Notify::new(),
            access_changes: AccessChanges::default(),
            builds: Builds::default(),
            image_space: parts.image_space,
            keyring: parts.keyring,
            used_keys: UsedKeys::default(),
            shutdown: parts.shutdown,
            tasks: parts.tasks,
            public_url: parts.public_url,
            sandbox_domain: parts.sandbox_domain,
            custom_domains: parts.custom_domains,
            autoscale: parts.autoscale,
            usage_every: parts.usage_every,
            tools: tools::Tools::default(),
            node_info: RwLock::new(Arc::new(parts.node_info)),
            tokens: parts.tokens,
            urls: parts.urls,
            preview_auth_required: parts.preview_auth_required,
            key_turns: Turns::default(),
            patch_turns: Turns::default(),
            region: parts.region,
            max_running_per_org: parts.max_running_per_org,
        }
    }

    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    /// What the node said it is when it was last asked.
    pub(crate) fn node_info(&self) -> Arc<NodeInfo> {
        Arc::clone(&self.node_info.read().expect("nothing panics while it holds this lock"))
    }

    /// Asks the node what it is now.
    pub(crate) async fn refresh_node_info(&self) -> Result<Arc<NodeInfo>, Error> {
        let info = tokio::time::timeout(NODE_ANSWER, self.node.get_node())
            .await
            .map_err(|_| Error::unavailable("the node does not answer"))??;
        let info = Arc::new(info);
        *self.node_info.write().expect("nothing panics while it holds this lock") = Arc::clone(&info);
        Ok(info)
    }

    /// Whether requests can be served now.
    pub(crate) async fn check_ready(&self) -> Result<(), Error> {
        self.store.ping().await?;
        self.refresh_node_info().await.map(drop)
    }

    /// Runs a change to its end, and records it and what came of it.
    async fn change<T, E>(
        self: &Arc<Self>,
        note: Note,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Refusal + Send + 'static,
    {
        let app = Arc::clone(self);
        self.to_the_end(async move { app.audit.around(note, change).await }).await
    }

    /// Runs a change to its end even when whoever asked for it stops waiting.
    async fn to_the_end<T, E>(
        &self,
        change: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        match self.tasks.spawn(change.in_current_span()).await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a change did not run to its end");
                Err(Error::internal("the server failed while it worked on this; its log says why").into())
            }
        }
    }
}
