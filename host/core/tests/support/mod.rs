//! The in-memory backend behind a script: it fails, and returns little, as a test says.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::chunk::{Chunk, ChunkRow, ScanOptions};
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::StoredValue;
use larder_core::snapshot::{Many, Snapshot, SnapshotOptions};
use larder_core::stored_cost::StoredCost;
use larder_core::{Error, Handle, HandleOptions, InMemory, Limits, Mode, Result, Store, Version};
use larder_model::StandingClock;
use parking_lot::Mutex;

/// How the engine behaves, and what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// The most rows of a chunk; 0 if only the options bound them.
    pub(crate) chunk_rows: usize,
    /// Which scan fails, counted from 1, and how.
    pub(crate) failing_scan: Option<(usize, Error)>,
    /// Whether each scan finds one row, whose key is not UTF-8.
    pub(crate) has_invalid_key: bool,
    pub(crate) scans: Vec<ScanOptions>,
    pub(crate) gets: usize,
    pub(crate) deadlines: Vec<Instant>,
    pub(crate) modes: Vec<Mode>,
    /// How many of the next commits conflict that have no snapshot.
    pub(crate) conflicts: usize,
    pub(crate) commits: usize,
    /// What the next sweeps and recounts fail with.
    pub(crate) failure: Option<Error>,
    pub(crate) sweeps: usize,
    pub(crate) recounts: usize,
    pub(crate) closes: usize,
    /// Snapshots that were taken and not dropped yet.
    pub(crate) snapshots: Arc<()>,
}

impl Script {
    pub(crate) fn open_snapshots(&self) -> usize {
        Arc::strong_count(&self.snapshots) - 1
    }
}

/// The in-memory backend behind a script.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) in_memory: Arc<InMemory>,
    pub(crate) script: Arc<Mutex<Script>>,
}

struct EngineSnapshot {
    inner: Box<dyn Snapshot>,
    script: Arc<Mutex<Script>>,
    _open: Arc<()>,
}

impl Engine {
    pub(crate) fn new(script: Script) -> Self {
        Self { in_memory: Arc::new(InMemory::new()), script: Arc::new(Mutex::new(script)) }
    }

    pub(crate) fn handle(&self, limits: Limits) -> Handle {
        let store = Store::builder(self.clone()).clock(Arc::<StandingClock>::default());
        let store = store.sweep_interval(None).build().unwrap();
        store.handle(HandleOptions::default().limits(limits))
    }
}

#[async_trait]
impl Backend for Engine {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let open = {
            let mut script = self.script.lock();
            script.deadlines.push(options.deadline);
            script.modes.push(options.mode);
            script.snapshots.clone()
        };
        let inner = self.in_memory.snapshot(options).await?;
        Ok(Box::new(EngineSnapshot { inner, script: self.script.clone(), _open: open }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        {
            let mut script = self.script.lock();
            script.commits += 1;
            if script.conflicts > 0 {
                script.conflicts -= 1;
                // As far as an engine gets that finds a conflict at the end.
                commit.plan(0, |_, _| Ok(None))?;
                return Err(Error::Conflict);
            }
        }
        self.in_memory.commit(commit).await
    }

    fn stored_cost(&self) -> StoredCost {
        self.in_memory.stored_cost()
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.in_memory.stored_bytes().await
    }

    async fn recount(&self) -> Result<u64> {
        {
            let mut script = self.script.lock();
            script.recounts += 1;
            if let Some(error) = script.failure.take() {
                return Err(error);
            }
        }
        self.in_memory.recount().await
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        {
            let mut script = self.script.lock();
            script.sweeps += 1;
            if let Some(error) = script.failure.take() {
                return Err(error);
            }
        }
        self.in_memory.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.in_memory.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        self.in_memory.write_record(write).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        self.in_memory.list_records(after, max).await
    }

    async fn due_records(&self, now: u64, max: u32) -> Result<Vec<RecordKey>> {
        self.in_memory.due_records(now, max).await
    }

    async fn ping(&self) -> Result<()> {
        self.in_memory.ping().await
    }

    async fn close(&self) {
        self.script.lock().closes += 1;
        self.in_memory.close().await;
    }
}

#[async_trait]
impl Snapshot for EngineSnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        self.inner.get_now(row)
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        self.script.lock().gets += 1;
        self.inner.get(row).await
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        self.inner.get_many(namespace, keys, max_bytes).await
    }

    async fn scan(&mut self, range: &KeyRange, mut options: ScanOptions) -> Result<Chunk> {
        let has_invalid_key = {
            let mut script = self.script.lock();
            script.scans.push(options);
            if let Some((number, error)) = &script.failing_scan
                && *number == script.scans.len()
            {
                return Err(error.clone());
            }
            if script.chunk_rows > 0 {
                options.max_rows = options.max_rows.min(script.chunk_rows);
            }
            script.has_invalid_key
        };
        let chunk = self.inner.scan(range, options).await?;
        if !has_invalid_key {
            return Ok(chunk);
        }
        let mut invalid = Chunk::default();
        invalid.push_stored(ChunkRow { key: b"a\xff", value: b"", version: Version(1), expires_at: None });
        invalid.exhausted = true;
        Ok(invalid)
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        self.inner.next_namespace(after).await
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        self.inner.commit(commit).await
    }
}
