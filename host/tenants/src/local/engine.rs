//! The database of an open tenant as a backend that answers only while the lease is held.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::row::{StoredValue, Version};
use larder_core::snapshot::{Many, Snapshot, SnapshotOptions};
use larder_core::{Error, OpenSnapshots, Result};
use larder_sqlite::Sqlite;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::error::TenantError;
use crate::lease::Lease;

/// Held by every running call, so that the database is given up only when no call is running.
type Pass = OwnedRwLockReadGuard<()>;

pub(crate) struct Engine {
    database: Sqlite,
    lease: Lease,
    gate: Arc<RwLock<()>>,
}

impl Engine {
    pub(crate) fn new(database: Sqlite, lease: Lease) -> Self {
        Self { database, lease, gate: Arc::default() }
    }

    pub(crate) fn database(&self) -> &Sqlite {
        &self.database
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Rejects new calls, and waits up to `wait` for the running ones. `None` if some are still
    /// running then.
    pub(crate) async fn shut(&self, wait: Duration) -> Option<OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(wait, self.gate.clone().write_owned()).await.ok()
    }

    /// Starts a call. Another host may have the tenant by now, with newer data, so the lease is
    /// checked before anything is returned.
    fn enter(&self) -> Result<Pass> {
        let pass = self.gate.clone().try_read_owned().map_err(|_| Error::Closed)?;
        self.lease.check()?;
        Ok(pass)
    }

    /// Checks the lease before a write is acknowledged. A lapsed lease may be renewed: success
    /// means that no other host had the tenant in between.
    async fn acknowledge<T>(&self, written: T) -> Result<T> {
        let held = match self.lease.check() {
            Err(TenantError::LeaseLapsed { .. }) => self.lease.renew().await,
            checked => checked,
        };
        // The commit is in this host's database, and it is unknown whether it got into a snapshot
        // in time.
        held.map(|()| written).map_err(|error| Error::CommitUnknown {
            reason: "the lease of the tenant was lost during the commit".to_string(),
            cause: Some(Arc::new(error)),
        })
    }
}

/// The engine as the backend of stores and their snapshots.
#[derive(Clone)]
pub(crate) struct SharedEngine(pub(crate) Arc<Engine>);

#[async_trait]
impl Backend for SharedEngine {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.0.database.attach(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        let pass = self.0.enter()?;
        let inner = self.0.database.snapshot(options).await?;
        Ok(Box::new(HeldSnapshot { inner, engine: self.0.clone(), _pass: pass }))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        let _pass = self.0.enter()?;
        let committed = self.0.database.commit(commit).await?;
        self.0.acknowledge(committed).await
    }

    async fn stored_bytes(&self) -> Result<u64> {
        let _pass = self.0.enter()?;
        self.0.database.stored_bytes().await
    }

    async fn recount(&self) -> Result<u64> {
        let _pass = self.0.enter()?;
        self.0.database.recount().await
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        // No caller waits for it, and the next sweep does the same work.
        let Ok(_pass) = self.0.enter() else { return Ok(Swept::default()) };
        self.0.database.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        let _pass = self.0.enter()?;
        self.0.database.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        let _pass = self.0.enter()?;
        self.0.database.write_record(write).await?;
        self.0.acknowledge(()).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        let _pass = self.0.enter()?;
        self.0.database.list_records(after, max).await
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        let _pass = self.0.enter()?;
        self.0.database.due_records(now, max).await
    }

    async fn ping(&self) -> Result<()> {
        let _pass = self.0.enter()?;
        self.0.database.ping().await
    }

    /// Does nothing: the host closes a tenant after it has written the tenant back.
    async fn close(&self) {}
}

struct HeldSnapshot {
    inner: Box<dyn Snapshot>,
    engine: Arc<Engine>,
    _pass: Pass,
}

#[async_trait]
impl Snapshot for HeldSnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        self.inner.get_now(row)
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        self.inner.get(row).await
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        self.inner.get_many(namespace, keys, max_bytes).await
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        self.inner.scan(range, options).await
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        self.inner.next_namespace(after).await
    }

    fn pins(&self) -> bool {
        self.inner.pins()
    }

    fn keeps_state(&self) -> bool {
        self.inner.keeps_state()
    }

    fn release(&mut self) -> bool {
        self.inner.release()
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        let Self { inner, engine, _pass } = *self;
        engine.lease.check()?;
        let committed = inner.commit(commit).await?;
        match committed.version {
            // It wrote nothing, and what it read was current when its snapshot was taken.
            Version::ABSENT => Ok(committed),
            _ => engine.acknowledge(committed).await,
        }
    }
}
