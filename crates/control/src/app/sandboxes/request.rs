//! What a create asks for, checked and filled in.

use warren_api::sandboxes::SandboxCreate;
use warren_node_api::SandboxSpec;
use warren_types::tags::{self, Tags};
use warren_types::{Error, Size};

use super::MAX_TIMEOUT_SECONDS;
use crate::app::exec::check_envs;

const DEFAULT_TEMPLATE: &str = "base";
const MAX_NAME_BYTES: usize = 128;
/// Metadata is part of every list, so it is kept small: this many entries, and bytes over all of them.
const MAX_METADATA: usize = 200;
const MAX_METADATA_BYTES: usize = 64 * 1024;

/// A create request that can be carried out, as far as it can be told without asking anybody.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub spec: SandboxSpec,
    pub alias: Option<String>,
    pub metadata: Tags,
    pub tags: Tags,
}

impl TryFrom<SandboxCreate> for Wanted {
    type Error = Error;

    fn try_from(body: SandboxCreate) -> Result<Self, Error> {
        if let Some(field) = body.not_yet.named().first() {
            return Err(Error::invalid(format!("{field} is not supported by this server yet; leave it out")));
        }
        let template = match body.template_id {
            Some(name) if !name.is_empty() => name,
            _ => DEFAULT_TEMPLATE.to_owned(),
        };
        if template.len() > MAX_NAME_BYTES || template.contains(['/', '\0']) {
            return Err(Error::not_found(
                "template not found: a template's name has at most 128 bytes and no slash",
            ));
        }
        let timeout_seconds = match u32::try_from(body.timeout.unwrap_or(0).max(0)) {
            Ok(seconds) if seconds <= MAX_TIMEOUT_SECONDS => seconds,
            _ => {
                return Err(Error::invalid(format!("timeout must be at most {MAX_TIMEOUT_SECONDS} seconds")));
            }
        };
        let envs = body.envs.unwrap_or_default();
        check_envs(&envs)?;
        let metadata = body.metadata.unwrap_or_default();
        check_metadata(&metadata)?;
        let tags = body.tags.unwrap_or_default();
        tags::check(&tags)?;
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
            spec: SandboxSpec {
                template,
                size: Size::resolve(
                    zero_as_absent(body.cpu_count),
                    zero_as_absent(body.memory_mb),
                    body.disk_mb,
                )?,
                envs,
                timeout_seconds,
                network: body.network_enabled.unwrap_or(true),
            },
            alias,
            metadata,
            tags,
        })
    }
}

/// Clients written in Go send 0 for what was not set.
fn zero_as_absent(number: Option<i64>) -> Option<i64> {
    number.filter(|number| *number != 0)
}

fn check_metadata(metadata: &Tags) -> Result<(), Error> {
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata.len() > MAX_METADATA || bytes > MAX_METADATA_BYTES {
        return Err(Error::invalid(format!(
            "metadata may have {MAX_METADATA} entries of {MAX_METADATA_BYTES} bytes in all (got {} of {bytes})",
            metadata.len()
        )));
    }
    Ok(())
}
