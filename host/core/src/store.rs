//! Open stores: a backend with a clock, a quota and open transactions.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::timeout;

use crate::backend::{Backend, SweepOptions};
use crate::backoff::Backoff;
use crate::clock::{Clock, ForwardClock};
use crate::commit::{Commit, Committed};
use crate::error::{Error, Result};
use crate::event::{Event, EventSink};
use crate::long_calls;
use crate::memory::records::RecordWrite;
use crate::open_snapshots::OpenSnapshots;
use crate::open_transactions::Permit;
use crate::quota::{Admission, Quota};
use crate::rated_events::RatedEvents;
use crate::row::Version;
use crate::share::Share;
use crate::snapshot::{Snapshot, SnapshotOptions};
use crate::transaction_state::TransactionState;

/// An open store: a backend with a clock, an optional quota and open transactions.
///
/// Clones share the store. The backend is dropped with the last clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, InMemory, Mode, Store};
///
/// let store = Store::builder(InMemory::new()).name("notes").quota_bytes(1 << 20).build()?;
/// let mut update = store.handle(HandleOptions::default()).begin(Mode::Update)?;
/// update.put("n".into(), "k".into(), b"v".to_vec())?;
/// update.commit().await?;
/// store.close().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Kept alive as long as a clone, a handle or a transaction of the store exists.
    _guard: Option<Arc<dyn Send + Sync>>,
}

/// A source of a store that is opened on demand.
#[async_trait]
pub trait StoreSource: Send + Sync + 'static {
    /// Opens the store, or returns the one that is already open.
    ///
    /// # Errors
    /// The guest that asked for the store gets the error.
    ///
    /// - [`Error::IdentityRequired`] if the host bound no identity to the guest.
    /// - [`Error::AccessDenied`] if the host bound another identity to the guest.
    /// - Any other error of the source, such as [`Error::Unavailable`].
    async fn open(&self) -> Result<Store>;
}

#[async_trait]
impl StoreSource for Store {
    async fn open(&self) -> Result<Store> {
        Ok(self.clone())
    }
}

pub(crate) struct Inner {
    name: String,
    backend: Arc<dyn Backend>,
    clock: ForwardClock,
    events: Arc<dyn EventSink>,
    quota: Option<Arc<Quota>>,
    closed: AtomicBool,
    next_id: AtomicU64,
    /// Whether the store sweeps expired rows by itself.
    sweeps: bool,
    open: Mutex<HashMap<u64, Arc<TransactionState>>>,
}

/// A builder of a [`Store`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::time::Duration;
/// use larder_core::{InMemory, Store};
///
/// let store = Store::builder(InMemory::new())
///     .name("notes")
///     .quota_bytes(64 << 20)
///     .sweep_interval(Some(Duration::from_secs(10)))
///     .build()?;
/// store.ping().await?;
/// # Ok(()) }
/// ```
pub struct StoreBuilder {
    name: String,
    backend: Arc<dyn Backend>,
    clock: ForwardClock,
    events: Arc<dyn EventSink>,
    quota_bytes: Option<u64>,
    sweep_interval: Option<Duration>,
}

