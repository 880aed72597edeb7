//! From a checkpoint and what a request says to the sandbox that is wanted: for forks, and for creates from images and
//! snapshots, which are forks as well.

use warren_api::checkpoints::Fork;
use warren_api::sandboxes::SandboxCreate;
use warren_node_api::SandboxSpec;
use warren_types::tags::Tags;
use warren_types::{EgressMode, EgressPolicy, Error, Isolation, OrgId, Secret, Size};

use crate::app::access::remove_given;
use crate::app::access::request::{AccessWanted, PolicyFields, checked, secret_hosts, with_hosts};
use crate::app::previews::wanted_token;
use crate::app::sandboxes::request::{
    Wanted, checked_envs, checked_metadata, timeout_or_never, zero_as_absent,
};
use crate::store::access::{AccessRecord, SecretHosts};
use crate::store::checkpoints::CheckpointRow;

/// What a request says over what a checkpoint gives, checked.
#[derive(Debug, Clone)]
pub(in crate::app) struct Over {
    pub isolation: Option<Isolation>,
    timeout_seconds: u32,
    envs: Tags,
    metadata: Tags,
    alias: Option<String>,
    tags: Tags,
    start_commands: Vec<String>,
    /// MiB; any number.
    memory_mb: Option<i64>,
    /// MiB; one that a disk can have.
    disk_mb: Option<u32>,
    preview_token: Option<Secret<String>>,
    pub store: Option<String>,
    secret_hosts: SecretHosts,
    policy: Option<EgressPolicy>,
    /// The policy stands instead of what is inherited.
    replaces: bool,
    /// It is to have a network, whatever is inherited.
    opens: bool,
}

impl TryFrom<Fork> for Over {
    type Error = Error;

    fn try_from(body: Fork) -> Result<Self, Error> {
        let asked = PolicyFields {
            network_enabled: None,
            egress: body.egress,
            egress_allowlist: body.egress_allowlist,
        };
        Ok(Self {
            isolation: None,
            timeout_seconds: timeout_or_never(body.timeout)?,
            envs: body.envs.unwrap_or_default(),
            metadata: body.metadata.unwrap_or_default(),
            alias: None,
            tags: Tags::default(),
            start_commands: Vec::new(),
            memory_mb: body.memory_mb,
            disk_mb: None,
            preview_token: wanted_token(body.preview_auth)?,
            store: body.secret_store.filter(|name| !name.is_empty()),
            secret_hosts: secret_hosts(body.secret_allowed_hosts)?,
            replaces: asked.egress.is_some(),
            opens: false,
            policy: asked.policy()?,
        })
    }
}

impl TryFrom<SandboxCreate> for Over {
    type Error = Error;

    /// All fields count but those that say what it is made from.
    fn try_from(body: SandboxCreate) -> Result<Self, Error> {
        let replaces = body.egress.is_some() || body.network_enabled == Some(false);
        let opens = body.network_enabled == Some(true);
        let (cpu_count, says_disk) = (zero_as_absent(body.cpu_count), zero_as_absent(body.disk_mb).is_some());
        let memory_mb = match (cpu_count, zero_as_absent(body.memory_mb)) {
            (None, memory) => memory,
            (cpus, memory) => Some(i64::from(Size::resolve(cpus, memory, None)?.memory_mb)),
        };
        let plain =
            Wanted::try_from(SandboxCreate { cpu_count: None, memory_mb: None, template_id: None, ..body })?;
        Ok(Self {
            isolation: plain.isolation,
            timeout_seconds: plain.spec.timeout_seconds,
            envs: plain.spec.envs,
            metadata: plain.metadata,
            alias: plain.alias,
            tags: plain.tags,
            start_commands: plain.spec.start_commands,
            memory_mb,
            disk_mb: says_disk.then_some(plain.spec.size.disk_mb),
            preview_token: plain.preview_token,
            store: plain.access.store,
            secret_hosts: plain.access.secret_hosts,
            policy: plain.access.record.policy,
            replaces,
            opens,
        })
    }
}

impl Over {
    /// Whether a size of the disk is asked for.
    pub(in crate::app) fn says_disk(&self) -> bool {
        self.disk_mb.is_some()
    }

