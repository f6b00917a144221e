//! The SQLite backend of larder, the embedded default.
//!
//! A store is one database file in WAL mode. Snapshots read committed rows from a cache in memory,
//! and rows that are not cached through pooled connections. One writer commits the transactions
//! that wait as one SQLite transaction (group commit). Other processes may use the same file: each
//! commit validates its reads against the newest committed state of the file.
//!
//! ```no_run
//! # async fn example() -> larder_core::Result<()> {
//! use larder_core::Store;
//! use larder_sqlite::{Sqlite, SqliteOptions};
//!
//! let database = Sqlite::open("plugins.db", SqliteOptions::default()).await?;
//! let store = Store::builder(database).build()?;
//! # Ok(()) }
//! ```
//!
//! [`SqliteMigrator`] migrates a platform's own tables by the same rules as larder's, in the same
//! file or in another one.
//!
//! # The linked SQLite
//!
//! This crate builds SQLite, in the release of the `rusqlite` that Cargo chose. Releases before
//! 3.51.3 can corrupt a database in WAL mode. If Cargo chose one of them, because another crate of
//! the program asks for it, opening a database fails, and the cause is [`UnsafeSqlite`].

mod backup;
mod checkpoint;
mod commit_clock;
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
mod release;
mod row_cache;
mod rows;
mod script;
mod snapshot;
mod state_number;
mod transaction;
mod turn;
mod unsigned;
mod validation;
mod waiting;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::redo::{self as core_redo, Journal};
use larder_core::row::Version;
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{Error, OpenSnapshots, Result, Share, option_setters};
use parking_lot::Mutex;
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::watch;

/// The release of `rusqlite` whose connection [`SqliteMigrator::with_connection`] passes to the
/// caller.
pub use rusqlite;

pub use backup::BackupInfo;
pub use dsn::SqliteDriver;
use location::Location;
pub use migrator::SqliteMigrator;
use readers::Readers;
pub use release::UnsafeSqlite;
use snapshot::SqliteSnapshot;
use writer::Writer;

/// SQLite's setting `synchronous`: the failure that an acknowledged commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synchronous {
    /// Commits survive the end of the process, but not a crash of the machine.
    ///
    /// A power cut may corrupt the file.
    Off,
    /// Commits survive the end of the process, `kill -9` included.
    ///
    /// A power cut may lose the latest commits, but does not corrupt the file.
    #[default]
    Normal,
    /// Commits survive a power cut.
    ///
    /// The write-ahead log is synced before a commit is acknowledged, once per group of commits.
    Full,
}

/// Options for opening a database.
///
/// ```
/// use larder_sqlite::{SqliteOptions, Synchronous};
///
/// let options = SqliteOptions::default().synchronous(Synchronous::Full);
/// assert_eq!(options.cache_bytes, SqliteOptions::CACHE_BYTES);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// SQLite's setting `synchronous`. It decides which failure an acknowledged commit survives.
    ///
    /// The option of a data-source name is `durability`.
    pub synchronous: Synchronous,
    /// Whether to create the file if it does not exist.
    pub create: bool,
    /// Whether larder may add its tables to a database that already holds other tables.
    ///
    /// Set this to share the file with a platform's own tables. If `false`, such a database is
    /// refused, because the path is most likely wrong. Tables that the platform adds after larder's
    /// are never a reason to refuse a database.
    pub other_tables: bool,
    /// Approximate size of the cache of committed rows, in bytes; 0 disables it.
    ///
    /// A cached row is read several times faster than a row in the file. A quarter of the size is
    /// for scanned ranges. Commits of other processes empty the cache. The writer's SQLite page
    /// cache takes up to a quarter of this size in addition, and at least 2 MB.
    pub cache_bytes: u64,
    /// Bound of the write-ahead log, in bytes; at least 1 MiB.
    ///
    /// A commit may exceed it by its own size. A snapshot that prevents the log from restarting is
    /// ended with [`Error::TimedOut`]: if it is older than 1 s once the log has reached a quarter
    /// of the bound, older than 100 ms at a half, and older than 10 ms at three quarters. At the
    /// bound, commits wait until the log can restart. Larder cannot end readers of other processes
    /// or copies of the database: while they last, the log may exceed the bound.
    pub log_bytes: u64,
    /// Lower bound of the versions that commits get, below 2^62.
    ///
    /// It is for copies of one database that are used one after another. If each use begins with a
    /// lower bound that the previous one could not reach, no version is allocated twice, even if a
    /// copy lacks the latest commits of another.
    pub min_version: Version,
}

