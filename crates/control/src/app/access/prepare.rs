//! What a new sandbox is given: its stores are looked up, a token is made for each secret, the policy is put together.

use std::collections::BTreeMap;

use warren_node_api::{FormerSecret, GrantedSecret, SandboxSpec, SecretGrant};
use warren_types::{EgressMode, EgressPolicy, Error, HostPattern, OrgId};

use super::environment::{add_gateway, new_token};
use super::policy::{add, effective, narrowed};
use super::request::AccessWanted;
use crate::app::App;
use crate::keyring::Purpose;
use crate::store::access::{Access, AccessRecord, NewToken, SecretHosts};
use crate::store::secrets::{SealedSecret, SecretStoreRow};

/// Stores a sandbox may have, one over the other. A fork of a fork of a fork adds one each.
pub(crate) const MAX_LAYERS: usize = 4;
/// Encrypted, of what the secrets of a sandbox were: the newest of them go into one call beside what they are.
const MAX_FORMER_BYTES: usize = 512 * 1024;

/// What is written down and sent for a new sandbox.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub record: AccessRecord,
    pub tokens: Vec<NewToken>,
    /// To be on the node before the sandbox is; absent without secrets.
    pub grant: Option<SecretGrant>,
    /// When the secrets were read. Absent when nothing was read.
    pub read_at: Option<u64>,
}

impl App {
    /// Completes the spec of a new sandbox. Costs nothing when nothing was asked for.
    pub(in crate::app) async fn prepare_access(
        &self,
        org: &OrgId,
        wanted: AccessWanted,
        spec: &mut SandboxSpec,
    ) -> Result<Prepared, Error> {
        if wanted.is_nothing() {
            return Ok(Prepared::default());
        }
        let stores_asked = wanted.store.is_some() || !wanted.record.stores.is_empty();
        let read_at = stores_asked.then(|| self.access_changes.now());
        let mut record = wanted.record;
        let (stores, lost) = self.find_layers(org, wanted.store.as_deref(), &record).await?;
        if lost && let Some(before) = wanted.inherited_effective {
            record.policy = with_rules_of(record.policy, before);
        }
        record.stores = stores.iter().map(|store| store.id.clone()).collect();
        spec.egress =
            effective(record.policy.as_ref(), stores.iter().map(|store| store.egress_allowlist.as_slice()));
        spec.egress.check().map_err(|error| Error::invalid(format!("egress: {error}")))?;

        let secrets = self.find_secrets(&stores, spec).await?;
        check_names(&wanted.secret_hosts, &secrets)?;
        record.secret_hosts.extend(wanted.secret_hosts);
        record.secret_hosts.retain(|name, _| secrets.contains_key(name));
        let tokens: Vec<NewToken> = secrets
            .values()
            .map(|secret| NewToken {
                name: secret.name.clone(),
                token: new_token(),
                secret_id: secret.id.clone(),
            })
            .collect();
        let held =
            tokens.iter().map(|token| token.token.clone()).zip(secrets.into_values()).collect::<Vec<_>>();
        let grant = (!held.is_empty()).then(|| self.grant(&held, &record.secret_hosts)).transpose()?;
        spec.sealed = grant.is_some();
        spec.envs.extend(tokens.iter().map(|token| (token.name.clone(), token.token.clone())));
        if spec.sealed || spec.egress.mode == EgressMode::Allowlist {
            add_gateway(&mut spec.envs);
        }
        Ok(Prepared { record, tokens, grant, read_at })
    }

    /// The layers, the lowest first, each store once; and whether one that is inherited is gone.
    async fn find_layers(
        &self,
        org: &OrgId,
        named: Option<&str>,
        record: &AccessRecord,
    ) -> Result<(Vec<SecretStoreRow>, bool), Error> {
        let mut layers: Vec<SecretStoreRow> = Vec::new();
        let mut lost = false;
        for id in &record.stores {
            match self.store.find_secret_store(org, id).await? {
                Some(store) => layers.push(store),
                None => lost = true,
            }
        }
        if let Some(name) = named {
            let store = self.store.find_secret_store_named(org, name).await?;
            let store = store.ok_or_else(|| Error::invalid(format!("secret store not found: {name}")))?;
            layers.retain(|layer| layer.id != store.id);
            layers.push(store);
        }
        if layers.len() > MAX_LAYERS {
            return Err(Error::invalid(format!(
                "a sandbox may have {MAX_LAYERS} secret stores, those it inherits included; fork one that has fewer"
            )));
        }
        Ok((layers, lost))
    }

