//! All sandboxes of this node, and what they share of the machine.

mod kept;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use warren_images::Registries;
use warren_network::{Authority, Claim, Gate, Gateway, Listeners, Plan, Pool, Session, first_choice};
use warren_node_api::{
    Change, NetworkEvents, NetworkEventsQuery, NodeInfo, Report, SandboxSpec, SecretGrant, SecretUses,
    SecretUsesQuery, Usage,
};
use warren_runtime::Launcher;
use warren_runtime::cgroup::{Cgroup, Hierarchies};
use warren_types::{CheckpointId, Error, ErrorKind, Isolation, SandboxId, SandboxState};

use crate::checkpoint::Checkpoints;
use crate::config::{Config, ImagesConfig, StartError};
use crate::cpus::Cpus;
use crate::disk::{self, Disks};
use crate::kernel_limits::is_shortage;
use crate::lxcfs::Lxcfs;
use crate::metadata::Questions;
use crate::sandbox::machine::{self, Machine, NotAdopted};
use crate::sandbox::record::{self, Record, RecordError, Transition, boot_id};
use crate::sandbox::stock::{self, Stock};
use crate::sandbox::{DISK, Handle, NEXT, actor, log, results};
use crate::template::host_authorities;
use crate::templates::{Means, Templates, Trusted};
use crate::vm::{self, Vms};
use crate::{agent, kernel_limits, lxcfs, metadata};

/// Launches under way at the same time; more wait their turn, so that each is quick.
const LAUNCHES: usize = 8;
/// Disks read at the same time; one reader is as fast as a drive.
const MEASURED: usize = 2;
/// How long a sandbox may take to say what it uses.
const USAGE_ANSWER: Duration = Duration::from_secs(1);
/// Sandboxes taken over at the same time at start.
const ADOPTIONS: usize = 16;
/// Changes a slow watcher may be behind before it is sent everything anew.
const CHANGES: usize = 1024;

/// What becomes of the sandboxes when the node stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// They run on; the next start adopts them.
    KeepSandboxes,
    /// They hibernate: processes end, disks stay.
    StopSandboxes,
}

/// What the sandboxes of a node share.
pub(crate) struct Host {
    pub(crate) disks: Disks,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) templates: Arc<Templates>,
    pub(crate) network: Arc<Pool>,
    pub(crate) gateway: Arc<Gateway>,
    /// Secrets of sandboxes, and of those that are about to be made. In memory alone.
    grants: Mutex<HashMap<SandboxId, SecretGrant>>,
    pub(crate) cpus: Cpus,
    starting: Semaphore,
    pub(crate) stock: Stock,
    /// Disks of hibernated sandboxes that are read at the same time.
    pub(crate) measuring: Semaphore,
    pub(crate) cgroup_parent: String,
    pub(crate) stage_dir: PathBuf,
    pub(crate) agent: PathBuf,
    pub(crate) lxcfs: Option<Lxcfs>,
    pub(crate) data_dir: PathBuf,
    /// What sandboxes get that do not ask for another.
    pub(crate) isolation: Isolation,
    /// What virtual machines share, where there can be any.
    pub(crate) vms: Option<Arc<Vms>>,
    hierarchies: Hierarchies,
    program: PathBuf,
    launcher: Mutex<Arc<Launcher>>,
    changes: Arc<Changes>,
}

/// What has changed on this node.
struct Changes {
    sender: broadcast::Sender<Change>,
    /// Something on the volume has changed that is not synced.
    unsynced: Notify,
}

impl Changes {
    fn publish(&self, change: Change) {
        self.unsynced.notify_one();
        // Fails only when nobody watches.
        let _ = self.sender.send(change);
    }
}

impl Host {
    pub(crate) fn cgroup(&self, name: &str) -> Cgroup {
        self.hierarchies.group(&self.cgroup_parent, name)
    }