option_setters!(SqliteOptions {
    synchronous: Synchronous,
    create: bool,
    other_tables: bool,
    cache_bytes: u64,
    log_bytes: u64,
    min_version: Version,
});

impl SqliteOptions {
    /// The default of [`SqliteOptions::cache_bytes`]: 64 MiB, about 170,000 rows of 100 bytes.
    pub const CACHE_BYTES: u64 = 64 << 20;
    /// The default of [`SqliteOptions::log_bytes`]: 256 MiB.
    pub const LOG_BYTES: u64 = 256 << 20;
    const LOG_BYTES_MIN: u64 = 1 << 20;
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            synchronous: Synchronous::Normal,
            create: true,
            other_tables: false,
            cache_bytes: Self::CACHE_BYTES,
            log_bytes: Self::LOG_BYTES,
            min_version: Version::ABSENT,
        }
    }
}

/// SQLite's integers are signed and have 64 bits. A minimum below 2^62 leaves 2^62 versions.
const MIN_VERSION_END: Version = Version(1 << 62);

/// How a database keeps track of its changes for a copy elsewhere.
enum Keeping {
    Plain,
    Positioned,
    Journaled(Arc<dyn Journal>),
}

/// A SQLite database, as a backend of a store.
///
/// ```no_run
/// # async fn example() -> larder_core::Result<()> {
/// use larder_core::Store;
/// use larder_sqlite::{Sqlite, SqliteOptions};
///
/// let database = Sqlite::open("plugins.db", SqliteOptions::default()).await?;
/// let store = Store::builder(database).build()?;
/// store.close().await;
/// # Ok(()) }
/// ```
pub struct Sqlite {
    readers: Arc<Readers>,
    writer: Arc<Writer>,
    closed: AtomicBool,
    /// The directory of a temporary database. It is removed on close, or with the last handle,
    /// because a process may end without a close.
    private: Mutex<Option<TempDir>>,
}

