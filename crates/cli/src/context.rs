//! What every command gets: how to print, and on demand the configuration and a client made from it.

use crate::args::Shared;
use crate::client::Client;
use crate::config::{Config, Flags};
use crate::output::Output;

pub(crate) struct Context {
    pub(crate) output: Output,
    api_key: Option<String>,
    api_url: Option<String>,
}

impl Context {
    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            output: Output::new(shared.json, shared.quiet),
            api_key: shared.api_key,
            api_url: shared.api_url,
        }
    }

    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        Config::load(Flags { api_key: self.api_key.clone(), api_url: self.api_url.clone() }, self.output)
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::new(self.config()?)
    }
}
