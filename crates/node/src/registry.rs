//! All sandboxes of this node, and what they share of the machine.

mod kept;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use warren_images::Registries;
use warren_network::{Authority, Gate, Gateway, Plan, Pool, Session};
use warren_node_api::{
    Change, NetworkEvents, NetworkEventsQuery, NodeInfo, Report, SandboxSpec, SecretGrant, SecretUses,
    SecretUsesQuery, Usage,
};
use warren_runtime::Launcher;
use warren_runtime::cgroup::{Cgroup, Hierarchies};
use warren_types::{CheckpointId, Error, Isolation, SandboxId, SandboxState, Size};

use crate::checkpoint::Checkpoints;
use crate::config::{Config, ImagesConfig, StartError};
use crate::cpus::Cpus;
use crate::disk::{self, Disks};
use crate::sandbox::machine::{self, Machine};
use crate::sandbox::record::{Record, Transition, boot_id};
use crate::sandbox::stock::{self, Stock};
use crate::sandbox::{DISK, Handle, NEXT, actor, log};
use crate::template::host_authorities;
use crate::templates::{Means, Templates, Trusted};
use crate::vm::{self, Vms, waiting};
use crate::{agent, inotify, lxcfs};

/// Launches under way at the same time; more wait their turn, so that each is quick.
const LAUNCHES: usize = 8;
/// Disks read at the same time; one reader is as fast as a drive.
const MEASURED: usize = 2;
/// Sandboxes taken over at the same time at start.
const ADOPTIONS: usize = 16;
/// Changes a slow watcher may be behind before it is sent everything anew.
const CHANGES: usize = 1024;

/// A change is on the drive at most this much later, and the time that takes.
const SYNC_AFTER: Duration = Duration::from_millis(500);
/// Between two sweeps for what is left of checkpoints.
const SWEEP_EVERY: Duration = Duration::from_secs(10 * 60);

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
    pub(crate) lxcfs: Option<PathBuf>,
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
        let session = Session::new(id.clone(), spec.egress.clone(), spec.sealed);
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
    pub(crate) stop: CancellationToken,
}

