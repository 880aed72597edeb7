//! What an image is built from: a manifest, an image of a registry, or one in an archive or a folder on this machine.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Body;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;

use crate::archive::{self, PieceWriter};
use crate::failure::{hinted, usage};
use crate::output::printable;

/// Above what a server takes, so that it is the server that says what that is.
const MAX_MANIFEST_BYTES: u64 = 72 * 1024 * 1024;
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) enum Source {
    Manifest(Value),
    Reference(String),
    /// A tar file.
    Archive(PathBuf),
    /// A folder that is an OCI layout.
    Layout(PathBuf),
}

impl Source {
    /// Reads what the command line says: `-` and `*.json` are manifests, what there is on this machine is an archive or a
    /// layout, and the rest are names of images in registries.
    pub(crate) fn read(word: &str) -> anyhow::Result<Self> {
        let path = Path::new(word);
        if word == "-" {
            return read_manifest(std::io::stdin().lock(), "stdin").map(Self::Manifest);
        }
        let Ok(metadata) = std::fs::metadata(path) else {
            return reference(word);
        };
        if metadata.is_dir() {
            return if path.join("index.json").is_file() {
                Ok(Self::Layout(path.to_owned()))
            } else {
                Err(hinted(
                    format!("{} is a folder without an OCI layout: it has no index.json", printable(word)),
                    "a Dockerfile is built by a container engine: `docker buildx build -o type=oci,dest=image.tar .`, then \
                     `warren build image.tar`",
                ))
            };
        }
        let mut file =
            std::fs::File::open(path).with_context(|| format!("could not read {}", path.display()))?;
        if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json")) {
            return read_manifest(file, word).map(Self::Manifest);
        }
        // What is read of a pipe is gone from it.
        if metadata.is_file() {
            let mut start = [0; 4];
            let length =
                file.read(&mut start).with_context(|| format!("could not read {}", path.display()))?;
            refuse_what_is_no_tar(path, &start[..length])?;
        }
        Ok(Self::Archive(path.to_owned()))
    }

    /// What `image` of a request is; none for what is sent by itself.
    pub(crate) fn image(&self) -> Option<Value> {
        match self {
            Self::Manifest(manifest) => Some(manifest.clone()),
            Self::Reference(reference) => Some(Value::String(reference.clone())),
            Self::Archive(_) | Self::Layout(_) => None,
        }
    }

    /// What it could be called: as its manifest says, or as the last word of its own name.
    pub(crate) fn name(&self) -> Option<String> {
        let own = match self {
            Self::Manifest(manifest) => return manifest.get("name")?.as_str().map(str::to_owned),
            Self::Reference(reference) => {
                let repository = reference.split_once('@').map_or(reference.as_str(), |(before, _)| before);
                let last = repository.rsplit('/').next()?;
                last.split_once(':').map_or(last, |(name, _)| name).to_owned()
            }
            Self::Archive(path) if !path.is_file() => return None,
            Self::Archive(path) => {
                let stem = path.file_stem()?.to_str()?;
                stem.strip_suffix(".tar").unwrap_or(stem).to_owned()
            }
            Self::Layout(path) => path.canonicalize().ok()?.file_name()?.to_str()?.to_owned(),
        };
        (!own.is_empty()).then_some(own)
    }
}

fn reference(word: &str) -> anyhow::Result<Source> {
    let is_file =
        |end: &str| Path::new(word).extension().is_some_and(|found| found.eq_ignore_ascii_case(end));
    let is_path =
        word.starts_with(['/', '.', '~']) || ["json", "tar", "gz", "tgz", "zst"].into_iter().any(is_file);
    if is_path || word.is_empty() || word.contains(char::is_whitespace) {
        return Err(hinted(
            format!("there is no {}", printable(word)),
            "give a manifest (.json), an archive, an OCI layout folder, or the name of an image in a registry such as node:22",
        ));
    }
    Ok(Source::Reference(word.to_owned()))
}

fn read_manifest(from: impl std::io::Read, what: &str) -> anyhow::Result<Value> {
    let what = printable(what);
    let mut text = Vec::new();
    from.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).with_context(|| format!("could not read {what}"))?;
    let manifest: Value = serde_json::from_slice(&text).map_err(|error| {
        hinted(
            format!("{what} is no manifest: {error}"),
            "a manifest is JSON like {\"base\": \"base\", \"steps\": [{\"type\": \"run\", \"args\": {\"commands\": [\"true\"]}}]}",
        )
    })?;
    if manifest.is_object() {
        Ok(manifest)
    } else {
        Err(usage(format!("{what} is no manifest: it is not a JSON object")))
    }
}

