//! The stock of prepared slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use warren_netlink::Netlink;

use super::firewall::{self, Firewall, Gate};
use super::upkeep::{self, Watch};
use super::{Limits, Listeners, Plan, SLOTS, Slot};
use crate::reach::Reach;

/// Slots kept ready.
const STOCK: usize = 32;
/// Slots made at the same time.
const MAKERS: usize = 4;
/// How long a stock that is not low waits to be filled up.
const REFILL_AFTER: Duration = Duration::from_millis(100);
/// Between two looks at whether the host still passes packets on.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause after the rules could not be put in force again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longest wait for a slot.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct Pool {
    firewall: Firewall,
    /// Held for writing by whoever installs the whole table, for reading by whoever changes it.
    table: RwLock<()>,
    state: Mutex<State>,
    /// The stock has shrunk.
    wanted: Notify,
    /// The stock has grown, or cannot.
    made: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Slot>,
    /// Taken, ready, or being made.
    used: BTreeSet<u16>,
    /// Left by their sandboxes; free again once their links are gone.
    retired: Vec<u16>,
    /// Of slots that are not open.
    gates: BTreeMap<u16, Gate>,
    /// Why the last attempt to make one failed.
    trouble: Option<String>,
}

impl Pool {
    /// Sets up the firewall and starts filling the stock. `adopted` are the slots of sandboxes that are running.
    pub async fn start(
        plan: Plan,
        limits: Limits,
        reach: &Reach,
        listeners: Listeners,
        adopted: &BTreeMap<u16, Gate>,
        stop: CancellationToken,
        tasks: &TaskTracker,
    ) -> io::Result<Arc<Self>> {
        // Before the table is there, so that nothing of what happens to it is missed.
        let watch = Watch::begin(&plan)?;
        let firewall = Firewall { plan, limits, reach: reach.clone(), listeners };
        firewall.install(adopted).await?;
        let plan = &firewall.plan;
        let used: BTreeSet<u16> = adopted.keys().copied().collect();
        remove_stray_links(plan, &used);
        let gates =
            adopted.iter().filter(|(_, gate)| **gate != Gate::Open).map(|(slot, gate)| (*slot, *gate));
        let state = State { used, gates: gates.collect(), ..State::default() };
        let pool = Arc::new(Self {
            firewall,
            table: RwLock::default(),
            state: Mutex::new(state),
            wanted: Notify::new(),
            made: Notify::new(),
        });
        upkeep::pass_iptables(pool.plan()).await;
        tasks.spawn(stop.clone().run_until_cancelled_owned(pool.clone().keep_rules(watch)));
        tasks.spawn(stop.clone().run_until_cancelled_owned(keep_forwarding()));
        for _ in 0..MAKERS {
            tasks.spawn(pool.clone().fill(stop.clone()));
        }
        Ok(pool)
    }

    /// Of each sandbox.
    pub fn limits(&self) -> Limits {
        self.firewall.limits
    }

    pub fn plan(&self) -> &Plan {
        &self.firewall.plan
    }

    /// Takes a slot from the stock, or waits for one to be made.
    pub async fn take(&self) -> io::Result<Slot> {
        let waited = async {
            loop {
                let made = self.made.notified();
                tokio::pin!(made);
                made.as_mut().enable();
                {
                    let mut state = self.lock();
                    if let Some(slot) = state.ready.pop_front() {
                        self.wanted.notify_one();
                        return slot;
                    }
                }
                self.wanted.notify_one();
                made.await;
            }
        };
        match tokio::time::timeout(DEADLINE, waited).await {
            Ok(slot) => Ok(slot),
            Err(_) => {
                let reason = self.lock().trouble.clone();
                Err(io::Error::other(
                    reason.unwrap_or_else(|| format!("all {SLOTS} network slots are in use")),
                ))
            }
        }
    }

    /// The slot of a sandbox that runs since before this start.
    pub async fn adopt(&self, index: u16, pid: i32) -> io::Result<Slot> {
        tokio::task::spawn_blocking(move || Slot::adopt(index, pid)).await.map_err(io::Error::other)?
    }

    /// Takes a slot back when its sandbox has ended. It is not used again: another is made in its place.
    pub fn retire(&self, slot: Slot) {
        self.lock().retired.push(slot.index);
        drop(slot);
        self.wanted.notify_one();
    }

    /// Puts a slot behind that gate; what it has under way and the gate does not let through ends.
    pub async fn set_gate(&self, slot: &Slot, gate: Gate) -> io::Result<()> {
        let before = self.lock().gates.insert(slot.index, gate).unwrap_or_default();
        if before == gate {
            return Ok(());
        }
        let set = self.change_gate(slot.index, gate).await;
        if set.is_err() {
            // It still has the one it had, and who asks again is not told otherwise.
            self.lock().gates.insert(slot.index, before);
        }
        set
    }

