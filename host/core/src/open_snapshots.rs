//! The snapshots that are open on a store, as its backend sees them: some pin a connection, or what the engine could clean
//! up, while their guests do nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::event::{Event, SnapshotEndReason};
use crate::fair::{FairPermit, FairSemaphore};
use crate::share::Share;
use crate::slot::{Holding, Reclaimed, Slot};
use crate::store::Inner;

/// The snapshots that are open on the stores of a backend, which asks here for what others wait for.
///
/// A backend gets them with [`Backend::attach`].
///
/// [`Backend::attach`]: crate::backend::Backend::attach
#[derive(Clone, Default)]
pub struct OpenSnapshots(Vec<Weak<Inner>>);

/// A transaction that has a snapshot.
struct Open {
    store: Arc<Inner>,
    slot: Arc<Slot>,
    holding: Holding,
    /// Since the last call began or ended.
    idle: Duration,
    /// Since the snapshot was taken.
    age: Duration,
}

/// After so long without a call, a snapshot of a share that holds more than the waiting one gives back its connection.
const IDLE_MIN: Duration = Duration::from_millis(10);

/// After so long, one of a share that holds as much does.
const IDLE_LONG: Duration = Duration::from_millis(100);

/// After a wait of so long, a snapshot of a share that holds more gives its connection back however short it was idle: a guest
/// may call in each of many transactions again and again.
const WAIT_LONG: Duration = Duration::from_millis(50);

/// How long one connection is waited for before a snapshot is looked for again that can give back its own.
const RECLAIM_PAUSE: Duration = Duration::from_millis(5);

/// The same after one was found: a server may have to roll back before its connection is free.
const RECLAIMED_PAUSE: Duration = Duration::from_millis(100);

impl OpenSnapshots {
    pub(crate) fn new(store: &Arc<Inner>) -> Self {
        Self(vec![Arc::downgrade(store)])
    }

    /// A permit for a connection, in the share's turn. If none is free, idle snapshots give back theirs: those of the share
    /// that holds the most first, and of these the one that is idle for the longest.
    ///
    /// A snapshot that gives its connection back reads on later if the backend still can read its state
    /// ([`Snapshot::release`]); otherwise its transaction ends with [`Error::Conflict`], and is run again.
    ///
    /// # Errors
    /// [`Error::Closed`] if the semaphore is closed; [`Error::TimedOut`] if no permit came by the deadline.
    ///
    /// [`Snapshot::release`]: crate::backend::Snapshot::release
    pub async fn permit(
        &self,
        permits: &FairSemaphore,
        share: &Share,
        deadline: Instant,
    ) -> Result<FairPermit> {
        if let Some(permit) = permits.try_acquire(share) {
            return Ok(permit);
        }
        let mut waiting = pin!(permits.acquire(share));
        // What is given back goes to those who wait already.
        if let Ok(permit) = timeout(Duration::ZERO, waiting.as_mut()).await {
            return permit;
        }
        let since = Instant::now();
        while Instant::now() < deadline {
            let is_found = self.reclaim_for(share, since.elapsed());
            let pause = if is_found { RECLAIMED_PAUSE } else { RECLAIM_PAUSE };
            if let Ok(permit) = timeout(pause, waiting.as_mut()).await {
                return permit;
            }
        }
        Err(Error::TimedOut)
    }

    /// Has one idle snapshot give back its connection to a share that has waited for so long; false if there is none that
    /// should.
    pub fn reclaim_for(&self, share: &Share, waited: Duration) -> bool {
        let mut pinning = self.pinning();
        // Those who wait for a connection have none.
        pinning.retain(|open| open.holding != Holding::Unknown);
        let held = by_share(&pinning);
        let held = |share: &Share| held.get(share).copied().unwrap_or_default();
        let own = held(share);
        let is_idle = |open: &&Open| {
            let theirs = held(&open.slot.share);
            let is_long = theirs >= own && open.idle >= IDLE_LONG;
            let is_ahead = theirs > own + 1 && (open.idle >= IDLE_MIN || waited >= WAIT_LONG);
            open.holding == Holding::Idle && (is_long || is_ahead)
        };
        let mut idle: Vec<&Open> = pinning.iter().filter(is_idle).collect();
        idle.sort_by_key(|open| Reverse((held(&open.slot.share), open.idle)));
        idle.into_iter().any(|open| open.reclaim(SnapshotEndReason::ConnectionWanted))
    }

