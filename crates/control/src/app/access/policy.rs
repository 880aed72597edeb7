//! What follows from a sandbox's own policy and the lists of its secret stores. Pure.

use warren_types::{EgressMode, EgressPolicy, EgressRule, HostPattern};

/// What is in force. Lists narrow a policy that is open and add to one that is a list; nothing widens `none`.
pub(crate) fn effective<'a>(
    own: Option<&EgressPolicy>,
    lists: impl IntoIterator<Item = &'a [HostPattern]>,
) -> EgressPolicy {
    let own = own.cloned().unwrap_or_default();
    let hosts: Vec<&HostPattern> = lists.into_iter().flatten().collect();
    if own.mode == EgressMode::None || hosts.is_empty() {
        return own;
    }
    let mut allow = own.allow;
    for host in hosts {
        add(&mut allow, EgressRule::host(host.clone()));
    }
    EgressPolicy { mode: EgressMode::Allowlist, allow }
}

/// A sandbox's own policy once a store that allowed it `list` is gone: what was refused before stays refused.
pub(crate) fn keep_list(own: Option<EgressPolicy>, list: &[HostPattern]) -> Option<EgressPolicy> {
    if list.is_empty() { own } else { Some(effective(own.as_ref(), [list])) }
}

pub(crate) fn add(rules: &mut Vec<EgressRule>, rule: EgressRule) {
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}

/// The hosts of rules, each once.
pub(crate) fn hosts_of(policy: &EgressPolicy) -> Vec<String> {
    let mut hosts = Vec::new();
    for rule in &policy.allow {
        let host = rule.host.to_string();
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

/// Where a secret is put in that has hosts of its own and is narrowed for one sandbox. Empty lists say nothing; `None`
/// when they have nothing in common, and then it is put in nowhere.
pub(crate) fn narrowed(own: &[HostPattern], narrower: &[HostPattern]) -> Option<Vec<HostPattern>> {
    if own.is_empty() || narrower.is_empty() {
        let said = if own.is_empty() { narrower } else { own };
        return Some(said.to_vec());
    }
    let mut common: Vec<HostPattern> = Vec::new();
    for (hosts, others) in [(narrower, own), (own, narrower)] {
        for host in hosts {
            if others.iter().any(|other| covers(other, host)) && !common.contains(host) {
                common.push(host.clone());
            }
        }
    }
    (!common.is_empty()).then_some(common)
}

/// Whether everything that `inner` matches is matched by `outer`.
fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    let (outer_text, inner_text) = (outer.to_string(), inner.to_string());
    match (outer_text.as_str(), inner_text.as_str()) {
        ("*", _) => true,
        (_, "*") => false,
        (outer_text, inner_text) => match (outer_text.strip_prefix('*'), inner_text.strip_prefix('*')) {
            (Some(outer), Some(inner)) => inner.ends_with(outer),
            (None, Some(_)) => false,
            (_, None) => outer.matches(inner_text),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Vec<HostPattern> {
        text.split_whitespace().map(|host| host.parse().unwrap()).collect()
    }

    fn allow(text: &str) -> EgressPolicy {
        EgressPolicy {
            mode: EgressMode::Allowlist,
            allow: hosts(text).into_iter().map(EgressRule::host).collect(),
        }
    }

    #[test]
    fn lists_narrow_what_is_open_and_add_to_a_list() {
        let lists = [hosts("a.com b.com"), Vec::new(), hosts("b.com *.c.com")];
        let lists = || lists.iter().map(Vec::as_slice);
        assert_eq!(effective(None, lists()), allow("a.com b.com *.c.com"));
        assert_eq!(effective(Some(&allow("x.com a.com")), lists()), allow("x.com a.com b.com *.c.com"));
        assert_eq!(effective(Some(&EgressPolicy::none()), lists()), EgressPolicy::none());
        assert_eq!(effective(None, []), EgressPolicy::default());
        assert_eq!(effective(Some(&allow("")), []), allow(""), "an empty list allows nothing");
    }

    #[test]
    fn a_store_that_goes_takes_no_restriction_with_it() {
        assert_eq!(keep_list(None, &hosts("a.com")), Some(allow("a.com")));
        assert_eq!(keep_list(Some(allow("x.com")), &hosts("a.com")), Some(allow("x.com a.com")));
        assert_eq!(keep_list(Some(EgressPolicy::none()), &hosts("a.com")), Some(EgressPolicy::none()));
        assert_eq!(keep_list(None, &[]), None);
    }

    #[test]
    fn narrowing_never_widens() {
        for (own, narrower, common) in [
            ("", "a.com", Some("a.com")),
            ("a.com", "", Some("a.com")),
            ("a.com b.com", "b.com c.com", Some("b.com")),
            ("*.a.com", "x.a.com y.b.com", Some("x.a.com")),
            ("x.a.com", "*.a.com", Some("x.a.com")),
            ("*.a.com", "*.x.a.com", Some("*.x.a.com")),
            ("*.a.com", "a.com", None),
            ("*.xa.com", "*.a.com", None),
            ("*", "a.com", Some("a.com")),
            ("a.com", "*", Some("a.com")),
            ("a.com", "b.com", None),
        ] {
            assert_eq!(narrowed(&hosts(own), &hosts(narrower)), common.map(hosts), "{own} and {narrower}");
        }
    }
}