    /// Names of the groups of all sandboxes and machines of this node.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        let mut names = self.hierarchies.list(&self.cgroup_parent).unwrap_or_default();
        names.retain(|name| name != lxcfs::CGROUP);
        names
    }

    /// The launcher; another one when it has died.
    pub(crate) fn launcher(&self) -> std::io::Result<Arc<Launcher>> {
        let mut launcher = self.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        if !launcher.is_alive() {
            warn!("the launcher has ended; starting another");
            *launcher = Arc::new(Launcher::spawn(&self.program)?);
        }
        Ok(launcher.clone())
    }

    /// How many lxcfs there have been.
    pub(crate) fn lxcfs_count(&self) -> u64 {
        self.lxcfs.as_ref().map_or(0, Lxcfs::count)
    }

    /// One's turn to start a sandbox; over when dropped.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.starting.acquire().await.map_err(|_| Error::unavailable("the node is stopping"))
    }

    /// Keeps nothing ready any more for forks of a checkpoint that cannot be forked; returns when none of its blocks are
    /// held for them.
    pub(crate) async fn forget_forks(&self, checkpoint: &CheckpointId) {
        self.stock.forget(self, checkpoint).await;
        if let Some(vms) = &self.vms {
            vms.waiting.forget_forks(self, checkpoint).await;
        }
    }

    /// Tells who watches of a change that has just been written down.
    pub(crate) fn publish(&self, report: Report) {
        self.changes.publish(Change::Sandbox(report));
    }

    /// What the gateway and the resolver know of a sandbox, secrets that were granted before it was there included.
    pub(crate) fn session(&self, id: &SandboxId, spec: &SandboxSpec) -> Arc<Session> {
        let session = Session::new(id.clone(), spec.egress.clone(), spec.sealed, self.network.limits());
        if let Some(grant) = self.lock_grants().get(id) {
            session.set_grant(grant.clone());
        }
        session
    }

    /// What was granted to a sandbox that is no more.
    pub(crate) fn forget_secrets(&self, id: &SandboxId) {
        self.lock_grants().remove(id);
    }

    fn lock_grants(&self) -> MutexGuard<'_, HashMap<SandboxId, SecretGrant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Registry {
    host: Arc<Host>,
    config: Config,
    sandboxes: Mutex<BTreeMap<SandboxId, Handle>>,
    /// What sandboxes ask that the control plane answers.
    pub(crate) questions: Questions,
    pub(crate) stop: CancellationToken,
}

