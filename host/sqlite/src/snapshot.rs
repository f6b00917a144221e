//! A read transaction of a pooled connection.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::Result;
use larder_core::backend::{
    Chunk, Committed, Many, ScanOptions, Snapshot, SnapshotOptions, StoredValue, Version,
};
use larder_core::clock::UnixMillis;
use larder_core::commit::Commit;
use larder_core::name::{Key, KeyRange, Namespace, RowKey};

use crate::error::SqliteError;
use crate::readers::{Reader, Readers};
use crate::rows;
use crate::writer::Writer;

/// One committed state. Reads run on the caller's thread: a hop to another one costs more than a read.
pub(crate) struct SqliteSnapshot {
    reader: Reader,
    version: Version,
    now: UnixMillis,
    writer: Arc<Writer>,
}

impl SqliteSnapshot {
    pub(crate) async fn take(
        readers: &Arc<Readers>,
        writer: &Arc<Writer>,
        options: SnapshotOptions,
    ) -> Result<Self> {
        let reader = readers.take(options.deadline).await?;
        let connection = reader.connection()?;
        connection
            .prepare_cached("BEGIN")
            .and_then(|mut begin| begin.execute([]))
            .map_err(SqliteError::from)?;
        // The first read is what fixes the state that the transaction sees.
        let version = rows::last_version(connection)?;
        Ok(Self { reader, version, now: options.now, writer: writer.clone() })
    }
}

#[async_trait]
impl Snapshot for SqliteSnapshot {
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        rows::get(self.reader.connection()?, row, self.now)
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        rows::get_many(self.reader.connection()?, namespace, keys, max_bytes, self.now)
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        rows::scan(self.reader.connection()?, range, options, self.now)
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        rows::next_namespace(self.reader.connection()?, after, self.now)
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        let Self { reader, version, writer, .. } = *self;
        // An open reader keeps the log from being used again: it goes before the commit waits.
        drop(reader);
        if commit.writes.is_empty() && commit.conditions.is_empty() {
            return Ok(Committed::default());
        }
        writer.commit(commit, version).await
    }
}

impl std::fmt::Debug for SqliteSnapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SqliteSnapshot").field("version", &self.version).finish_non_exhaustive()
    }
}