    /// The disk that is asked for, where what the sandbox is made from has one of `own` MiB. Disks do not shrink.
    pub(in crate::app) fn disk_over(&self, own: u32) -> Result<u32, Error> {
        match self.disk_mb {
            Some(wanted) if wanted < own => Err(Error::invalid(format!(
                "diskMB is {wanted}, but what the sandbox is made from has a disk of {own}, which cannot become smaller; \
                 ask for at least that, or leave it out"
            ))),
            wanted => Ok(wanted.unwrap_or(own)),
        }
    }

    /// The sandbox of `org` that a ready checkpoint and this make. It has no less memory than `floor`, and that of the
    /// checkpoint's sandbox when the request does not say.
    pub(in crate::app) fn onto(
        self,
        org: &OrgId,
        row: CheckpointRow,
        floor: Option<u32>,
    ) -> Result<Wanted, Error> {
        let Some(spec) = row.spec else {
            return Err(Error::internal("a ready checkpoint says nothing of its sandbox"));
        };
        let disk_mb = self.disk_over(spec.size.disk_mb)?;
        let access = access(org, &row.org, row.access, &spec, &self)?;
        let mut envs = spec.envs.clone();
        remove_given(&mut envs);
        envs.extend(self.envs);
        let mut metadata = row.metadata;
        metadata.extend(self.metadata);
        let smallest = Size { memory_mb: floor.unwrap_or(spec.size.memory_mb), ..spec.size };
        let size = match self.memory_mb {
            Some(memory) if floor.is_none() || memory != 0 => {
                smallest.with_memory_between_this_and_largest(memory)
            }
            _ => spec.size.with_memory_between_this_and_largest(0),
        };
        let size = Size { disk_mb, ..size };
        let start_commands =
            if self.start_commands.is_empty() { spec.start_commands.clone() } else { self.start_commands };
        Ok(Wanted {
            isolation: Some(spec.isolation),
            spec: SandboxSpec {
                size,
                envs: checked_envs(envs)?,
                timeout_seconds: self.timeout_seconds,
                from_checkpoint: Some(row.id),
                egress: EgressPolicy::default(),
                sealed: false,
                start_commands,
                ..spec
            },
            shown_template: None,
            alias: self.alias,
            metadata: checked_metadata(metadata)?,
            tags: self.tags,
            access,
            preview_token: self.preview_token,
        })
    }
}

/// What it is given: that of the checkpoint's sandbox, and over it what the request says. Stores are their organisation's own, so
/// a fork of somebody else's checkpoint has none of its.
fn access(
    org: &OrgId,
    owner: &OrgId,
    inherited: AccessRecord,
    spec: &SandboxSpec,
    over: &Over,
) -> Result<AccessWanted, Error> {
    let policy = match (inherited_policy(inherited.policy, spec), over.policy.clone()) {
        (_, asked) if over.replaces => asked,
        (Some(own), asked) if over.opens && own.mode == EgressMode::None => asked,
        (own, None) => own,
        (None, Some(asked)) => Some(asked),
        (Some(own), Some(_)) if own.mode == EgressMode::None => {
            return Err(Error::invalid(
                "the checkpoint's sandbox had no network; say egress instead of egressAllowlist to give the fork one",
            ));
        }
        (Some(own), Some(asked)) => {
            Some(checked(with_hosts(own, asked.allow.into_iter().map(|rule| rule.host).collect()))?)
        }
    };
    let ours = org == owner;
    Ok(AccessWanted {
        store: over.store.clone(),
        record: AccessRecord {
            stores: if ours { inherited.stores } else { Vec::new() },
            policy,
            secret_hosts: if ours { inherited.secret_hosts } else { Default::default() },
        },
        secret_hosts: over.secret_hosts.clone(),
        inherited_effective: ours.then(|| spec.egress.clone()),
    })
}

/// The own policy of a checkpoint's sandbox. One from before there were others is in its spec alone.
fn inherited_policy(policy: Option<EgressPolicy>, spec: &SandboxSpec) -> Option<EgressPolicy> {
    policy.or_else(|| (spec.egress.mode == EgressMode::None).then(EgressPolicy::none))
}