impl Registry {
    pub(crate) async fn start(
        config: Config,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, StartError> {
        kernel_limits::raise();
        let run = config.data_dir.join("run");
        let stage_dir = vm::stage_dir(&config.data_dir);
        disk::create_folder("a folder to assemble sandboxes in", &stage_dir)?;
        let gateway_dir = config.data_dir.join("gateway");
        let authority = Authority::open_or_create(&gateway_dir).map_err(|source| StartError::Folder {
            what: "the gateway's certificate authority",
            path: gateway_dir.clone(),
            source,
        })?;
        let disks = Disks::start(&config, &authority).await?;
        let templates = Arc::new(open_templates(&config, &disks, &authority)?);
        let hierarchies = Hierarchies::detect()?;
        let cgroup_parent = format!("warren-{}", config.tag());
        hierarchies.ensure_parent(&cgroup_parent)?;
        let agent_dir = config.data_dir.join("agent");
        let agent = agent::ensure(&agent_dir).map_err(|source| StartError::Folder {
            what: "the guest agent",
            path: agent_dir,
            source,
        })?;
        let lxcfs = lxcfs::ensure(&run.join("lxcfs"), &hierarchies, &cgroup_parent).await;
        if let Err(error) = hierarchies.favour_moves() {
            info!(%error, "this kernel cannot favour moves between cgroups: some creates will take longer");
        }
        let launcher = Launcher::spawn(&config.program).map_err(StartError::Launcher)?;

        let changes = Arc::new(Changes { sender: broadcast::channel(CHANGES).0, unsynced: Notify::new() });
        let checkpoints = open_checkpoints(&disks, &changes)?;
        let (records, strays) = read_records(&disks.sandboxes_dir())?;
        templates.remove_outdated(&templates_in_use(&records, &checkpoints));
        let adopted = slots_in_use(&records);
        let (block, claim) = choose_block(&config, &disks, !adopted.is_empty())?;
        tasks.spawn(stop.clone().cancelled_owned().map(move |()| drop(claim)));
        let plan = Plan::new(config.tag(), block);
        let gateway = Gateway::new(authority, config.network.gateway.clone(), &gateway_dir)
            .map_err(StartError::Network)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(StartError::Network)?;
        let about = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(StartError::Network)?;
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let listeners = Listeners {
            gateway: port(&listener).map_err(StartError::Network)?,
            metadata: port(&about).map_err(StartError::Network)?,
        };
        let limits = config.network.limits;
        let network = Pool::start(plan, limits, gateway.reach(), listeners, &adopted, stop.clone(), &tasks)
            .await
            .map_err(StartError::Network)?;
        tasks.spawn(gateway.clone().serve(listener, stop.clone()));

        let bench = vm::Bench {
            config: &config,
            disks: &disks,
            agent: &agent,
            launcher: &launcher,
            hierarchies: &hierarchies,
            cgroup_parent: &cgroup_parent,
            network: &network,
            templates: &templates.file_systems(),
        };
        let (isolation, vms) = vm::choose(&bench).await?;

        let host = Arc::new(Host {
            disks,
            checkpoints,
            templates,
            network,
            gateway,
            grants: Mutex::default(),
            cpus: Cpus::detect(),
            starting: Semaphore::new(LAUNCHES),
            stock: Stock::default(),
            measuring: Semaphore::new(MEASURED),
            cgroup_parent,
            stage_dir,
            agent,
            lxcfs,
            data_dir: config.data_dir.clone(),
            isolation,
            vms: vms.map(Arc::new),
            hierarchies,
            program: config.program.clone(),
            launcher: Mutex::new(Arc::new(launcher)),
            changes,
        });
        tasks.spawn(upkeep::keep_synced(host.clone(), stop.clone()));
        tasks.spawn(stock::fill(host.clone(), stop.clone()));
        tasks.spawn(upkeep::keep_swept(host.checkpoints.clone(), stop.clone()));
        let questions = Questions::default();
        let registry = Arc::new(Self { host, config, sandboxes: Mutex::default(), questions, stop });
        tasks.spawn(registry.clone().serve_metadata(about));
        registry.undo_strays(&strays, &records).await;
        if let Some(vms) = registry.host.vms.clone() {
            tasks.spawn(upkeep::keep_machines_waiting(registry.host.clone(), vms, registry.stop.clone()));
        }
        futures_util::stream::iter(records.into_iter().map(Ok))
            .try_for_each_concurrent(ADOPTIONS, |record| registry.adopt(record))
            .await?;
        tasks.spawn(upkeep::keep_figures(registry.clone()));
        Ok(registry)
    }

    /// Answers what sandboxes ask about themselves.
    async fn serve_metadata(self: Arc<Self>, listener: TcpListener) {
        let (gateway, stop) = (self.host.gateway.clone(), self.stop.clone());
        let whose = move |source| gateway.session_at(source).map(|session| session.id().clone());
        metadata::serve(listener, self, whose, metadata::READ_WITHIN, stop).await;
    }

    /// Ends and removes what was half made, and groups that belong to nobody.
    async fn undo_strays(&self, strays: &[PathBuf], records: &[Record]) {
        let known: BTreeSet<&str> = records.iter().map(Record::cgroup).collect();
        for name in self.host.cgroups().iter().filter(|name| !known.contains(name.as_str())) {
            info!(name, "ending processes of a sandbox that was half made");
            machine::end_processes(&self.host.cgroup(name)).await;
        }
        for folder in strays {
            info!(folder = %folder.display(), "removing what is left of a sandbox that was half made");
            let _ = disk::wait_released_by_all(&folder.join(DISK)).await;
            if let Err(error) = std::fs::remove_dir_all(folder) {
                warn!(%error, folder = %folder.display(), "could not remove it");
            }
        }
    }

    async fn adopt(self: &Arc<Self>, mut record: Record) -> Result<(), StartError> {
        let shortage = |id: &SandboxId, reason| StartError::Shortage { id: id.clone(), reason };
        let folder = self.host.disks.sandbox_dir(&record.id);
        let session = self.host.session(&record.id, &record.spec);
        let mut machine: Option<Machine> = None;
        if was_cut_off(&record) {
            // Who asked was told nothing, so it runs on if it still does.
            machine = match machine::adopt(&self.host, &mut record, &folder, &session).await {
                Ok(adopted) => Some(adopted),
                Err(NotAdopted::Ended(_)) => None,
                Err(NotAdopted::Shortage(reason)) => return Err(shortage(&record.id, reason)),
            };
            if machine.is_some() {
                record.transition = None;
                results::forget(&folder);
            }
        }
        if record.state == SandboxState::Running && record.transition.is_some() {
            machine::end_rest(&self.host, &mut record, &folder).await;
            record.machine = None;
            // The others are carried on by the actor.
            if record.transition == Some(Transition::Hibernate) {
                // It was cut off, perhaps before that was done.
                log::note_missing(&folder).await;
                record.become_state(SandboxState::Hibernated, None);
            }
        } else if record.state == SandboxState::Running && machine.is_none() {
            match machine::adopt(&self.host, &mut record, &folder, &session).await {
                Ok(adopted) => machine = Some(adopted),
                Err(NotAdopted::Shortage(reason)) => return Err(shortage(&record.id, reason)),
                Err(NotAdopted::Ended(reason)) => {
                    let rebooted = record.machine.as_ref().is_none_or(|machine| machine.boot_id != boot_id());
                    record.machine = None;
                    if rebooted {
                        // Its processes went with the host; its disk is whole and the next use starts it again.
                        log::note_missing(&folder).await;
                        record.become_state(SandboxState::Hibernated, None);
                    } else {
                        info!(id = %record.id, reason, "a sandbox ended while the node was down");
                        let reason = format!("while the node was down, {reason}; {}", actor::DISK_IS_KEPT);
                        log::note_failure(&folder, &reason).await;
                        record.become_state(SandboxState::Error, Some(reason));
                    }
                }
            }
        } else if record.state != SandboxState::Running {
            // A wake or a hibernation was cut off: what ran is ended, the disk stays.
            machine::end_rest(&self.host, &mut record, &folder).await;
            record.machine = None;
            if record.transition == Some(Transition::Resume)
                && let Err(error) = record.undo_resume(&folder)
            {
                warn!(%error, id = %record.id, "memory and disk could not be put back as they were before it woke");
            }
        }
        if !matches!(record.transition, Some(Transition::Restore { .. })) {
            // Of a restore that nobody was told would happen.
            NEXT.remove(&folder);
        }
        if let Err(error) = record.save(&folder) {
            warn!(%error, id = %record.id, "could not write a sandbox's record");
        }
        let id = record.id.clone();
        let handle = actor::resume(self.host.clone(), folder, record, session, machine, self.forget(&id));
        self.lock().insert(id, handle);
        Ok(())
    }

    /// Removes one that could not be taken over at the start, now that its owner wants it gone.
    pub(crate) fn remove_what_was_left_alone(&self, id: &SandboxId) -> Result<(), Error> {
        // Nobody makes one of that id meanwhile.
        let sandboxes = self.lock();
        if sandboxes.contains_key(id) {
            return Ok(());
        }
        match std::fs::remove_dir_all(self.host.disks.sandbox_dir(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::unavailable(format!("what is left of sandbox {id} could not be removed: {error}")))
            }
            _ => Ok(()),
        }
    }

