//! An open store: a backend with a clock, a quota and the transactions that are open on it.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::timeout;

use crate::backend::{Backend, Committed, Mode, Snapshot, SnapshotOptions, SweepOptions, Version};
use crate::clock::{Clock, ForwardClock};
use crate::commit::Commit;
use crate::error::{Error, Result};
use crate::event::{Event, EventSink};
use crate::handle::{Handle, HandleOptions, Permit};
use crate::held::Held;
use crate::limits::Limits;
use crate::long_calls;
use crate::memory::records::RecordWrite;
use crate::open_snapshots::OpenSnapshots;
use crate::quota::{Admission, Quota};
use crate::rated_events::RatedEvents;
use crate::share::Share;
use crate::slot::Slot;
use crate::transaction::Transaction;

/// An open store. Clones share it; the last one to go takes the backend with it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    /// Kept for whoever opened the store, as long as anything of it is open.
    _guard: Option<Arc<dyn Send + Sync>>,
}

/// Where a store comes from that is opened when somebody asks for it.
#[async_trait]
pub trait StoreSource: Send + Sync + 'static {
    /// Opens the store, or gives the one that is open already.
    ///
    /// # Errors
    /// What opening it ran into, for the guest that asked: [`Error::IdentityRequired`] and [`Error::AccessDenied`] where
    /// the host bound no identity, or another one.
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
    /// Whether expired rows are removed unasked.
    sweeps: bool,
    open: Mutex<HashMap<u64, Arc<Slot>>>,
}

/// Sets up a [`Store`].
pub struct StoreBuilder {
    name: String,
    backend: Arc<dyn Backend>,
    clock: ForwardClock,
    events: Arc<dyn EventSink>,
    quota_bytes: Option<u64>,
    sweep_interval: Option<Duration>,
}

impl StoreBuilder {
    /// The name that events and logs give the store. Default: `store`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What times to live and deadlines are measured with. Within a process its time never goes back: see
    /// [`ForwardClock`]. On Postgres the server's clock counts for times to live, moved by [`Clock::moved_millis`].
    /// Default: the machine's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = ForwardClock::new(clock);
        self
    }

    /// Where events go. Default: to `tracing`, by [`RatedEvents`].
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Self {
        self.events = events;
        self
    }

    /// How many bytes of namespaces, keys and values, and of records of memory, the store may hold. In memory each row and
    /// record also counts what the host needs for it: see [`InMemory::STORED_COST`](crate::InMemory::STORED_COST). A commit
    /// that would pass it gets `limit-exceeded`. Exact among the commits of this [`Store`] and its clones. What other stores write to the same
    /// database, in this process or another, is counted about every 30 seconds, by counting every row anew beside commits; then the count may be
    /// off by what this store committed during the recount, until the next one.
    /// Each commit has to read the sizes of the rows that it replaces. Default: unbounded.
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.quota_bytes = Some(bytes);
        self
    }

    /// How often expired rows are removed, besides when the store is closed; none for never. Reads don't show them in
    /// any case. Default: every minute.
    pub fn sweep_interval(mut self, interval: Option<Duration>) -> Self {
        self.sweep_interval = interval;
        self
    }

    /// Opens the store. It is called within a tokio runtime, which then ends overdue transactions and sweeps
    /// expired rows; a runtime with several threads does so also while a guest computes.
    ///
    /// # Errors
    /// [`Error::Other`] outside of a tokio runtime.
    pub fn build(self) -> Result<Store> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::caused("a store is opened within a tokio runtime", error))?;
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

/// Rows removed by one step of a sweep, and their bytes: commits wait for a step, a few milliseconds.
const SWEEP_ROWS: u32 = 256;
const SWEEP_BYTES: u64 = 1 << 20;

/// The longest pause between two steps.
const SWEEP_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How long a close goes on removing expired rows.
const CLOSING_SWEEP_MAX: Duration = Duration::from_millis(100);

/// How often overdue transactions are looked for; a call on one finds out at once.
const OVERDUE_INTERVAL: Duration = Duration::from_millis(250);

impl Store {
    /// A store over a backend.
    pub fn builder(backend: impl Backend) -> StoreBuilder {
        Self::builder_shared(Arc::new(backend))
    }

    /// A store over a backend as [`Drivers::open`](crate::Drivers::open) gives it.
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

    /// The same store, with something that is kept as long as the returned value, its clones, its handles and their
    /// transactions are: a pin on what the backend needs.
    pub fn guarded(&self, guard: Arc<dyn Send + Sync>) -> Self {
        Self { inner: self.inner.clone(), _guard: Some(guard) }
    }

    /// A handle for one user of the store.
    pub fn handle(&self, options: HandleOptions) -> Handle {
        Handle::new(self.clone(), self.next_id(), options)
    }

    /// Whether the backend can be reached.
    ///
    /// # Errors
    /// [`Error::Closed`], and those of the backend.
    pub async fn ping(&self) -> Result<()> {
        self.check_open()?;
        self.inner.backend.ping().await
    }

    /// Removes expired rows now, and says how many. Commits are made in between: after each step, which removes a few hundred
    /// rows, it pauses for as long as the step took.
    ///
    /// # Errors
    /// [`Error::Closed`], and those of the backend.
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

    /// Gives how many rows it removed, and whether more may have expired.
    async fn sweep_step(&self, is_closing: bool) -> Result<(u64, bool)> {
        let backend = self.inner.backend.clone();
        let options = SweepOptions {
            clock: self.inner.clock.clone(),
            max_rows: SWEEP_ROWS,
            max_bytes: SWEEP_BYTES,
            is_closing,
        };
        let step = options.clone();
        let swept = match &self.inner.quota {
            Some(quota) => quota.sweep(async move { backend.sweep(step).await }).await?,
            None => backend.sweep(step).await?,
        };
        Ok((swept.rows, options.is_reached_by(&swept)))
    }

