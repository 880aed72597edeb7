//! What an image is made of, decoded strictly: whatever a build could stumble over is refused before one begins, with the
//! step named.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use warren_api::images::ImageManifest;
use warren_types::size::{MIN_DISK_MB, TIERS};
use warren_types::{CheckpointId, Error, ErrorKind, Size};

use super::canonical::{self, Hasher};
use super::names::SnapshotRef;
use super::steps::Step;

const MAX_STEPS: usize = 128;
/// Longest reference to an image of a registry.
const MAX_REFERENCE_BYTES: usize = 512;
/// What the images of the base template may be called.
const BASE_NAMES: [&str; 4] = ["", "base", "ubuntu", "default"];
pub(crate) const BASE_TEMPLATE: &str = "base";
/// Names a template of the node by itself; what was brought as an archive has no other name.
const TEMPLATE_PREFIX: &str = "template:";
const SNAPSHOT_PREFIX: &str = "snapshot:";
const CHECKPOINT_PREFIX: &str = "checkpoint:";
/// Longest content that lists show.
const SHOWN_CONTENT_BYTES: usize = 1024;

/// What the steps start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// A template the node has.
    Template(String),
    /// An image of a registry, as container engines name it.
    Registry(String),
    Snapshot(SnapshotRef),
    Checkpoint(CheckpointId),
}

/// An image, checked as far as it can be without asking anybody.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub base: Base,
    pub steps: Vec<Step>,
    /// Of the sandbox that runs the steps, MiB of a tier.
    pub builder_memory_mb: u32,
    /// What its sandboxes have at least, MiB of a tier.
    pub runtime_memory_mb: Option<u32>,
    /// Makes it a snapshot.
    pub name: Option<String>,
    /// As it was sent.
    pub sent: Value,
}

/// Who wrote a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Author {
    Client,
    /// This server; it was checked before.
    Store,
}

// === impl Manifest ===

impl Manifest {
    /// From a request: an object, or a text that is the base of an image without steps.
    pub(crate) fn parse(sent: Value) -> Result<Self, Error> {
        Self::read(sent, Author::Client)
    }

    /// From the store.
    pub(crate) fn stored(text: &str) -> Result<Self, Error> {
        let sent = serde_json::from_str(text)
            .map_err(|error| Error::internal(format!("a stored image is not JSON: {error}")))?;
        Self::read(sent, Author::Store)
    }

    /// What was brought as an archive.
    pub(crate) fn of_template(template: &str) -> Result<Self, Error> {
        Self::read(
            serde_json::json!({"base": format!("{TEMPLATE_PREFIX}{template}"), "steps": []}),
            Author::Store,
        )
    }

    fn read(sent: Value, author: Author) -> Result<Self, Error> {
        let sent = match sent {
            Value::String(base) => serde_json::json!({"base": base, "steps": []}),
            Value::Object(_) => sent,
            _ => {
                return Err(Error::invalid(
                    "image must be an object with base and steps, or a reference such as node:22",
                ));
            }
        };
        let read: ImageManifest = serde_path_to_error::deserialize(&sent).map_err(|error| {
            let path = error.path().to_string();
            Error::invalid(format!("image.{path}: {}", error.into_inner()))
        })?;
        if read.steps.len() > MAX_STEPS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "an image may have {MAX_STEPS} steps (got {}); put several commands into one run step",
                    read.steps.len()
                ),
            ));
        }
        let base = parse_base(read.base.as_deref().unwrap_or_default(), author)?;
        let mut steps = Vec::with_capacity(read.steps.len());
        for (index, step) in read.steps.into_iter().enumerate() {
            steps.push(Step::parse(index, step)?);
        }
        super::steps::check_variables(&steps)?;
        let runtime = read.runtime_memory_mb.filter(|mb| *mb != 0);
        let name = read.name.filter(|name| !name.is_empty());
        if let Some(name) = &name {
            super::names::check_new_name(name)?;
        }
        Ok(Self {
            base,
            steps,
            builder_memory_mb: tier(
                "builderMemoryMB",
                read.builder_memory_mb.filter(|mb| *mb != 0).unwrap_or(4096),
            )?,
            runtime_memory_mb: runtime.map(|mb| tier("runtimeMemoryMB", mb)).transpose()?,
            name,
            sent,
        })
    }

    /// Of base and steps; the same whichever SDK sent them. `base` is what the base turned out to be.
    pub(crate) fn content_hash(&self, base: &str) -> String {
        let mut hasher = Hasher::default();
        let mut write = || {
            hasher.write_str("{\"base\":")?;
            canonical::write(&Value::from(base), &mut hasher)?;
            hasher.write_str(",\"steps\":[")?;
            for (at, step) in self.steps.iter().enumerate() {
                if at > 0 {
                    hasher.write_char(',')?;
                }
                canonical::write(&step.canonical(), &mut hasher)?;
            }
            hasher.write_str("]}")
        };
        write().expect("a hash takes everything");
        hasher.finish()
    }

    /// The manifest without long contents of files.
    pub(crate) fn shown(&self) -> Value {
        let mut shown = self.sent.clone();
        let steps = shown.get_mut("steps").and_then(Value::as_array_mut);
        for step in steps.into_iter().flatten().filter_map(Value::as_object_mut) {
            shorten(step);
        }
        shown
    }
}