    /// The secrets of the layers by name, the uppermost of each; without those that a plain variable stands for.
    async fn find_secrets(
        &self,
        stores: &[SecretStoreRow],
        spec: &SandboxSpec,
    ) -> Result<BTreeMap<String, SealedSecret>, Error> {
        let mut secrets = BTreeMap::new();
        for store in stores {
            for secret in self.store.list_sealed_secrets(&store.id).await? {
                secrets.insert(secret.name.clone(), secret);
            }
        }
        secrets.retain(|name, _| !spec.envs.contains_key(name));
        Ok(secrets)
    }

    /// What the node is given: tokens with the values they stand for.
    fn grant(&self, held: &[(String, SealedSecret)], narrower: &SecretHosts) -> Result<SecretGrant, Error> {
        let mut secrets = Vec::with_capacity(held.len());
        for (token, secret) in held {
            let narrower = narrower.get(&secret.name).map(Vec::as_slice).unwrap_or_default();
            secrets.extend(self.granted(token, secret, narrower)?);
        }
        Ok(SecretGrant { secrets, former: Vec::new() })
    }

    /// The same for a sandbox that is there. A value that does not open is left out: it must not keep what was deleted or
    /// changed from taking effect.
    pub(in crate::app) fn grant_what_opens(&self, access: &Access) -> SecretGrant {
        let granted = |token: &str, secret: &SealedSecret| {
            let narrower = access.secret_hosts.get(&secret.name).map(Vec::as_slice).unwrap_or_default();
            self.granted(token, secret, narrower).ok().flatten()
        };
        let mut left = MAX_FORMER_BYTES;
        let former = access.former.iter().map_while(|former| {
            left = left.checked_sub(former.secret.sealed.len())?;
            Some(former)
        });
        let former = former.filter_map(|former| {
            let until_ms = u64::try_from(former.until / 1000).unwrap_or(0);
            Some(FormerSecret { secret: granted(&former.token, &former.secret)?, until_ms })
        });
        SecretGrant {
            former: former.collect(),
            secrets: access.tokens.iter().filter_map(|(token, secret)| granted(token, secret)).collect(),
        }
    }

    /// `None` without a host in common: then it is put in nowhere, and the node need not have it.
    fn granted(
        &self,
        token: &str,
        secret: &SealedSecret,
        narrower: &[HostPattern],
    ) -> Result<Option<GrantedSecret>, Error> {
        let Some(hosts) = narrowed(&secret.allowed_hosts, narrower) else { return Ok(None) };
        let value = self.keyring.unseal(purpose(secret), &secret.sealed)?;
        Ok(Some(GrantedSecret {
            name: secret.name.clone(),
            token: token.to_owned(),
            value,
            hosts,
            places: secret.places.clone(),
        }))
    }
}

/// Narrowing a secret that is not there would protect nothing.
fn check_names(narrowed: &SecretHosts, secrets: &BTreeMap<String, SealedSecret>) -> Result<(), Error> {
    match narrowed.keys().find(|name| !secrets.contains_key(*name)) {
        Some(name) => Err(Error::invalid(format!(
            "secretAllowedHosts names {name}, but the sandbox gets no such secret: give it a secretStore that has it, \
             and leave it out of envs"
        ))),
        None => Ok(()),
    }
}

/// The list of a store that is gone was part of what was in force before: that much stays refused.
fn with_rules_of(own: Option<EgressPolicy>, before: EgressPolicy) -> Option<EgressPolicy> {
    match own {
        Some(own) if own.mode == EgressMode::None => Some(own),
        own if before.mode == EgressMode::Open => own,
        own => {
            let rules = own.map(|own| own.allow).unwrap_or_default();
            Some(rules.into_iter().fold(before, |mut before, rule| {
                add(&mut before.allow, rule);
                before
            }))
        }
    }
}

pub(crate) fn purpose(secret: &SealedSecret) -> Purpose<'_> {
    Purpose {
        org: secret.org.as_str(),
        store: secret.store.as_str(),
        name: &secret.name,
        version: secret.version,
    }
}
