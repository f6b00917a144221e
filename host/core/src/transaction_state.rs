//! The part of a transaction that its store can reach: its deadline and its snapshot.
//!
//! The store can end the snapshot at the deadline or when the store closes, so an idle guest holds
//! no connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::error::{Error, Result};
use crate::share::Share;
use crate::snapshot::Snapshot;

/// The part of a transaction that its store can reach.
pub(crate) struct TransactionState {
    /// On the store's monotonic clock.
    pub(crate) deadline: Duration,
    /// The time from the transaction's beginning to its deadline.
    pub(crate) timeout: Duration,
    /// The handle that began the transaction.
    pub(crate) handle: u64,
    /// The share of the transaction.
    pub(crate) share: Share,
    /// When the last call began or ended, on the store's clock.
    last_call: Moment,
    /// When the snapshot was taken, on the store's clock.
    taken_at: Moment,
    state: Mutex<SnapshotState>,
    /// Set with [`SnapshotState::Ended`], so that a call on an open transaction need not lock the
    /// state.
    has_ended: AtomicBool,
}

/// An optional moment on the store's monotonic clock.
#[derive(Default)]
struct Moment(AtomicU64);

impl Moment {
    fn set(&self, now: Duration) {
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos.saturating_add(1), Ordering::Relaxed);
    }

    fn get(&self) -> Option<Duration> {
        self.0.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_nanos)
    }
}

/// Whether a transaction holds a connection of its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    Nothing,
    /// It holds one, and no call is in progress.
    Idle,
    /// It holds one, and a call is in progress.
    Busy,
    /// It held none before the call that is in progress, and may hold one now.
    Unknown,
}

/// The outcome of asking a transaction to give up its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reclaimed {
    /// It holds none, or a call is in progress.
    Nothing,
    /// It gave up the connection and can read on.
    Released,
    /// It was rolled back.
    Ended,
}

enum SnapshotState {
    /// No call is in progress. The snapshot is taken at the first read.
    Idle(Option<Box<dyn Snapshot>>),
    /// A call has the snapshot. `pinned` says whether the snapshot pinned something before the
    /// call.
    Lent { pinned: bool },
    /// Every later call gets this error.
    Ended(Error),
}