    /// The gate is known already: should the table be gone, it has it when it is there again.
    async fn change_gate(&self, index: u16, gate: Gate) -> io::Result<()> {
        {
            let _nobody_installs = self.table.read().await;
            if self.firewall.set_gate(index, gate).await.is_ok() {
                return Ok(());
            }
        }
        self.install().await
    }

    async fn install(&self) -> io::Result<()> {
        let _alone = self.table.write().await;
        let gates = self.lock().gates.clone();
        self.firewall.install(&gates).await
    }

    async fn keep_rules(self: Arc<Self>, mut watch: Watch) {
        loop {
            let changed = watch.next().await;
            if changed.ours {
                while let Err(error) = self.install().await {
                    warn!(%error, "another program has removed rules of sandboxes, and they cannot be put in force again");
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                warn!("another program has removed rules of sandboxes; they are in force again");
            }
            upkeep::pass_iptables(self.plan()).await;
        }
    }

    /// Removes everything of this pool from the host. No sandbox may be running.
    pub async fn stop(&self) {
        self.lock().ready.clear();
        remove_stray_links(self.plan(), &BTreeSet::new());
        upkeep::leave_iptables(self.plan()).await;
        if let Err(error) = self.firewall.remove().await {
            warn!(%error, "could not remove the firewall table");
        }
    }

    async fn fill(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let Some(index) = self.reserve().await else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.wanted.notified() => {}
                }
                // Whoever took a slot is being started at this moment and needs the machine more.
                if self.lock().ready.len() > STOCK / 2 {
                    tokio::time::sleep(REFILL_AFTER).await;
                }
                continue;
            };
            if stop.is_cancelled() {
                return;
            }
            let plan = self.plan().clone();
            let made =
                tokio::task::spawn_blocking(move || Slot::make(&plan, index)).await.map_err(io::Error::other);
            match made.flatten() {
                Ok(slot) => {
                    let mut state = self.lock();
                    state.trouble = None;
                    state.ready.push_back(slot);
                }
                Err(error) => {
                    warn!(%error, "could not make a network slot");
                    {
                        let mut state = self.lock();
                        state.retired.push(index);
                        state.trouble = Some(error.to_string());
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
            self.made.notify_waiters();
        }
    }

    /// The index of a slot to make, while the stock is short of one.
    async fn reserve(&self) -> Option<u16> {
        self.free_retired().await;
        let mut state = self.lock();
        if state.ready.len() >= STOCK {
            return None;
        }
        let index = (0..SLOTS).find(|index| !state.used.contains(index))?;
        state.used.insert(index);
        Some(index)
    }

    /// Frees the slots whose links are gone: they go with their namespace, a little after its last process.
    async fn free_retired(&self) {
        let retired = std::mem::take(&mut self.lock().retired);
        let (waiting, gone): (Vec<u16>, Vec<u16>) =
            retired.into_iter().partition(|index| link_exists(&self.plan().link(*index)));
        for index in &gone {
            if self.lock().gates.remove(index).unwrap_or_default() == Gate::Open {
                continue;
            }
            if let Err(error) = self.change_gate(*index, Gate::Open).await {
                warn!(%error, "could not reopen a network slot");
            }
        }
        let mut state = self.lock();
        state.retired.extend(waiting);
        for index in gone {
            state.used.remove(&index);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody tells of this setting, and a file below /etc/sysctl.d may say something else each time all of them are loaded.
async fn keep_forwarding() {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match firewall::forward() {
            Ok(false) => {}
            Ok(true) => warn!(
                "another program has turned net.ipv4.ip_forward off, which sandboxes need; it is on again"
            ),
            Err(error) => warn!(%error, "net.ipv4.ip_forward cannot be turned on: sandboxes reach nothing"),
        }
    }
}

fn link_exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

fn remove_link(name: &str) {
    if let Err(error) = Netlink::open().and_then(|netlink| netlink.delete(name)) {
        warn!(%error, name, "could not remove a network link");
    }
}

/// Removes links of an earlier run whose sandboxes are gone.
fn remove_stray_links(plan: &Plan, adopted: &BTreeSet<u16>) {
    let kept: BTreeSet<String> = adopted.iter().map(|index| plan.link(*index)).collect();
    let prefix = plan.links();
    let prefix = prefix.trim_end_matches('*');
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        if name.starts_with(prefix) && !kept.contains(&name) {
            remove_link(&name);
        }
    }
}
