//! The SQLite backend of larder, the embedded default.
//!
//! One database file, in WAL mode: snapshots read committed rows that are kept in memory, and by pooled connections
//! those that are not; one writer makes the commits of all who wait in one SQLite commit. Other processes may use the
//! same file: each commit validates what it read against what is in the file at that moment.
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
//! [`SqliteMigrator`] keeps a platform's own tables up to date by the same rules as larder's, in the same file or in
//! another.
//!
//! SQLite itself is always the one built with this crate: releases before 3.51.3 can corrupt a database in WAL
//! mode.

mod backup;
mod cache;
mod checkpoint;
mod connection;
mod current_rows;
mod dsn;
mod error;
mod file;
mod foreign_keys;
mod journal;
mod location;
mod log_bound;
mod look;
mod migrate;
mod migrator;
mod read_only;
mod readers;
mod records;
mod redo;
mod rows;
mod script;
mod snapshot;
mod transaction;
mod turn;
mod validation;
mod waiting;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_core::backend::{Backend, Committed, Snapshot, SnapshotOptions, SweepOptions, Swept, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::Commit;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::redo::{self as core_redo, Journal};
use larder_core::{Error, OpenSnapshots, Result, Share};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

/// What [`SqliteMigrator::with_connection`] gives a connection of, in the release that fits.
pub use rusqlite;

pub use backup::BackupInfo;
pub use dsn::SqliteDriver;
use location::Location;
pub use migrator::SqliteMigrator;
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
    /// Whether larder's tables may be added to a database that holds other tables already, as a platform's own. Without
    /// it such a database is refused, as the path is most likely wrong. Tables that are added later are never a reason.
    pub other_tables: bool,
    /// How many bytes of committed rows are kept in memory, about; 0 for none. They are found several times faster than
    /// in the file. A quarter of it is for ranges that were scanned. Other processes may write to it all the same: their commits empty the cache. Up to a quarter as much
    /// again, and 2 MB at least, are pages of the file that commits change.
    pub cache_bytes: u64,
    /// How long the write-ahead log may become, in bytes; at least 1 MiB, and one commit more. A snapshot that keeps the log
    /// from beginning anew is ended with [`Error::TimedOut`]: from a quarter of the bound on if it is older than 1 s, from a
    /// half on if it is older than 100 ms, from three quarters on if it is older than 10 ms. At the bound, commits wait for
    /// that. Readers of other programs, and copies of the database, are not ended: while they last, the log may become longer.
    pub log_bytes: u64,
    /// The least version that a commit gets, below 2^62. If copies of one database take turns, and each turn begins at a larger
    /// version than the one before could reach, no version is given twice, also if a copy lacks the last commits of another one.
    pub min_version: Version,
}

impl SqliteOptions {
    /// [`SqliteOptions::cache_bytes`] by default: 64 MiB, which is some 170,000 rows of 100 bytes.
    pub const CACHE_BYTES: u64 = 64 << 20;
    /// [`SqliteOptions::log_bytes`] by default: 256 MiB.
    pub const LOG_BYTES: u64 = 256 << 20;
    const LOG_BYTES_MIN: u64 = 1 << 20;
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Normal,
            create: true,
            other_tables: false,
            cache_bytes: Self::CACHE_BYTES,
            log_bytes: Self::LOG_BYTES,
            min_version: Version::ABSENT,
        }
    }
}

/// SQLite's numbers have 63 bits.
const MIN_VERSION_END: Version = Version(1 << 62);

/// What is done for a copy elsewhere.
enum Keeping {
    Plain,
    Positioned,
    Journaled(Arc<dyn Journal>),
}

/// A SQLite database.
pub struct Sqlite {
    readers: Arc<Readers>,
    writer: Arc<Writer>,
    closed: AtomicBool,
    /// Removed when the database is closed, or with the last handle: a process may end while a handle is left.
    private: Mutex<Option<TempDir>>,
}

