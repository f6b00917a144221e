//! The in-memory backend.

mod expiries;
mod large_commit;
mod latest;
mod row_name;
mod rows;
mod snapshot;
mod snapshot_registry;
mod stored_row;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::Notify;

use crate::backend::{Backend, SweepOptions, Swept};
use crate::clock::UnixMillis;
use crate::commit::{Commit, Committed, Need, Plan, RowWrite};
use crate::commit_log::CommitLog;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::event::SnapshotEndReason;
use crate::fair::FairSemaphore;
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::name::{KeyRange, RowKey};
use crate::open_snapshots::OpenSnapshots;
use crate::pace::Pace;
use crate::read_only::ReadOnly;
use crate::read_set::{Allowance, CurrentState, RangePart};
use crate::row::Version;
use crate::slice::{ROW, Slice, give_way};
use crate::snapshot::{Snapshot, SnapshotOptions};
use crate::stored_cost::StoredCost;
use crate::validation::{Attempt, Validity, validate_in_slices};
use expiries::Expiries;
use latest::Latest;
use rows::Rows;
use snapshot::{InMemorySnapshot, OpenSnapshot};
use snapshot_registry::{Ended, SnapshotRegistry};
use stored_row::StoredRow;

/// The in-memory backend, whose rows are gone with the last handle.
///
/// A snapshot shares a persistent map with the store, so taking one copies nothing.
///
/// ```
/// # async fn example() -> larder_core::Result<()> {
/// use larder_core::{InMemory, Store};
/// let store = Store::builder(InMemory::new()).build()?;
/// # Ok(()) }
/// ```
#[derive(Default)]
pub struct InMemory {
    shared: Arc<Shared>,
    closed: AtomicBool,
}

struct Shared {
    database: Mutex<Database>,
    /// Admits one large commit at a time.
    large: FairSemaphore,
    /// Notifies other writers that a large commit has ended.
    large_ended: Notify,
    /// Changed only while the database is locked. Readers do not wait for the database.
    latest: RwLock<Latest>,
    /// Locked after the database, if both are, so that a snapshot is opened while its state is the
    /// newest.
    snapshots: Mutex<SnapshotRegistry>,
    /// Ended snapshots whose rows are still to be dropped, once the database is unlocked.
    ended: Mutex<Vec<Ended>>,
    /// The stores that emit an event for an ended snapshot.
    stores: Mutex<OpenSnapshots>,
}

#[derive(Default)]
struct Database {
    rows: Rows,
    expiries: Expiries,
    last: Version,
    log: CommitLog,
    pace: Pace,
    /// A large commit is being made: only it may change rows, and it owns the log.
    has_large_commit: bool,
    records: BTreeMap<RecordKey, StoredRecord>,
}

impl InMemory {
    /// The most bytes that a row or record takes beside its value or bytes.
    ///
    /// A row is in an ordered map, in a hash table and, if it expires, in a set. It stores its name
    /// twice, and each of its two allocations is rounded up.
    pub const STORED_COST: StoredCost =
        StoredCost { row_overhead: 400, name_copies: 2, record_overhead: 704 };

    /// Creates an empty backend.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds the memory that is kept only for open snapshots. Default: 64 MiB.
    ///
    /// It holds rows that were replaced or removed since the snapshots were taken, and nodes of
    /// maps. Over the bound, the oldest snapshots are ended: a read that needs such a row fails
    /// with [`Error::TimedOut`]. The bound applies to all handles on these rows together.
    pub fn keep_for_snapshots(self, bytes: u64) -> Self {
        self.shared.snapshots().keep_at_most(bytes);
        self
    }

    /// The number of snapshots that were ended because they kept too much memory.
    pub fn ended_snapshots(&self) -> u64 {
        self.shared.snapshots().ended()
    }

