//! The backend that keeps rows in memory.

mod expiries;
mod latest;
mod row_name;
mod rows;
mod snapshot;
mod stored_row;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use async_trait::async_trait;

use crate::backend::{Backend, Committed, Snapshot, SnapshotOptions, SweepOptions, Swept, Version};
use crate::clock::UnixMillis;
use crate::commit::{Commit, Need, RowWrite};
use crate::commit_log::{CommitLog, Verdict};
use crate::drivers::Driver;
use crate::error::{Error, Result};
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::name::{KeyRange, RowKey};
use crate::read_only::ReadOnly;
use crate::read_set::{CurrentState, RangeState};
use crate::slice::{ROW, Slice};
use expiries::Expiries;
use latest::Latest;
use rows::Rows;
use snapshot::InMemorySnapshot;
use stored_row::StoredRow;

/// Rows in memory, gone with the last handle. A snapshot is a shared persistent map and costs nothing.
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

#[derive(Default)]
struct Shared {
    database: Mutex<Database>,
    /// Changed only by who has the database. Readers don't wait for it.
    latest: RwLock<Latest>,
}

#[derive(Default)]
struct Database {
    rows: Rows,
    expiries: Expiries,
    last: Version,
    log: CommitLog,
    records: BTreeMap<RecordKey, StoredRecord>,
}

impl InMemory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A second handle on the same rows, as a second process on one file would be; closing one leaves the
    /// other open.
    pub fn attach(&self) -> Self {
        Self { shared: self.shared.clone(), closed: AtomicBool::new(false) }
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

/// A panic while a lock was held can't have left half a commit: nothing that can fail is between its changes.
impl Shared {
    fn lock(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For who has the database, and so waits for nobody who changes it.
    fn latest(&self) -> RwLockReadGuard<'_, Latest> {
        self.latest.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest_to_change(&self) -> RwLockWriteGuard<'_, Latest> {
        let mut latest = self.latest.write().unwrap_or_else(PoisonError::into_inner);
        latest.note_change();
        latest
    }
}

#[async_trait]
impl Backend for InMemory {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let database = self.lock()?;
        let moment = self.shared.latest().moment(database.last);
        let rows = database.rows.clone();
        // While the database is held: no commit is under way, and a later one has a later moment.
        let now = options.clock.now();
        drop(database);
        Ok(Box::new(InMemorySnapshot::new(rows, moment, now, self.shared.clone())))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.lock()?.commit(&self.shared, Version::ABSENT, &commit)
    }

    async fn stored_bytes(&self) -> Result<u64> {
        let rows = self.lock()?.rows.clone();
        let mut slice = Slice::default();
        let mut bytes = 0;
        for row in rows.iter() {
            bytes += row.bytes();
            slice.count(ROW, 0);
            slice.pause().await;
        }
        let mut after = None;
        loop {
            let (counted, last) = self.lock()?.some_record_bytes(after.as_ref());
            bytes += counted;
            if last.is_none() {
                return Ok(bytes);
            }
            after = last;
            tokio::task::yield_now().await;
        }
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        if options.is_closing {
            return Ok(Swept::default());
        }
        Ok(self.lock()?.sweep(&self.shared, &options))
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

impl Database {
    fn commit(&mut self, shared: &Shared, snapshot: Version, commit: &Commit) -> Result<Committed> {
        let now = commit.clock.now();
        let latest = shared.latest();
        self.validate(&latest, snapshot, commit, now)?;
        let mut name = Vec::new();
        let plan = commit.plan(now, |row, need| {
            row_name::write(&mut name, &row.namespace, row.key.as_bytes());
            Ok(latest.get(&name).map(|stored| stored.current(need == Need::Value)))
        })?;
        drop(latest);
        if plan.writes.is_empty() {
            return Ok(Committed::default());
        }
        let version = Version(self.last.0 + 1);
        // From here on nothing can fail.
        let mut latest = shared.latest_to_change();
        for (row, write) in plan.writes {
            row_name::write(&mut name, &row.namespace, row.key.as_bytes());
            match write {
                RowWrite::Put { value, expires_at } => {
                    let stored = StoredRow::new(&name, &value, version, expires_at);
                    self.expiries.replace(latest.put(stored.clone()), Some(&stored));
                    self.rows.put(stored);
                }
                RowWrite::Delete => {
                    self.expiries.replace(latest.remove(&name), None);
                    self.rows.remove(&name);
                }
            }
        }
        drop(latest);
        self.last = version;
        self.log.push(version, commit.writes.keys().cloned());
        Ok(Committed { version, growth: plan.growth })
    }

    fn validate(&self, latest: &Latest, snapshot: Version, commit: &Commit, now: UnixMillis) -> Result<()> {
        let holds = match self.log.check(&commit.reads, snapshot, self.last) {
            Verdict::Untouched => true,
            Verdict::Touched => false,
            Verdict::Unknown => {
                let mut current = Current { rows: &self.rows, latest, now, name: Vec::new() };
                commit.reads.holds(&mut current)?
            }
        };
        if holds { Ok(()) } else { Err(Error::Conflict) }
    }

    fn sweep(&mut self, shared: &Shared, options: &SweepOptions) -> Swept {
        let mut swept = Swept::default();
        let now = options.clock.now();
        let mut expired = Vec::new();
        for row in self.expiries.expired(now) {
            if options.is_reached_by(&swept) {
                break;
            }
            swept.rows += 1;
            swept.bytes += row.bytes();
            expired.push(row.clone());
        }
        if expired.is_empty() {
            return swept;
        }
        let mut latest = shared.latest_to_change();
        for row in expired {
            self.rows.remove(row.name());
            self.expiries.replace(latest.remove(row.name()), None);
        }
        latest.shrink();
        swept
    }

    /// Bytes of some records after one, and the last of them; none where no record follows.
    fn some_record_bytes(&self, after: Option<&RecordKey>) -> (u64, Option<RecordKey>) {
        const RECORDS: usize = 1_024;
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut bytes, mut last) = (0, None);
        for (key, record) in self.records.range((start, Bound::Unbounded)).take(RECORDS) {
            bytes += key.bytes() + record.bytes.len() as u64;
            last = Some(key);
        }
        (bytes, last.cloned())
    }
}

struct Current<'a> {
    rows: &'a Rows,
    latest: &'a Latest,
    now: UnixMillis,
    /// The name of the row that is looked for, so that a look-up needs no memory of its own.
    name: Vec<u8>,
}

