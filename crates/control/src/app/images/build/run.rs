//! A build from its beginning to its end.

use std::sync::Arc;

use tracing::Instrument;
use warren_node_api::{ImageSettings, SandboxSpec};
use warren_types::size::{DEFAULT_TIER, TIERS};
use warren_types::{CheckpointId, EgressMode, EgressPolicy, Error, ErrorKind, Isolation, Size};

use super::base::Start;
use super::layers::{From, Taken};
use super::steps::{Config, Site};
use super::workshop::Workshop;
use super::{Build, Needed, keys};
use crate::app::App;
use crate::app::access::add_gateway;
use crate::app::audit::Kind as Audited;
use crate::app::images::ensure::ImageWanted;
use crate::app::images::steps::Step;
use crate::app::sandboxes::request::checked_envs;
use crate::store::checkpoints::Kind;
use crate::store::checkpoints::change::MadeFor;
use crate::store::images::change::BuiltImage;

/// Layers that turn out to be gone when they are used, and are passed over.
const LAYER_TRIES: usize = 8;

/// Why a build came to no good end.
enum Stop {
    Failed(Error),
    /// Whoever wanted it wants it no more.
    Cancelled,
    /// The next start of the server sees to it.
    Shutdown,
}

/// What a build works with.
struct Work<'a> {
    wanted: &'a ImageWanted,
    build: &'a Arc<Build>,
    workshop: &'a Workshop,
    start: Start,
    keys: Vec<String>,
    /// Steps after which there is the last layer.
    last: usize,
}

/// Where the steps that are run begin.
struct Point {
    /// Steps that are done.
    done: usize,
    /// The state after them; the base's own when absent.
    layer: Option<CheckpointId>,
}

impl App {
    /// Starts the task of a build, which ends with the row of its image settled.
    pub(in crate::app::images) fn start_build(self: &Arc<Self>, wanted: ImageWanted, build: &Arc<Build>) {
        let (app, build) = (Arc::clone(self), Arc::clone(build));
        let span = tracing::info_span!("build", image = %build.image_id);
        let (key, steps) = (&wanted.key, wanted.manifest.steps.len());
        let note = wanted.note(Audited::Image, "build").with("image", build.image_id.as_str());
        let note = note.with("isolation", key.isolation.to_string()).with("steps", steps);
        let note = note.with("base", wanted.manifest.base.canonical());
        self.tasks.spawn(
            async move {
                let end = app.audit.around(note, app.run_and_settle(wanted, &build)).await;
                app.builds.end(&build);
                build.log.end(end);
            }
            .instrument(span),
        );
    }