    /// Opens a second handle on the same rows, like a second process on one file.
    ///
    /// Closing one handle leaves the other open.
    pub fn attach(&self) -> Self {
        Self { shared: self.shared.clone(), closed: AtomicBool::new(false) }
    }

    /// The bytes of all records.
    async fn record_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        let mut after = None;
        loop {
            let (counted, last) = self.lock()?.some_record_bytes(after.as_ref());
            bytes += counted;
            if last.is_none() {
                return Ok(bytes);
            }
            after = last;
            give_way().await;
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, Database>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(self.shared.lock())
    }
}

impl std::fmt::Debug for InMemory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("InMemory").finish_non_exhaustive()
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            database: Mutex::default(),
            large: FairSemaphore::new(1),
            large_ended: Notify::new(),
            latest: RwLock::default(),
            snapshots: Mutex::default(),
            ended: Mutex::default(),
            stores: Mutex::default(),
        }
    }
}

/// No code between the changes of one commit can panic, so a panic of a lock holder never leaves
/// half a commit.
impl Shared {
    fn lock(&self) -> MutexGuard<'_, Database> {
        self.database.lock()
    }

    fn snapshots(&self) -> MutexGuard<'_, SnapshotRegistry> {
        self.snapshots.lock()
    }

    /// For callers that hold the database lock, which no writer can then hold.
    fn latest(&self) -> RwLockReadGuard<'_, Latest> {
        self.latest.read()
    }

    /// Counts the rows that only snapshots keep from now on.
    fn note_replaced(&self, replaced: &[StoredRow], writes: usize) {
        // The guard is dropped at the end of the statement.
        let ended = self.snapshots().note(replaced, writes);
        if !ended.is_empty() {
            self.ended().extend(ended);
        }
    }

    /// Drops the rows of ended snapshots and emits events. Call it without the database lock.
    fn let_go(&self) {
        let ended = std::mem::take(&mut *self.ended());
        for ended in ended {
            let stores = self.stores.lock().clone();
            stores.tell_ended(SnapshotEndReason::OldRowsFull, ended.age);
        }
    }

    fn ended(&self) -> MutexGuard<'_, Vec<Ended>> {
        self.ended.lock()
    }

    /// Makes the commit of a transaction that read `state`.
    async fn commit(self: &Arc<Self>, state: Version, commit: &Arc<Commit>) -> Result<Committed> {
        if commit.writes.is_empty() && commit.conditions.is_empty() {
            return Ok(Committed::default());
        }
        let (mut attempt, mut is_large) = (Attempt::first(Some(state)), false);
        loop {
            let tried = match is_large || large_commit::is_large(attempt, commit) {
                true => self.attempt_large(attempt, commit).await,
                false => self.lock().attempt(self, attempt, commit),
            };
            self.let_go();
            match tried? {
                Tried::Made(committed) => return Ok(committed),
                Tried::TooLong => is_large = true,
                Tried::Busy => {
                    self.wait_for_large().await;
                    commit.stage.check()?;
                }
                Tried::Unvalidated => attempt = attempt.next(Some(self.validate(commit).await?)),
                Tried::Paused(until) => {
                    tokio::time::sleep_until(until.into()).await;
                    commit.stage.check()?;
                }
            }
        }
    }

    /// Validates the reads against the newest state while others commit. Returns that state's
    /// version.
    async fn validate(self: &Arc<Self>, commit: &Commit) -> Result<Version> {
        let (open, state, now) = {
            let database = self.lock();
            // The clock is read under the lock, so `now` is the moment of a snapshot of this state.
            (OpenSnapshot::of(self, &database), database.last, commit.clock.now())
        };
        validate_in_slices(commit, |checks, allowance| {
            let rows = open.rows()?;
            checks.advance(&mut Current { rows: &rows, latest: None, now, name: Vec::new() }, allowance)
        })
        .await?;
        Ok(state)
    }

    fn latest_to_change(&self) -> RwLockWriteGuard<'_, Latest> {
        let mut latest = self.latest.write();
        latest.note_change();
        latest
    }
}