impl StoreBuilder {
    /// Sets the name of the store in events and logs. The default is `store`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets the clock for times to live and deadlines. The default is the machine's clock.
    ///
    /// Within a process the time never goes back: see [`ForwardClock`]. On Postgres, times to live
    /// follow the server's clock plus [`Clock::moved_millis`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = ForwardClock::new(clock);
        self
    }

    /// Sets the receiver of events. The default is [`RatedEvents`], which writes to `tracing`.
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Self {
        self.events = events;
        self
    }

    /// Sets the maximum size of the store in bytes. The default is no maximum.
    ///
    /// Counted are the namespace, key and value of each row, and the key and bytes of each
    /// conversation's record. In the in-memory backend, each row and record also counts the memory
    /// that it takes: see [`InMemory::STORED_COST`](crate::InMemory::STORED_COST). A commit that
    /// would exceed the quota fails with [`Error::LimitExceeded`].
    ///
    /// The count is exact for commits of this [`Store`] and its clones. It includes the writes of
    /// other stores to the same database, in this process or another, after a recount. The store
    /// counts all rows again about every 30 seconds, while commits continue. After a recount, the
    /// count may be off by what this store committed during it, until the next one.
    ///
    /// With a quota, each commit also has to read the sizes of the rows that it replaces.
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.quota_bytes = Some(bytes);
        self
    }

    /// Sets the interval of sweeps, which remove expired rows. The default is one minute.
    ///
    /// With `None`, the store never removes expired rows by itself, and also not when it closes.
    /// Reads never return them in any case.
    pub fn sweep_interval(mut self, interval: Option<Duration>) -> Self {
        self.sweep_interval = interval;
        self
    }

    /// Opens the store. Must be called within a tokio runtime.
    ///
    /// A task of that runtime ends overdue transactions and sweeps expired rows. On a runtime with
    /// several threads, it also runs while a guest computes.
    ///
    /// # Errors
    /// - [`Error::Other`] outside of a tokio runtime.
    pub fn build(self) -> Result<Store> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::caused("cannot open the store outside of a tokio runtime", error))?;
        let quota = self.quota_bytes.map(|bytes| Arc::new(Quota::new(bytes, self.backend.as_ref())));
        let inner = Arc::new(Inner {
            name: self.name,
            backend: self.backend,
            clock: self.clock,
            events: self.events,
            quota,
            closed: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            sweeps: self.sweep_interval.is_some(),
            open: Mutex::default(),
        });
        inner.backend.attach(OpenSnapshots::new(&inner));
        runtime.spawn(maintain(Arc::downgrade(&inner), self.sweep_interval));
        Ok(Store { inner, _guard: None })
    }
}

/// The maximum number of rows that one step of a sweep removes, and of their bytes. Commits wait a
/// few milliseconds for a step.
const SWEEP_ROWS: u32 = 256;
const SWEEP_BYTES: u64 = 1 << 20;

/// The maximum pause between two steps.
const SWEEP_PAUSE_MAX: Duration = Duration::from_millis(100);

/// The maximum duration of the sweep when the store closes.
const CLOSING_SWEEP_MAX: Duration = Duration::from_millis(100);

/// The interval of the search for overdue transactions. A call on an overdue transaction notices at
/// once.
const OVERDUE_INTERVAL: Duration = Duration::from_millis(250);

impl Store {
    /// Creates a builder of a store over `backend`.
    pub fn builder(backend: impl Backend) -> StoreBuilder {
        Self::builder_shared(Arc::new(backend))
    }

    /// Creates a builder of a store over a shared backend, as
    /// [`Drivers::open`](crate::Drivers::open) returns it.
    pub fn builder_shared(backend: Arc<dyn Backend>) -> StoreBuilder {
        StoreBuilder {
            name: "store".to_string(),
            backend,
            clock: ForwardClock::default(),
            events: Arc::new(RatedEvents::default()),
            quota_bytes: None,
            sweep_interval: Some(Duration::from_secs(60)),
        }
    }

    /// Returns this store with a guard that lives as long as it.
    ///
    /// The guard may be a pin on a resource that the backend needs. It is dropped with the last
    /// clone, handle or transaction of the returned store.
    pub fn guarded(&self, guard: Arc<dyn Send + Sync>) -> Self {
        Self { inner: self.inner.clone(), _guard: Some(guard) }
    }

    /// Checks that the backend can be reached.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store was closed.
    /// - [`Error::Unavailable`] if the backend cannot be reached.
    /// - [`Error::Corrupt`] or [`Error::Other`] if the backend fails in another way.
    pub async fn ping(&self) -> Result<()> {
        self.check_open()?;
        self.inner.backend.ping().await
    }