    /// Ends the snapshots that pin anything and were taken at least `age` ago, the oldest first, whether they are idle or
    /// not; gives how many. Their transactions get [`Error::TimedOut`].
    pub fn end_older_than(&self, age: Duration, reason: SnapshotEndReason) -> usize {
        let old = self.by_age().into_iter().filter(|open| open.age >= age);
        old.filter(|open| open.end(Error::TimedOut, reason)).count()
    }

    /// Ends an idle snapshot that keeps a state which is no longer the newest: of the share that has the most of them, the
    /// oldest one. False if there is none.
    pub fn end_one_that_keeps_a_state(&self) -> bool {
        let mut keeping = self.by_age();
        keeping.retain(|open| open.slot.keeps_state());
        let held = by_share(&keeping);
        let mut most_first: Vec<&Open> = keeping.iter().collect();
        // Those of one share stay in the order of their ages.
        most_first.sort_by_key(|open| Reverse(held.get(&open.slot.share)));
        most_first.into_iter().any(|open| open.end(Error::Conflict, SnapshotEndReason::ConnectionWanted))
    }

    /// Tells the stores that the backend has ended snapshots by itself, of which the oldest was so old.
    pub fn tell_ended(&self, reason: SnapshotEndReason, age: Duration) {
        for store in self.0.iter().filter_map(Weak::upgrade) {
            let name = store.name().to_string();
            store.emit(Event::SnapshotEnded { store: name, reason, age });
        }
    }

    /// Takes in those of another store, and forgets stores that are gone.
    pub fn join(&mut self, others: Self) {
        self.0.retain(|store| store.strong_count() > 0);
        self.0.extend(others.0);
    }

    /// The oldest first.
    fn by_age(&self) -> Vec<Open> {
        let mut pinning = self.pinning();
        pinning.sort_by_key(|open| Reverse(open.age));
        pinning
    }

    /// Those that pin anything, as far as is known.
    fn pinning(&self) -> Vec<Open> {
        let stores = self.0.iter().filter_map(Weak::upgrade);
        stores.flat_map(|store| Open::all(&store)).filter(|open| open.holding != Holding::Nothing).collect()
    }
}

/// How many each share has.
fn by_share(open: &[Open]) -> HashMap<&Share, usize> {
    let mut count = HashMap::new();
    for open in open {
        *count.entry(&open.slot.share).or_default() += 1;
    }
    count
}

impl Open {
    fn all(store: &Arc<Inner>) -> Vec<Self> {
        let now = store.monotonic();
        // In the order in which they were begun: the clock is a coarse one.
        let slots: BTreeMap<u64, Arc<Slot>> =
            store.lock_open().iter().map(|(id, slot)| (*id, slot.clone())).collect();
        let open = slots.into_values().filter_map(|slot| {
            let age = now.saturating_sub(slot.taken_at()?);
            let idle = now.saturating_sub(slot.last_call());
            Some(Self { store: store.clone(), holding: slot.holding(), idle, age, slot })
        });
        open.collect()
    }

    /// Has it give back what it pins; false if it pins nothing that it can give back now.
    fn reclaim(&self, reason: SnapshotEndReason) -> bool {
        match self.slot.reclaim(Error::Conflict) {
            Reclaimed::Nothing => return false,
            Reclaimed::Released => {}
            Reclaimed::Ended => self.tell(reason),
        }
        true
    }

    /// False if it had ended before.
    fn end(&self, error: Error, reason: SnapshotEndReason) -> bool {
        let ended = self.slot.end(error);
        if ended {
            self.tell(reason);
        }
        ended
    }

    fn tell(&self, reason: SnapshotEndReason) {
        self.store.emit(Event::SnapshotEnded { store: self.store.name().to_string(), reason, age: self.age });
    }
}

impl std::fmt::Debug for OpenSnapshots {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OpenSnapshots").finish_non_exhaustive()
    }
}