#[async_trait]
impl Backend for InMemory {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.shared.stores.lock().join(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let database = self.lock()?;
        let open = OpenSnapshot::of(&self.shared, &database);
        // The clock is read under the lock: no commit is being made, and a later one has a later
        // time.
        let now = options.clock.now();
        drop(database);
        Ok(Box::new(InMemorySnapshot::new(open, now)))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        drop(self.lock()?);
        self.shared.commit(Version::ABSENT, &commit).await
    }

    fn stored_cost(&self) -> StoredCost {
        Self::STORED_COST
    }

    async fn stored_bytes(&self) -> Result<u64> {
        let rows = self.lock()?.rows.clone();
        let bytes = count(|| Ok(rows.clone())).await?;
        Ok(bytes + self.record_bytes().await?)
    }

    async fn recount(&self) -> Result<u64> {
        // A snapshot, so that the memory it keeps of an old state is bounded.
        let open = OpenSnapshot::of(&self.shared, &*self.lock()?);
        let bytes = count(|| open.rows()).await?;
        Ok(bytes + self.record_bytes().await?)
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        if options.is_closing {
            return Ok(Swept::default());
        }
        let swept = loop {
            if let Some(swept) = self.lock()?.sweep(&self.shared, &options) {
                break swept;
            }
            self.shared.wait_for_large().await;
        };
        self.shared.let_go();
        Ok(swept)
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        Ok(self.lock()?.records.get(key).cloned())
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        let mut database = self.lock()?;
        let current = database.records.get(&write.key).map_or(Version::ABSENT, |record| record.version);
        if current != write.expected {
            return Err(Error::Conflict);
        }
        match &write.record {
            Some(record) => database.records.insert(write.key.clone(), record.clone()),
            None => database.records.remove(&write.key),
        };
        Ok(())
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let database = self.lock()?;
        let records = database.records.range((start, Bound::Unbounded));
        Ok(records.take(max as usize).map(|(key, _)| key.clone()).collect())
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        let database = self.lock()?;
        let due = database.records.iter().filter_map(|(key, record)| Some((record.due_at?, key)));
        let mut due: Vec<_> = due.filter(|(due_at, _)| *due_at <= now).collect();
        due.sort();
        Ok(due.into_iter().take(max as usize).map(|(_, key)| key.clone()).collect())
    }

