//! Snapshots: the ordered rows of one state, and the newest rows where they are unchanged.

use std::sync::Arc;

use async_trait::async_trait;

use super::latest::{Moment, Seen};
use super::rows::Rows;
use super::snapshot_registry::SnapshotRows;
use super::stored_row::StoredRow;
use super::{Database, Shared, row_name};
use crate::chunk::{Chunk, ChunkRow, ScanOptions};
use crate::clock::UnixMillis;
use crate::commit::{Commit, Committed};
use crate::error::Result;
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::row::{StoredValue, is_live};
use crate::slice::{ROW, STORED_ROW, Slice};
use crate::snapshot::{Many, ManyRows, Snapshot};

/// A snapshot of one committed state.
pub(super) struct InMemorySnapshot {
    open: OpenSnapshot,
    now: UnixMillis,
    /// A reused buffer for the row's name, so that a look-up allocates nothing.
    name: Vec<u8>,
}

/// The registration of an open snapshot. Dropping it closes the snapshot.
pub(super) struct OpenSnapshot {
    rows: Arc<SnapshotRows>,
    moment: Moment,
    shared: Arc<Shared>,
}

impl OpenSnapshot {
    /// Opens a snapshot of the newest state. The database is locked, so the state stays the newest
    /// until this returns.
    pub(super) fn of(shared: &Arc<Shared>, database: &Database) -> Self {
        let moment = shared.latest().moment(database.last);
        let rows = shared.snapshots().open(moment, &database.rows);
        Self { rows, moment, shared: shared.clone() }
    }

    /// All rows, for a read that may take some time.
    pub(super) fn rows(&self) -> Result<Rows> {
        self.rows.look(Rows::clone)
    }
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        let closed = self.shared.snapshots().close(self.moment);
        drop(closed);
    }
}

impl InMemorySnapshot {
    pub(super) fn new(open: OpenSnapshot, now: UnixMillis) -> Self {
        Self { open, now, name: Vec::new() }
    }

    /// The row as it was. Fails if the snapshot was ended and needs a row that only it kept.
    fn live(&mut self, namespace: &Namespace, key: &Key) -> Result<Option<StoredValue>> {
        row_name::write(&mut self.name, namespace, key.as_bytes());
        // Without waiting for a commit: if the lock is taken, the snapshot's own rows have the
        // answer.
        if let Some(latest) = self.open.shared.latest.try_read() {
            match latest.at(self.open.moment, &self.name) {
                Seen::Row(row) => return Ok(row.live(self.now)),
                Seen::Absent => return Ok(None),
                Seen::Changed => {}
            }
        }
        self.open.rows.look(|rows| rows.get(&self.name)?.live(self.now))
    }
}

#[async_trait]
impl Snapshot for InMemorySnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        // On an error, `get` reports it.
        self.live(&row.namespace, &row.key).ok()
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        self.live(&row.namespace, &row.key)
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let mut rows = ManyRows::new(keys.len(), max_bytes);
        let mut slice = Slice::default();
        for key in keys {
            let live = self.live(namespace, key)?;
            slice.count(STORED_ROW, live.as_ref().map_or(0, |row| row.value.len()));
            if !rows.push(live) {
                break;
            }
            slice.pause().await;
        }
        Ok(rows.finish())
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let rows = self.open.rows()?;
        let rows = rows.within(range);
        if options.reverse {
            collect(rows.rev(), self.now, options).await
        } else {
            collect(rows, self.now, options).await
        }
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let rows = self.open.rows()?;
        let mut slice = Slice::default();
        for row in rows.after(after) {
            if row.is_live(self.now) {
                return row_name::namespace(row.name()).map(Some);
            }
            slice.count(ROW, 0);
            slice.pause().await;
        }
        Ok(None)
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        // Drop this snapshot's reference to the map first. Otherwise the commit would copy nodes
        // that only this snapshot shares.
        let Self { open, .. } = *self;
        let (moment, shared) = (open.moment, open.shared.clone());
        drop(open);
        shared.commit(moment.version, &commit).await
    }
}

/// Collects the first live rows. Skips expired rows in slices, and returns at the end of the first
/// slice with a live row.
async fn collect<'a>(
    rows: impl Iterator<Item = &'a StoredRow> + Send,
    now: UnixMillis,
    options: ScanOptions,
) -> Result<Chunk> {
    let mut chunk = Chunk::default();
    let mut slice = Slice::default();
    for row in rows {
        if slice.is_over() && !chunk.is_empty() {
            return Ok(chunk);
        }
        slice.pause().await;
        slice.count(ROW, 0);
        let (value, expires_at) = row.value();
        if !is_live(expires_at, now) {
            continue;
        }
        if chunk.is_full(&options) {
            return Ok(chunk);
        }
        let value = if options.keys_only { &[] } else { value };
        slice.count(0, value.len());
        let key = row_name::key(row.name())?;
        chunk.push_stored(ChunkRow { key, value, version: row.version(), expires_at });
    }
    chunk.exhausted = true;
    Ok(chunk)
}
