//! Templates of the public API: `base`, and every snapshot.

use std::sync::Arc;

use warren_api::images::{Snapshot, SnapshotCreate, Template, TemplateCreate};
use warren_api::sandboxes::SandboxCreate;
use warren_types::Error;

use super::manifest::BASE_TEMPLATE;
use super::names::SnapshotRef;
use crate::app::App;
use crate::app::auth::Caller;

const MAX_DOCKERFILE_BYTES: usize = 64 * 1024;
const ELSEWHERE: &str = "build it with a container engine and bring the result with `warren build ARCHIVE` or \
                         POST /api/images/archive";

impl App {
    /// Returns when it can be used. A name that is taken gets another version, as a build under the same tag does.
    pub(crate) async fn create_template(
        self: &Arc<Self>,
        caller: &Caller,
        body: TemplateCreate,
    ) -> Result<Template, Error> {
        let reference = from_of(&body.dockerfile)?;
        let pending = self
            .begin_snapshot(
                caller,
                SnapshotCreate {
                    name: body.name,
                    image: Some(serde_json::Value::String(reference)),
                    new_version: true,
                    ..SnapshotCreate::default()
                },
            )
            .await?;
        Ok(view(self.finish_snapshot(pending).await?))
    }

    /// `base` first.
    pub(crate) async fn list_templates(&self, caller: &Caller) -> Result<Vec<Template>, Error> {
        let snapshots = self.list_snapshots(caller, false).await?;
        Ok(std::iter::once(base()).chain(snapshots.into_iter().map(view)).collect())
    }

    pub(crate) async fn get_template(&self, caller: &Caller, name: &str) -> Result<Template, Error> {
        if name == BASE_TEMPLATE {
            return Ok(base());
        }
        self.get_snapshot(caller, name).await.map(view).map_err(|error| not_found(error, name))
    }

    pub(crate) async fn delete_template(self: &Arc<Self>, caller: &Caller, name: &str) -> Result<(), Error> {
        if name == BASE_TEMPLATE {
            return Err(Error::invalid("base is always there and cannot be deleted"));
        }
        self.delete_snapshot(caller, name).await.map_err(|error| not_found(error, name))
    }

    /// Whether what a create calls its template is a snapshot that the caller may use, and no template of the node.
    pub(crate) async fn names_snapshot(&self, caller: &Caller, body: &SandboxCreate) -> Result<bool, Error> {
        let Some(name) = body.template_id.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(false);
        };
        if self.is_node_template(name).await? {
            return Ok(false);
        }
        let Ok(wanted) = SnapshotRef::parse(name) else { return Ok(false) };
        Ok(self.find_snapshot_for(caller.org(), &wanted).await?.is_some())
    }
}

fn not_found(error: Error, name: &str) -> Error {
    match error.kind {
        warren_types::ErrorKind::NotFound => {
            let shown: String = name.chars().take(128).collect();
            Error::not_found(format!("template not found: {shown}"))
        }
        _ => error,
    }
}

fn base() -> Template {
    Template {
        template_id: BASE_TEMPLATE.to_owned(),
        name: BASE_TEMPLATE.to_owned(),
        tag: "latest".to_owned(),
        status: "ready".to_owned(),
    }
}

fn view(snapshot: Snapshot) -> Template {
    let name = snapshot.name.unwrap_or_default();
    Template {
        template_id: name.clone(),
        name,
        tag: snapshot.version.map_or_else(|| "latest".to_owned(), |version| version.to_string()),
        status: snapshot.status,
    }
}

/// What a Dockerfile that says nothing but `FROM` is from.
fn from_of(dockerfile: &str) -> Result<String, Error> {
    if dockerfile.len() > MAX_DOCKERFILE_BYTES {
        return Err(Error::invalid(format!("dockerfile may have {MAX_DOCKERFILE_BYTES} bytes; {ELSEWHERE}")));
    }
    let mut from = None;
    for line in dockerfile.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let instruction = words.next().unwrap_or_default();
        if !instruction.eq_ignore_ascii_case("FROM") {
            let shown: String = instruction.chars().take(32).collect();
            return Err(Error::invalid(format!("dockerfile: {shown} is not run here; {ELSEWHERE}")));
        }
        let rest: Vec<&str> = words.collect();
        let [reference] = rest[..] else {
            return Err(Error::invalid(format!(
                "dockerfile: FROM takes one name of an image here; {ELSEWHERE}"
            )));
        };
        if reference.contains('$') {
            return Err(Error::invalid(format!(
                "dockerfile: FROM with a variable is not read here; {ELSEWHERE}"
            )));
        }
        if from.replace(reference.to_owned()).is_some() {
            return Err(Error::invalid(format!("dockerfile: there is more than one FROM; {ELSEWHERE}")));
        }
    }
    from.ok_or_else(|| Error::invalid("dockerfile must have one line `FROM image`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_is_comments_and_one_from() {
        assert_eq!(from_of("# syntax\n\n  from node:22 \n").unwrap(), "node:22");
        for (text, says) in [
            ("", "must have one line"),
            ("FROM a\nRUN x", "RUN is not run here"),
            ("ARG V=1\nFROM a:$V", "ARG is not run here"),
            ("FROM a:$V", "variable"),
            ("FROM a AS b", "takes one name"),
            ("FROM --platform=x a", "takes one name"),
            ("FROM", "takes one name"),
            ("FROM a\nFROM b", "more than one FROM"),
        ] {
            let error = from_of(text).unwrap_err().message;
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
