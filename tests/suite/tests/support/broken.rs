//! Backends that each violate one guarantee. The suite must catch each of them in a case that names
//! it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use larder_core::backend::{
    Backend, Chunk, Committed, Many, ScanOptions, Snapshot, SnapshotOptions, StoredCost, StoredValue,
    SweepOptions, Swept,
};
use larder_core::commit::{Commit, Mutation};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::read_set::ReadSet;
use larder_core::{Clock, ForwardClock, Identity, IdentityParts, InMemory, Limits, Version};
use larder_suite::{Bench, Scratch};
use tokio::sync::Mutex;

/// The guarantee that is violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Commits do not check the reads of the transaction.
    ForgetsReads,
    /// Commits do not check versions.
    ForgetsConditions,
    /// Expired rows are visible.
    ShowsExpiredRows,
    /// Each read sees the newest state.
    MovingSnapshot,
    /// A range ends one row early.
    LosesLastRow,
    /// Only the first write of a commit is applied.
    TearsCommits,
    /// A reverse range is returned in forward order.
    IgnoresReverse,
    /// Deletes are not applied.
    KeepsDeletedRows,
    /// Writes through one open are not visible through another.
    HostsApart,
    /// A row that was read once is cached until this host commits, whatever other hosts commit.
    RemembersRows,
    /// Memory records are written without a version check.
    ForgetsRecordVersions,
    /// The record of a run is stored as that of the whole session.
    MixesRuns,
}

/// A bench of stores with a defect.
pub(crate) struct BrokenBench(pub(crate) Defect);

#[async_trait]
impl Bench for BrokenBench {
    fn name(&self) -> &'static str {
        "broken"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        Ok(Box::new(BrokenScratch { rows: InMemory::new(), defect: self.0 }))
    }
}

struct BrokenScratch {
    rows: InMemory,
    defect: Defect,
}

#[async_trait]
impl Scratch for BrokenScratch {
    async fn open(&self) -> Result<Arc<dyn Backend>> {
        let rows = match self.defect {
            Defect::HostsApart => InMemory::new(),
            _ => self.rows.attach(),
        };
        Ok(Arc::new(Broken { rows: Arc::new(rows), remembered: Arc::default(), defect: self.defect }))
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

type Remembered = Arc<Mutex<HashMap<RowKey, Option<StoredValue>>>>;

struct Broken {
    rows: Arc<InMemory>,
    remembered: Remembered,
    defect: Defect,
}

struct BrokenSnapshot {
    sound: Box<dyn Snapshot>,
    rows: Arc<InMemory>,
    remembered: Remembered,
    options: SnapshotOptions,
    defect: Defect,
}

/// A clock by which no row expires.
struct Stopped;

impl Clock for Stopped {
    fn unix_millis(&self) -> u64 {
        0
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn damage(commit: &Commit, defect: Defect) -> Arc<Commit> {
    let mut commit = commit.clone();
    match defect {
        Defect::ForgetsReads => commit.reads = ReadSet::default(),
        Defect::ForgetsConditions => commit.conditions.clear(),
        Defect::TearsCommits => {
            let first = commit.writes.pop_first();
            commit.writes = first.into_iter().collect();
        }
        Defect::KeepsDeletedRows => commit.writes.retain(|_, mutation| *mutation != Mutation::Delete),
        _ => {}
    }
    Arc::new(commit)
}

async fn damage_record(
    rows: &InMemory,
    write: Arc<RecordWrite>,
    defect: Defect,
) -> larder_core::Result<Arc<RecordWrite>> {
    let mut damaged = RecordWrite::clone(&write);
    match defect {
        Defect::ForgetsRecordVersions => {
            let current = rows.load_record(&write.key).await?;
            damaged.expected = current.map_or(Version::ABSENT, |record| record.version);
        }
        Defect::MixesRuns => {
            let parts = IdentityParts { run: String::new(), ..write.key.identity.parts() };
            damaged.key = RecordKey::conversation(Identity::new(parts, &Limits::default())?);
        }
        _ => {}
    }
    Ok(Arc::new(damaged))
}

#[async_trait]
impl Backend for Broken {
    async fn snapshot(&self, mut options: SnapshotOptions) -> larder_core::Result<Box<dyn Snapshot>> {
        if self.defect == Defect::ShowsExpiredRows {
            options.clock = ForwardClock::new(Arc::new(Stopped));
        }
        let sound = self.rows.snapshot(options.clone()).await?;
        let (rows, remembered) = (self.rows.clone(), self.remembered.clone());
        Ok(Box::new(BrokenSnapshot { sound, rows, remembered, options, defect: self.defect }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> larder_core::Result<Committed> {
        self.remembered.lock().await.clear();
        self.rows.commit(damage(&commit, self.defect)).await
    }

    fn stored_cost(&self) -> StoredCost {
        self.rows.stored_cost()
    }

    async fn stored_bytes(&self) -> larder_core::Result<u64> {
        self.rows.stored_bytes().await
    }

    async fn sweep(&self, options: SweepOptions) -> larder_core::Result<Swept> {
        self.rows.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> larder_core::Result<Option<StoredRecord>> {
        self.rows.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> larder_core::Result<()> {
        self.rows.write_record(damage_record(&self.rows, write, self.defect).await?).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> larder_core::Result<Vec<RecordKey>> {
        self.rows.list_records(after, max).await
    }

    async fn due_records(&self, now: u64, max: u32) -> larder_core::Result<Vec<RecordKey>> {
        self.rows.due_records(now, max).await
    }

    async fn ping(&self) -> larder_core::Result<()> {
        self.rows.ping().await
    }

    async fn close(&self) {
        self.rows.close().await;
    }
}

impl BrokenSnapshot {
    async fn follow(&mut self) -> larder_core::Result<()> {
        if self.defect == Defect::MovingSnapshot {
            self.sound = self.rows.snapshot(self.options.clone()).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Snapshot for BrokenSnapshot {
    async fn get(&mut self, row: &RowKey) -> larder_core::Result<Option<StoredValue>> {
        self.follow().await?;
        if self.defect != Defect::RemembersRows {
            return self.sound.get(row).await;
        }
        let mut remembered = self.remembered.lock().await;
        if let Some(found) = remembered.get(row) {
            return Ok(found.clone());
        }
        let found = self.sound.get(row).await?;
        remembered.insert(row.clone(), found.clone());
        Ok(found)
    }

    async fn get_many(
        &mut self,
        namespace: &Namespace,
        keys: &[Key],
        max_bytes: u64,
    ) -> larder_core::Result<Many> {
        self.follow().await?;
        self.sound.get_many(namespace, keys, max_bytes).await
    }

    async fn scan(&mut self, range: &KeyRange, mut options: ScanOptions) -> larder_core::Result<Chunk> {
        self.follow().await?;
        options.reverse &= self.defect != Defect::IgnoresReverse;
        let chunk = self.sound.scan(range, options).await?;
        if self.defect != Defect::LosesLastRow || !chunk.exhausted {
            return Ok(chunk);
        }
        let mut shorter = Chunk::default();
        shorter.exhausted = true;
        let kept = chunk.rows().count().saturating_sub(1);
        chunk.rows().take(kept).try_for_each(|row| shorter.push(row))?;
        Ok(shorter)
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> larder_core::Result<Option<Namespace>> {
        self.sound.next_namespace(after).await
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> larder_core::Result<Committed> {
        self.remembered.lock().await.clear();
        self.sound.commit(damage(&commit, self.defect)).await
    }
}
