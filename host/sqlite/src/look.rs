//! Connections that read a database file without changing a byte of it or creating a file beside
//! it.
//!
//! A read-only connection of SQLite creates the write-ahead log and its index. These files then
//! belong to the user who reads, and the owner of the database can no longer write. So the way to
//! open the file depends on the files beside it:
//!
//! - No log: the file holds everything, and is read as immutable, without a lock. Another process
//!   may begin to write in the meantime, so after each read the file must be unchanged, and have no
//!   rollback journal. Every write to the file is preceded by a log or a journal beside it, so both
//!   are looked up after the state of the file was recorded.
//! - A log and its index: an ordinary read-only connection, which may neither create nor write the
//!   index.
//! - A log without an index, as after a copy: SQLite builds the index in memory, which takes an
//!   exclusive lock on the file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use larder_core::error::Cause;
use larder_core::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use crate::connection::{distrust_schema, wait_for_locks};
use crate::error::SqliteError;
use crate::location::{Location, LookCount, with_suffix};

/// How long to wait for a lock. Other processes hold the locks that are needed either for
/// milliseconds or indefinitely.
const WAIT: Duration = Duration::from_millis(500);

/// The coarsest resolution, of a file system with fractions of a second, of the time of a write.
const TICK: Duration = Duration::from_millis(50);

/// The same for a time without a fraction of a second.
const COARSE_TICK: Duration = Duration::from_secs(2);

/// How often a read is tried again because another process changed the file.
const ATTEMPTS: usize = 20;

/// A connection for reading only.
pub(crate) struct Look {
    connection: Connection,
    /// The state of the file when it was opened as immutable. `None` if SQLite's locks protect the
    /// reads.
    immutable: Option<Stamp>,
    _count: Option<LookCount>,
}

/// Distinguishes two contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: SystemTime,
    identity: (u64, u64),
}

/// The file of the database that an error is about. It is the cause of the error, which guests do
/// not see.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path:?}: {because}")]
struct FileError {
    what: &'static str,
    path: PathBuf,
    because: Cause,
}

impl Look {
    /// Opens a database file.
    ///
    /// # Errors
    /// - [`Error::NotFound`] if it does not exist.
    /// - [`Error::Unavailable`] if it cannot be read without changing it.
    pub(crate) fn open(location: &Location) -> Result<Self> {
        location.check_exists()?;
        let (path, log) = (location.path(), location.log_path());
        for _ in 0..ATTEMPTS {
            match (length(log)?, length(location.index_path())?.is_some()) {
                (None | Some(0), false) | (None, true) => {
                    if let Some(look) = Self::open_immutable(location)? {
                        return Ok(look);
                    }
                }
                (Some(_), true) => return Self::open_shared(location),
                (Some(_), false) => return Self::open_alone(path, log),
            }
        }
        Err(changed())
    }

