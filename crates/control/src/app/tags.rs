//! Tags: replaced as a whole, on sandboxes in any state.

use warren_api::tags::{SandboxTags, TagKey, TagKeys};
use warren_types::tags::{Tags, check};
use warren_types::{Error, SandboxId};

use super::App;
use super::audit::Kind;
use super::auth::{Caller, sandbox_not_found};

impl App {
    pub(crate) async fn get_tags(&self, caller: &Caller, id: &SandboxId) -> Result<SandboxTags, Error> {
        let row = self.store.find_sandbox(caller.org(), id).await?.ok_or_else(sandbox_not_found)?;
        Ok(SandboxTags { tags: row.tags, tags_last_updated_at: row.tags_updated_at })
    }

    pub(crate) async fn replace_tags(
        &self,
        caller: &Caller,
        id: &SandboxId,
        tags: Tags,
    ) -> Result<SandboxTags, Error> {
        check(&tags)?;
        let at = self.store.replace_tags(caller.org(), id, &tags).await?.ok_or_else(sandbox_not_found)?;
        let note = caller.note(Kind::SandboxTags).of(id).with("outcome", "done");
        self.audit.note(note.with("keys", tags.keys().map(String::as_str).collect::<Vec<_>>())).await?;
        Ok(SandboxTags { tags, tags_last_updated_at: Some(at) })
    }

    pub(crate) async fn list_tag_keys(&self, caller: &Caller) -> Result<TagKeys, Error> {
        let keys = self.store.list_tag_keys(caller.org()).await?;
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        let keys = keys.into_iter().map(|row| TagKey {
            sandbox_count: count(row.sandbox_count),
            value_count: count(row.value_count),
            key: row.key,
        });
        Ok(TagKeys { keys: keys.collect() })
    }
}
