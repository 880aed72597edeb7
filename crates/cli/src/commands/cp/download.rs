//! From a sandbox to here.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use reqwest::Response;
use warren_types::SandboxId;

use super::{Copy, Kind, NEW_FILE, joined, last_name};
use crate::archive::{self, Piece, PieceReader};
use crate::failure::{chain_of, hinted, usage};
use crate::output::printable;
use crate::progress::Progress;

impl Copy<'_> {
    pub(super) async fn download(&self, id: &SandboxId, source: &str, target: &Path) -> anyhow::Result<()> {
        let kind = self.kind_of(id, source).await?;
        let contents_only = kind == Kind::Folder && source.ends_with("/.");
        let target =
            if target.is_dir() && !contents_only {
                target.join(last_name(source).ok_or_else(|| {
                    usage(format!("{source} has no name of its own; give a whole path here"))
                })?)
            } else {
                target.to_owned()
            };
        match kind {
            Kind::Folder => self.download_folder(id, source, target).await,
            // Missing too: the request for it says what is missing, the file or the sandbox.
            Kind::Missing => self.download_file(id, source, &target, NEW_FILE).await,
            Kind::File(mode) => self.download_file(id, source, &target, mode).await,
        }
    }

    pub(super) async fn download_to_stdout(&self, id: &SandboxId, source: &str) -> anyhow::Result<()> {
        let mut response = match self.kind_of(id, source).await? {
            Kind::Folder => self.client.read_archive(id, source).await?,
            Kind::File(..) | Kind::Missing => self.client.read_file(id, source).await?,
        };
        while let Some(piece) = self.client.next_chunk(&mut response).await? {
            self.output.write(&piece)?;
        }
        Ok(())
    }

    async fn download_file(
        &self,
        id: &SandboxId,
        source: &str,
        target: &Path,
        mode: u32,
    ) -> anyhow::Result<()> {
        let mut response = self.client.read_file(id, source).await?;
        let failed = || format!("could not write {}", target.display());
        let mut file = Target::open(target, mode).with_context(failed)?;
        let progress = Progress::new(response.content_length(), self.output);
        let mut written = Ok(());
        while written.is_ok() {
            match self.client.next_chunk(&mut response).await {
                Ok(Some(piece)) => {
                    progress.add(piece.len());
                    written = file.write(&piece).with_context(failed);
                }
                Ok(None) => break,
                Err(error) => written = Err(error),
            }
        }
        progress.finish(self.output);
        written?;
        file.finish().with_context(failed)
    }

    async fn download_folder(&self, id: &SandboxId, source: &str, target: PathBuf) -> anyhow::Result<()> {
        // A folder reached through a link is added to where it is.
        let target = std::fs::canonicalize(&target).unwrap_or(target);
        let source = if source.ends_with("/.") { source.to_owned() } else { joined(source, ".") };
        let response = self.client.read_archive(id, &source).await?;
        let failed = format!("could not copy into {}", target.display());
        let progress = Progress::new(None, self.output);
        let (sender, receiver) = archive::channel();
        let unpacking =
            tokio::task::spawn_blocking(move || archive::unpack(PieceReader::new(receiver), &target));
        let fed = self.feed(response, sender, &progress).await;
        let unpacked = unpacking.await.context("the unpacking thread failed")?;
        progress.finish(self.output);
        // A stream that broke is the cause of what the unpacking side says about it.
        fed?;
        let unpacked = unpacked.context(failed)?;
        self.told_skipped(unpacked.skipped.0);
        match unpacked.comment {
            None => Ok(()),
            Some(comment) => Err(hinted(
                format!("copied, but these changed meanwhile: {}", printable(&comment)),
                "copy them again when nothing writes to them",
            )),
        }
    }

    /// Hands a streamed answer to the unpacking thread. When the stream breaks, both sides are told.
    async fn feed(
        &self,
        mut response: Response,
        pieces: tokio::sync::mpsc::Sender<Piece>,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        loop {
            match self.client.next_chunk(&mut response).await {
                Ok(Some(piece)) => {
                    progress.add(piece.len());
                    // The thread has stopped and will say why.
                    if pieces.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    let told = std::io::Error::other(chain_of(error.as_ref()));
                    let _ = pieces.send(Err(told)).await;
                    return Err(error);
                }
            }
        }
    }
}

/// A local file being written: a regular one as a whole at the end, a device or a pipe as it comes.
enum Target {
    Whole { file: tempfile::NamedTempFile, path: PathBuf, mode: u32 },
    AsItComes(std::fs::File),
}

impl Target {
    fn open(path: &Path, mode: u32) -> std::io::Result<Self> {
        // Through a link, so that the link stays and what it points to is replaced.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if std::fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Ok(Self::AsItComes(std::fs::OpenOptions::new().write(true).open(&path)?));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".warren-").tempfile_in(folder)?;
        Ok(Self::Whole { file, path, mode })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Whole { file, .. } => file.write_all(bytes),
            Self::AsItComes(file) => file.write_all(bytes),
        }
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Whole { file, path, mode } => {
                file.as_file().set_permissions(Permissions::from_mode(mode))?;
                file.persist(path)?;
            }
            Self::AsItComes(mut file) => file.flush()?,
        }
        Ok(())
    }
}
