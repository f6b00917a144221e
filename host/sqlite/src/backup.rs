//! Copies of a whole database while commits go on.
//!
//! SQLite's backup makes the copy, from a connection that holds a read transaction throughout. In
//! WAL mode, that transaction sees one committed state whatever is committed meanwhile: the backup
//! never restarts, and the position that is read in the same transaction is that of the copy.
//! (`VACUUM INTO` cannot run within a transaction, so no position could be read together with it.)

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use larder_core::row::Version;
use larder_core::{Error, Result};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags};

use crate::connection::distrust_schema;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::location::with_suffix;
use crate::readers::Readers;
use crate::writer::Writer;
use crate::{file, release, rows};

/// The contents of a backup.
///
/// ```no_run
/// # async fn example(database: larder_sqlite::Sqlite) -> larder_core::Result<()> {
/// let backup = database.backup("backup.db".as_ref()).await?;
/// println!("{} bytes, after {} changes", backup.bytes, backup.changes);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// The position of the copied state.
    ///
    /// The copy holds every commit up to this value of
    /// [`Sqlite::redo_position`](crate::Sqlite::redo_position), and none after it.
    pub position: Version,
    /// The number of changes of this process in the copied state.
    ///
    /// The copy holds every change up to this value of [`Sqlite::changes`](crate::Sqlite::changes),
    /// and none after it.
    pub changes: u64,
    /// The size of the file in bytes.
    pub bytes: u64,
}

/// Makes a backup, on the calling thread.
pub(crate) fn backup(readers: &Arc<Readers>, writer: &Arc<Writer>, to: &Path) -> Result<BackupInfo> {
    let source = readers.open_beside()?;
    // Only a file that was created here is written: a backup never overwrites another file.
    let file = File::create_new(to).map_err(|error| {
        Error::unavailable("cannot create the file of the backup; it must not exist yet", error)
    })?;
    let copied = copy(&source.connection, writer, to, &file);
    if copied.is_err() {
        for path in [to.to_path_buf(), with_suffix(to, "-wal"), with_suffix(to, "-shm")] {
            // The log and its index may never have existed.
            drop(std::fs::remove_file(path));
        }
    }
    copied
}

fn copy(source: &Connection, writer: &Arc<Writer>, to: &Path, file: &File) -> Result<BackupInfo> {
    let (position, changes) = writer.between_commits(|changes| begin(source).map(|at| (at, changes)))?;
    copy_pages(source, to)?;
    source.execute_batch("ROLLBACK").map_err(SqliteError::from)?;
    let found = finish(to)?;
    if found != position {
        return Err(Error::Corrupt(format!(
            "the backup of a database at position {} is at position {}",
            position.0, found.0
        )));
    }
    let synced = || -> std::io::Result<u64> {
        file.sync_all()?;
        sync_folder(to)?;
        Ok(file.metadata()?.len())
    };
    let bytes = synced().map_err(|error| Error::unavailable("cannot sync the backup to disk", error))?;
    Ok(BackupInfo { position, changes, bytes })
}

/// Begins the read transaction. The first read fixes the state that it sees.
fn begin(source: &Connection) -> Result<Version> {
    source.execute_batch("BEGIN").map_err(SqliteError::from)?;
    rows::last_version(source)
}

fn copy_pages(source: &Connection, to: &Path) -> Result<()> {
    let mut target = open(to)?;
    let mut step = || -> SqliteResult<StepResult> {
        // An unfinished file is removed, and a finished one is synced, so SQLite needs neither
        // journal nor sync.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        Ok(Backup::new(source, &mut target)?.step(-1)?)
    };
    match step()? {
        StepResult::Done => Ok(()),
        _ => Err(Error::Unavailable {
            reason: "cannot write the backup: its file is in use".to_string(),
            cause: None,
        }),
    }
}

/// Makes the copy a single file, checks its pages, and returns its position.
///
/// The header of the copy still says that it uses a write-ahead log. The copy may become the only
/// one, and SQLite copies pages without a check, so a page that the disk returned damaged is found
/// here.
fn finish(to: &Path) -> Result<Version> {
    let target = open(to)?;
    let sql = "PRAGMA journal_mode = DELETE";
    let mode: String = target.query_row(sql, [], |row| row.get(0)).map_err(SqliteError::from)?;
    if mode != "delete" {
        return Err(Error::other("cannot make the backup a single file: SQLite keeps its write-ahead log"));
    }
    if !file::is_intact(&target, file::Check::Pages)? {
        return Err(Error::Corrupt("the backup is not intact: the disk returned damaged pages".to_string()));
    }
    rows::last_version(&target)
}

/// Writes the contents of a database to another file, on the calling thread.
pub(crate) fn compact(from: &Path, into: &Path) -> Result<()> {
    release::check_linked()?;
    let source = open(from).map_err(Error::from)?;
    distrust_schema(&source).map_err(Error::from)?;
    let into = ToSqlOutput::Borrowed(ValueRef::Text(into.as_os_str().as_encoded_bytes()));
    source.execute("VACUUM INTO ?1", [into]).map_err(SqliteError::from)?;
    Ok(())
}

fn open(to: &Path) -> SqliteResult<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(to, flags)?)
}

/// The name of a new file reaches the disk only when its directory is synced.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