impl Sqlite {
    /// Opens a database file, makes it where it isn't there, and brings larder's own tables up to date. It is called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the path is empty or `:memory:`.
    /// - [`Error::NotFound`] if the folder does not exist, or the file does not and must not be created.
    /// - [`Error::Unavailable`] if the file can't be opened.
    /// - [`Error::Corrupt`] if the file is not a database, or a table under one of larder's names is not larder's.
    /// - [`Error::Other`] if the database belongs to another application (see [`SqliteOptions::other_tables`]), or a
    ///   newer release of larder has migrated it.
    ///
    /// The path is resolved once: symlinks are followed and the working directory counts as it is now. If the file is
    /// moved, removed or replaced while it is open, every later call gets [`Error::Unavailable`].
    pub async fn open(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Plain).await
    }

    /// Opens a database in which every change moves [`Sqlite::redo_position`], so that two copies with one history are the
    /// same where their positions are. That stays so, whoever opens the file. It costs a write of records one page more.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_positioned(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Positioned).await
    }

    /// Opens a database, as [`Sqlite::open_positioned`], whose commits are acknowledged only once a journal has kept their
    /// redo.
    ///
    /// They are made in the file first. Reads of this process wait until the journal has kept what they see; readers of other
    /// processes do not, and [`Sqlite::backup`] does not: [`Sqlite::settled`] waits for it. Where the journal fails, its commits and those behind them get its error,
    /// and the database refuses everything but [`Sqlite::backup`], [`Sqlite::redo_position`] and [`Sqlite::changes`]:
    /// reads too, as they would show what was never acknowledged to those who look after the outcome of a commit. After
    /// a crash the file may hold such commits as well: [`Sqlite::redo_position`] tells how far it is.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_journaled(
        path: impl Into<PathBuf>,
        options: SqliteOptions,
        journal: Arc<dyn Journal>,
    ) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Journaled(journal)).await
    }

    /// Opens a private database in a temporary folder, which is removed when the database is closed, or with the last handle.
    ///
    /// # Errors
    /// As [`Sqlite::open`], and where there is no temporary folder.
    pub async fn open_private() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("larder-private-")
            .tempdir()
            .map_err(|error| Error::unavailable("a temporary folder can't be made", error))?;
        let path = folder.path().join("private.db");
        Self::open_in(
            path,
            SqliteOptions { durability: Durability::Off, ..SqliteOptions::default() },
            Some(folder),
            Keeping::Plain,
        )
        .await
    }

    /// Opens the database `name` in a temporary folder, as [`Sqlite::open_positioned`] does. The
    /// folder is removed when the database is closed, or with the last handle.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub async fn open_temporary(folder: TempDir, name: &str, options: SqliteOptions) -> Result<Self> {
        let path = folder.path().join(name);
        Self::open_in(path, options, Some(folder), Keeping::Positioned).await
    }

    async fn open_in(
        path: PathBuf,
        options: SqliteOptions,
        private: Option<TempDir>,
        keeping: Keeping,
    ) -> Result<Self> {
        if options.log_bytes < SqliteOptions::LOG_BYTES_MIN {
            return Err(Error::invalid_argument(format!(
                "log_bytes is {}, and must be at least {}",
                options.log_bytes,
                SqliteOptions::LOG_BYTES_MIN
            )));
        }
        if options.min_version >= MIN_VERSION_END {
            return Err(Error::invalid_argument(format!(
                "min_version is {}, and must be below 2^62",
                options.min_version.0
            )));
        }
        let positioned = !matches!(keeping, Keeping::Plain);
        let (location, connection, positioned) = blocking(move || {
            let location = Location::resolve(&path)?;
            let connection = connection::open_writer(&location, options)?;
            migrate::migrate(&connection, &location, options)?;
            file::check_tables(&connection)?;
            let positioned = file::is_positioned(&connection, positioned)?;
            location.check()?;
            Ok((Arc::new(location), connection, positioned))
        })
        .await?;
        let journal = match keeping {
            Keeping::Plain | Keeping::Positioned => None,
            Keeping::Journaled(journal) => Some(journal),
        };
        let readers = Arc::new(Readers::new(location, options));
        let writer = Writer::new(connection, &readers, options, positioned, journal)?;
        checkpoint::spawn(&readers, &writer);
        Ok(Self { readers, writer, closed: AtomicBool::new(false), private: Mutex::new(private) })
    }

    /// Writes what a database holds into the new file `into`, without what was deleted: no free pages,
    /// and no remains of rows within pages. `from` is a database that is closed, or a backup.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if `from` is damaged, and [`Error::Unavailable`] if either file can't be used.
    pub async fn compact(from: impl Into<PathBuf>, into: impl Into<PathBuf>) -> Result<()> {
        let (from, into) = (from.into(), into.into());
        blocking(move || backup::compact(&from, &into)).await
    }

    /// Checks that a file is an intact database of larder: its header, whose it is, its tables, and how its pages hang together.
    /// What a value is made of only a checksum can tell. A file without a log beside it is left exactly as it is.
    ///
    /// Nothing that is stored in the schema runs. If the file also holds tables or indexes that larder does not create, only
    /// larder's own tables are checked page by page, as a check of the others would compute their constraints, generated
    /// columns and indexes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it isn't, and [`Error::Unavailable`] where it can't be read.
    pub async fn verify(path: impl Into<PathBuf>) -> Result<()> {
        let path = path.into();
        blocking(move || file::verify(&path)).await
    }

    /// Copies the database to a new file, while commits go on: one committed state, whose position the answer gives.
    /// The copy is a single file, is checked page by page, and is on disk when this returns; nothing is left of it after an
    /// error.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::Unavailable`] if there is such a file already, or the database can't be read or the file written.
    /// - [`Error::Corrupt`] if a page of the copy is not as SQLite writes it.
    pub async fn backup(&self, to: &Path) -> Result<BackupInfo> {
        self.check_open()?;
        let (readers, writer, to) = (self.readers.clone(), self.writer.clone(), to.to_path_buf());
        blocking(move || backup::backup(&readers, &writer, &to)).await
    }

    /// The position of the last commit in the file, opened with [`Sqlite::open_positioned`] or a journal: it grows with
    /// every group of commits that writes anything. A sweep leaves it. Of a database opened otherwise it only says which
    /// version none is above, as versions are reserved many at once.
    ///
    /// # Errors
    /// [`Error::Closed`], and where the file can't be read.
    pub async fn redo_position(&self) -> Result<Version> {
        self.check_open()?;
        let reader = self.readers.take(&Share::host(), Instant::now() + connection::BUSY_TIMEOUT).await?;
        reader.read(rows::last_version)
    }

    /// Makes what a redo holds, or many one after the other, as far as the database does not hold it yet: all of it or
    /// nothing. A journal is not asked, as it is where redos come from.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the database counts no positions: it was never opened with
    ///   [`Sqlite::open_positioned`] or a journal.
    /// - [`Error::Corrupt`] if the bytes are not a redo, or it does not follow on what the database holds.
    /// - [`Error::Unavailable`] if the database can't be read or written; nothing was replayed.
    /// - [`Error::CommitUnknown`] if the disk gave no answer to the commit. Replaying again after the database was
    ///   opened anew is safe.
    pub async fn replay(&self, redo: &[u8]) -> Result<()> {
        self.check_open()?;
        let groups = core_redo::decode(redo)?;
        let writer = self.writer.clone();
        blocking(move || writer.replay(&groups)).await.map(drop)
    }

    /// Waits until the journal has kept every commit that was asked for before. Without a journal, it is enough that they
    /// are made.
    ///
    /// # Errors
    /// The journal's, as the members of those commits get it.
    pub async fn settled(&self) -> Result<()> {
        self.check_open()?;
        let writer = self.writer.clone();
        match blocking(move || Ok(writer.settle())).await? {
            None => Ok(()),
            Some(kept) => kept
                .await
                .map_err(|error| Error::caused("the journal's task ended before it answered", error))?
                .map(drop),
        }
    }

    /// How many commits, writes of records and sweeps changed something since this was opened. Each grows it by one.
    pub fn changes(&self) -> u64 {
        *self.writer.changes().borrow()
    }

    /// [`Sqlite::changes`], to wait for the next.
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.writer.changes().subscribe()
    }

    /// Closes, and makes sure that the database is one file: everything in it, and no log beside it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where a log is left, because another process or a snapshot that was not given back still
    /// reads it, or the disk is full. The journal's, where it did not keep everything. The database is closed all the same.
    pub async fn finish(&self) -> Result<()> {
        self.close().await;
        if let Some(failure) = self.writer.journal_failure() {
            return Err(failure);
        }
        // What lies at the path now may be another file's.
        self.readers.location().check_found()?;
        match self.readers.location().log_path().try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::Unavailable {
                reason: "the database's log could not be moved into it: somebody else has it open, or the disk is full"
                    .to_string(),
                cause: None,
            }),
            Err(error) => Err(Error::unavailable("the database's folder can't be read", error)),
        }
    }

    /// Reads the newest state with one statement, on this thread.
    async fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T> + Send) -> Result<T> {
        self.read_for(&Share::host(), work).await
    }

    async fn read_for<T>(
        &self,
        share: &Share,
        work: impl FnOnce(&Connection) -> Result<T> + Send,
    ) -> Result<T> {
        self.check_readable()?;
        let reader = self.readers.take(share, Instant::now() + connection::BUSY_TIMEOUT).await?;
        let found = reader.read(work)?;
        drop(reader);
        self.writer.kept_until(Instant::now() + connection::BUSY_TIMEOUT).await?;
        Ok(found)
    }

    /// After a commit whose outcome is unknown, guests and memory look for it in the database. What the journal did
    /// not keep must not be found there.
    fn check_readable(&self) -> Result<()> {
        self.check_open()?;
        self.writer.journal_failure().map_or(Ok(()), Err)
    }

    /// Whether the database refuses reads and commits until it is opened again, as its journal lacks a commit that it may hold.
    pub fn has_failed(&self) -> bool {
        self.writer.journal_failure().is_some()
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.readers.location().check_found()
    }
}