    async fn run_and_settle(self: &Arc<Self>, wanted: ImageWanted, build: &Arc<Build>) -> Result<(), Error> {
        let running = tokio::spawn({
            let (app, build) = (Arc::clone(self), Arc::clone(build));
            async move { app.run_build(&wanted, &build).await }.in_current_span()
        });
        let end = running.await.unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a build did not run to its end");
            Err(Stop::Failed(Error::internal("the server failed while it built this; its log says why")))
        });
        let end = self.settle_build(&build.image_id, end).await;
        if let Err(error) = self.remove_left_over(build).await {
            tracing::warn!(%error, "what a build took and nobody has is left to the sweep");
        }
        end
    }

    async fn settle_build(&self, image: &str, end: Result<(), Stop>) -> Result<(), Error> {
        let error = match end {
            Ok(()) => return Ok(()),
            Err(Stop::Shutdown) => {
                return Err(Error::unavailable(
                    "the server is stopping; ask again, and what is built already is kept",
                ));
            }
            Err(Stop::Cancelled) => {
                Error::conflict("the build was cancelled: its snapshot or image was deleted")
            }
            Err(Stop::Failed(error)) => error,
        };
        tracing::info!(%error, "an image could not be built");
        self.store.fail_image(image, &error.message).await?;
        Err(error)
    }

    async fn run_build(self: &Arc<Self>, wanted: &ImageWanted, build: &Arc<Build>) -> Result<(), Stop> {
        let workshop = Workshop::new();
        let end = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Stop::Shutdown),
            () = build.cancel.cancelled() => Err(Stop::Cancelled),
            done = self.work(wanted, build, &workshop) => done.map_err(Stop::Failed),
        };
        workshop.close(self).await;
        end
    }

    async fn work(
        self: &Arc<Self>,
        wanted: &ImageWanted,
        build: &Arc<Build>,
        workshop: &Workshop,
    ) -> Result<(), Error> {
        let base = self.base_checkpoint(wanted, build).await?;
        let _place = match self.builds.places.ask(&wanted.org) {
            Ok(place) => place,
            Err(turn) => {
                build.log.say(0, "build", "Waiting for another build of this server to end");
                turn.await.map_err(|_| Error::internal("a build was never given its turn"))?
            }
        };
        let mut need = self.builds.need();
        let start = self.find_start(wanted, base, build, &mut need).await?;
        let steps = &wanted.manifest.steps;
        let keys = keys::chain(keys::of_base(&start.identity, wanted.key.isolation), steps);
        let last = keys::last_layer(steps);
        build.log.say(0, "build", format!("Building image with {} steps", steps.len()));
        check_variables(&start, steps)?;

        let work = Work { wanted, build, workshop, start, keys, last };
        let (mut point, mut site) = self.begin_at(&work, &mut need).await?;
        let mut config =
            Config { envs: work.start.envs.clone(), workdir: work.start.settings.workdir.clone() };
        for (index, step) in steps[..point.done].iter().enumerate() {
            build.log.say(
                index + 1,
                "cache_hit",
                format!("Step {}/{}: {} (cached)", index + 1, steps.len(), step.describe()),
            );
            config.apply(step);
        }
        if work.last == 0 && point.layer.is_none() {
            point.layer = self.keep_layer(&work, site.as_ref(), 0, &mut need).await?;
        }
        for (index, step) in steps.iter().enumerate().skip(point.done) {
            let number = index + 1;
            build.log.say(number, step.kind(), format!("Step {number}/{}: {}", steps.len(), step.describe()));
            if let Some(site) = &mut site {
                site.run(self, &build.log, (index, step), &config).await?;
            }
            config.apply(step);
            if number == work.last || (step.makes_layer() && number < work.last) {
                let kept = self.keep_layer(&work, site.as_ref(), number, &mut need).await?;
                point.layer = kept.or(point.layer);
            }
            build.log.say(number, step.kind(), format!("Step {number}/{} completed", steps.len()));
        }
        build.log.say(steps.len() + 1, "checkpoint", "Keeping the image");
        let layer = point.layer.or_else(|| work.start.checkpoint.clone());
        let layer = layer.ok_or_else(|| Error::internal("a build has come to no layer"))?;
        self.finish(&work, layer, config).await
    }

    /// The deepest layer that is there, and a sandbox on it unless nothing is left to be run.
    async fn begin_at(
        self: &Arc<Self>,
        work: &Work<'_>,
        need: &mut super::Need,
    ) -> Result<(Point, Option<Site>), Error> {
        for _ in 0..LAYER_TRIES {
            let point = self.deepest(work).await?;
            if let Some(layer) = &point.layer {
                need.add(Needed::Checkpoint(layer.clone()));
                // Another build may have put its own in its place before this one said that it needs it.
                let still = self.store.find_layer(&work.wanted.org, &work.keys[point.done]).await?;
                if still.as_ref() != Some(layer) {
                    continue;
                }
                if let Err(error) = self.wait_until_ready(layer).await {
                    self.forget_layer(work, point.done, layer, &error).await?;
                    continue;
                }
            }
            let nothing_to_run =
                point.done >= work.last && (point.layer.is_some() || work.start.checkpoint.is_some());
            if nothing_to_run {
                return Ok((point, None));
            }
            let spec = work.build_spec(point.layer.as_ref());
            match (work.workshop.open(self, &spec).await, point.layer.clone()) {
                (Ok(id), _) => {
                    return Ok((point, Some(Site::new(id))));
                }
                // It is damaged, or was removed meanwhile: the one before it has to do.
                (Err(error), Some(layer))
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) =>
                {
                    self.forget_layer(work, point.done, &layer, &error).await?;
                }
                (Err(error), _) => return Err(error),
            }
        }
        Err(Error::unavailable("too many layers of the image turned out to be damaged; try again"))
    }

    async fn forget_layer(
        &self,
        work: &Work<'_>,
        done: usize,
        layer: &CheckpointId,
        error: &Error,
    ) -> Result<(), Error> {
        tracing::warn!(checkpoint = %layer, %error, "a layer cannot be used; building it anew");
        if self.store.remove_layer(&work.wanted.org, &work.keys[done], layer).await? {
            self.delete_checkpoint_row(layer).await?;
        }
        Ok(())
    }

    async fn deepest(&self, work: &Work<'_>) -> Result<Point, Error> {
        let org = &work.wanted.org;
        for done in (0..=work.last).rev() {
            if let Some(layer) = self.store.find_layer(org, &work.keys[done]).await? {
                self.store.touch_layers(org, &work.keys[..=done]).await?;
                return Ok(Point { done, layer: Some(layer) });
            }
        }
        Ok(Point { done: 0, layer: None })
    }

    /// The state after a number of steps, captured; it is whole a little later, which nobody waits for.
    async fn keep_layer(
        self: &Arc<Self>,
        work: &Work<'_>,
        site: Option<&Site>,
        done: usize,
        need: &mut super::Need,
    ) -> Result<Option<CheckpointId>, Error> {
        let Some(site) = site else { return Ok(None) };
        let key = &work.keys[done];
        let taken = Taken {
            org: work.wanted.org.clone(),
            name: format!("layer {key}"),
            made_for: MadeFor::Layer,
            access: work.start.access.clone(),
            from: From::Sandbox { id: site.id.clone(), kind: Kind::DiskOnly },
        };
        let layer = self.take_for_build(work.build, taken).await?;
        // Another build that has come to the same state puts its own in its place, and this one still ends in it.
        need.add(Needed::Checkpoint(layer.clone()));
        self.put_layer(&work.wanted.org, key, &layer).await?;
        Ok(Some(layer))
    }

    /// What sandboxes are made from, and the row that says so.
    async fn finish(
        self: &Arc<Self>,
        work: &Work<'_>,
        layer: CheckpointId,
        config: Config,
    ) -> Result<(), Error> {
        self.wait_until_ready(&layer).await?;
        let spec = work.final_spec(&config);
        let from = match work.wanted.key.isolation {
            Isolation::Container => From::Copy { id: layer.clone(), spec: Box::new(spec) },
            Isolation::Vm => {
                let spec = SandboxSpec { from_checkpoint: Some(layer.clone()), ..spec };
                From::Sandbox { id: work.workshop.open(self, &spec).await?, kind: Kind::Full }
            }
        };
        let checkpoint = self
            .take_for_build(
                work.build,
                Taken {
                    org: work.wanted.org.clone(),
                    name: format!("image {}", work.wanted.key.content_hash),
                    made_for: MadeFor::Image,
                    access: work.start.access.clone(),
                    from,
                },
            )
            .await?;
        self.wait_until_ready(&checkpoint).await?;
        let built = BuiltImage {
            checkpoint_id: checkpoint.clone(),
            layer: work.keys.get(work.last).cloned(),
            template: work.start.template.clone(),
            envs: config.envs,
            workdir: config.workdir,
        };
        let image = &work.build.image_id;
        self.copy_patches(image, &checkpoint).await?;
        if !self.store.finish_image(image, &built).await? {
            self.delete_checkpoint_row(&checkpoint).await?;
            return Err(Error::conflict("the image was deleted while it was built"));
        }
        // One that was added between the two is here now, and one that is added from here on finds the image ready.
        self.copy_patches(image, &checkpoint).await?;
        self.publish_with_names(&work.build.image_id, &checkpoint).await
    }
}

