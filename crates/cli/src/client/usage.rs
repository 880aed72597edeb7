//! What sandboxes were given and used.

use jiff::Timestamp;
use reqwest::Method;
use warren_api::usage::{SandboxUsage, Usage};
use warren_types::SandboxId;

use super::{Answer, Client};

/// Of which time.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct UsageWindow {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
}

/// What is asked of all sandboxes.
#[derive(Debug, Clone)]
pub(crate) struct UsageFilter {
    pub(crate) group_by: String,
    pub(crate) window: UsageWindow,
    /// Tags, and the values of which each has one.
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) sort: &'static str,
    pub(crate) limit: Option<u32>,
}

impl UsageWindow {
    fn query(self) -> impl Iterator<Item = (String, String)> {
        let from = self.from.map(|time| ("from".to_owned(), time.to_string()));
        from.into_iter().chain(self.to.map(|time| ("to".to_owned(), time.to_string())))
    }
}

impl Client {
    pub(crate) async fn get_usage(
        &self,
        filter: &UsageFilter,
        cursor: Option<&str>,
    ) -> anyhow::Result<Answer<Usage>> {
        let mut query = vec![("groupBy".to_owned(), filter.group_by.clone())];
        query.extend(filter.window.query());
        query.extend(filter.tags.iter().map(|(key, values)| (format!("filter[tag:{key}]"), values.clone())));
        query.push(("sort".to_owned(), filter.sort.to_owned()));
        query.extend(filter.limit.map(|limit| ("limit".to_owned(), limit.to_string())));
        query.extend(cursor.map(|cursor| ("cursor".to_owned(), cursor.to_owned())));
        self.call(self.request(Method::GET, &["usage"])?.query(&query)).await
    }

    pub(crate) async fn get_sandbox_usage(
        &self,
        id: &SandboxId,
        window: UsageWindow,
    ) -> anyhow::Result<Answer<SandboxUsage>> {
        let query: Vec<(String, String)> = window.query().collect();
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "usage"])?.query(&query)).await
    }
}
