//! Snapshots: the rows in order as they were, and the newest ones as far as they are the same.

use std::sync::Arc;

use async_trait::async_trait;

use super::latest::{Moment, Seen};
use super::rows::Rows;
use super::stored_row::StoredRow;
use super::{Shared, row_name};
use crate::backend::{
    Chunk, ChunkRow, Committed, Many, ManyRows, ScanOptions, Snapshot, StoredValue, is_live,
};
use crate::clock::UnixMillis;
use crate::commit::Commit;
use crate::error::Result;
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::slice::{ROW, STORED_ROW, Slice};

/// One committed state.
pub(super) struct InMemorySnapshot {
    rows: Rows,
    moment: Moment,
    now: UnixMillis,
    shared: Arc<Shared>,
    /// The name of the row that is looked for, so that a look-up needs no memory of its own.
    name: Vec<u8>,
}

impl InMemorySnapshot {
    pub(super) fn new(rows: Rows, moment: Moment, now: UnixMillis, shared: Arc<Shared>) -> Self {
        Self { rows, moment, now, shared, name: Vec::new() }
    }

    fn live(&mut self, namespace: &Namespace, key: &Key) -> Option<StoredValue> {
        row_name::write(&mut self.name, namespace, key.as_bytes());
        // Who would have to wait for a commit looks into the rows of its own.
        if let Ok(latest) = self.shared.latest.try_read() {
            match latest.at(self.moment, &self.name) {
                Seen::Row(row) => return row.live(self.now),
                Seen::Absent => return None,
                Seen::Changed => {}
            }
        }
        self.rows.get(&self.name)?.live(self.now)
    }
}

#[async_trait]
impl Snapshot for InMemorySnapshot {
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        Some(self.live(&row.namespace, &row.key))
    }

    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        Ok(self.live(&row.namespace, &row.key))
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let mut rows = ManyRows::new(keys.len(), max_bytes);
        let mut slice = Slice::default();
        for key in keys {
            let live = self.live(namespace, key);
            slice.count(STORED_ROW, live.as_ref().map_or(0, |row| row.value.len()));
            if !rows.push(live) {
                break;
            }
            slice.pause().await;
        }
        Ok(rows.finish())
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let rows = self.rows.within(range);
        if options.reverse {
            collect(rows.rev(), self.now, options).await
        } else {
            collect(rows, self.now, options).await
        }
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let mut slice = Slice::default();
        for row in self.rows.after(after) {
            if row.is_live(self.now) {
                return row_name::namespace(row.name()).map(Some);
            }
            slice.count(ROW, 0);
            slice.pause().await;
        }
        Ok(None)
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        // The shared map must not be held while it is changed: the change would copy what it need not.
        let Self { rows, moment, shared, .. } = *self;
        drop(rows);
        shared.lock().commit(&shared, moment.version, &commit)
    }
}

/// The first live rows. It goes past expired ones in slices, and ends with a slice in which it found any.
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
