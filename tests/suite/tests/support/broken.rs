//! Backends that each violate one guarantee. The suite must catch each of them in a case that names
//! it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::commit::{Commit, Committed, Mutation};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey, just_after};
use larder_core::read_set::{RangeState, ReadSet};
use larder_core::row::StoredValue;
use larder_core::snapshot::{Many, Snapshot, SnapshotOptions};
use larder_core::stored_cost::StoredCost;
use larder_core::{Clock, ForwardClock, Identity, IdentityParts, InMemory, Limits, Version};
use larder_suite::{Scratch, TestBed};
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
    /// Nothing is wrong: a control.
    Nothing,
    /// Nothing is wrong, but validation is that of the next three: a control for them.
    ValidatesItself,
    /// Validation ignores changes of the first key of a range that was read.
    ForgetsFirstKeys,
    /// Validation ignores changes of the last row of a range that was read.
    ForgetsLastRows,
    /// Validation ignores ranges if several commits followed the snapshot.
    ForgetsOldRanges,
    /// A row that is read during a commit is answered from memory until the next commit.
    FillsDuringCommits,
    /// Memory records are written without a version check.
    ForgetsRecordVersions,
    /// The record of a run is stored as that of the whole session.
    MixesRuns,
}

/// A test bed of stores with a defect.
pub(crate) struct BrokenTestBed(pub(crate) Defect);

#[async_trait]
impl TestBed for BrokenTestBed {
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
        let (remembered, commits) = (Arc::default(), Arc::default());
        Ok(Arc::new(Broken { rows: Arc::new(rows), remembered, commits, defect: self.defect }))
    }

    async fn remove(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

type Remembered = Arc<Mutex<HashMap<RowKey, Option<StoredValue>>>>;

struct Broken {
    rows: Arc<InMemory>,
    remembered: Remembered,
    /// How many commits were made.
    commits: Arc<AtomicU64>,
    defect: Defect,
}

struct BrokenSnapshot {
    sound: Box<dyn Snapshot>,
    rows: Arc<InMemory>,
    remembered: Remembered,
    commits: Arc<AtomicU64>,
    /// How many commits had been made before.
    earlier: u64,
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
        let (rows, remembered, commits) = (self.rows.clone(), self.remembered.clone(), self.commits.clone());
        let earlier = commits.load(Ordering::Relaxed);
        Ok(Box::new(BrokenSnapshot {
            sound,
            rows,
            remembered,
            commits,
            earlier,
            options,
            defect: self.defect,
        }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> larder_core::Result<Committed> {
        self.remembered.lock().await.clear();
        let_others_read(self.defect).await;
        let committed = self.rows.commit(damage(&commit, self.defect)).await;
        self.commits.fetch_add(1, Ordering::Relaxed);
        committed
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

/// In memory a commit takes no time in which others could read.
async fn let_others_read(defect: Defect) {
    if defect == Defect::FillsDuringCommits {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// After this many commits, a snapshot counts as old.
const OLD_AFTER: u64 = 2;

impl BrokenSnapshot {
    /// For the defects of validation: compares what was read with the current state, forgetting as
    /// the defect does, and returns a commit that the sound backend does not validate again. Sound
    /// only if no other commit is made meanwhile.
    async fn validate(&mut self, commit: Arc<Commit>) -> larder_core::Result<Arc<Commit>> {
        let validates_itself = matches!(
            self.defect,
            Defect::ValidatesItself
                | Defect::ForgetsFirstKeys
                | Defect::ForgetsLastRows
                | Defect::ForgetsOldRanges
        );
        if !validates_itself || commit.reads.is_empty() {
            return Ok(commit);
        }
        let mut current = self.rows.snapshot(self.options.clone()).await?;
        let mut holds = !commit.reads.has_expired(self.options.clock.now());
        for (row, version) in commit.reads.rows() {
            let found = current.get(row).await?.map_or(Version::ABSENT, |stored| stored.version);
            holds &= found == version;
        }
        let is_old = self.commits.load(Ordering::Relaxed) - self.earlier > OLD_AFTER;
        if self.defect != Defect::ForgetsOldRanges || !is_old {
            let mut states = Vec::new();
            for stretch in commit.reads.stretches() {
                states.push(self.remembered_state(current.as_mut(), &stretch).await?);
            }
            holds &= commit.reads.ranges_hold(states);
        }
        match holds {
            true => Ok(Arc::new(Commit { reads: ReadSet::default(), ..Commit::clone(&commit) })),
            false => Err(larder_core::Error::Conflict),
        }
    }

    /// The current state of a range, with the row that the defect forgets as the snapshot has it.
    async fn remembered_state(
        &mut self,
        current: &mut dyn Snapshot,
        range: &KeyRange,
    ) -> larder_core::Result<RangeState> {
        let (old, mut rows) = (rows_of(self.sound.as_mut(), range).await?, rows_of(current, range).await?);
        let forgotten = match self.defect {
            Defect::ForgetsFirstKeys => Some(range.start().to_vec()),
            Defect::ForgetsLastRows => old.keys().chain(rows.keys()).max().cloned(),
            _ => None,
        };
        if let Some(key) = forgotten {
            match old.get(&key) {
                Some(version) => drop(rows.insert(key, *version)),
                None => drop(rows.remove(&key)),
            }
        }
        let mut state = RangeState::default();
        rows.into_values().for_each(|version| state.add(version));
        Ok(state)
    }

    async fn follow(&mut self) -> larder_core::Result<()> {
        if self.defect == Defect::MovingSnapshot {
            self.sound = self.rows.snapshot(self.options.clone()).await?;
        }
        Ok(())
    }
}

/// The versions of all rows in a range.
async fn rows_of(
    snapshot: &mut dyn Snapshot,
    range: &KeyRange,
) -> larder_core::Result<BTreeMap<Vec<u8>, Version>> {
    let mut rows = BTreeMap::new();
    let mut rest = range.clone();
    loop {
        let options = ScanOptions::new(1_000, u64::MAX).keys_only(true);
        let chunk = snapshot.scan(&rest, options).await?;
        rows.extend(chunk.rows().map(|row| (row.key.to_vec(), row.version)));
        match chunk.last_key() {
            Some(last) if !chunk.exhausted => rest = rest.narrowed_from(&just_after(last)),
            _ => return Ok(rows),
        }
    }
}

#[async_trait]
impl Snapshot for BrokenSnapshot {
    async fn get(&mut self, row: &RowKey) -> larder_core::Result<Option<StoredValue>> {
        self.follow().await?;
        let is_current = self.earlier == self.commits.load(Ordering::Relaxed);
        if self.defect != Defect::RemembersRows && !(self.defect == Defect::FillsDuringCommits && is_current)
        {
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

    async fn commit(mut self: Box<Self>, commit: Arc<Commit>) -> larder_core::Result<Committed> {
        self.remembered.lock().await.clear();
        let commit = self.validate(damage(&commit, self.defect)).await?;
        let_others_read(self.defect).await;
        let committed = self.sound.commit(commit).await;
        self.commits.fetch_add(1, Ordering::Relaxed);
        committed
    }
}