impl Registry {
    pub(crate) async fn start(
        config: Config,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Result<Arc<Self>, StartError> {
        let run = config.data_dir.join("run");
        let stage_dir = vm::stage_dir(&config.data_dir);
        disk::create_folder("a folder to assemble sandboxes in", &stage_dir)?;
        let gateway_dir = config.data_dir.join("gateway");
        let authority = Authority::open_or_create(&gateway_dir).map_err(|source| StartError::Folder {
            what: "the gateway's certificate authority",
            path: gateway_dir,
            source,
        })?;
        let disks = Disks::start(&config, &authority).await?;
        let templates = Arc::new(open_templates(&config, &disks, &authority)?);
        let hierarchies = Hierarchies::detect()?;
        let cgroup_parent = format!("warren-{}", config.tag());
        hierarchies.ensure_parent(&cgroup_parent)?;
        inotify::raise_limits();
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
        let (records, strays) = read_records(&disks);
        templates.remove_outdated(&templates_in_use(&records, &checkpoints));
        let adopted = slots_in_use(&records);
        let plan = Plan::new(config.tag(), choose_block(&config, &disks)?);
        let gateway = Gateway::new(authority, config.network.gateway.clone()).map_err(StartError::Network)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(StartError::Network)?;
        let port = listener.local_addr().map_err(StartError::Network)?.port();
        let limits = config.network.limits;
        let network = Pool::start(plan, limits, gateway.reach(), port, &adopted, stop.clone(), &tasks)
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
        tasks.spawn(keep_synced(host.clone(), stop.clone()));
        tasks.spawn(stock::fill(host.clone(), stop.clone()));
        tasks.spawn(keep_swept(host.checkpoints.clone(), stop.clone()));
        let registry = Arc::new(Self { host, config, sandboxes: Mutex::default(), stop });
        registry.undo_strays(&strays, &records).await;
        if let Some(vms) = registry.host.vms.clone() {
            tasks.spawn(keep_machines_waiting(registry.host.clone(), vms, registry.stop.clone()));
        }
        futures_util::stream::iter(records)
            .for_each_concurrent(ADOPTIONS, |record| registry.adopt(record))
            .await;
        Ok(registry)
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

    async fn adopt(self: &Arc<Self>, mut record: Record) {
        let folder = self.host.disks.sandbox_dir(&record.id);
        let session = self.host.session(&record.id, &record.spec);
        let mut machine: Option<Machine> = None;
        if was_cut_off(&record) {
            // Who asked was told nothing, so it runs on if it still does.
            machine = machine::adopt(&self.host, &record, &folder, &session).await.ok();
            if machine.is_some() {
                record.transition = None;
            }
        }
        if record.state == SandboxState::Running && record.transition.is_some() {
            self.end_rest(&mut record).await;
            // The others are carried on by the actor.
            if record.transition == Some(Transition::Hibernate) {
                // It was cut off, perhaps before that was done.
                log::note_missing(&folder).await;
                record.become_state(SandboxState::Hibernated, None);
            }
        } else if record.state == SandboxState::Running && machine.is_none() {
            match machine::adopt(&self.host, &record, &folder, &session).await {
                Ok(adopted) => machine = Some(adopted),
                Err(reason) => {
                    let rebooted = record.machine.as_ref().is_none_or(|machine| machine.boot_id != boot_id());
                    record.machine = None;
                    if rebooted {
                        // Its processes went with the host; its disk is whole and the next use starts it again.
                        log::note_missing(&folder).await;
                        record.become_state(SandboxState::Hibernated, None);
                    } else {
                        info!(id = %record.id, reason, "a sandbox ended while the node was down");
                        let reason = format!("while the node was down, {reason}");
                        log::note_failure(&folder, &reason).await;
                        record.become_state(SandboxState::Error, Some(reason));
                    }
                }
            }
        } else if record.state != SandboxState::Running {
            // A wake or a hibernation was cut off: what ran is ended, the disk stays.
            self.end_rest(&mut record).await;
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
    }

    /// Ends what is left of a sandbox's processes.
    async fn end_rest(&self, record: &mut Record) {
        machine::end_processes(&self.host.cgroup(record.cgroup())).await;
        let _ = disk::wait_released_by_all(&self.host.disks.sandbox_dir(&record.id).join(DISK)).await;
        record.machine = None;
    }

    fn forget(self: &Arc<Self>, id: &SandboxId) -> impl FnOnce() + Send + 'static {
        let (registry, id) = (self.clone(), id.clone());
        move || {
            registry.lock().remove(&id);
            registry.host.forget_secrets(&id);
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

    /// What running sandboxes use.
    pub(crate) async fn usage(&self) -> Vec<Usage> {
        let handles: Vec<(SandboxId, Handle)> =
            self.lock().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect();
        futures_util::stream::iter(handles)
            .map(async |(id, handle)| Some(Usage { id, memory_bytes: handle.memory_in_use().await.ok()?? }))
            .buffer_unordered(ADOPTIONS)
            .filter_map(async |usage| usage)
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
                    // What has failed already has nothing to stop.
                    let _ = handle.hibernate().await;
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
            lxcfs::stop(lxcfs, &self.host.cgroup(lxcfs::CGROUP)).await;
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

/// Syncs the volume soon after each change, once for all that come together. A crash of the server loses nothing
/// either way; this is for the loss of power, and not in the path of any request.
async fn keep_synced(host: Arc<Host>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = host.changes.unsynced.notified() => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(SYNC_AFTER) => {}
        }
        let disks = host.clone();
        match tokio::task::spawn_blocking(move || disks.disks.sync())
            .await
            .map_err(std::io::Error::other)
            .flatten()
        {
            Ok(()) => {}
            Err(error) => warn!(%error, "the volume could not be synced"),
        }
    }
}

/// Keeps machines ready for sandboxes; where virtual machines are the rule, from the start on.
async fn keep_machines_waiting(host: Arc<Host>, vms: Arc<Vms>, stop: CancellationToken) {
    if host.isolation == Isolation::Vm
        && let Ok(size) = Size::resolve(None, None, None)
    {
        vms.waiting.expect(size, host.disks.template());
    }
    waiting::fill(host, vms, stop).await;
}

/// Removes what is left of checkpoints that were being made or removed when something failed.
async fn keep_swept(checkpoints: Arc<Checkpoints>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        let checkpoints = checkpoints.clone();
        let swept = tokio::task::spawn_blocking(move || checkpoints.sweep()).await;
        if let Err(error) = swept.map_err(std::io::Error::other).flatten() {
            warn!(%error, "checkpoints could not be swept");
        }
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
fn read_records(disks: &Disks) -> (Vec<Record>, Vec<PathBuf>) {
    let (mut records, mut strays) = (Vec::new(), Vec::new());
    let Ok(entries) = std::fs::read_dir(disks.sandboxes_dir()) else { return (records, strays) };
    for entry in entries.flatten() {
        match Record::load(&entry.path()) {
            Ok(record) if record.state != SandboxState::Creating => records.push(record),
            Ok(_) | Err(_) => strays.push(entry.path()),
        }
    }
    (records, strays)
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

/// The block of addresses and ids of this node: chosen once, because running sandboxes have them.
fn choose_block(config: &Config, disks: &Disks) -> Result<u16, StartError> {
    let path = disks.volume().join("network-block");
    if let Some(block) = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()) {
        return Ok(block);
    }
    let block = Plan::choose_block(&config.tag());
    std::fs::write(&path, block.to_string()).map_err(|source| StartError::Folder {
        what: "the node's network block",
        path,
        source,
    })?;
    Ok(block)
}

fn memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        })
        .map_or(0, |kilobytes| kilobytes >> 10)
}