    async fn ping(&self) -> Result<()> {
        self.lock().map(drop)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// Counts the bytes of all rows of one state. Calls `state` again for each slice, so that a
/// snapshot can end in between.
async fn count(state: impl Fn() -> Result<Rows>) -> Result<u64> {
    let (mut bytes, mut last) = (0, Vec::new());
    loop {
        let rows = state()?;
        let mut slice = Slice::default();
        let mut next = None;
        for row in rows.beyond(&last) {
            bytes += row.cost();
            slice.count(ROW, 0);
            if slice.is_over() {
                next = Some(row.name().to_vec());
                break;
            }
        }
        drop(rows);
        let Some(next) = next else { return Ok(bytes) };
        last = next;
        give_way().await;
    }
}

/// The outcome of an attempt to commit that was not refused.
enum Tried {
    Made(Committed),
    /// Not made: the reads have to be validated while others commit.
    Unvalidated,
    /// Not made: it would take as long as a large commit.
    TooLong,
    /// Not made: a large commit is being made.
    Busy,
    /// Not made: large commits pause until then.
    Paused(Instant),
}

impl Database {
    fn attempt(&mut self, shared: &Shared, attempt: Attempt, commit: &Commit) -> Result<Tried> {
        if self.has_large_commit || self.pace.is_watching() {
            self.pace.came(&commit.share, Instant::now());
        }
        if self.has_large_commit {
            return Ok(Tried::Busy);
        }
        self.commit(shared, attempt, commit)
    }

    fn commit(&mut self, shared: &Shared, attempt: Attempt, commit: &Commit) -> Result<Tried> {
        let now = commit.clock.now();
        let latest = shared.latest();
        if latest.may_grow(commit.writes.len()) {
            return Ok(Tried::TooLong);
        }
        let newest = Newest { rows: &self.rows, latest: &latest, log: &self.log, version: self.last };
        let Some(plan) = newest.plan(attempt, commit, now)? else { return Ok(Tried::Unvalidated) };
        drop(latest);
        if plan.writes.is_empty() {
            return Ok(Tried::Made(Committed::default()));
        }
        let version = Version(self.last.0 + 1);
        // Nothing after this can fail.
        let mut name = Vec::new();
        let (mut replaced, writes) = (Vec::new(), plan.writes.len());
        let has_snapshots = !shared.snapshots().is_empty();
        let mut latest = shared.latest_to_change();
        for (row, write) in plan.writes {
            row_name::write(&mut name, &row.namespace, row.key.as_bytes());
            match write {
                RowWrite::Put { value, expires_at } => {
                    let stored = StoredRow::new(&name, &value, version, expires_at);
                    let before = self.replace(&mut latest, &name, Some(&stored));
                    self.rows.put(stored);
                    replaced.extend(before.filter(|_| has_snapshots));
                }
                RowWrite::Delete => {
                    let before = self.replace(&mut latest, &name, None);
                    self.rows.remove(&name);
                    replaced.extend(before.filter(|_| has_snapshots));
                }
            }
        }
        drop(latest);
        if has_snapshots {
            shared.note_replaced(&replaced, writes);
        }
        self.last = version;
        self.log.push(version, commit.writes.keys().cloned());
        Ok(Tried::Made(Committed { version, growth: plan.growth }))
    }

    /// Stores or removes a row everywhere except in the ordered map. Returns the previous row.
    fn replace(&mut self, latest: &mut Latest, name: &[u8], stored: Option<&StoredRow>) -> Option<StoredRow> {
        let before = match stored {
            Some(stored) => latest.put(stored.clone()),
            None => latest.remove(name),
        };
        self.expiries.replace(before.clone(), stored);
        before
    }

    /// Removes expired rows. Returns `None` if a large commit is being made.
    fn sweep(&mut self, shared: &Shared, options: &SweepOptions) -> Option<Swept> {
        if self.has_large_commit {
            return None;
        }
        let mut swept = Swept::default();
        let now = options.clock.now();
        let mut expired = Vec::new();
        for row in self.expiries.expired(now) {
            if options.is_reached_by(&swept) {
                break;
            }
            swept.rows += 1;
            swept.bytes += row.cost();
            expired.push(row.clone());
        }
        if expired.is_empty() {
            return Some(swept);
        }
        let mut latest = shared.latest_to_change();
        for row in &expired {
            self.rows.remove(row.name());
            self.expiries.replace(latest.remove(row.name()), None);
        }
        latest.shrink();
        drop(latest);
        shared.note_replaced(&expired, expired.len());
        Some(swept)
    }

    /// The bytes of the next records after `after`, and the last of them; `None` if there are no
    /// more.
    fn some_record_bytes(&self, after: Option<&RecordKey>) -> (u64, Option<RecordKey>) {
        const RECORDS: usize = 1_024;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut bytes, mut last) = (0, None);
        for (key, record) in self.records.range((start, Bound::Unbounded)).take(RECORDS) {
            bytes += InMemory::STORED_COST.record(key.bytes(), record.bytes.len() as u64);
            last = Some(key);
        }
        (bytes, last.cloned())
    }
}

/// The newest state, while no other commit can change it.
struct Newest<'a> {
    rows: &'a Rows,
    latest: &'a Latest,
    log: &'a CommitLog,
    version: Version,
}