    /// Opens a file that has no log. `None` if it has one by now.
    fn open_immutable(location: &Location) -> Result<Option<Self>> {
        let path = location.path();
        let since = Instant::now();
        let stamp = loop {
            let stamp = Stamp::settled(path)?;
            if has_log(location)? {
                return Ok(None);
            }
            match unfinished_transaction(path)? {
                None => break stamp,
                Some(journal) if since.elapsed() >= WAIT => {
                    let state = "it holds an unfinished transaction; wait for the process that writes, or open the \
                                 database for writing to recover it";
                    let what = "cannot read a database that has the rollback journal";
                    return Err(failed(what, &journal, std::io::Error::other(state)));
                }
                Some(_) => std::thread::sleep(TICK),
            }
        };
        let connection = open(path, "mode=ro&immutable=1", OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        Ok(Some(Self { connection, immutable: Some(stamp), _count: None }))
    }

    fn open_shared(location: &Location) -> Result<Self> {
        let (path, log) = (location.path(), location.log_path());
        let count = location.begin_look()?;
        let connection = open(path, "mode=ro&readonly_shm=1", OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        read_schema(&connection)
            .map_err(|error| failed_with("cannot read the write-ahead log", log, error))?;
        Ok(Self { connection, immutable: None, _count: Some(count) })
    }

    fn open_alone(path: &Path, log: &Path) -> Result<Self> {
        let connection = open(path, "mode=rw", OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        if connection.is_readonly(MAIN_DB).map_err(SqliteError::from)? {
            let state = "its index (-shm) is missing, and only a user who may write the database can build it; copy \
                         both files to a directory of your own and read the copy";
            return Err(failed("cannot read the write-ahead log", log, std::io::Error::other(state)));
        }
        let exclusive = connection.query_row("PRAGMA main.locking_mode = EXCLUSIVE", [], |_| Ok(()));
        exclusive.map_err(SqliteError::from)?;
        connection.pragma_update(None, "query_only", true).map_err(SqliteError::from)?;
        read_schema(&connection)
            .map_err(|error| failed_with("cannot read the write-ahead log", log, error))?;
        Ok(Self { connection, immutable: None, _count: None })
    }

    /// Whether the file is open without a lock. Closing such a connection drops the locks that
    /// other connections of this process have on the file, so it must not be closed while one of
    /// them reads.
    pub(crate) fn is_without_lock(&self) -> bool {
        self.immutable.is_some()
    }

    /// Whether this connection may serve another snapshot.
    pub(crate) fn is_current(&self, location: &Location) -> Result<bool> {
        // A log that was created since then holds newer commits.
        let is_newest = self.immutable.is_none() || !has_log(location)?;
        Ok(is_newest && self.is_unchanged(location)?)
    }

    /// Whether all reads so far saw one committed state.
    fn is_unchanged(&self, location: &Location) -> Result<bool> {
        match self.immutable {
            None => Ok(true),
            Some(stamp) => {
                let path = location.path();
                Ok(Stamp::of(path)? == stamp && unfinished_transaction(path)?.is_none())
            }
        }
    }

    /// Ends the transaction of a snapshot.
    pub(crate) fn end(&self) -> Result<(), SqliteError> {
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        Ok(())
    }

    /// Reads with this connection.
    ///
    /// # Errors
    /// The error of `work`, and [`Error::Unavailable`] if another process changed the file in the
    /// meantime.
    pub(crate) fn read<T>(
        &self,
        location: &Location,
        work: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let outcome = work(&self.connection);
        // A mixture of two states may also look like a damaged file, so the check precedes the
        // outcome.
        if self.is_unchanged(location)? { outcome } else { Err(changed()) }
    }
}

/// Opens a file and reads from it. Tries again if another process changed the file. Connections
/// that are no longer used go to `retire`.
pub(crate) fn read_anew<T>(
    location: &Location,
    mut idle: Option<Look>,
    retire: impl Fn(Look),
    mut work: impl FnMut(&Connection) -> Result<T>,
) -> Result<(T, Look)> {
    for _ in 0..ATTEMPTS {
        let look = match idle.take() {
            Some(look) if look.is_current(location)? => look,
            stale => {
                stale.into_iter().for_each(&retire);
                Look::open(location)?
            }
        };
        let outcome = work(&look.connection);
        match (look.is_current(location)?, outcome) {
            (true, Ok(found)) => return Ok((found, look)),
            (true, Err(error)) => {
                retire(look);
                return Err(error);
            }
            (false, _) => retire(look),
        }
    }
    Err(changed())
}

fn changed() -> Error {
    Error::Unavailable {
        reason: "another process changed the database while it was read; try again".to_string(),
        cause: None,
    }
}

fn open(path: &Path, options: &str, access: OpenFlags) -> Result<Connection> {
    let uri = format!("file:{}?{options}", percent_encode(path.as_os_str().as_encoded_bytes(), UNRESERVED));
    let flags = access | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)
        .map_err(|error| failed_with("cannot open the database", path, error.into()))?;
    wait_for_locks(&connection, WAIT)?;
    distrust_schema(&connection)?;
    // The log must stay as it is, even if this is the last connection to close.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(SqliteError::from)?;
    Ok(connection)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

/// The first read opens the log and its index.
fn read_schema(connection: &Connection) -> Result<(), SqliteError> {
    Ok(connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?)
}

/// The length of a file; `None` if it does not exist. The file is not opened, because closing it
/// would drop this process's locks.
fn length(path: &Path) -> Result<Option<u64>> {
    match path.metadata() {
        Ok(file) => Ok(Some(file.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("cannot read the metadata of the file", path, error)),
    }
}

/// Whether the log may hold commits that the file does not.
fn has_log(location: &Location) -> Result<bool> {
    Ok(length(location.log_path())?.is_some_and(|length| length > 0))
}

/// The rollback journal, if it holds a transaction: parts of it may be in the file. A journal that
/// is kept after its transaction is empty or begins with a zero. So does one whose transaction has
/// not written to the file yet.
fn unfinished_transaction(path: &Path) -> Result<Option<PathBuf>> {
    let journal = with_suffix(path, "-journal");
    let begins = || -> std::io::Result<bool> {
        let file = journal.metadata()?;
        // Anything but a regular file is not SQLite's, and opening it might block.
        if !file.is_file() {
            return Ok(true);
        }
        let mut first = [0];
        Ok(file.len() > 0 && File::open(&journal)?.read(&mut first)? > 0 && first != [0])
    };
    match begins() {
        Ok(begins) => Ok(begins.then_some(journal)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // The file must be readable: its length alone does not tell.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Some(journal)),
        Err(error) => Err(failed("cannot read the rollback journal", &journal, error)),
    }
}

impl Stamp {
    /// The state of a file whose last write is so long ago that any further write changes its time.
    fn settled(path: &Path) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            let stamp = Self::of(path)?;
            match stamp.until_settled() {
                None => return Ok(stamp),
                Some(wait) => std::thread::sleep(wait),
            }
        }
        Err(changed())
    }

    fn of(path: &Path) -> Result<Self> {
        let stamp = || {
            let file = path.metadata()?;
            Ok(Self { length: file.len(), modified: file.modified()?, identity: identity(&file) })
        };
        stamp().map_err(|error: std::io::Error| failed("cannot read the metadata of the file", path, error))
    }

    /// How long it takes until a further write gets another time than the last one.
    fn until_settled(&self) -> Option<Duration> {
        let fraction =
            self.modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let tick = if fraction == 0 { COARSE_TICK } else { TICK };
        // A time in the future does not wait: it is not the current tick.
        let age = SystemTime::now().duration_since(self.modified).ok()?;
        tick.checked_sub(age).filter(|wait| !wait.is_zero())
    }
}

#[cfg(unix)]
fn identity(file: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino())
}

#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> (u64, u64) {
    (0, 0)
}

/// Adds the file to an error of SQLite.
fn failed_with(what: &'static str, path: &Path, error: SqliteError) -> Error {
    match error.into() {
        Error::Unavailable { reason, cause: Some(because) } => {
            Error::unavailable(reason, FileError { what, path: path.to_path_buf(), because })
        }
        error => error,
    }
}

fn failed(what: &'static str, path: &Path, because: std::io::Error) -> Error {
    let error = FileError { what, path: path.to_path_buf(), because: Arc::new(because) };
    Error::unavailable("cannot read the database without changing it", error)
}