/// Takes long contents away, and says how long they are.
fn shorten(object: &mut Map<String, Value>) {
    let long = object.get("content").and_then(Value::as_str).map(str::len);
    if let Some(bytes) = long.filter(|bytes| *bytes > SHOWN_CONTENT_BYTES) {
        object.insert("content".to_owned(), Value::String(String::new()));
        object.insert("contentBytes".to_owned(), Value::from(bytes / 4 * 3));
    }
    for value in object.values_mut() {
        match value {
            Value::Object(inner) => shorten(inner),
            Value::Array(items) => items.iter_mut().filter_map(Value::as_object_mut).for_each(shorten),
            _ => {}
        }
    }
}

/// The smallest tier with that much memory.
fn tier(field: &str, mb: i64) -> Result<u32, Error> {
    let (smallest, largest) = (TIERS[0], TIERS[TIERS.len() - 1]);
    if mb < 0 || mb > i64::from(largest.0) {
        return Err(Error::invalid(format!("{field} must be between 0 and {} (got {mb})", largest.0)));
    }
    let size = Size { cpu_count: smallest.1, memory_mb: smallest.0, disk_mb: MIN_DISK_MB };
    Ok(size.with_memory_between_this_and_largest(mb).memory_mb)
}

fn parse_base(text: &str, author: Author) -> Result<Base, Error> {
    if BASE_NAMES.contains(&text) {
        return Ok(Base::Template(BASE_TEMPLATE.to_owned()));
    }
    if let Some(name) = text.strip_prefix(SNAPSHOT_PREFIX) {
        return SnapshotRef::parse(name).map(Base::Snapshot).map_err(|error| named(&error));
    }
    if let Some(id) = text.strip_prefix(CHECKPOINT_PREFIX) {
        return id
            .parse()
            .map(Base::Checkpoint)
            .map_err(|_| Error::invalid("image.base: checkpoint: is followed by a UUID"));
    }
    if let Some(template) = text.strip_prefix(TEMPLATE_PREFIX) {
        return match author {
            Author::Store => Ok(Base::Template(template.to_owned())),
            // Templates belong to those who brought them; what is read from the store must not be mistaken for one.
            Author::Client => Err(Error::invalid(
                "image.base: an image that is called template is written with its registry: docker.io/library/template:…",
            )),
        };
    }
    check_reference(text).map(|()| Base::Registry(text.to_owned()))
}

fn named(error: &Error) -> Error {
    Error::invalid(format!("image.base: {error}"))
}

/// The node reads it to the end; this is what can never be one.
fn check_reference(text: &str) -> Result<(), Error> {
    let legal = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b':' | b'@' | b'[' | b']')
    };
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'[');
    if text.len() > MAX_REFERENCE_BYTES
        || !first
        || !text.bytes().all(legal)
        || text.split('/').any(|part| part.is_empty() || part == "..")
    {
        let shown: String = text.chars().take(100).collect();
        return Err(Error::invalid(format!(
            "image.base: {shown:?} is neither base nor the name of an image in a registry, such as node:22; a snapshot is \
             snapshot:NAME, a checkpoint checkpoint:ID"
        )));
    }
    Ok(())
}

