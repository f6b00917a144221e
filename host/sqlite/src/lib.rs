//! The SQLite backend of larder, the embedded default.
//!
//! One database file, in WAL mode: snapshots are read transactions of pooled connections, and one writer makes
//! the commits of all who wait in one SQLite commit. Other processes may use the same file: each commit
//! validates what it read against what is in the file at that moment.
//!
//! ```no_run
//! # async fn example() -> larder_core::Result<()> {
//! use larder_core::Store;
//! use larder_sqlite::{Sqlite, SqliteOptions};
//!
//! let store = Store::builder(Sqlite::open("plugins.db", SqliteOptions::default()).await?).build()?;
//! # Ok(()) }
//! ```
//!
//! SQLite itself is always the one built with this crate: releases before 3.51.3 can corrupt a database in WAL
//! mode.

mod checkpoint;
mod connection;
mod dsn;
mod error;
mod migrate;
mod readers;
mod records;
mod rows;
mod snapshot;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use larder_core::backend::{Backend, Committed, Snapshot, SnapshotOptions, Swept, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::Commit;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::{Error, Result};
use rusqlite::Connection;
use tempfile::TempDir;

pub use dsn::SqliteDriver;
use readers::Readers;
use snapshot::SqliteSnapshot;
use writer::Writer;

/// What a commit survives once it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process. For stores that are thrown away.
    Off,
    /// The end of the process, kill -9 included. A power cut may lose the last commits, and never corrupts.
    #[default]
    Normal,
    /// A power cut too: the log is synced before a commit is acknowledged, once for all who wait.
    Full,
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// What a commit survives.
    pub durability: Durability,
    /// Whether a file that isn't there is made.
    pub create: bool,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self { durability: Durability::Normal, create: true }
    }
}

/// A SQLite database.
pub struct Sqlite {
    readers: Arc<Readers>,
    writer: Arc<Writer>,
    closed: AtomicBool,
    /// Removed with the last handle, after the connections.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is only dropped"))]
    private: Option<TempDir>,
}

impl Sqlite {
    /// Opens a database file, makes it where it isn't there, and brings larder's own tables up to date. It is called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the file can't be opened, [`Error::Corrupt`] where it is no database, and
    /// [`Error::Other`] where a newer release of larder has migrated it.
    pub async fn open(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        Self::open_in(path.into(), options, None).await
    }

    /// Opens a private database in a temporary folder, which is removed with the last handle.
    ///
    /// # Errors
    /// As [`Sqlite::open`], and where there is no temporary folder.
    pub async fn open_private() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("larder-private-")
            .tempdir()
            .map_err(|error| Error::unavailable("a temporary folder can't be made", error))?;
        let path = folder.path().join("private.db");
        Self::open_in(path, SqliteOptions { durability: Durability::Off, create: true }, Some(folder)).await
    }

    async fn open_in(path: PathBuf, options: SqliteOptions, private: Option<TempDir>) -> Result<Self> {
        let opened = path.clone();
        let connection = blocking(move || {
            let mut connection = connection::open(&opened, options)?;
            migrate::migrate(&mut connection)?;
            Ok(connection)
        })
        .await?;
        let writer = Writer::new(connection, tokio::runtime::Handle::current());
        checkpoint::spawn(&path, options, &writer);
        let readers = Arc::new(Readers::new(path, options));
        Ok(Self { readers, writer, closed: AtomicBool::new(false), private })
    }

    /// Reads the newest state with one statement, on this thread.
    async fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
        self.check_open()?;
        let reader = self.readers.take(Instant::now() + connection::BUSY_TIMEOUT).await?;
        work(reader.connection()?)
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Backend for Sqlite {
    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.check_open()?;
        Ok(Box::new(SqliteSnapshot::take(&self.readers, &self.writer, options).await?))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.check_open()?;
        self.writer.commit(commit, Version::ABSENT).await
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.check_open()?;
        let reader = self.readers.take(Instant::now() + connection::BUSY_TIMEOUT).await?;
        blocking(move || rows::stored_bytes(reader.connection()?)).await
    }

    async fn sweep(&self, now: UnixMillis, max_rows: u32) -> Result<Swept> {
        self.check_open()?;
        let writer = self.writer.clone();
        blocking(move || writer.sweep(now, max_rows)).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.read(|connection| records::load(connection, key)).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        self.check_open()?;
        self.writer.write_record(write).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        self.read(|connection| records::list(connection, after, max)).await
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        self.read(|connection| records::due(connection, now, max)).await
    }

    async fn ping(&self) -> Result<()> {
        self.read(rows::last_version).await.map(drop)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.readers.close();
        let writer = self.writer.clone();
        // It only fails where the runtime is shutting down, which drops the connection too.
        let _ = tokio::task::spawn_blocking(move || writer.close()).await;
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

/// Runs what takes long on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::caused("the work was cancelled", error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_private_database_leaves_no_file() {
        let database = Sqlite::open_private().await.unwrap();
        let folder = database.private.as_ref().unwrap().path().to_path_buf();
        database.ping().await.unwrap();
        assert!(folder.join("private.db").is_file());
        database.close().await;
        drop(database);
        assert!(!folder.exists());
    }
}