    /// Removes all expired rows and returns their number.
    ///
    /// Each step removes a few hundred rows. Between steps the sweep pauses for as long as the last
    /// one took, so that commits can proceed.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store was closed.
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::TimedOut`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   backend fails.
    pub async fn sweep(&self) -> Result<u64> {
        let mut rows = 0;
        loop {
            self.check_open()?;
            let begun = Instant::now();
            let (swept, more) = self.sweep_step(false).await?;
            rows += swept;
            if !more {
                return Ok(rows);
            }
            tokio::time::sleep(begun.elapsed().min(SWEEP_PAUSE_MAX)).await;
        }
    }

    /// Returns the number of removed rows, and whether more may have expired.
    async fn sweep_step(&self, is_closing: bool) -> Result<(u64, bool)> {
        let backend = self.inner.backend.clone();
        let options =
            SweepOptions::new(self.inner.clock.clone(), SWEEP_ROWS, SWEEP_BYTES).is_closing(is_closing);
        let step = options.clone();
        let swept = match &self.inner.quota {
            Some(quota) => quota.sweep(async move { backend.sweep(step).await }).await?,
            None => backend.sweep(step).await?,
        };
        Ok((swept.rows, options.is_reached_by(&swept)))
    }

    /// Removes expired rows for up to [`CLOSING_SWEEP_MAX`]. The store may not have been open long
    /// enough for a regular sweep. The next sweep removes the rest.
    async fn sweep_before_close(&self) {
        let steps = async {
            while self.sweep_step(true).await?.1 {}
            Ok(())
        };
        // After an error the backend cannot be written to now, so closing it is all that remains.
        if let Ok(Err(error)) = timeout(CLOSING_SWEEP_MAX, steps).await {
            let error: Error = error;
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the sweep before close failed; the next sweep removes the remaining expired rows"
            );
        }
    }

    /// Closes the store and rolls back every open transaction.
    ///
    /// Then it removes expired rows for up to 100 ms, unless the sweep interval is `None`, and
    /// closes the backend. Later calls, also those on handles and transactions, fail with
    /// [`Error::Closed`]. Closing again does nothing.
    pub async fn close(&self) {
        if !self.inner.closed.swap(true, Ordering::AcqRel) {
            self.end_transactions(|_| true, &Error::Closed);
            if self.inner.sweeps {
                self.sweep_before_close().await;
            }
            self.inner.backend.close().await;
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.inner.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn begin(
        &self,
        timeout: Duration,
        handle: u64,
        share: Share,
        permit: Permit,
    ) -> OpenTransaction {
        let now = self.inner.clock.monotonic();
        let transaction = Arc::new(TransactionState::new(now, timeout, handle, share));
        let id = self.next_id();
        self.inner.lock_open().insert(id, transaction.clone());
        OpenTransaction { store: self.clone(), transaction, id, _permit: permit }
    }

    pub(crate) fn end_transactions(&self, which: impl Fn(&TransactionState) -> bool, error: &Error) {
        let transactions: Vec<_> =
            self.inner.lock_open().values().filter(|transaction| which(transaction)).cloned().collect();
        for transaction in transactions {
            transaction.end(error.clone());
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        self.inner.backend.as_ref()
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn clock(&self) -> &ForwardClock {
        &self.inner.clock
    }

    pub(crate) fn emit(&self, event: Event) {
        self.inner.emit(event);
    }

    pub(crate) async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.inner.backend.snapshot(options).await
    }

    /// Makes a commit by the deadline. [`Error::TimedOut`] means that it was not made, and
    /// [`Error::CommitUnknown`] that the outcome is unknown.
    pub(crate) async fn commit(
        &self,
        snapshot: Option<Box<dyn Snapshot>>,
        commit: Commit,
        deadline: Duration,
    ) -> Result<Committed> {
        let left = deadline.saturating_sub(self.inner.clock.monotonic());
        let stage = commit.stage.clone();
        match timeout(left, self.commit_within_quota(snapshot, commit, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) if stage.withdraw() => Err(Error::TimedOut),
            Err(error) => {
                let reason = "the transaction's deadline passed while its commit was in progress".to_string();
                Err(Error::CommitUnknown { reason, cause: Some(Arc::new(error)) })
            }
        }
    }

    async fn commit_within_quota(
        &self,
        snapshot: Option<Box<dyn Snapshot>>,
        mut commit: Commit,
        deadline: Duration,
    ) -> Result<Committed> {
        let Some(quota) = &self.inner.quota else {
            return self.make(snapshot, Arc::new(commit), deadline).await;
        };
        let admission = self.admit(quota, commit.growth_bound(quota.cost())).await?;
        commit.growth_max = Some(admission.growth_max);
        let store = self.clone();
        admission.settle(async move { store.make(snapshot, Arc::new(commit), deadline).await }).await
    }

    /// Writes the record of a conversation. `growth` is the change of the bytes of its key and
    /// record.
    pub(crate) async fn write_record(&self, write: RecordWrite, growth: i64) -> Result<()> {
        self.check_open()?;
        let Some(quota) = &self.inner.quota else {
            return self.inner.backend.write_record(Arc::new(write)).await;
        };
        let growth = growth + write.overhead_growth(quota.cost());
        let bound = u64::try_from(growth).unwrap_or_default();
        let admission = self.admit(quota, bound).await?;
        let backend = self.inner.backend.clone();
        let growth_max = admission.growth_max;
        let written = async move {
            growth_max.check(growth)?;
            backend.write_record(Arc::new(write)).await?;
            Ok(Committed { version: Version::ABSENT, growth })
        };
        admission.settle(written).await.map(drop)
    }

    /// Admits a change within the quota. If the count is too old, a task counts again in the
    /// meantime.
    async fn admit(&self, quota: &Arc<Quota>, bound: u64) -> Result<Admission> {
        let now = self.inner.clock.monotonic();
        if let Some(recount) = quota.recount(now) {
            let store = self.clone();
            tokio::spawn(async move {
                // A recount that kept too much old state may succeed later.
                if let Err(error) = recount.run(store.inner.backend.recount()).await
                    && !matches!(error, Error::TimedOut)
                {
                    store.background_failed("recount the stored bytes", error);
                }
            });
        }
        quota.admit(bound, self.inner.backend.as_ref(), now).await
    }

    fn background_failed(&self, work: &'static str, error: Error) {
        if !matches!(error, Error::Closed) {
            self.emit(Event::BackgroundFailed { store: self.inner.name.clone(), work, error });
        }
    }

    async fn make(
        &self,
        snapshot: Option<Box<dyn Snapshot>>,
        commit: Arc<Commit>,
        deadline: Duration,
    ) -> Result<Committed> {
        match snapshot {
            Some(snapshot) => snapshot.commit(commit).await,
            None => self.make_blind(commit, deadline).await,
        }
    }

    /// Commits a transaction that read nothing, and so cannot conflict. If the engine reports a
    /// conflict all the same, retries until the deadline.
    async fn make_blind(&self, commit: Arc<Commit>, deadline: Duration) -> Result<Committed> {
        let mut backoff = Backoff::after_conflicts();
        loop {
            let outcome = self.inner.backend.commit(commit.clone()).await;
            let again = matches!(outcome, Err(Error::Conflict)) && commit.conditions.is_empty();
            if !again || self.inner.clock.monotonic() >= deadline {
                return outcome;
            }
            commit.stage.wait_again();
            backoff.wait().await;
        }
    }

    fn end_overdue(&self) {
        let now = self.inner.clock.monotonic();
        let overdue: Vec<_> = self
            .inner
            .lock_open()
            .values()
            .filter(|transaction| transaction.deadline <= now)
            .cloned()
            .collect();
        for transaction in overdue {
            self.time_out(&transaction);
        }
    }

    fn time_out(&self, transaction: &TransactionState) {
        if transaction.end(Error::TimedOut) {
            self.emit(Event::TransactionTimedOut {
                store: self.inner.name.clone(),
                timeout: transaction.timeout,
            });
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl Inner {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn emit(&self, event: Event) {
        self.events.emit(event);
    }

    /// A panic of its holder leaves a valid map, because each use is one insert, remove or lookup.
    pub(crate) fn lock_open(&self) -> MutexGuard<'_, HashMap<u64, Arc<TransactionState>>> {
        self.open.lock()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Ends overdue transactions and sweeps expired rows until the store is closed or dropped.
async fn maintain(inner: Weak<Inner>, sweep_interval: Option<Duration>) {
    let mut until_sweep = sweep_interval;
    loop {
        tokio::time::sleep(OVERDUE_INTERVAL).await;
        let Some(inner) = inner.upgrade() else { return };
        let store = Store { inner, _guard: None };
        if store.check_open().is_err() {
            return;
        }
        store.end_overdue();
        until_sweep = until_sweep.map(|left| left.saturating_sub(OVERDUE_INTERVAL));
        if until_sweep == Some(Duration::ZERO) {
            until_sweep = sweep_interval;
            if let Err(error) = sweep_beside(&store).await {
                store.background_failed("sweep", error);
            }
        }
    }
}

/// Sweeps, and keeps ending overdue transactions in the meantime.
async fn sweep_beside(store: &Store) -> Result<u64> {
    let mut sweep = pin!(store.sweep());
    loop {
        match timeout(OVERDUE_INTERVAL, &mut sweep).await {
            Ok(swept) => return swept,
            Err(_) => store.end_overdue(),
        }
    }
}

/// A transaction's part of its store. Dropping it rolls the transaction back.
pub(crate) struct OpenTransaction {
    pub(crate) store: Store,
    pub(crate) transaction: Arc<TransactionState>,
    id: u64,
    _permit: Permit,
}

impl OpenTransaction {
    /// Checks that the transaction is still open, and records the call.
    pub(crate) fn check(&self) -> Result<()> {
        self.transaction.check()?;
        let now = self.store.inner.clock.monotonic();
        self.transaction.called(now);
        long_calls::called(&self.transaction.share);
        if now < self.transaction.deadline {
            return Ok(());
        }
        self.store.time_out(&self.transaction);
        Err(Error::TimedOut)
    }

    /// Ends the transaction with an error. Every later call fails with it.
    pub(crate) fn end(&self, error: Error) {
        match error {
            Error::TimedOut => self.store.time_out(&self.transaction),
            error => {
                self.transaction.end(error);
            }
        }
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        self.store.inner.lock_open().remove(&self.id);
        self.transaction.end(Error::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Mode;
    use crate::clock::{Clock, UnixMillis};
    use crate::handle::HandleOptions;
    use crate::in_memory::InMemory;

    /// A clock that only the test moves.
    #[derive(Debug, Default)]
    struct Seconds(AtomicU64);

    impl Clock for Seconds {
        fn unix_millis(&self) -> UnixMillis {
            1_000 * self.0.load(Ordering::Relaxed)
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.0.load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn a_store_knows_a_transaction_and_its_calls_until_it_ends() {
        let clock = Arc::<Seconds>::default();
        let store = Store::builder(InMemory::new()).clock(clock.clone()).build().unwrap();
        let handle = store.handle(HandleOptions::default());
        let known = || store.inner.lock_open().values().cloned().collect::<Vec<_>>();
        let mut view = handle.begin(Mode::View).unwrap();
        let one = known().pop().unwrap();
        for seconds in 1..=2 {
            clock.0.store(seconds, Ordering::Relaxed);
            view.get("n".into(), "k".into()).await.unwrap();
            assert_eq!(one.last_call(), Duration::from_secs(seconds));
            assert_eq!(one.taken_at(), Some(Duration::from_secs(1)));
        }
        drop(view);
        assert!(known().is_empty());
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), "k".into(), Vec::new()).unwrap();
        assert_eq!(known().len(), 1);
        update.commit().await.unwrap();
        assert!(known().is_empty());
    }
}
