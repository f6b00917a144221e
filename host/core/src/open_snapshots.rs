//! The open snapshots of a store, from which its backend takes back connections and old states.

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
use crate::store::Inner;
use crate::transaction_state::{Holding, Reclaimed, TransactionState};

/// The open snapshots of the stores of one backend.
///
/// A snapshot may pin a connection, or a state that the engine could otherwise clean up, while its
/// guest does nothing. The backend takes these back here when other transactions need them. It gets
/// this value by [`Backend::attach`].
///
/// [`Backend::attach`]: crate::backend::Backend::attach
#[derive(Clone, Default)]
pub struct OpenSnapshots(Vec<Weak<Inner>>);

/// A transaction that has a snapshot.
struct Open {
    store: Arc<Inner>,
    transaction: Arc<TransactionState>,
    holding: Holding,
    /// The time since the last call began or ended.
    idle: Duration,
    /// The time since the snapshot was taken.
    age: Duration,
}

/// Idle time after which a snapshot gives up its connection to a share that holds at least two
/// fewer.
const IDLE_MIN: Duration = Duration::from_millis(10);

/// Idle time after which a snapshot gives up its connection to a share that holds no more.
const IDLE_LONG: Duration = Duration::from_millis(100);

/// Wait after which a snapshot gives up its connection to a share that holds at least two fewer,
/// however short it was idle. Otherwise a guest could keep many connections by calls in each of its
/// transactions in turn.
const WAIT_LONG: Duration = Duration::from_millis(50);

/// Wait for a connection before the next search for a snapshot that can give up its own.
const RECLAIM_PAUSE: Duration = Duration::from_millis(5);

/// The same pause for each waiting call. A search visits every open transaction, so many waiting
/// calls must not search all the time.
const RECLAIM_PAUSE_EACH: Duration = Duration::from_millis(1);

/// The longest pause of a call between two searches.
const RECLAIM_PAUSE_MAX: Duration = Duration::from_secs(1);

/// The same wait after one was found. A server may have to roll back before the connection is free.
const RECLAIMED_PAUSE: Duration = Duration::from_millis(100);

/// The shortest wait for a connection that an event reports.
const WAIT_TOLD: Duration = Duration::from_secs(1);

impl OpenSnapshots {
    pub(crate) fn new(store: &Arc<Inner>) -> Self {
        Self(vec![Arc::downgrade(store)])
    }

    /// Waits for a permit for a connection, in the share's turn.
    ///
    /// If no permit is free, idle snapshots give up their connections. Those of the share that
    /// holds the most come first, and of these the one that has been idle the longest. Such a
    /// snapshot can read on if the backend can still read its state ([`Snapshot::release`]).
    /// Otherwise its transaction ends with [`Error::Conflict`].
    ///
    /// # Errors
    /// - [`Error::Closed`] if the semaphore is closed.
    /// - [`Error::TimedOut`] if no permit becomes free by the deadline.
    ///
    /// [`Snapshot::release`]: crate::snapshot::Snapshot::release
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
        // Enter the queue before the first search: a permit that is returned goes to the waiters.
        if let Ok(permit) = timeout(Duration::ZERO, waiting.as_mut()).await {
            return permit;
        }
        let wait = ConnectionWait::new(|| self.clone());
        while Instant::now() < deadline {
            let waited = wait.elapsed();
            let pause = match self.reclaim_for(share, waited) {
                true => RECLAIMED_PAUSE,
                // After `WAIT_LONG` it may reclaim more, so do not sleep past it.
                false if waited < WAIT_LONG => {
                    reclaim_pause(permits.waiting()).min(WAIT_LONG.saturating_sub(waited).max(RECLAIM_PAUSE))
                }
                false => reclaim_pause(permits.waiting()),
            };
            let pause = pause.min(deadline.saturating_duration_since(Instant::now()));
            if let Ok(permit) = timeout(pause, waiting.as_mut()).await {
                return permit;
            }
        }
        Err(Error::TimedOut)
    }

    /// Makes one idle snapshot give up its connection to `share`, which has waited for `waited`.
    ///
    /// Returns false if no snapshot has to.
    pub fn reclaim_for(&self, share: &Share, waited: Duration) -> bool {
        let mut pinning = self.pinning();
        // A call that may still be waiting for a connection does not count as a holder.
        pinning.retain(|open| open.holding != Holding::Unknown);
        let held = by_share(&pinning);
        let held = |share: &Share| held.get(share).copied().unwrap_or_default();
        let own = held(share);
        let is_idle = |open: &&Open| {
            let theirs = held(&open.transaction.share);
            let is_long = theirs >= own && open.idle >= IDLE_LONG;
            let is_ahead = theirs > own + 1 && (open.idle >= IDLE_MIN || waited >= WAIT_LONG);
            open.holding == Holding::Idle && (is_long || is_ahead)
        };
        let mut idle: Vec<&Open> = pinning.iter().filter(is_idle).collect();
        idle.sort_by_key(|open| Reverse((held(&open.transaction.share), open.idle)));
        idle.into_iter().any(|open| open.reclaim(SnapshotEndReason::ConnectionWanted))
    }

    /// Ends snapshots that pin something and are at least `age` old; returns their number.
    ///
    /// The oldest end first, idle or not. Their transactions get [`Error::TimedOut`].
    pub fn end_older_than(&self, age: Duration, reason: SnapshotEndReason) -> usize {
        let old = self.by_age().into_iter().filter(|open| open.age >= age);
        old.filter(|open| open.end(Error::TimedOut, reason)).count()
    }

    /// Ends one idle snapshot that keeps a state which is no longer the newest.
    ///
    /// It is the oldest one of the share that has the most such snapshots. Its transaction gets
    /// [`Error::Conflict`]. Returns false if there is no such snapshot.
    pub fn end_one_that_keeps_a_state(&self) -> bool {
        let mut keeping = self.by_age();
        keeping.retain(|open| open.transaction.keeps_state());
        let held = by_share(&keeping);
        let mut most_first: Vec<&Open> = keeping.iter().collect();
        // The sort is stable, so the snapshots of one share stay ordered by age.
        most_first.sort_by_key(|open| Reverse(held.get(&open.transaction.share)));
        most_first.into_iter().any(|open| open.end(Error::Conflict, SnapshotEndReason::ConnectionWanted))
    }

    /// Reports to each store that the backend itself ended snapshots.
    ///
    /// `age` is that of the oldest one.
    pub fn tell_ended(&self, reason: SnapshotEndReason, age: Duration) {
        for store in self.0.iter().filter_map(Weak::upgrade) {
            let name = store.name().to_string();
            store.emit(Event::SnapshotEnded { store: name, reason, age });
        }
    }

    fn tell_waited(&self, waited: Duration) {
        for store in self.0.iter().filter_map(Weak::upgrade) {
            let name = store.name().to_string();
            store.emit(Event::ConnectionAwaited { store: name, waited });
        }
    }

    /// Adds the snapshots of `others`, and removes stores that no longer exist.
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

    /// Snapshots that pin something, or may.
    fn pinning(&self) -> Vec<Open> {
        let stores = self.0.iter().filter_map(Weak::upgrade);
        stores.flat_map(|store| Open::all(&store)).filter(|open| open.holding != Holding::Nothing).collect()
    }
}