/// Says of common mistakes what they are before the whole of it is sent.
fn refuse_what_is_no_tar(path: &Path, start: &[u8]) -> anyhow::Result<()> {
    let name = printable(&path.to_string_lossy()).into_owned();
    let tool = match start {
        [0xfd, b'7', b'z', ..] => "unxz",
        [b'B', b'Z', b'h', ..] => "bunzip2",
        [b'F', b'R', b'O', b'M'] | [b'#', ..] => {
            return Err(hinted(
                format!("{name} is no archive; it looks like a Dockerfile"),
                "a Dockerfile is built by a container engine: `docker buildx build -o type=oci,dest=image.tar .`, then \
                 `warren build image.tar`",
            ));
        }
        _ => return Ok(()),
    };
    Err(hinted(
        format!("{name} is compressed in a way that no server reads"),
        format!("unpack it with {tool} first; gzip and zstd may stay"),
    ))
}

/// A body that counts what has been sent of it; its length when that is known.
pub(crate) async fn open_archive(path: &Path) -> anyhow::Result<(tokio::fs::File, Option<u64>)> {
    let read = || format!("could not read {}", path.display());
    let file = tokio::fs::File::open(path).await.with_context(read)?;
    let metadata = file.metadata().await.with_context(read)?;
    Ok((file, metadata.is_file().then_some(metadata.len())))
}

pub(crate) fn archive_body(file: tokio::fs::File, length: Option<u64>, sent: Arc<AtomicU64>) -> Body {
    let pieces = ReaderStream::with_capacity(file.take(length.unwrap_or(u64::MAX)), PIECE_BYTES);
    Body::wrap_stream(pieces.inspect_ok(move |piece| count(&sent, piece.len())).boxed())
}

/// A folder as a tar stream, packed on the fly.
pub(crate) fn layout_body(folder: &Path, sent: Arc<AtomicU64>) -> Body {
    let (sender, receiver) = archive::channel();
    let folder = folder.to_owned();
    // What goes wrong there ends the stream as broken, and so the request.
    tokio::task::spawn_blocking(move || {
        let mut writer = PieceWriter::new(sender);
        if let Err(error) = archive::pack(&folder, &mut writer) {
            writer.fail(&error);
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Body::wrap_stream(pieces.inspect_ok(move |piece: &bytes::Bytes| count(&sent, piece.len())))
}

fn count(sent: &AtomicU64, bytes: usize) {
    sent.fetch_add(bytes as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_have_a_short_name() {
        let digest = format!("localhost:5000/a/tool@sha256:{}", "0".repeat(64));
        for (word, name) in [
            ("node:22", "node"),
            ("ghcr.io/owner/tool", "tool"),
            ("localhost:5000/a/b:latest", "b"),
            (digest.as_str(), "tool"),
        ] {
            let source = Source::read(word).unwrap();
            assert_eq!(source.name().as_deref(), Some(name), "{word}");
            assert_eq!(source.image(), Some(Value::String(word.to_owned())));
        }
    }

    #[test]
    fn archives_may_be_compressed_as_servers_read_it() {
        let folder = tempfile::tempdir().unwrap();
        for (file, start) in [
            ("app.tar", &b"oci-layout"[..]),
            ("app.tar.gz", &[0x1f, 0x8b, 8, 0]),
            ("app.tgz", &[0x1f, 0x8b, 8, 0]),
            ("app.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd]),
        ] {
            let path = folder.path().join(file);
            std::fs::write(&path, start).unwrap();
            let source = Source::read(path.to_str().unwrap()).unwrap();
            assert!(matches!(source, Source::Archive(_)), "{file}");
            assert_eq!(source.name().as_deref(), Some("app"), "{file}");
        }
    }

    #[test]
    fn what_looks_like_a_file_is_not_looked_for_in_a_registry() {
        for word in
            ["./node", "/does/not/exist", "missing.json", "missing.tar", "missing.tar.gz", "", "a b", "../x"]
        {
            let error = Source::read(word).unwrap_err().to_string();
            assert!(error.starts_with("there is no "), "{word}: {error}");
        }
    }
}