    /// Removes expired rows of a store that may not have been open long enough for a sweep, as many as take no longer than
    /// a close may. What is left is for the next.
    async fn sweep_before_close(&self) {
        let steps = async {
            while self.sweep_step(true).await?.1 {}
            Ok(())
        };
        // An error says that the backend can't be written to now: closing it has nothing to add.
        if let Ok(Err(error)) = timeout(CLOSING_SWEEP_MAX, steps).await {
            let error: Error = error;
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "expired rows are left for the next sweep"
            );
        }
    }

    /// Rolls back every open transaction, removes expired rows for up to 100 ms unless the sweep interval is none, and
    /// gives back what the backend holds. Later calls, on handles and
    /// transactions too, get [`Error::Closed`]. Closing again does nothing.
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
        mode: Mode,
        limits: Arc<Limits>,
        handle: u64,
        share: Share,
        permit: Permit,
        held: Held,
    ) -> Transaction {
        let now = self.inner.clock.monotonic();
        let slot = Arc::new(Slot::new(now, limits.transaction_timeout, handle, share));
        let id = self.next_id();
        self.inner.lock_open().insert(id, slot.clone());
        let open = OpenTransaction { store: self.clone(), slot, id, _permit: permit };
        Transaction::new(open, limits, mode, held)
    }

    pub(crate) fn end_transactions(&self, which: impl Fn(&Slot) -> bool, error: &Error) {
        let slots: Vec<_> = self.inner.lock_open().values().filter(|slot| which(slot)).cloned().collect();
        for slot in slots {
            slot.end(error.clone());
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

    /// Makes a commit by the deadline, or says that it was not made, or that this is unknown.
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
                let reason = "the transaction's time was over while its commit was being made".to_string();
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

    /// Writes a record of memory, which grows the store by so many bytes of key and record.
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

    /// Lets a change go ahead within the quota. A count that is too old is taken anew beside it.
    async fn admit(&self, quota: &Arc<Quota>, bound: u64) -> Result<Admission> {
        let now = self.inner.clock.monotonic();
        if let Some(recount) = quota.recount(now) {
            let store = self.clone();
            tokio::spawn(async move {
                // If it kept too much, a later one may not.
                if let Err(error) = recount.run(store.inner.backend.recount()).await
                    && !matches!(error, Error::TimedOut)
                {
                    store.background_failed("count what the store holds", error);
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

    /// A transaction that read nothing has nothing to disagree about: where an engine finds a conflict all the
    /// same, it is made again, until its deadline.
    async fn make_blind(&self, commit: Arc<Commit>, deadline: Duration) -> Result<Committed> {
        let mut longest_pause = Duration::from_millis(2);
        loop {
            let outcome = self.inner.backend.commit(commit.clone()).await;
            let again = matches!(outcome, Err(Error::Conflict)) && commit.conditions.is_empty();
            if !again || self.inner.clock.monotonic() >= deadline {
                return outcome;
            }
            commit.stage.wait_again();
            tokio::time::sleep(longest_pause.mul_f64(fastrand::f64())).await;
            longest_pause = (longest_pause * 2).min(Duration::from_millis(64));
        }
    }

    fn end_overdue(&self) {
        let now = self.inner.clock.monotonic();
        let overdue: Vec<_> =
            self.inner.lock_open().values().filter(|slot| slot.deadline <= now).cloned().collect();
        for slot in overdue {
            self.time_out(&slot);
        }
    }

    fn time_out(&self, slot: &Slot) {
        if slot.end(Error::TimedOut) {
            self.emit(Event::TransactionTimedOut { store: self.inner.name.clone(), timeout: slot.timeout });
        }
    }

    fn next_id(&self) -> u64 {
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

    /// A panic elsewhere can't have left the map half changed: each use is one insert, remove or look.
    pub(crate) fn lock_open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Ends overdue transactions and sweeps expired rows, as long as somebody has the store.
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

/// Sweeps, however long that takes, and goes on ending overdue transactions.
async fn sweep_beside(store: &Store) -> Result<u64> {
    let mut sweep = pin!(store.sweep());
    loop {
        match timeout(OVERDUE_INTERVAL, &mut sweep).await {
            Ok(swept) => return swept,
            Err(_) => store.end_overdue(),
        }
    }
}

/// What a transaction has of its store. Dropping it rolls back.
pub(crate) struct OpenTransaction {
    pub(crate) store: Store,
    pub(crate) slot: Arc<Slot>,
    id: u64,
    _permit: Permit,
}

impl OpenTransaction {
    /// Whether calls may go on.
    pub(crate) fn check(&self) -> Result<()> {
        self.slot.check()?;
        let now = self.store.inner.clock.monotonic();
        self.slot.called(now);
        long_calls::called(&self.slot.share);
        if now < self.slot.deadline {
            return Ok(());
        }
        self.store.time_out(&self.slot);
        Err(Error::TimedOut)
    }

    /// Ends the transaction after an error; every later call gets it again.
    pub(crate) fn end(&self, error: Error) {
        match error {
            Error::TimedOut => self.store.time_out(&self.slot),
            error => {
                self.slot.end(error);
            }
        }
    }
}

impl Drop for OpenTransaction {
    fn drop(&mut self) {
        self.store.inner.lock_open().remove(&self.id);
        self.slot.end(Error::Closed);
    }
}
