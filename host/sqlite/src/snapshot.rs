//! One committed state, read from the cache as far as that goes, and by a pooled connection from there on.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use larder_core::backend::{
    Chunk, Committed, Many, ManyRows, ScanOptions, Snapshot, SnapshotOptions, StoredValue, Version,
};
use larder_core::clock::UnixMillis;
use larder_core::commit::Commit;
use larder_core::name::{Key, KeyRange, Namespace, RowKey};
use larder_core::{Error, Result};
use rusqlite::Connection;

use crate::cache::{Epoch, Moment};
use crate::readers::{Reader, Readers};
use crate::rows;
use crate::writer::Writer;

/// One committed state. Reads run on the caller's thread: a hop to another one costs more than a read.
pub(crate) struct SqliteSnapshot {
    base: Base,
    version: Version,
    /// Whether what the cache holds is of this state too.
    is_cached: bool,
    /// Whether anybody has seen the state yet.
    is_seen: bool,
    now: UnixMillis,
    deadline: Instant,
    readers: Arc<Readers>,
    writer: Arc<Writer>,
}

/// Where rows are read that are not cached.
enum Base {
    /// Nowhere yet.
    Epoch(Arc<Epoch>),
    /// In a transaction of its own.
    Reader(Reader),
    /// In the one that all who stand on the epoch share.
    Pinned(Arc<Epoch>),
}

impl SqliteSnapshot {
    pub(crate) async fn take(
        readers: &Arc<Readers>,
        writer: &Arc<Writer>,
        options: SnapshotOptions,
    ) -> Result<Self> {
        let (readers, writer) = (readers.clone(), writer.clone());
        let SnapshotOptions { now, deadline, .. } = options;
        let (base, version, is_cached) = match writer.cache().and_then(|cache| cache.epoch()) {
            Some(epoch) => {
                let version = epoch.version;
                (Base::Epoch(epoch), version, true)
            }
            None => {
                let (reader, version, is_cached) = begin(&readers, &writer, deadline).await?;
                (Base::Reader(reader), version, is_cached)
            }
        };
        Ok(Self { base, version, is_cached, is_seen: false, now, deadline, readers, writer })
    }

    /// Reads in the database, where this snapshot still can.
    async fn read<T>(&mut self, work: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
        if let Base::Epoch(epoch) = &self.base {
            let epoch = epoch.clone();
            self.leave(epoch).await?;
        }
        self.is_seen = true;
        match &self.base {
            Base::Reader(reader) => work(reader.connection()?),
            Base::Pinned(epoch) => work(epoch.pin().ok_or(Error::Conflict)?.connection()?),
            Base::Epoch(_) => Err(Error::Conflict),
        }
    }

    /// From an epoch to a connection that sees it: while it is the newest state, any does.
    async fn leave(&mut self, epoch: Arc<Epoch>) -> Result<()> {
        if epoch.pin().is_none() {
            let (reader, version, is_cached) = begin(&self.readers, &self.writer, self.deadline).await?;
            if version == self.version || !self.is_seen {
                (self.base, self.version, self.is_cached) = (Base::Reader(reader), version, is_cached);
                return Ok(());
            }
            // Where another process committed, nobody has kept a connection.
            if epoch.pin().is_none() {
                return Err(Error::Conflict);
            }
        }
        self.base = Base::Pinned(epoch);
        Ok(())
    }

    fn cached(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let cached = self.writer.cache().filter(|_| self.is_cached)?.get(row, self.moment())?;
        self.is_seen = true;
        Some(cached)
    }

    fn fill(&self, row: &RowKey, found: Option<&StoredValue>) {
        if let Some(cache) = self.writer.cache() {
            cache.fill(row, self.moment(), found);
        }
    }

    fn moment(&self) -> Moment {
        Moment { version: self.version, now: self.now }
    }
}

/// Begins a transaction; gives its version, and whether what is cached is of that state too.
async fn begin(
    readers: &Arc<Readers>,
    writer: &Arc<Writer>,
    deadline: Instant,
) -> Result<(Reader, Version, bool)> {
    let reader = readers.take(deadline).await?;
    let Some(cache) = writer.cache() else {
        let version = reader.begin()?;
        return Ok((reader, version, false));
    };
    let mark = cache.mark();
    let version = reader.begin()?;
    Ok((reader, version, cache.saw(version, mark)))
}

#[async_trait]
impl Snapshot for SqliteSnapshot {
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        if let Some(cached) = self.cached(row) {
            return Ok(cached);
        }
        let now = self.now;
        let found = self.read(|connection| rows::get(connection, row, now)).await?;
        self.fill(row, found.as_ref());
        Ok(found)
    }

    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many> {
        let mut rows = ManyRows::new(keys.len(), max_bytes);
        for key in keys {
            let row = RowKey { namespace: namespace.clone(), key: key.clone() };
            if !rows.push(self.get(&row).await?) {
                break;
            }
        }
        Ok(rows.finish())
    }

    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk> {
        let now = self.now;
        self.read(|connection| rows::scan(connection, range, options, now)).await
    }

    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>> {
        let now = self.now;
        self.read(|connection| rows::next_namespace(connection, after, now)).await
    }

    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed> {
        let Self { base, version, writer, .. } = *self;
        // An open reader keeps the log from being used again: it goes before the commit waits.
        drop(base);
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
