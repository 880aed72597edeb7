//! Images that come as archives: what a container engine saved, or an OCI layout.

use std::sync::Arc;

use axum::body::Body;
use tokio::sync::oneshot;
use tracing::Instrument;
use warren_api::images::Snapshot;
use warren_types::{Error, Isolation};

use super::build::{Build, Needed, log::Next};
use super::manifest::Manifest;
use super::names::check_new_name;
use super::uploads::Upload;
use super::{Reader, view::view};
use crate::app::App;
use crate::app::audit::Kind;
use crate::app::auth::Caller;
use crate::app::guest::from_node;
use crate::store::images::names::NamedImage;

/// What is asked for beside the archive.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveWanted {
    /// Makes it a snapshot.
    pub name: Option<String>,
    pub new_version: bool,
    pub isolation: Option<Isolation>,
}

/// An archive on its way in.
#[derive(Debug)]
pub(crate) struct PendingArchive {
    pub reader: Reader,
    pub image: oneshot::Receiver<Snapshot>,
}

impl App {
    /// The archive is read as it comes; when it breaks off, nothing of it stays.
    pub(crate) async fn begin_archive(
        self: &Arc<Self>,
        caller: &Caller,
        wanted: ArchiveWanted,
        archive: Body,
    ) -> Result<PendingArchive, Error> {
        if let Some(name) = &wanted.name {
            check_new_name(name)?;
            let existing = self.store.find_snapshot(caller.org(), name, None).await?;
            self.check_name_free(existing.as_ref(), wanted.new_version)?;
        }
        let upload = self.builds.uploads.begin(caller.org())?;
        // It has no row: what is made of it has.
        let import = Arc::new(Build::new(String::new()));
        let (told, image) = oneshot::channel();
        let reader = Reader::new(Arc::clone(&import));
        let (app, caller) = (Arc::clone(self), caller.clone());
        let note = caller.note(Kind::Image).with("action", "upload").with("name", wanted.name.clone());
        let taking = async move {
            let taken = async {
                tokio::select! {
                    end = app.take_archive(&caller, wanted, (archive, upload), &import) => end,
                    () = app.shutdown.cancelled() => {
                        Err(Error::unavailable("the server is stopping; send it again"))
                    }
                }
            };
            let end = app.audit.around(note, taken).await;
            let end = end.map(|made| drop(told.send(made)));
            import.log.end(end);
        };
        self.tasks.spawn(taking.in_current_span());
        Ok(PendingArchive { reader, image })
    }

    async fn take_archive(
        self: &Arc<Self>,
        caller: &Caller,
        wanted: ArchiveWanted,
        (archive, upload): (Body, Upload),
        import: &Build,
    ) -> Result<Snapshot, Error> {
        import.log.say(0, "pull", "Reading the archive");
        let lines = self.node.import_archive(archive).await.map_err(from_node)?;
        let template = super::build::follow_import(lines, &import.log).await?;
        drop(upload);
        let mut need = self.builds.need();
        need.add(Needed::Template(template.name.clone()));
        let manifest = Manifest::of_template(&template.name)?;
        let image = self.image_wanted(caller.org(), manifest, wanted.isolation, None).await?.by(caller);
        let (ensured, version) = match &wanted.name {
            Some(name) => {
                let existing = self.store.find_snapshot(caller.org(), name, None).await?;
                let (ensured, version) =
                    self.ensure_named(image, (name, existing), wanted.new_version).await?;
                (ensured, Some(version))
            }
            None => (self.ensure_image(image).await?, None),
        };
        let id = ensured.image_id().to_owned();
        let reader = ensured.reader();
        // A name is all that a snapshot is known by: when that is deleted, the build may end.
        let _waiting = version.is_none().then_some(ensured);
        if let Some(mut reader) = reader {
            loop {
                match reader.next().await {
                    Next::Lines(lines) => {
                        for line in lines {
                            import.log.say(line.step as usize, &line.kind, line.message);
                        }
                    }
                    Next::End(end) => break end?,
                }
            }
        }
        let gone = || Error::conflict("the image was deleted as soon as it was made");
        let found = match (wanted.name, version) {
            (Some(name), version) => self.store.find_snapshot(caller.org(), &name, version).await?,
            (None, _) => {
                let image = self.store.find_image(caller.org(), &id).await?;
                image.map(|image| NamedImage { image, name: None })
            }
        };
        Ok(view(found.ok_or_else(gone)?, None))
    }
}