impl Newest<'_> {
    /// Plans a commit. Returns `None` if its reads have to be validated first.
    fn plan<'c>(&self, attempt: Attempt, commit: &'c Commit, now: UnixMillis) -> Result<Option<Plan<'c>>> {
        let mut current = Current { rows: self.rows, latest: Some(self.latest), now, name: Vec::new() };
        match attempt.validate(&commit.reads, self.log, Some(self.version), &mut current)? {
            Validity::Holds => {}
            Validity::Changed => return Err(Error::Conflict),
            Validity::Unknown => return Ok(None),
        }
        let mut name = Vec::new();
        let plan = commit.plan(now, |row, need| {
            row_name::write(&mut name, &row.namespace, row.key.as_bytes());
            Ok(self.latest.get(&name).map(|stored| stored.current(need == Need::Value)))
        });
        plan.map(Some)
    }
}

struct Current<'a> {
    rows: &'a Rows,
    /// Finds the same rows faster; `None` if `rows` are not the newest.
    latest: Option<&'a Latest>,
    now: UnixMillis,
    /// A reused buffer for the row's name, so that a look-up allocates nothing.
    name: Vec<u8>,
}

impl CurrentState for Current<'_> {
    fn version(&mut self, row: &RowKey) -> Result<Version> {
        row_name::write(&mut self.name, &row.namespace, row.key.as_bytes());
        let stored = match self.latest {
            Some(latest) => latest.get(&self.name),
            None => self.rows.get(&self.name),
        };
        let live = stored.filter(|stored| stored.is_live(self.now));
        Ok(live.map_or(Version::ABSENT, StoredRow::version))
    }

    fn range(&mut self, range: &KeyRange, allowance: &mut Allowance) -> Result<RangePart> {
        let mut part = RangePart::default();
        let mut goes_on = true;
        for stored in self.rows.within(range) {
            if !goes_on {
                part.next = Some(row_name::key(stored.name())?.to_vec());
                break;
            }
            if stored.is_live(self.now) {
                part.state.add(stored.version());
            }
            goes_on = allowance.spend();
        }
        Ok(part)
    }
}

/// A driver that opens `in-memory:`, a new in-memory backend each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct InMemoryDriver;

