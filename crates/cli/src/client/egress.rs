//! What sandboxes may reach.

use reqwest::Method;
use warren_api::egress::{AllowedHosts, Egress, EgressChange};
use warren_types::SandboxId;

use super::{Answer, Client};

impl Client {
    pub(crate) async fn allowed_hosts(&self, id: &SandboxId) -> anyhow::Result<Answer<AllowedHosts>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "allowed-hosts"])?).await
    }

    pub(crate) async fn set_egress(
        &self,
        id: &SandboxId,
        body: &EgressChange,
    ) -> anyhow::Result<Answer<Egress>> {
        self.call(self.request(Method::PUT, &["sandboxes", id.as_str(), "egress"])?.json(body)).await
    }
}