impl Sqlite {
    /// Opens a database file, and migrates larder's own tables.
    ///
    /// Creates the file if it does not exist and [`SqliteOptions::create`] is set. Must be called
    /// within a tokio runtime.
    ///
    /// The path is resolved once: symlinks are followed, and a relative path is based on the
    /// current working directory. If the file is moved, removed or replaced while it is open, every
    /// later call fails with [`Error::Unavailable`].
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the path is empty, is `:memory:` or is not a regular file,
    ///   or an option is out of range.
    /// - [`Error::NotFound`] if the directory does not exist, or the file does not and must not be
    ///   created.
    /// - [`Error::Unavailable`] if the file cannot be opened, or another process holds its lock for
    ///   too long.
    /// - [`Error::Corrupt`] if the file is not a database, or a table under one of larder's names
    ///   is not larder's.
    /// - [`Error::Other`] if the database belongs to another application (see
    ///   [`SqliteOptions::other_tables`]), a newer release of larder has migrated it, the
    ///   process may not write it, or the linked SQLite is unsafe ([`UnsafeSqlite`]).
    pub async fn open(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Plain).await
    }

    /// Opens a database whose every change moves [`Sqlite::redo_position`].
    ///
    /// Two copies with a common history are then equal if their positions are. The file keeps this
    /// property, however it is opened later. A write of records costs one additional page.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the path is empty, is `:memory:` or is not a regular file,
    ///   or an option is out of range.
    /// - [`Error::NotFound`] if the directory does not exist, or the file does not and must not be
    ///   created.
    /// - [`Error::Unavailable`] if the file cannot be opened, or another process holds its lock for
    ///   too long.
    /// - [`Error::Corrupt`] if the file is not a database, or a table under one of larder's names
    ///   is not larder's.
    /// - [`Error::Other`] if the database belongs to another application (see
    ///   [`SqliteOptions::other_tables`]), a newer release of larder has migrated it, the
    ///   process may not write it, or the linked SQLite is unsafe ([`UnsafeSqlite`]).
    pub async fn open_positioned(path: impl Into<PathBuf>, options: SqliteOptions) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Positioned).await
    }

    /// Opens a database that acknowledges a commit once a journal has kept its redo.
    ///
    /// The database is positioned, as with [`Sqlite::open_positioned`]. A commit is made in the
    /// file first, and its redo is then handed to the journal. Reads through this `Sqlite` wait
    /// until the journal has kept the commits that they see. Readers of other processes do not
    /// wait, nor does [`Sqlite::backup`]; [`Sqlite::settled`] waits.
    ///
    /// If the journal fails, the commits that it was handed and all later ones fail with its error.
    /// The database then refuses everything but [`Sqlite::backup`], [`Sqlite::redo_position`] and
    /// [`Sqlite::changes`]. It refuses reads too: a caller that reads to find the outcome of a
    /// commit must not see one that was never acknowledged. After a crash the file may also hold
    /// such commits. [`Sqlite::redo_position`] returns the position that the file has reached.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the path is empty, is `:memory:` or is not a regular file,
    ///   or an option is out of range.
    /// - [`Error::NotFound`] if the directory does not exist, or the file does not and must not be
    ///   created.
    /// - [`Error::Unavailable`] if the file cannot be opened, or another process holds its lock for
    ///   too long.
    /// - [`Error::Corrupt`] if the file is not a database, or a table under one of larder's names
    ///   is not larder's.
    /// - [`Error::Other`] if the database belongs to another application (see
    ///   [`SqliteOptions::other_tables`]), a newer release of larder has migrated it, the
    ///   process may not write it, or the linked SQLite is unsafe ([`UnsafeSqlite`]).
    pub async fn open_journaled(
        path: impl Into<PathBuf>,
        options: SqliteOptions,
        journal: Arc<dyn Journal>,
    ) -> Result<Self> {
        Self::open_in(path.into(), options, None, Keeping::Journaled(journal)).await
    }

    /// Opens a private database in a temporary directory.
    ///
    /// The directory is removed when the database is closed, or with its last handle.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the temporary directory or the database in it cannot be created.
    pub async fn open_private() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-private-").tempdir().map_err(|error| {
            Error::unavailable("cannot create a directory for a temporary database", error)
        })?;
        let path = folder.path().join("private.db");
        Self::open_in(
            path,
            SqliteOptions::default().synchronous(Synchronous::Off),
            Some(folder),
            Keeping::Plain,
        )
        .await
    }

    /// Opens the database `name` in a temporary directory, as a positioned one.
    ///
    /// The database is positioned, as with [`Sqlite::open_positioned`]. The directory is removed
    /// when the database is closed, or with its last handle.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if an option is out of range, or `name` does not name a regular
    ///   file.
    /// - [`Error::NotFound`] if the file does not exist and must not be created.
    /// - [`Error::Unavailable`] if the file cannot be opened, or another process holds its lock for
    ///   too long.
    /// - [`Error::Corrupt`] if the file is not a database, or a table under one of larder's names
    ///   is not larder's.
    /// - [`Error::Other`] if the database belongs to another application (see
    ///   [`SqliteOptions::other_tables`]), a newer release of larder has migrated it, the
    ///   process may not write it, or the linked SQLite is unsafe ([`UnsafeSqlite`]).
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
                "log_bytes is {}, but must be at least {}",
                options.log_bytes,
                SqliteOptions::LOG_BYTES_MIN
            )));
        }
        if options.min_version >= MIN_VERSION_END {
            return Err(Error::invalid_argument(format!(
                "min_version is {}, but must be below 2^62",
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

    /// Writes the contents of a database to the new file `into`, without deleted data.
    ///
    /// The new file has no free pages, and its pages hold no remains of deleted rows. `from` is a
    /// closed database or a backup.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if `from` is damaged.
    /// - [`Error::Unavailable`] if either file cannot be read or written.
    pub async fn compact(from: impl Into<PathBuf>, into: impl Into<PathBuf>) -> Result<()> {
        let (from, into) = (from.into(), into.into());
        blocking(move || backup::compact(&from, &into)).await
    }

    /// Checks that a file is an intact larder database.
    ///
    /// It checks the header, the owner, the tables and the structure of the pages. It cannot detect
    /// a changed value, which takes a checksum. A file without a write-ahead log beside it is not
    /// changed.
    ///
    /// No code that is stored in the schema runs. If the file also holds tables or indexes that
    /// larder does not create, only the pages of larder's own tables are checked: a check of the
    /// others would evaluate their constraints, generated columns and indexes.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if the file is not an intact larder database.
    /// - [`Error::Unavailable`] if the file cannot be read.
    /// - [`Error::InvalidArgument`] if the path is not that of a regular file.
    /// - [`Error::NotFound`] if the directory of the file does not exist.
    pub async fn verify(path: impl Into<PathBuf>) -> Result<()> {
        let path = path.into();
        blocking(move || file::verify(&path)).await
    }

    /// Copies one committed state of the database to a new file, while commits go on.
    ///
    /// The copy is a single file. When this returns, its pages are checked and it is synced to
    /// disk. After an error, no part of the copy is left.
    ///
    /// ```no_run
    /// # async fn example(database: larder_sqlite::Sqlite) -> larder_core::Result<()> {
    /// let backup = database.backup("backup.db".as_ref()).await?;
    /// println!("{} bytes at {:?}", backup.bytes, backup.position);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store is closed.
    /// - [`Error::Unavailable`] if the file `to` exists or cannot be written, or the database
    ///   cannot be read.
    /// - [`Error::Corrupt`] if a page of the copy is damaged.
    pub async fn backup(&self, to: &Path) -> Result<BackupInfo> {
        self.check_open()?;
        let (readers, writer, to) = (self.readers.clone(), self.writer.clone(), to.to_path_buf());
        blocking(move || backup::backup(&readers, &writer, &to)).await
    }

    /// Returns the position of the last commit in the file.
    ///
    /// In a database that was opened with [`Sqlite::open_positioned`] or a journal, the position
    /// grows with every group of commits that writes anything. A sweep does not change it. In any
    /// other database it is only an upper bound of the versions in use, because versions are
    /// reserved in blocks.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the database is closed.
    /// - [`Error::Unavailable`] if the file cannot be read, or no connection becomes free in time.
    pub async fn redo_position(&self) -> Result<Version> {
        self.check_open()?;
        let reader = self.readers.take(&Share::host(), Instant::now() + connection::BUSY_TIMEOUT).await?;
        reader.read(rows::last_version)
    }

    /// Replays the groups of one or more redos that the database does not hold yet.
    ///
    /// Either all of them are committed or none is. The journal is not called, because redos come
    /// from it.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the database is closed.
    /// - [`Error::InvalidArgument`] if the database does not count positions, because it was never
    ///   opened with [`Sqlite::open_positioned`] or a journal.
    /// - [`Error::Corrupt`] if the bytes are not a valid redo, or the redo does not continue from
    ///   the position of the database.
    /// - [`Error::Unavailable`] if the database cannot be read or written. Nothing was replayed.
    /// - [`Error::CommitUnknown`] if the disk did not confirm the commit. Replaying again is safe
    ///   after the database was reopened.
    pub async fn replay(&self, redo: &[u8]) -> Result<()> {
        self.check_open()?;
        let groups = core_redo::decode(redo)?;
        let writer = self.writer.clone();
        blocking(move || writer.replay(&groups)).await.map(drop)
    }

    /// Waits until the journal has kept every commit that was requested before this call.
    ///
    /// Without a journal, waits until these commits are made.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the database is closed.
    /// - The error of the journal, which the commits fail with as well, if it did not keep all of
    ///   them.
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

    /// Returns how many changes this `Sqlite` has made since it was opened.
    ///
    /// A commit, a record write or a sweep counts as one change if it changed anything.
    pub fn changes(&self) -> u64 {
        *self.writer.changes().borrow()
    }

    /// Returns a receiver of [`Sqlite::changes`], to wait for the next change.
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.writer.changes().subscribe()
    }

    /// Closes the database, and checks that a single file holds all of it.
    ///
    /// No write-ahead log may be left beside the file. The database is closed even if this fails.
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if a log is left, because another process or a snapshot that was
    ///   not dropped still reads it, or the disk is full.
    /// - [`Error::Unavailable`] if the file was moved, removed or replaced while it was open.
    /// - The error of the journal, if it did not keep every commit.
    pub async fn finish(&self) -> Result<()> {
        self.close().await;
        if let Some(failure) = self.writer.journal_failure() {
            return Err(failure);
        }
        // If the file was replaced, a log at this path may belong to another database.
        self.readers.location().check_found()?;
        match self.readers.location().log_path().try_exists() {
            Ok(false) => Ok(()),
            Ok(true) => Err(Error::Unavailable {
                reason: "cannot checkpoint the write-ahead log into the database: another process has it open, or the disk is full"
                    .to_string(),
                cause: None,
            }),
            Err(error) => Err(Error::unavailable("cannot look for the write-ahead log in the directory of the database", error)),
        }
    }

    /// Reads the newest state with one statement, on the caller's thread.
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
        let kept = self.writer.kept_until(Instant::now() + connection::BUSY_TIMEOUT).await;
        // No transaction has timed out: the journal has not kept a commit that the read sees.
        kept.map_err(|error| match error {
            Error::TimedOut => {
                Error::unavailable("an earlier commit is not in the redo log yet; try again later", error)
            }
            error => error,
        })?;
        Ok(found)
    }

    /// Refuses reads after the journal has failed.
    ///
    /// After a commit with an unknown outcome, guests and conversations read the database to find
    /// the outcome. They must not find a commit that the journal did not keep.
    fn check_readable(&self) -> Result<()> {
        self.check_open()?;
        self.writer.journal_failure().map_or(Ok(()), Err)
    }

    /// Whether the database refuses reads and commits until it is reopened.
    ///
    /// It does so after the journal has failed, because the file may hold a commit that the journal
    /// lacks.
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
        // The store's first commit waits for this count, so it must not wait for a pooled
        // connection that guests hold.
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
        // A concurrent close removes the log, which the check reports as a lost file. `Closed` is
        // the error then.
        self.check_open()?;
        found?;
        self.read(rows::last_version).await.map(drop)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.readers.close();
        // Reads in progress end by themselves. If a snapshot outlives the wait, the end of its
        // connection checkpoints the log.
        if !self.readers.wait_until_gone(CLOSE_WAIT).await {
            tracing::warn!("closing a database while snapshots of it are open");
        }
        let writer = self.writer.clone();
        // This fails only if the runtime is shutting down, which drops the connection too.
        let shipper = tokio::task::spawn_blocking(move || writer.close()).await;
        if let Ok(Some(shipper)) = shipper {
            // The task does not panic: it calls the journal in a task of its own.
            let _ = shipper.await;
        }
        let private = self.private.lock().take();
        drop(private);
    }
}

/// How long a close waits for snapshots to be dropped.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

/// Runs blocking work on a thread of the runtime's blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::caused("the work on the database did not end", error))?
}

/// The program of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_private_database_leaves_no_file() {
        for is_closed in [true, false] {
            let database = Sqlite::open_private().await.unwrap();
            let folder = database.private.lock().as_ref().unwrap().path().to_path_buf();
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