impl Base {
    /// What stands for it in the hash of an image, where that does not depend on anything that is stored.
    pub(crate) fn canonical(&self) -> Option<String> {
        match self {
            Self::Template(name) if name == BASE_TEMPLATE => Some(name.clone()),
            Self::Template(name) => Some(format!("{TEMPLATE_PREFIX}{name}")),
            Self::Registry(reference) => Some(reference.clone()),
            Self::Checkpoint(id) => Some(format!("{CHECKPOINT_PREFIX}{id}")),
            Self::Snapshot(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hash(sent: Value) -> String {
        Manifest::parse(sent).unwrap().content_hash("base")
    }

    fn refused(sent: Value) -> String {
        Manifest::parse(sent).unwrap_err().message
    }

    #[test]
    fn hashes_are_those_of_the_python_sdk_whoever_sends() {
        assert_eq!(
            hash(json!({"base": "base", "steps": []})),
            "485f603ddf675cfc9b285fed0d9d5e85c4c09c66e8cb4fc0cc0720acc08874ef"
        );
        assert_eq!(
            hash(json!({"base": "base", "steps": [{"type": "apt_install", "args": {"packages": ["curl"]}}]})),
            "76022298215157fd20e50e6aeffbf8b3c910abb77ac9f93e2bbcaced5840e898"
        );
        let m2 = json!({"base": "", "builderMemoryMB": 8192, "name": "x", "steps": [
            {"type": "apt_install", "packages": ["curl", "git"]},
            {"type": "env", "args": {"vars": {"B": "2", "A": "é & <x>"}}},
            {"type": "add_file", "args": {"path": "/w/a.txt", "content": "aGk=", "encoding": "base64"}}
        ]});
        assert_eq!(hash(m2), "3e0b08051d1c2b70fa081ed1c4ed3873e63d83e4a2802c2916f9fdbe999695a2");
    }

    #[test]
    fn bases_have_one_meaning_each() {
        let base = |text: &str| Manifest::parse(json!(text)).map(|manifest| manifest.base);
        for name in BASE_NAMES {
            assert_eq!(base(name).unwrap(), Base::Template("base".into()));
        }
        assert_eq!(base("node:22").unwrap(), Base::Registry("node:22".into()));
        assert_eq!(
            base("127.0.0.1:5000/a/b@sha256:00").unwrap(),
            Base::Registry("127.0.0.1:5000/a/b@sha256:00".into())
        );
        assert!(matches!(
            base("snapshot:a b@3").unwrap(),
            Base::Snapshot(SnapshotRef { version: Some(3), .. })
        ));
        assert!(matches!(
            base("checkpoint:01234567-89ab-4def-8123-456789abcdef").unwrap(),
            Base::Checkpoint(_)
        ));
        for bad in [
            "template:oci-1",
            "a b",
            "../x",
            "a//b",
            "-x",
            "snapshot:",
            "snapshot:a/b",
            "checkpoint:x",
            "é",
            "a\0",
        ] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (sent, says) in [
            (json!(5), "image must be an object"),
            (json!({"steps": 5}), "image.steps: invalid type"),
            (json!({"steps": [{"type": 5}]}), "image.steps"),
            (json!({"steps": [{"type": "copy"}]}), "step 0 (copy): unknown step type: copy"),
            (json!({"steps": [{}]}), "step 0 (): unknown step type"),
            (json!({"builderMemoryMB": 1024.5}), "image.builderMemoryMB: invalid type: floating point"),
            (json!({"builderMemoryMB": "1024"}), "image.builderMemoryMB: invalid type: string"),
            (json!({"builderMemoryMB": -1}), "builderMemoryMB must be between 0 and 16384"),
            (json!({"runtimeMemoryMB": 20000}), "runtimeMemoryMB must be between 0 and 16384"),
            (json!({"name": "a/b"}), "name must"),
        ] {
            let message = refused(sent.clone());
            assert!(message.contains(says), "{sent}: {message}");
        }
        let many = vec![json!({"type": "run", "args": {"commands": ["true"]}}); 129];
        let error = Manifest::parse(json!({"steps": many})).unwrap_err();
        assert_eq!(error.kind, ErrorKind::TooLarge);
        let sizes = Manifest::parse(json!({"builderMemoryMB": 5000.0, "runtimeMemoryMB": 1})).unwrap();
        assert_eq!((sizes.builder_memory_mb, sizes.runtime_memory_mb), (8192, Some(1024)));
    }

    #[test]
    fn lists_show_no_long_contents() {
        let content = "QUFB".repeat(1000);
        let manifest = Manifest::parse(json!({"steps": [
            {"type": "add_file", "args": {"path": "/a", "content": content}},
            {"type": "add_dir", "args": {"path": "/d", "files": [{"relativePath": "x", "content": content}]}},
            {"type": "add_file", "path": "/b", "content": "QUFB"}
        ]}))
        .unwrap();
        let shown = manifest.shown();
        assert_eq!(shown["steps"][0]["args"], json!({"path": "/a", "content": "", "contentBytes": 3000}));
        assert_eq!(shown["steps"][1]["args"]["files"][0]["contentBytes"], 3000);
        assert_eq!(shown["steps"][2]["content"], "QUFB");
        assert_eq!(manifest.sent["steps"][0]["args"]["content"], json!(content));
    }
}