/// Those of the base and of all steps together are what every sandbox made from the image would be refused for.
fn check_variables(start: &Start, steps: &[Step]) -> Result<(), Error> {
    let mut config = Config { envs: start.envs.clone(), workdir: None };
    steps.iter().for_each(|step| config.apply(step));
    let checked = checked_envs(config.envs).map(drop);
    checked.map_err(|error| Error { message: format!("the variables of the image: {error}"), ..error })
}

impl Work<'_> {
    fn size(&self, memory_mb: u32) -> Size {
        let smallest = Size { cpu_count: TIERS[0].1, memory_mb: TIERS[0].0, disk_mb: self.start.disk_mb };
        smallest.with_memory_between_this_and_largest(i64::from(memory_mb))
    }

    fn build_spec(&self, layer: Option<&CheckpointId>) -> SandboxSpec {
        let mut envs = self.start.envs.clone();
        if self.start.egress.mode == EgressMode::Allowlist {
            add_gateway(&mut envs);
        }
        SandboxSpec {
            size: self.size(self.wanted.manifest.builder_memory_mb),
            envs,
            egress: self.start.egress.clone(),
            start_commands: Vec::new(),
            from_checkpoint: layer.or(self.start.checkpoint.as_ref()).cloned(),
            image: self.start.settings.clone(),
            ..self.plain()
        }
    }

    /// What sandboxes made from the image are, before anybody asks for more.
    fn final_spec(&self, config: &Config) -> SandboxSpec {
        SandboxSpec {
            size: self.size(self.wanted.key.memory_mb.unwrap_or(DEFAULT_TIER.0)),
            envs: config.envs.clone(),
            start_commands: self.start.start_commands.clone(),
            image: ImageSettings { user: self.start.settings.user.clone(), workdir: config.workdir.clone() },
            ..self.plain()
        }
    }

    fn plain(&self) -> SandboxSpec {
        SandboxSpec {
            template: self.start.template.clone(),
            isolation: self.wanted.key.isolation,
            size: self.size(0),
            envs: Default::default(),
            timeout_seconds: 0,
            egress: EgressPolicy::default(),
            sealed: false,
            start_commands: Vec::new(),
            from_checkpoint: None,
            image: ImageSettings::default(),
        }
    }
}