/// A wait for a connection, which is reported if it was long.
///
/// When it is dropped after a long wait, each store emits [`Event::ConnectionAwaited`]. `stores` is
/// called only then, and no lock is held while the events are emitted.
pub struct ConnectionWait<F: Fn() -> OpenSnapshots> {
    since: Instant,
    stores: F,
}

impl<F: Fn() -> OpenSnapshots> ConnectionWait<F> {
    /// Begins a wait for a connection of these stores.
    pub fn new(stores: F) -> Self {
        Self { since: Instant::now(), stores }
    }

    fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl<F: Fn() -> OpenSnapshots> Drop for ConnectionWait<F> {
    fn drop(&mut self) {
        let waited = self.elapsed();
        if waited >= WAIT_TOLD {
            (self.stores)().tell_waited(waited);
        }
    }
}

/// The pause between two searches of each call, if `waiting` calls wait.
fn reclaim_pause(waiting: usize) -> Duration {
    let all = RECLAIM_PAUSE_EACH.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
    all.clamp(RECLAIM_PAUSE, RECLAIM_PAUSE_MAX)
}

/// The number of snapshots of each share.
fn by_share(open: &[Open]) -> HashMap<&Share, usize> {
    let mut count = HashMap::new();
    for open in open {
        *count.entry(&open.transaction.share).or_default() += 1;
    }
    count
}

impl Open {
    fn all(store: &Arc<Inner>) -> Vec<Self> {
        let now = store.monotonic();
        // In the order in which they began: the clock is too coarse to order them.
        let transactions: BTreeMap<u64, Arc<TransactionState>> =
            store.lock_open().iter().map(|(id, transaction)| (*id, transaction.clone())).collect();
        let open = transactions.into_values().filter_map(|transaction| {
            let age = now.saturating_sub(transaction.taken_at()?);
            let idle = now.saturating_sub(transaction.last_call());
            Some(Self { store: store.clone(), holding: transaction.holding(), idle, age, transaction })
        });
        open.collect()
    }

    /// Makes the snapshot give up what it pins. Returns false if it pins nothing, or a call is
    /// running.
    fn reclaim(&self, reason: SnapshotEndReason) -> bool {
        match self.transaction.reclaim(Error::Conflict) {
            Reclaimed::Nothing => return false,
            Reclaimed::Released => {}
            Reclaimed::Ended => self.tell(reason),
        }
        true
    }

    /// Ends the transaction. Returns false if it had ended before.
    fn end(&self, error: Error, reason: SnapshotEndReason) -> bool {
        let ended = self.transaction.end(error);
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