impl TransactionState {
    pub(crate) fn new(now: Duration, timeout: Duration, handle: u64, share: Share) -> Self {
        let deadline = now.saturating_add(timeout);
        Self {
            deadline,
            timeout,
            handle,
            share,
            last_call: Moment::default(),
            taken_at: Moment::default(),
            state: Mutex::new(SnapshotState::Idle(None)),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Records that a call begins or ends.
    pub(crate) fn called(&self, now: Duration) {
        self.last_call.set(now);
    }

    /// When the last call began or ended.
    pub(crate) fn last_call(&self) -> Duration {
        self.last_call.get().unwrap_or_default()
    }

    /// Records that the snapshot is about to be taken.
    pub(crate) fn takes_snapshot(&self, now: Duration) {
        self.taken_at.set(now);
    }

    /// When the snapshot was taken; `None` before the first read.
    pub(crate) fn taken_at(&self) -> Option<Duration> {
        self.taken_at.get()
    }

    pub(crate) fn holding(&self) -> Holding {
        match &*self.lock() {
            SnapshotState::Idle(Some(snapshot)) if snapshot.pins() => Holding::Idle,
            SnapshotState::Lent { pinned: true } => Holding::Busy,
            SnapshotState::Lent { pinned: false } => Holding::Unknown,
            SnapshotState::Idle(_) | SnapshotState::Ended(_) => Holding::Nothing,
        }
    }

    /// Makes an idle snapshot give up its connection. If it cannot read on, the transaction ends
    /// with `error`.
    pub(crate) fn reclaim(&self, error: Error) -> Reclaimed {
        let mut state = self.lock();
        match &mut *state {
            SnapshotState::Idle(Some(snapshot)) if snapshot.pins() => {
                if snapshot.release() {
                    return Reclaimed::Released;
                }
            }
            _ => return Reclaimed::Nothing,
        }
        let before = std::mem::replace(&mut *state, SnapshotState::Ended(error));
        self.has_ended.store(true, Ordering::Release);
        drop(state);
        drop(before);
        Reclaimed::Ended
    }

    /// Whether the snapshot is idle and keeps a state that is no longer the newest.
    pub(crate) fn keeps_state(&self) -> bool {
        matches!(&*self.lock(), SnapshotState::Idle(Some(snapshot)) if snapshot.keeps_state())
    }

    /// Ends the transaction and drops its snapshot. False if it had ended before.
    pub(crate) fn end(&self, error: Error) -> bool {
        let mut state = self.lock();
        if matches!(*state, SnapshotState::Ended(_)) {
            return false;
        }
        let before = std::mem::replace(&mut *state, SnapshotState::Ended(error));
        self.has_ended.store(true, Ordering::Release);
        drop(state);
        drop(before);
        true
    }

    /// Fails with the error that ended the transaction, if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.has_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*self.lock() {
            SnapshotState::Ended(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Reads from the snapshot without borrowing it. `None` if there is no snapshot yet, or `read`
    /// returns `None`.
    pub(crate) fn read_now<T>(&self, read: impl FnOnce(&mut dyn Snapshot) -> Option<T>) -> Result<Option<T>> {
        match &mut *self.lock() {
            SnapshotState::Idle(snapshot) => {
                Ok(snapshot.as_mut().and_then(|snapshot| read(snapshot.as_mut())))
            }
            SnapshotState::Lent { .. } => Err(cancelled()),
            SnapshotState::Ended(error) => Err(error.clone()),
        }
    }

    /// Lends the snapshot to a call.
    pub(crate) fn borrow_snapshot(self: &Arc<Self>) -> Result<BorrowedSnapshot> {
        let mut state = self.lock();
        let pinned = matches!(&*state, SnapshotState::Idle(Some(snapshot)) if snapshot.pins());
        match std::mem::replace(&mut *state, SnapshotState::Lent { pinned }) {
            SnapshotState::Idle(snapshot) => {
                Ok(BorrowedSnapshot { transaction: self.clone(), snapshot, returned: false })
            }
            before @ SnapshotState::Lent { .. } => {
                *state = before;
                Err(cancelled())
            }
            SnapshotState::Ended(error) => {
                *state = SnapshotState::Ended(error.clone());
                Err(error)
            }
        }
    }

    /// A panic of its holder leaves a valid state, because each change replaces it as a whole.
    fn lock(&self) -> MutexGuard<'_, SnapshotState> {
        self.state.lock()
    }
}

/// The snapshot, for the length of one call.
///
/// A cancelled call drops it, which ends the transaction: how far the call had come is unknown.
pub(crate) struct BorrowedSnapshot {
    transaction: Arc<TransactionState>,
    pub(crate) snapshot: Option<Box<dyn Snapshot>>,
    returned: bool,
}

impl BorrowedSnapshot {
    /// Returns the snapshot for the next call. Fails if the transaction has ended in the meantime.
    pub(crate) fn give_back(mut self) -> Result<()> {
        self.returned = true;
        let mut state = self.transaction.lock();
        match &*state {
            SnapshotState::Ended(error) => Err(error.clone()),
            _ => {
                *state = SnapshotState::Idle(self.snapshot.take());
                Ok(())
            }
        }
    }

    /// Ends the transaction with `ending` and keeps the snapshot. Fails if the transaction has
    /// ended in the meantime.
    pub(crate) fn keep(mut self, ending: Error) -> Result<Option<Box<dyn Snapshot>>> {
        self.returned = true;
        if self.transaction.end(ending) { Ok(self.snapshot.take()) } else { Err(self.ended()) }
    }

    fn ended(&self) -> Error {
        self.transaction.check().err().unwrap_or_else(cancelled)
    }
}

impl Drop for BorrowedSnapshot {
    fn drop(&mut self) {
        if !self.returned {
            self.transaction.end(cancelled());
        }
    }
}

fn cancelled() -> Error {
    Error::other("an earlier call of this transaction was cancelled; the transaction was rolled back")
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::chunk::{Chunk, ScanOptions};
    use crate::commit::{Commit, Committed};
    use crate::name::{Key, KeyRange, Namespace, RowKey};
    use crate::row::StoredValue;
    use crate::snapshot::Many;

    /// A snapshot that holds a connection, or not, and says when it is dropped.
    struct Fake {
        pins: bool,
        can_release: bool,
        keeps_state: bool,
        _alive: Arc<()>,
    }

    #[async_trait]
    impl Snapshot for Fake {
        async fn get(&mut self, _: &RowKey) -> Result<Option<StoredValue>> {
            Ok(None)
        }

        async fn get_many(&mut self, _: &Namespace, _: &[Key], _: u64) -> Result<Many> {
            Ok(Many::Rows(Vec::new()))
        }

        async fn scan(&mut self, _: &KeyRange, _: ScanOptions) -> Result<Chunk> {
            Ok(Chunk::default())
        }

        async fn next_namespace(&mut self, _: Option<&Namespace>) -> Result<Option<Namespace>> {
            Ok(None)
        }

        fn pins(&self) -> bool {
            self.pins
        }

        fn keeps_state(&self) -> bool {
            self.keeps_state
        }

        fn release(&mut self) -> bool {
            self.pins &= !self.can_release;
            self.can_release
        }

        async fn commit(self: Box<Self>, _: Arc<Commit>) -> Result<Committed> {
            Ok(Committed::default())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn state() -> Arc<TransactionState> {
        Arc::new(TransactionState::new(7 * SECOND, 5 * SECOND, 1, Share::default()))
    }

    /// A transaction whose snapshot is idle.
    fn holding(pins: bool, can_release: bool) -> (Arc<TransactionState>, Arc<()>) {
        let (state, alive) = (state(), Arc::new(()));
        let mut borrowed = state.borrow_snapshot().unwrap();
        let fake = Fake { pins, can_release, keeps_state: can_release, _alive: alive.clone() };
        borrowed.snapshot = Some(Box::new(fake));
        borrowed.give_back().unwrap();
        (state, alive)
    }

    fn is_alive(alive: &Arc<()>) -> bool {
        Arc::strong_count(alive) > 1
    }

    #[test]
    fn times_are_those_that_were_noted() {
        let state = state();
        assert_eq!((state.deadline, state.timeout), (12 * SECOND, 5 * SECOND));
        assert_eq!((state.last_call(), state.taken_at()), (Duration::ZERO, None));
        state.takes_snapshot(Duration::ZERO);
        state.called(8 * SECOND);
        assert_eq!((state.last_call(), state.taken_at()), (8 * SECOND, Some(Duration::ZERO)));
        state.takes_snapshot(9 * SECOND);
        assert_eq!(state.taken_at(), Some(9 * SECOND));
        state.called(Duration::MAX);
        assert!(state.last_call() > Duration::from_secs(500 * 365 * 24 * 3_600));
    }

    #[test]
    fn a_transaction_holds_a_connection_if_its_snapshot_does() {
        assert_eq!(state().holding(), Holding::Nothing);
        for (pins, idle, busy) in
            [(true, Holding::Idle, Holding::Busy), (false, Holding::Nothing, Holding::Unknown)]
        {
            let (state, _alive) = holding(pins, true);
            assert_eq!(state.holding(), idle);
            let borrowed = state.borrow_snapshot().unwrap();
            assert_eq!(state.holding(), busy);
            assert_eq!(state.reclaim(Error::Conflict), Reclaimed::Nothing, "a call has it");
            assert!(matches!(state.borrow_snapshot(), Err(Error::Other { .. })), "one call at a time");
            assert_eq!(state.holding(), busy);
            borrowed.give_back().unwrap();
            assert_eq!(state.holding(), idle);
        }
    }

    #[test]
    fn an_idle_snapshot_gives_up_its_connection_or_its_transaction_ends() {
        let (state, alive) = holding(true, true);
        assert!(state.keeps_state());
        assert_eq!(state.reclaim(Error::Conflict), Reclaimed::Released);
        state.check().unwrap();
        assert_eq!(state.holding(), Holding::Nothing);
        assert_eq!(state.reclaim(Error::Conflict), Reclaimed::Nothing, "it holds none any more");
        assert!(is_alive(&alive));

        let (state, alive) = holding(true, false);
        assert!(!state.keeps_state());
        assert_eq!(state.reclaim(Error::Conflict), Reclaimed::Ended);
        assert!(!is_alive(&alive));
        assert!(matches!(state.check(), Err(Error::Conflict)));
        assert!(matches!(state.borrow_snapshot(), Err(Error::Conflict)));
        assert!(matches!(state.borrow_snapshot(), Err(Error::Conflict)), "it stays ended");
        assert!(matches!(state.read_now(|_| Some(())), Err(Error::Conflict)));
        assert!(!state.end(Error::Closed), "it had ended");
        assert!(matches!(state.check(), Err(Error::Conflict)));
    }

    #[test]
    fn a_transaction_that_ends_during_a_call_stays_ended() {
        let (state, alive) = holding(true, true);
        let borrowed = state.borrow_snapshot().unwrap();
        assert!(state.end(Error::TimedOut));
        assert!(is_alive(&alive), "the call has it");
        assert!(matches!(borrowed.give_back(), Err(Error::TimedOut)));
        assert!(!is_alive(&alive));
        assert!(matches!(state.check(), Err(Error::TimedOut)));
    }

    #[test]
    fn a_call_that_is_cancelled_ends_its_transaction() {
        let (state, alive) = holding(true, true);
        drop(state.borrow_snapshot().unwrap());
        assert!(!is_alive(&alive));
        assert!(matches!(state.check(), Err(Error::Other { .. })));
    }

    #[test]
    fn a_snapshot_that_is_kept_ends_its_transaction_with_the_reason_given() {
        let (state, alive) = holding(true, true);
        let kept = state.borrow_snapshot().unwrap().keep(Error::Closed).unwrap();
        assert!(kept.is_some() && is_alive(&alive));
        assert!(matches!(state.check(), Err(Error::Closed)));
        let (state, _alive) = holding(true, true);
        let borrowed = state.borrow_snapshot().unwrap();
        state.end(Error::TimedOut);
        assert!(matches!(borrowed.keep(Error::Closed), Err(Error::TimedOut)));
    }
}