#[async_trait]
impl Backend for Sqlite {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.readers.attach(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        self.check_readable()?;
        let deadline = options.deadline;
        let snapshot = SqliteSnapshot::take(&self.readers, &self.writer, options).await?;
        self.writer.kept_until(deadline).await?;
        Ok(Box::new(snapshot))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        self.check_open()?;
        let deadline = Instant::now() + connection::BUSY_TIMEOUT;
        validation::commit(&self.readers, &self.writer, commit, None, deadline).await
    }

    async fn stored_bytes(&self) -> Result<u64> {
        self.check_open()?;
        let readers = self.readers.clone();
        // The first commit waits for it, and so it does not wait for guests to give back a connection.
        blocking(move || rows::stored_bytes(&readers.open_beside()?.connection)).await
    }

    async fn recount(&self) -> Result<u64> {
        self.check_open()?;
        let readers = self.readers.clone();
        blocking(move || readers.recount()).await
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        self.check_open()?;
        let writer = self.writer.clone();
        if !options.is_closing {
            writer.keep_pause().await;
        }
        blocking(move || writer.sweep(&options)).await
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        self.read_for(&key.share(), |connection| records::load(connection, key)).await
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
        self.check_open()?;
        let readers = self.readers.clone();
        let found = blocking(move || readers.location().check()).await;
        // A close removes the log.
        self.check_open()?;
        found?;
        self.read(rows::last_version).await.map(drop)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.readers.close();
        // Reads that are under way end; whoever keeps a snapshot for longer moves the log with its end.
        if !self.readers.wait_until_gone(CLOSE_WAIT).await {
            tracing::warn!("snapshots of a closed database were not given back");
        }
        let writer = self.writer.clone();
        // It only fails where the runtime is shutting down, which drops the connection too.
        let shipper = tokio::task::spawn_blocking(move || writer.close()).await;
        if let Ok(Some(shipper)) = shipper {
            // It never panics: the journal is called in a task of its own.
            let _ = shipper.await;
        }
        let private = self.private.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(private);
    }
}

/// How long a close waits for snapshots to be given back.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

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
        for is_closed in [true, false] {
            let database = Sqlite::open_private().await.unwrap();
            let folder = database.private.lock().unwrap().as_ref().unwrap().path().to_path_buf();
            database.ping().await.unwrap();
            assert!(folder.join("private.db").is_file());
            if is_closed {
                database.close().await;
                assert!(!folder.exists());
            }
            drop(database);
            assert!(!folder.exists());
        }
    }
}