    fn forget(self: &Arc<Self>, id: &SandboxId) -> impl FnOnce() + Send + 'static {
        let (registry, id) = (self.clone(), id.clone());
        move || {
            registry.lock().remove(&id);
            registry.host.forget_secrets(&id);
            registry.questions.forget(&id);
        }
    }

    pub(crate) fn find(&self, id: &SandboxId) -> Option<Handle> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Result<Handle, Error> {
        self.find(id).ok_or_else(|| Error::not_found(format!("sandbox {id} not found")))
    }

    /// Makes the sandbox, unless it is there, and returns once it runs.
    pub(crate) async fn ensure(self: &Arc<Self>, id: SandboxId, spec: SandboxSpec) -> Result<Report, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::unavailable("the node is stopping"));
        }
        let handle = {
            let mut sandboxes = self.lock();
            match sandboxes.get(&id) {
                Some(handle) => handle.clone(),
                None => {
                    let template_digest = self.template_of(&spec)?;
                    let forget = self.forget(&id);
                    let handle = actor::create(self.host.clone(), id.clone(), spec, template_digest, forget);
                    sandboxes.insert(id, handle.clone());
                    handle
                }
            }
        };
        handle.settled().await
    }

    /// Digest of the template that a sandbox is to be made over: that of its checkpoint, if it comes from one.
    fn template_of(&self, spec: &SandboxSpec) -> Result<String, Error> {
        let Some(checkpoint) = &spec.from_checkpoint else {
            let found = self.host.templates.find(&spec.template);
            return found.ok_or_else(|| Error::not_found(format!("template not found: {}", spec.template)));
        };
        // One that is not there is found out about when it is opened.
        let digest = self.host.checkpoints.template_of(checkpoint);
        Ok(digest.unwrap_or_else(|| self.host.disks.template().to_owned()))
    }

    pub(crate) fn checkpoints(&self) -> &Arc<Checkpoints> {
        &self.host.checkpoints
    }

    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.host.disks.sandbox_dir(id)
    }

    /// Replaces the secrets of a sandbox, which may be about to be made.
    pub(crate) fn grant(&self, id: &SandboxId, grant: SecretGrant) {
        self.host.lock_grants().insert(id.clone(), grant.clone());
        // Looked for after it was put down: one that is made meanwhile has found it there.
        if let Some(handle) = self.find(id) {
            handle.session.set_grant(grant);
        }
    }

    /// What was granted to one that is to be absent; one that is there has its own.
    pub(crate) fn forget_secrets(&self, id: &SandboxId) {
        self.host.forget_secrets(id);
    }

    pub(crate) fn take_secret_uses(&self, query: SecretUsesQuery) -> SecretUses {
        self.host.gateway.take_uses(query)
    }

    pub(crate) fn take_network_events(&self, query: NetworkEventsQuery) -> NetworkEvents {
        self.host.gateway.take_events(query)
    }

    /// What running sandboxes use. One that is busy with something long is left out.
    pub(crate) async fn usage(&self) -> Vec<Usage> {
        let handles: Vec<(SandboxId, Handle)> =
            self.lock().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect();
        futures_util::stream::iter(handles)
            .map(async |(id, handle)| {
                let meter = tokio::time::timeout(USAGE_ANSWER, handle.meter()).await.ok()?.ok()??;
                let (memory_bytes, with_caches) = meter.memory_in_use();
                Some(Usage { id, memory_bytes, with_caches })
            })
            .buffer_unordered(ADOPTIONS)
            .filter_map(async |usage| usage)
            .collect()
            .await
    }

    /// First processes of the containers that run.
    async fn containers(&self) -> Vec<i32> {
        let handles: Vec<Handle> = self.lock().values().cloned().collect();
        futures_util::stream::iter(handles)
            .map(async |handle| {
                let meter = tokio::time::timeout(USAGE_ANSWER, handle.meter()).await.ok()?.ok()??;
                meter.guest.is_none().then_some(meter.pid)
            })
            .buffer_unordered(ADOPTIONS)
            .filter_map(async |pid| pid)
            .collect()
            .await
    }

    /// As each was last published. Asks nobody: one that is being started would answer only when that is over.
    pub(crate) fn list(&self) -> Vec<Report> {
        self.lock().values().map(Handle::latest).collect()
    }

    /// Changes from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Change> {
        self.host.changes.sender.subscribe()
    }

    /// Everything there is, as changes.
    pub(crate) fn list_all(&self) -> Vec<Change> {
        let sandboxes = self.list().into_iter().map(Change::Sandbox);
        sandboxes
            .chain(self.host.checkpoints.list().into_iter().map(Box::new).map(Change::Checkpoint))
            .collect()
    }

    pub(crate) fn info(&self) -> NodeInfo {
        let running = self.list().iter().filter(|report| report.state == SandboxState::Running).count();
        NodeInfo {
            id: format!("node-{}", self.config.tag()),
            version: env!("CARGO_PKG_VERSION").into(),
            isolation: self.host.isolation,
            isolations: match self.host.vms {
                Some(_) => vec![Isolation::Container, Isolation::Vm],
                None => vec![Isolation::Container],
            },
            templates: self.host.templates.names(),
            cpus: self.host.cpus.count(),
            memory_mb: memory_mb(),
            disk_free_mb: self.host.disks.free_bytes() >> 20,
            sandboxes_running: u32::try_from(running).unwrap_or(u32::MAX),
        }
    }

    pub(crate) async fn shutdown(&self, how: Shutdown) {
        let handles: Vec<Handle> = self.lock().values().cloned().collect();
        if how == Shutdown::StopSandboxes {
            futures_util::stream::iter(&handles)
                .for_each_concurrent(ADOPTIONS, async |handle| {
                    let mut done = handle.hibernate().await;
                    // A disk that takes nothing any more is said once, and then keeps nobody from resting; one that only has no
                    // room now does.
                    if done.is_err() {
                        done = handle.hibernate().await;
                    }
                    // What has failed already has nothing to stop.
                    if let Err(error) = done
                        && error.kind != ErrorKind::Gone
                    {
                        warn!(%error, "a sandbox could not be hibernated and runs on without the server");
                    }
                })
                .await;
        }
        // Asked of each: what was published last may be from before it hibernated.
        for handle in &handles {
            if handle.report().await.is_ok_and(|report| report.state == SandboxState::Running) {
                return;
            }
        }
        self.host.network.stop().await;
        if let Some(lxcfs) = &self.host.lxcfs {
            lxcfs::stop(&lxcfs.folder, &self.host.cgroup(lxcfs::CGROUP)).await;
        }
        self.host.disks.stop().await;
        if let Err(error) = self.host.hierarchies.remove_parent(&self.host.cgroup_parent) {
            warn!(%error, "could not remove the cgroup of all sandboxes");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SandboxId, Handle>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_templates(config: &Config, disks: &Disks, authority: &Authority) -> Result<Templates, StartError> {
    let reach = config.network.gateway.reach.clone();
    // As what leaves sandboxes: through IPv4, and to nothing private.
    let may_reach = move |address: IpAddr| match address {
        IpAddr::V4(address) => reach.allows(address),
        IpAddr::V6(_) => false,
    };
    let ImagesConfig { insecure_registries, registry_config, trust_host_cas } = config.images.clone();
    let registries = Registries::new(Arc::new(may_reach), insecure_registries, registry_config)
        .map_err(|error| StartError::Registries(error.to_string()))?;
    let of_host = if trust_host_cas { host_authorities() } else { Vec::new() };
    let authority = (Authority::NAME, authority.certificate_pem().to_owned());
    let folder = disks.templates_dir();
    let means = Means { registries, trusted: Trusted { authority, of_host } };
    let opened = Templates::open(folder.clone(), disks.template(), means);
    opened.map_err(|source| StartError::Folder { what: "the templates", path: folder, source })
}

/// Digests of the templates that something is laid over.
fn templates_in_use(records: &[Record], checkpoints: &Checkpoints) -> BTreeSet<String> {
    let sandboxes = records.iter().map(|record| record.template_digest.clone());
    sandboxes.chain(checkpoints.count_by_template().into_keys()).collect()
}

fn open_checkpoints(disks: &Disks, changes: &Arc<Changes>) -> Result<Arc<Checkpoints>, StartError> {
    let (folder, changes) = (disks.checkpoints_dir(), changes.clone());
    let opened = Checkpoints::open(folder.clone(), move |change| changes.publish(change));
    opened.map(Arc::new).map_err(|source| StartError::Folder { what: "checkpoints", path: folder, source })
}

/// The records of whole sandboxes, and the folders of those that were half made.
fn read_records(folder: &Path) -> Result<(Vec<Record>, Vec<PathBuf>), StartError> {
    let (mut records, mut strays) = (Vec::new(), Vec::new());
    // Whoever does not see them all takes the others for lost.
    let unlisted = |source| StartError::Folder { what: "the sandboxes", path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(unlisted)? {
        let path = entry.map_err(unlisted)?.path();
        match Record::load(&path) {
            Ok(record) if record.state != SandboxState::Creating => records.push(record),
            Err(RecordError::Unreadable(source)) if is_shortage(&source) => return Err(unlisted(source)),
            // It may be somebody's work, and only its owner can know.
            Err(error) if has_content(&error, &path) => {
                error!(%error, folder = %path.display(), "a sandbox is left alone, because its record is of no use");
            }
            Ok(_) | Err(_) => strays.push(path),
        }
    }
    Ok((records, strays))
}

/// Whether something was written down, however it reads now; a host that lost power leaves an empty file of a sandbox that was
/// just being made.
fn has_content(error: &RecordError, folder: &Path) -> bool {
    match error {
        RecordError::Absent => false,
        RecordError::Unreadable(_) => true,
        RecordError::Foreign { .. } | RecordError::Damaged(_) => {
            std::fs::metadata(folder.join(record::FILE)).is_ok_and(|file| file.len() > 0)
        }
    }
}

/// Whether a virtual machine was to be brought to rest or started again, and its memory may still have what nobody has
/// written out.
fn was_cut_off(record: &Record) -> bool {
    let memory_counts = match record.transition {
        Some(Transition::Hibernate) => record.suspended.is_none(),
        Some(Transition::Restart) => true,
        _ => false,
    };
    memory_counts && record.state == SandboxState::Running && record.spec.isolation == Isolation::Vm
}

fn slots_in_use(records: &[Record]) -> BTreeMap<u16, Gate> {
    records
        .iter()
        .filter(|record| record.state == SandboxState::Running)
        .filter(|record| record.transition.is_none() || was_cut_off(record))
        .filter_map(|record| {
            let gate = Gate::of(&record.spec.egress, record.spec.sealed);
            record.machine.as_ref().map(|machine| (machine.slot, gate))
        })
        .collect()
}

/// The block of addresses and ids of this node, and what keeps it from others. It stays the same while sandboxes run, because
/// they have it.
fn choose_block(config: &Config, disks: &Disks, runs: bool) -> Result<(u16, Option<Claim>), StartError> {
    let path = disks.volume().join("network-block");
    let kept = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let claim = kept.and_then(Claim::of);
    if let Some(block) = kept
        && (claim.is_some() || runs)
    {
        return Ok((block, claim));
    }
    let claim = Claim::first(&config.tag());
    let block = claim.as_ref().map_or_else(|| first_choice(&config.tag()), |claim| claim.block);
    std::fs::write(&path, block.to_string()).map_err(|source| StartError::Folder {
        what: "the node's network block",
        path,
        source,
    })?;
    Ok((block, claim))
}

fn memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kilobytes| kilobytes >> 10)
}
