//! A backend wrapper that refuses writes.

use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::{Backend, SweepOptions, Swept};
use crate::chunk::{Chunk, ScanOptions};
use crate::clock::UnixMillis;
use crate::commit::{Commit, Committed};
use crate::error::{Error, Result};
use crate::memory::records::{RecordKey, RecordWrite, StoredRecord};
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::open_snapshots::OpenSnapshots;
use crate::row::StoredValue;
use crate::snapshot::{Many, Snapshot, SnapshotOptions};
use crate::stored_cost::StoredCost;

/// A wrapper that makes a backend read-only.
///
/// Each write fails with [`Error::AccessDenied`] and does not reach the backend. The wrapper does
/// not restrict what the backend itself does when it is opened or closed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use std::sync::Arc;
/// use larder_core::{Error, InMemory, ReadOnly, Store};
///
/// let store = Store::builder(ReadOnly::new(Arc::new(InMemory::new()))).build()?;
/// assert!(matches!(store.sweep().await, Err(Error::AccessDenied(_))));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ReadOnly {
    backend: Arc<dyn Backend>,
}

impl ReadOnly {
    /// Wraps a backend.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }
}

impl std::fmt::Debug for ReadOnly {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReadOnly").finish_non_exhaustive()
    }
}

/// Refuses a commit, unless it writes nothing.
fn refuse_writes(commit: &Commit) -> Result<Committed> {
    if commit.writes.is_empty() && commit.conditions.is_empty() {
        return Ok(Committed::default());
    }
    Err(Error::opened_read_only())
}

#[async_trait]
impl Backend for ReadOnly {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.backend.attach(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(ReadOnlySnapshot(self.backend.snapshot(options).await?)))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        refuse_writes(&commit)
    }

    fn stored_cost(&self) -> StoredCost {
        self.backend.stored_cost()
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.backend.stored_bytes().await
    }

    async fn recount(&self) -> Result<u64> {
        self.backend.recount().await
    }

    async fn sweep(&self, _: SweepOptions) -> Result<Swept> {
        Err(Error::opened_read_only())
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.backend.load_record(key).await
    }

    async fn write_record(&self, _: Arc<RecordWrite>) -> Result<()> {
        Err(Error::opened_read_only())
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        self.backend.list_records(after, max).await
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        self.backend.due_records(now, max).await
    }

    async fn ping(&self) -> Result<()> {
        self.backend.ping().await
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}

struct ReadOnlySnapshot(Box<dyn Snapshot>);

#[async_trait]
impl Snapshot for ReadOnlySnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        self.0.get_now(row)
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        self.0.get(row).await
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        self.0.get_many(namespace, keys, max_bytes).await
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        self.0.scan(range, options).await
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        self.0.next_namespace(after).await
    }

    fn pins(&self) -> bool {
        self.0.pins()
    }

    fn keeps_state(&self) -> bool {
        self.0.keeps_state()
    }

    fn release(&mut self) -> bool {
        self.0.release()
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        refuse_writes(&commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HandleOptions, InMemory, Mode, Store};

    #[tokio::test]
    async fn reads_are_let_through_and_every_write_is_refused() {
        let rows = InMemory::new();
        let store = Store::builder(rows.attach()).build().unwrap();
        let handle = store.handle(HandleOptions::default());
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), "k".into(), b"v".to_vec()).unwrap();
        update.commit().await.unwrap();

        let look = Store::builder(ReadOnly::new(Arc::new(rows))).build().unwrap();
        let handle = look.handle(HandleOptions::default());
        for reads_first in [false, true] {
            let mut update = handle.begin(Mode::Update).unwrap();
            if reads_first {
                assert_eq!(update.get("n".into(), "k".into()).await.unwrap(), Some(b"v".to_vec()));
            }
            update.delete("n".into(), "k".into()).unwrap();
            assert!(matches!(update.commit().await, Err(Error::AccessDenied(_))), "{reads_first}");
        }
        assert!(matches!(look.sweep().await, Err(Error::AccessDenied(_))));
        handle.begin(Mode::Update).unwrap().commit().await.unwrap();
        let mut view = handle.begin(Mode::View).unwrap();
        assert_eq!(view.get("n".into(), "k".into()).await.unwrap(), Some(b"v".to_vec()));
    }
}
