//! The backend that keeps rows in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use imbl::OrdMap;

use crate::backend::{
    Backend, Chunk, Committed, Many, ManyRows, ScanOptions, Snapshot, SnapshotOptions, StoredValue, Swept,
    Version, is_live,
};
use crate::clock::UnixMillis;
use crate::commit::{Commit, CurrentRow, RowWrite};
use crate::commit_log::{CommitLog, Verdict};
use crate::drivers::Driver;
use crate::error::{Error, Result};
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::read_set::{CurrentState, RangeState};

/// Rows in memory, gone with the last handle. A snapshot is a shared persistent map and costs nothing.
///
/// ```
/// # async fn example() -> larder_core::Result<()> {
/// use larder_core::{InMemory, Store};
/// let store = Store::builder(InMemory::new()).build()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct InMemory {
    database: Arc<Mutex<Database>>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Database {
    rows: OrdMap<RowKey, Arc<StoredValue>>,
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
        Self { database: self.database.clone(), closed: AtomicBool::new(false) }
    }

    fn lock(&self) -> Result<MutexGuard<'_, Database>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(lock(&self.database))
    }
}

/// A panic while the lock was held can't have left half a commit: the map is replaced in one assignment.
fn lock(database: &Mutex<Database>) -> MutexGuard<'_, Database> {
    database.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Backend for InMemory {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let (rows, last) = {
            let database = self.lock()?;
            (database.rows.clone(), database.last)
        };
        Ok(Box::new(InMemorySnapshot { rows, last, now: options.now, database: self.database.clone() }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.lock()?.commit(Version::ABSENT, &commit)
    }

    async fn stored_bytes(&self) -> Result<u64> {
        let (rows, records) = {
            let database = self.lock()?;
            let records = database.records.iter();
            let records: u64 = records.map(|(key, record)| key.bytes() + record.bytes.len() as u64).sum();
            (database.rows.clone(), records)
        };
        Ok(records + rows.iter().map(|(row, stored)| row_bytes(row, stored)).sum::<u64>())
    }

    async fn sweep(&self, now: UnixMillis, max_rows: u32) -> Result<Swept> {
        let rows = self.lock()?.rows.clone();
        let expired = rows.iter().filter(|(_, stored)| !is_live(stored.expires_at, now));
        let expired: Vec<_> = expired.take(max_rows as usize).collect();
        let mut database = self.lock()?;
        let mut swept = Swept::default();
        for (row, stored) in expired {
            // The row may have been written since the snapshot was taken.
            if database.rows.get(row).is_some_and(|current| current.version == stored.version) {
                database.rows.remove(row);
                swept.rows += 1;
                swept.bytes += row_bytes(row, stored);
            }
        }
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

fn row_bytes(row: &RowKey, stored: &StoredValue) -> u64 {
    row.bytes() + stored.value.len() as u64
}

impl Database {
    fn commit(&mut self, snapshot: Version, commit: &Commit) -> Result<Committed> {
        self.validate(snapshot, commit)?;
        let plan = commit.plan(|row, _| Ok(self.rows.get(row).map(|stored| current_row(stored))))?;
        if plan.writes.is_empty() {
            return Ok(Committed::default());
        }
        let version = Version(self.last.0 + 1);
        // From here on nothing can fail.
        for (row, write) in plan.writes {
            match write {
                RowWrite::Put { value, expires_at } => {
                    let stored = StoredValue { value: value.into_owned(), version, expires_at };
                    self.rows.insert(row.clone(), Arc::new(stored));
                }
                RowWrite::Delete => {
                    self.rows.remove(row);
                }
            }
        }
        self.last = version;
        self.log.push(version, commit.writes.keys().cloned());
        Ok(Committed { version, growth: plan.growth })
    }

    fn validate(&self, snapshot: Version, commit: &Commit) -> Result<()> {
        let holds = match self.log.check(&commit.reads, snapshot, self.last) {
            Verdict::Untouched => true,
            Verdict::Touched => false,
            Verdict::Unknown => {
                commit.reads.holds(snapshot, &mut Current { rows: &self.rows, now: commit.now })?
            }
        };
        if holds { Ok(()) } else { Err(Error::Conflict) }
    }
}

fn current_row(stored: &StoredValue) -> CurrentRow {
    CurrentRow {
        version: stored.version,
        expires_at: stored.expires_at,
        value_bytes: stored.value.len() as u64,
        value: Some(stored.value.clone()),
    }
}

struct Current<'a> {
    rows: &'a OrdMap<RowKey, Arc<StoredValue>>,
    now: UnixMillis,
}

impl CurrentState for Current<'_> {
    fn version(&mut self, row: &RowKey) -> Result<Version> {
        let live = self.rows.get(row).filter(|stored| is_live(stored.expires_at, self.now));
        Ok(live.map_or(Version::ABSENT, |stored| stored.version))
    }

    fn range(&mut self, range: &KeyRange) -> Result<RangeState> {
        let mut state = RangeState::default();
        if range.is_empty() {
            return Ok(state);
        }
        for (_, stored) in self.rows.range(range.row_bounds()) {
            if is_live(stored.expires_at, self.now) {
                state.rows += 1;
                state.newest = state.newest.max(stored.version);
            }
        }
        Ok(state)
    }
}

struct InMemorySnapshot {
    rows: OrdMap<RowKey, Arc<StoredValue>>,
    last: Version,
    now: UnixMillis,
    database: Arc<Mutex<Database>>,
}

impl InMemorySnapshot {
    fn live(&self, row: &RowKey) -> Option<StoredValue> {
        let stored = self.rows.get(row).filter(|stored| is_live(stored.expires_at, self.now))?;
        Some(StoredValue::clone(stored))
    }
}

#[async_trait]
impl Snapshot for InMemorySnapshot {
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        Ok(self.live(row))
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let mut rows = ManyRows::new(keys.len(), max_bytes);
        for key in keys {
            let row = RowKey { namespace: namespace.clone(), key: key.clone() };
            if !rows.push(self.live(&row)) {
                break;
            }
        }
        Ok(rows.finish())
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let rows = self.rows.range(range.row_bounds());
        let chunk = if options.reverse {
            collect(rows.rev(), self.now, options)
        } else {
            collect(rows, self.now, options)
        };
        Ok(chunk)
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let live = |(row, stored): (&RowKey, &Arc<StoredValue>)| {
            is_live(stored.expires_at, self.now).then(|| row.namespace.clone())
        };
        Ok(match after {
            None => self.rows.iter().find_map(live),
            Some(after) => {
                let rest = KeyRange::new(after.clone(), Vec::new(), None);
                let (_, end) = rest.row_bounds();
                let Bound::Excluded(start) = end else {
                    return Ok(None);
                };
                self.rows.range(start..).find_map(live)
            }
        })
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        // The shared map must not be held while it is changed: the change would copy what it need not.
        let Self { rows, last, database, .. } = *self;
        drop(rows);
        lock(&database).commit(last, &commit)
    }
}

fn collect<'a>(
    rows: impl Iterator<Item = (&'a RowKey, &'a Arc<StoredValue>)>,
    now: UnixMillis,
    options: ScanOptions,
) -> Chunk {
    let mut chunk = Chunk::default();
    let mut bytes = 0;
    for (row, stored) in rows.filter(|(_, stored)| is_live(stored.expires_at, now)) {
        let is_full = chunk.rows.len() >= options.max_rows || bytes >= options.max_bytes;
        if is_full && !chunk.rows.is_empty() {
            return chunk;
        }
        let value = if options.keys_only { Vec::new() } else { stored.value.clone() };
        bytes += (row.key.as_bytes().len() + value.len()) as u64;
        let stored = StoredValue { value, version: stored.version, expires_at: stored.expires_at };
        chunk.rows.push((row.key.clone(), stored));
    }
    chunk.exhausted = true;
    chunk
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
}