impl CurrentState for Current<'_> {
    fn version(&mut self, row: &RowKey) -> Result<Version> {
        row_name::write(&mut self.name, &row.namespace, row.key.as_bytes());
        let live = self.latest.get(&self.name).filter(|stored| stored.is_live(self.now));
        Ok(live.map_or(Version::ABSENT, StoredRow::version))
    }

    fn range(&mut self, range: &KeyRange) -> Result<RangeState> {
        let mut state = RangeState::default();
        if range.is_empty() {
            return Ok(state);
        }
        for stored in self.rows.within(range) {
            if stored.is_live(self.now) {
                state.add(stored.version());
            }
        }
        Ok(state)
    }
}

/// Opens `memory:`, a new store each time.
#[derive(Clone, Copy, Debug, Default)]
pub struct InMemoryDriver;

#[async_trait]
impl Driver for InMemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn accepts(&self, dsn: &str) -> bool {
        dsn.starts_with("memory:")
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        if dsn != "memory:" {
            return Err(Error::invalid_argument(
                "a store in memory is named `memory:`, with nothing behind it",
            ));
        }
        Ok(Arc::new(InMemory::new()))
    }

    /// Nothing outlives its process: the store is empty, and stays so.
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

    fn row(key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey { namespace: Namespace::new("n", &limits).unwrap(), key: Key::new(key, &limits).unwrap() }
    }

    fn put(database: &mut Database, shared: &Shared, key: &str) -> Version {
        let put = Mutation::Put { value: Value::trusted(b"value".to_vec()), ttl_millis: None };
        let commit = Commit { writes: BTreeMap::from([(row(key), put)]), ..Default::default() };
        database.commit(shared, Version::ABSENT, &commit).unwrap().version
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
}
