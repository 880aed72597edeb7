//! The size of a sandbox while it runs.

use reqwest::Method;
use warren_api::scaling::{Autoscale, AutoscaleChange, Scale, Scaled, ScalingLock, ScalingLockChange};
use warren_types::SandboxId;

use super::{Answer, Client};

impl Client {
    pub(crate) async fn scale(&self, id: &SandboxId, memory_mb: u32) -> anyhow::Result<Answer<Scaled>> {
        let body = Scale { memory_mb: Some(i64::from(memory_mb)), ..Scale::default() };
        self.call(self.request(Method::POST, &["sandboxes", id.as_str(), "scale"])?.json(&body)).await
    }

    pub(crate) async fn get_autoscale(&self, id: &SandboxId) -> anyhow::Result<Answer<Autoscale>> {
        self.call(self.request(Method::GET, &["sandboxes", id.as_str(), "autoscale"])?).await
    }

    pub(crate) async fn set_autoscale(
        &self,
        id: &SandboxId,
        body: &AutoscaleChange,
    ) -> anyhow::Result<Answer<Autoscale>> {
        self.call(self.request(Method::PUT, &["sandboxes", id.as_str(), "autoscale"])?.json(body)).await
    }

    pub(crate) async fn set_scaling_lock(
        &self,
        id: &SandboxId,
        locked: bool,
    ) -> anyhow::Result<Answer<ScalingLock>> {
        let body = ScalingLockChange { locked: Some(locked) };
        self.call(self.request(Method::PUT, &["sandboxes", id.as_str(), "scaling-lock"])?.json(&body)).await
    }
}
