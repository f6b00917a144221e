//! Copies of a whole database while commits go on.
//!
//! The copy is made by SQLite's backup, from a connection that holds a read transaction for as long as it takes. In a
//! write-ahead log that transaction is one committed state, whatever is committed meanwhile: the backup never begins
//! again, and the position is read in the same transaction, so it is that of the copy. (`VACUUM INTO` can't run within a
//! transaction, so nothing could be read together with it.)

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use larder_core::backend::Version;
use larder_core::{Error, Result};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags};

use crate::connection::distrust_schema;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::location::with_suffix;
use crate::readers::Readers;
use crate::writer::Writer;
use crate::{file, rows};

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupInfo {
    /// Every commit up to this position, and none after it, as far as [`Sqlite::redo_position`](crate::Sqlite::redo_position)
    /// tells positions.
    pub position: Version,
    /// Every change of this process up to this number of [`Sqlite::changes`](crate::Sqlite::changes), and none after it.
    pub changes: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Makes a copy, on this thread.
pub(crate) fn backup(readers: &Arc<Readers>, writer: &Arc<Writer>, to: &Path) -> Result<BackupInfo> {
    let source = readers.open_beside()?;
    // The file is only overwritten where it was made here: nothing else is ever lost to a copy.
    let file = File::create_new(to)
        .map_err(|error| Error::unavailable("the file of a backup must be new, and can't be made", error))?;
    let copied = copy(&source.connection, writer, to, &file);
    if copied.is_err() {
        for path in [to.to_path_buf(), with_suffix(to, "-wal"), with_suffix(to, "-shm")] {
            // It may never have been made.
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
            "the backup of a database at {} turned out to be at {}",
            position.0, found.0
        )));
    }
    let synced = || -> std::io::Result<u64> {
        file.sync_all()?;
        sync_folder(to)?;
        Ok(file.metadata()?.len())
    };
    let bytes = synced().map_err(|error| Error::unavailable("the backup can't be written to disk", error))?;
    Ok(BackupInfo { position, changes, bytes })
}

/// Begins the read transaction. The first read is what fixes the state that it sees.
fn begin(source: &Connection) -> Result<Version> {
    source.execute_batch("BEGIN").map_err(SqliteError::from)?;
    rows::last_version(source)
}

fn copy_pages(source: &Connection, to: &Path) -> Result<()> {
    let mut target = open(to)?;
    let mut step = || -> SqliteResult<StepResult> {
        // The file is removed where it isn't finished, and synced once it is.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
        Ok(Backup::new(source, &mut target)?.step(-1)?)
    };
    match step()? {
        StepResult::Done => Ok(()),
        _ => Err(Error::Unavailable { reason: "the backup's file is in use".to_string(), cause: None }),
    }
}

/// Makes the copy a single file: its header still says that there is a log beside it. Gives its position. The copy may
/// become the only one, and SQLite copies pages without looking at them: what the disk gave wrongly is found here.
fn finish(to: &Path) -> Result<Version> {
    let target = open(to)?;
    let sql = "PRAGMA journal_mode = DELETE";
    let mode: String = target.query_row(sql, [], |row| row.get(0)).map_err(SqliteError::from)?;
    if mode != "delete" {
        return Err(Error::other("the backup can't be used without a write-ahead log"));
    }
    if !file::is_intact(&target, file::Check::Pages)? {
        return Err(Error::Corrupt("the backup is not intact: the disk gave wrong pages".to_string()));
    }
    rows::last_version(&target)
}

/// Writes what a database holds into another file, on this thread.
pub(crate) fn compact(from: &Path, into: &Path) -> Result<()> {
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

/// The name of a new file is on disk only with its folder.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