#[async_trait]
impl Driver for InMemoryDriver {
    fn name(&self) -> &'static str {
        "in-memory"
    }

    fn accepts(&self, dsn: &str) -> bool {
        dsn.starts_with("in-memory:")
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        if dsn != "in-memory:" {
            return Err(Error::invalid_argument(
                "the data-source name of an in-memory store is `in-memory:`; remove what follows it",
            ));
        }
        Ok(Arc::new(InMemory::new()))
    }

    /// The new store is empty and stays so.
    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(ReadOnly::new(self.open(dsn).await?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Mutation;
    use crate::limits::Limits;
    use crate::name::{Key, Namespace, Value};
    use crate::share::Share;

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn put(database: &mut Database, shared: &Shared, key: &str) -> Version {
        let put = Mutation::Put { value: Value::trusted(b"value".to_vec()), ttl_ms: None };
        let commit = Commit { writes: BTreeMap::from([(row(key), put)]), ..Default::default() };
        match database.attempt(shared, Attempt::first(None), &commit).unwrap() {
            Tried::Made(committed) => committed.version,
            Tried::Unvalidated | Tried::TooLong | Tried::Busy | Tried::Paused(_) => panic!("not made"),
        }
    }

    #[test]
    fn a_row_lies_in_one_piece_of_memory_however_it_is_found() {
        let shared = Shared::default();
        let mut database = shared.lock();
        for key in ["a", "b", "a"] {
            let version = put(&mut database, &shared, key);
            let name = [b"n\0\0", key.as_bytes()].concat();
            let latest = shared.latest();
            let (newest, ordered) = (latest.get(&name).unwrap(), database.rows.get(&name).unwrap());
            assert!(Arc::ptr_eq(newest.memory(), ordered.memory()));
            assert_eq!(newest.version(), version);
        }
    }

    fn many(share: &Share, prefix: &str, count: usize) -> Commit {
        let put = Mutation::Put { value: Value::trusted(b"value".to_vec()), ttl_ms: None };
        let writes = (0..count).map(|number| (row(&format!("{prefix}{number}")), put.clone())).collect();
        Commit { writes, share: share.clone(), ..Default::default() }
    }

    #[tokio::test]
    async fn a_large_commit_pauses_after_another_one_and_small_commits_do_not() {
        let (bulk, other) = (Share::own(), Share::own());
        let shared = Arc::<Shared>::default();
        let attempt = async |commit: Commit| {
            let (attempt, commit) = (Attempt::first(None), Arc::new(commit));
            match large_commit::is_large(attempt, &commit) {
                true => shared.attempt_large(attempt, &commit).await.unwrap(),
                false => shared.lock().attempt(&shared, attempt, &commit).unwrap(),
            }
        };
        assert!(matches!(attempt(many(&bulk, "a", 501)).await, Tried::Made(_)));
        // No other share waits, so it does not pause.
        assert!(matches!(attempt(many(&bulk, "b", 501)).await, Tried::Made(_)));
        let (now, pause) = (Instant::now(), std::time::Duration::from_secs(60));
        shared.lock().pace.large_ended(&bulk, now, now + pause);
        assert!(matches!(attempt(many(&other, "c", 400)).await, Tried::Made(_)));
        assert!(matches!(attempt(many(&bulk, "d", 501)).await, Tried::Paused(_)));
        assert!(matches!(attempt(many(&bulk, "e", 400)).await, Tried::Made(_)));
        assert_eq!(shared.lock().last, Version(4));
    }

    /// Makes large commits pause for `pause`, and as long again up to a second.
    fn pause(shared: &Shared, pause: std::time::Duration) {
        let (now, mut database) = (Instant::now(), shared.lock());
        database.pace.came(&Share::own(), now);
        database.pace.large_ended(&Share::own(), now, now + pause);
    }

    #[tokio::test]
    async fn a_large_commit_is_made_after_the_pause_and_can_be_withdrawn_before() {
        let shared = Arc::<Shared>::default();
        pause(&shared, std::time::Duration::from_secs(3_600));
        let commit = Arc::new(many(&Share::own(), "a", 600));
        let mut made = std::pin::pin!(shared.commit(Version::ABSENT, &commit));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(made.as_mut().poll(&mut context).is_pending());
        assert!(commit.stage.withdraw());
        assert_eq!(shared.lock().last, Version::ABSENT);
        pause(&shared, std::time::Duration::from_millis(10));
        let made = shared.commit(Version::ABSENT, &Arc::new(many(&Share::own(), "a", 600))).await;
        assert_eq!(made.unwrap().version, Version(1));
    }

    #[tokio::test]
    async fn the_platform_is_told_of_a_snapshot_that_kept_too_much() {
        use crate::{Event, EventChannel, HandleOptions, Mode, Store, TracingEvents};

        let events = Arc::new(EventChannel::new(10, Arc::new(TracingEvents)));
        let mut told = events.subscribe();
        let in_memory = InMemory::new().keep_for_snapshots(50_000);
        let store = Store::builder(in_memory).events(events).build().unwrap();
        let handle = store.handle(HandleOptions::default());
        let put = async || {
            let mut update = handle.begin(Mode::Update).unwrap();
            update.put("n".into(), "k".into(), vec![7; 100_000]).unwrap();
            update.commit().await.unwrap();
        };
        put().await;
        let mut view = handle.begin(Mode::View).unwrap();
        view.get("n".into(), "k".into()).await.unwrap();
        put().await;
        let Event::SnapshotEnded { reason, .. } = told.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!(reason, SnapshotEndReason::OldRowsFull);
        assert!(matches!(view.get("n".into(), "k".into()).await, Err(Error::TimedOut)));
    }
}
