//! From here into a sandbox.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use reqwest::Body;
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use warren_types::SandboxId;

use super::{Copy, Kind, joined, last_name};
use crate::archive::{self, PieceWriter};
use crate::failure::{hinted, usage};
use crate::progress::Progress;

const PIECE_BYTES: usize = 256 * 1024;

impl Copy<'_> {
    pub(super) async fn upload(&self, source: &Path, id: &SandboxId, target: &str) -> anyhow::Result<()> {
        let metadata =
            std::fs::metadata(source).with_context(|| format!("could not read {}", source.display()))?;
        if metadata.is_dir() {
            return self.upload_folder(source, id, target).await;
        }
        let target = match self.kind_of(id, target).await? {
            Kind::Folder => joined(target, &own_name(source)?),
            Kind::Missing if target.ends_with('/') => joined(target, &own_name(source)?),
            Kind::Missing | Kind::File(..) => target.to_owned(),
        };
        let file = tokio::fs::File::open(source)
            .await
            .with_context(|| format!("could not read {}", source.display()))?;
        // Only of a regular file is the length known before it is read.
        let length = metadata.is_file().then_some(metadata.len());
        let progress = Arc::new(Progress::new(length, self.output));
        let body = counted(file.take(length.unwrap_or(u64::MAX)), &progress);
        let mode = metadata.is_file().then(|| metadata.permissions().mode() & 0o777);
        let written = self.client.write_file(id, &target, mode, body, length).await;
        progress.finish(self.output);
        if let (Err(_), Some(length)) = (&written, length)
            && std::fs::metadata(source).is_ok_and(|now| now.len() < length)
        {
            return Err(hinted(
                format!("{} became shorter while being read", source.display()),
                "repeat the command",
            ));
        }
        written
    }

    pub(super) async fn upload_stdin(&self, id: &SandboxId, target: &str) -> anyhow::Result<()> {
        if target.ends_with('/') || self.kind_of(id, target).await? == Kind::Folder {
            return Err(usage("stdin has no name: give the file's whole path"));
        }
        let progress = Arc::new(Progress::new(None, self.output));
        let written =
            self.client.write_file(id, target, None, counted(tokio::io::stdin(), &progress), None).await;
        progress.finish(self.output);
        written
    }

    async fn upload_folder(&self, source: &Path, id: &SandboxId, target: &str) -> anyhow::Result<()> {
        let contents_only = source.as_os_str().as_encoded_bytes().ends_with(b"/.");
        let target = match self.kind_of(id, target).await? {
            Kind::Folder if !contents_only => joined(target, &own_name(source)?),
            Kind::Folder | Kind::Missing => target.to_owned(),
            Kind::File(..) => {
                return Err(usage(format!("{target} is a file; a folder cannot be copied onto it")));
            }
        };
        self.client.make_folder(id, &target).await?;
        let progress = Arc::new(Progress::new(None, self.output));
        let (sender, receiver) = archive::channel();
        let folder = source.to_owned();
        let packing = tokio::task::spawn_blocking(move || {
            let mut writer = PieceWriter::new(sender);
            let packed = archive::pack(&folder, &mut writer);
            if let Err(error) = &packed {
                writer.fail(error);
            }
            packed
        });
        let pieces = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let counter = Arc::clone(&progress);
        let body = Body::wrap_stream(pieces.inspect_ok(move |piece: &bytes::Bytes| counter.add(piece.len())));
        let written = self.client.write_archive(id, &target, body).await;
        let packed = packing.await.context("the packing thread failed")?;
        progress.finish(self.output);
        match packed {
            Ok(skipped) => {
                written?;
                self.told_skipped(skipped.0);
                Ok(())
            }
            // The server hung up and has said why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => written,
            Err(error) => Err(error).context("could not pack the folder"),
        }
    }
}

fn counted(reader: impl tokio::io::AsyncRead + Send + 'static, progress: &Arc<Progress>) -> Body {
    let counter = Arc::clone(progress);
    let pieces = ReaderStream::with_capacity(reader, PIECE_BYTES);
    Body::wrap_stream(pieces.inspect_ok(move |piece| counter.add(piece.len())).boxed())
}

/// The name a source has by itself, also when it is given as `.` or `..`.
fn own_name(source: &Path) -> anyhow::Result<String> {
    let whole: PathBuf = match source.file_name() {
        Some(name) => name.into(),
        None => {
            std::fs::canonicalize(source).with_context(|| format!("could not read {}", source.display()))?
        }
    };
    let name = whole.file_name().and_then(|name| name.to_str()).and_then(last_name);
    name.map(str::to_owned)
        .ok_or_else(|| usage(format!("{} has no name a sandbox could use", source.display())))
}
