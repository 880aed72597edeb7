//! What a control plane is told when it starts.

use std::path::PathBuf;
use std::time::Duration;

use crate::app::audit::export::OtlpTarget;
use crate::domain::{CustomDomain, SandboxDomain};

/// Settings of the control plane, read once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where `control.sqlite`, `token.key` and `urls.key` are, or will be made.
    pub data_dir: PathBuf,
    /// The file with the keys of secrets; `secrets.key` in the data directory, made when it is not there, when absent.
    pub secrets_key_file: Option<PathBuf>,
    /// Shown with every sandbox.
    pub region: String,
    /// How clients reach this server, without a path; derived from each request when absent.
    pub public_url: Option<String>,
    /// Below it every sandbox has names for its ports.
    pub sandbox_domain: SandboxDomain,
    /// Domains of organisations, none of which overlaps another or the one above.
    pub custom_domains: Vec<CustomDomain>,
    /// Gives every new sandbox a token without which its previews do not open.
    pub preview_auth_required: bool,
    /// Sandboxes an organisation may have running at once.
    pub max_running_per_org: u32,
    /// How often sandboxes that scale by themselves are looked at.
    pub autoscale_every: Duration,
    /// What counts as a minute there.
    pub autoscale_minute: Duration,
    /// How often the memory of running sandboxes is looked at.
    pub usage_every: Duration,
    /// Bytes that images, layers and templates may take before what is not used of them is removed, the longest unused first;
    /// 0 = never. Half of the volume when absent.
    pub image_budget_bytes: Option<u64>,
    /// How long something must not have been used to be removed.
    pub image_unused_for: Duration,
    /// How often that is looked at.
    pub image_sweep_every: Duration,
    pub audit: AuditSettings,
}

/// What becomes of audit records.
#[derive(Debug, Clone)]
pub struct AuditSettings {
    /// How many days they are kept; 0 = for ever.
    pub retention_days: u32,
    /// Whether reads of files are recorded.
    pub reads: bool,
    /// Where they are sent.
    pub otlp: Option<OtlpTarget>,
}

impl AuditSettings {
    pub const DEFAULT_RETENTION_DAYS: u32 = 90;
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { retention_days: Self::DEFAULT_RETENTION_DAYS, reads: false, otlp: None }
    }
}

impl Config {
    pub const DEFAULT_REGION: &str = "local";
    /// On one's own hardware the hardware is the limit; this one catches programs that have gone wild.
    pub const DEFAULT_MAX_RUNNING_PER_ORG: u32 = 1000;

    const DEFAULT_IMAGE_UNUSED_FOR: Duration = Duration::from_secs(10 * 60);
    const DEFAULT_USAGE_EVERY: Duration = Duration::from_secs(30);
    const DEFAULT_AUTOSCALE_EVERY: Duration = Duration::from_secs(30);

    /// The defaults, with everything kept in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            secrets_key_file: None,
            region: Self::DEFAULT_REGION.to_owned(),
            public_url: None,
            sandbox_domain: SandboxDomain::localhost(),
            custom_domains: Vec::new(),
            preview_auth_required: false,
            max_running_per_org: Self::DEFAULT_MAX_RUNNING_PER_ORG,
            autoscale_every: Self::DEFAULT_AUTOSCALE_EVERY,
            autoscale_minute: Duration::from_secs(60),
            usage_every: Self::DEFAULT_USAGE_EVERY,
            image_budget_bytes: None,
            image_unused_for: Self::DEFAULT_IMAGE_UNUSED_FOR,
            image_sweep_every: Duration::from_secs(60),
            audit: AuditSettings::default(),
        }
    }
}
