//! What a create asks for, checked and filled in.

use warren_api::sandboxes::SandboxCreate;
use warren_node_api::{ImageSettings, SandboxSpec};
use warren_types::tags::{self, Tags};
use warren_types::{EgressPolicy, Error, Isolation, Secret, Size};

use super::MAX_TIMEOUT_SECONDS;
use crate::app::access::request::{AccessWanted, PolicyFields, secret_hosts};
use crate::app::exec::check_envs;
use crate::app::previews::wanted_token;
use crate::store::access::AccessRecord;

const DEFAULT_TEMPLATE: &str = "base";
const MAX_NAME_BYTES: usize = 128;
/// Metadata is part of every list, so it is kept small: this many entries, and bytes over all of them.
const MAX_METADATA: usize = 200;
const MAX_METADATA_BYTES: usize = 64 * 1024;
/// As much as the body of a create may have.
const MAX_ENVS_BYTES: usize = 1024 * 1024;
const MAX_START_COMMANDS: usize = 32;
const MAX_START_COMMAND_BYTES: usize = 16 * 1024;

/// A create request that can be carried out, as far as it can be told without asking anybody.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// As asked for; the node's own default otherwise.
    pub isolation: Option<Isolation>,
    pub spec: SandboxSpec,
    /// What is said to be its template; the spec's own when absent.
    pub shown_template: Option<String>,
    pub alias: Option<String>,
    pub metadata: Tags,
    pub tags: Tags,
    /// What it may reach, and with which secrets; completes the spec.
    pub access: AccessWanted,
    /// What will open its previews.
    pub preview_token: Option<Secret<String>>,
}

impl TryFrom<SandboxCreate> for Wanted {
    type Error = Error;

    fn try_from(body: SandboxCreate) -> Result<Self, Error> {
        if let Some(field) = body.not_yet.named().first() {
            return Err(Error::invalid(format!("{field} is not supported by this server yet; leave it out")));
        }
        let policy = PolicyFields {
            network_enabled: body.network_enabled,
            egress: body.egress,
            egress_allowlist: body.egress_allowlist,
        };
        let access = AccessWanted {
            store: body.secret_store.filter(|name| !name.is_empty()),
            record: AccessRecord { policy: policy.policy()?, ..AccessRecord::default() },
            secret_hosts: secret_hosts(body.secret_allowed_hosts)?,
            inherited_effective: None,
        };
        let template = match body.template_id {
            Some(name) if !name.is_empty() => name,
            _ => DEFAULT_TEMPLATE.to_owned(),
        };
        if template.len() > MAX_NAME_BYTES || template.contains(['/', '\0']) {
            return Err(Error::not_found(
                "template not found: a template's name has at most 128 bytes and no slash",
            ));
        }
        let isolation = match body.isolation.as_deref() {
            None | Some("") => None,
            Some(word) => Some(word.parse().map_err(Error::invalid)?),
        };
        let timeout_seconds = timeout_or_never(body.timeout)?;
        let envs = checked_envs(body.envs.unwrap_or_default())?;
        let metadata = checked_metadata(body.metadata.unwrap_or_default())?;
        let start_commands = body.start_commands.unwrap_or_default();
        check_start_commands(&start_commands)?;
        let tags = body.tags.unwrap_or_default();
        tags::check(&tags)?;
        let preview_token = wanted_token(body.preview_auth)?;
        let alias = body.alias.filter(|alias| !alias.is_empty());
        if alias
            .as_ref()
            .is_some_and(|alias| alias.len() > MAX_NAME_BYTES || alias.contains(char::is_control))
        {
            return Err(Error::invalid(format!(
                "alias must be at most {MAX_NAME_BYTES} bytes without control characters"
            )));
        }
        Ok(Self {
            isolation,
            spec: SandboxSpec {
                template,
                isolation: Isolation::default(),
                size: Size::resolve(
                    zero_as_absent(body.cpu_count),
                    zero_as_absent(body.memory_mb),
                    body.disk_mb,
                )?,
                envs,
                timeout_seconds,
                egress: EgressPolicy::default(),
                sealed: false,
                start_commands,
                from_checkpoint: None,
                image: ImageSettings::default(),
            },
            shown_template: None,
            alias,
            metadata,
            tags,
            access,
            preview_token,
        })
    }
}

/// Clients written in Go send 0 for what was not set.
pub(crate) fn zero_as_absent(number: Option<i64>) -> Option<i64> {
    number.filter(|number| *number != 0)
}

/// An idle time-out as a create or a fork gives it: what is below 0 counts as 0, which is never.
pub(crate) fn timeout_or_never(seconds: Option<i64>) -> Result<u32, Error> {
    match u32::try_from(seconds.unwrap_or(0).max(0)) {
        Ok(seconds) if seconds <= MAX_TIMEOUT_SECONDS => Ok(seconds),
        _ => Err(Error::invalid(format!("timeout must be at most {MAX_TIMEOUT_SECONDS} seconds"))),
    }
}

/// Variables that fit into every command's environment.
pub(crate) fn checked_envs(envs: Tags) -> Result<Tags, Error> {
    check_envs(&envs)?;
    let bytes: usize = envs.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > MAX_ENVS_BYTES {
        return Err(Error::invalid(format!("envs may have {MAX_ENVS_BYTES} bytes in all (got {bytes})")));
    }
    Ok(envs)
}

pub(crate) fn checked_metadata(metadata: Tags) -> Result<Tags, Error> {
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata.len() > MAX_METADATA || bytes > MAX_METADATA_BYTES {
        return Err(Error::invalid(format!(
            "metadata may have {MAX_METADATA} entries of {MAX_METADATA_BYTES} bytes in all (got {} of {bytes})",
            metadata.len()
        )));
    }
    if metadata.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
        return Err(Error::invalid("metadata must not contain NUL characters"));
    }
    Ok(metadata)
}

fn check_start_commands(commands: &[String]) -> Result<(), Error> {
    if commands.len() > MAX_START_COMMANDS
        || commands.iter().any(|command| command.len() > MAX_START_COMMAND_BYTES)
    {
        return Err(Error::invalid(format!(
            "startCommands may have {MAX_START_COMMANDS} commands of {MAX_START_COMMAND_BYTES} bytes each"
        )));
    }
    if commands.iter().any(|command| command.trim().is_empty() || command.contains('\0')) {
        return Err(Error::invalid("startCommands must not be empty or contain NUL characters"));
    }
    Ok(())
}
