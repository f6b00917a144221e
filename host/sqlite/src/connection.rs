//! Connections and their settings.

use std::io;
use std::time::{Duration, Instant};

use larder_core::Error;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use crate::error::{Result, SqliteError};
use crate::location::Location;
use crate::unsigned::Unsigned;
use crate::{SqliteOptions, Synchronous, file, release};

/// How long a connection waits for another process's lock.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most prepared statements that each connection keeps; more than larder has.
const STATEMENTS: usize = 64;

/// SQLite's default size of the page cache of a connection.
const PAGES_KIB: i64 = 2_000;

/// The size to which a longer log is truncated when it restarts.
pub(crate) const LOG_BYTES_KEPT: u64 = 64 << 20;

/// Opens the connection of a database's writer, which is the first of a store.
///
/// Its page cache stays valid as long as no other process commits, so it is worth a larger one.
/// That of a reader is invalid after every commit.
pub(crate) fn open_writer(location: &Location, options: SqliteOptions) -> larder_core::Result<Connection> {
    let connection = open_for_larder(location, options, BUSY_TIMEOUT)?;
    let kib = i64::try_from(options.cache_bytes / 4 / 1_024).unwrap_or(i64::MAX);
    // Negative numbers are KiB, positive ones pages.
    let size = -kib.clamp(PAGES_KIB, i32::MAX.into());
    connection.pragma_update(None, "cache_size", size).map_err(SqliteError::from)?;
    Ok(connection)
}

/// Opens the first connection to a database of larder, and creates the file if the options allow
/// it. A database that is not larder's is refused before it is changed.
pub(crate) fn open_for_larder(
    location: &Location,
    options: SqliteOptions,
    wait: Duration,
) -> larder_core::Result<Connection> {
    let has_log = location.log_path().metadata().is_ok_and(|log| log.len() > 0);
    let mut connection = open_first(location, options, wait)?;
    // If there was no log, the close removes the empty log and the index that SQLite creates for
    // this check.
    keep_as_found(&connection, has_log)?;
    file::check_belongs(&connection, options)?;
    keep_as_found(&connection, false)?;
    set_up(&connection, options, wait)?;
    erase_deleted(&connection)?;
    distrust_schema(&connection)?;
    file::mark(&mut connection)?;
    Ok(connection)
}

/// Opens the first connection to a platform's own database, which may hold anything.
pub(crate) fn open_for_platform(
    location: &Location,
    options: SqliteOptions,
    wait: Duration,
) -> larder_core::Result<Connection> {
    let connection = open_first(location, options, wait)?;
    set_up(&connection, options, wait)?;
    Ok(connection)
}

/// Opens a further connection to a database of larder, for reading and writing.
pub(crate) fn open(location: &Location, options: SqliteOptions) -> larder_core::Result<Connection> {
    let connection = open_file(location, false)?;
    set_up(&connection, options, BUSY_TIMEOUT)?;
    erase_deleted(&connection)?;
    distrust_schema(&connection)?;
    Ok(connection)
}

/// Makes SQLite overwrite deleted data with zeros, in pages that stay and in pages that become
/// free. Otherwise the data stays in the file, and in every copy, until the space is reused.
fn erase_deleted(connection: &Connection) -> Result<()> {
    Ok(connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?)
}

/// Opens a further connection, for reading only.
pub(crate) fn open_reader(location: &Location, options: SqliteOptions) -> larder_core::Result<Connection> {
    let connection = open(location, options)?;
    connection.pragma_update(None, "query_only", true).map_err(SqliteError::from)?;
    Ok(connection)
}

fn open_first(
    location: &Location,
    options: SqliteOptions,
    wait: Duration,
) -> larder_core::Result<Connection> {
    let connection = open_file(location, options.create)?;
    location.check_single()?;
    location.check_not_looked_at()?;
    wait_for_locks(&connection, wait)?;
    Ok(connection)
}

fn open_file(location: &Location, create: bool) -> larder_core::Result<Connection> {
    release::check_linked()?;
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let connection = match Connection::open_with_flags(location.path(), flags) {
        Ok(connection) => connection,
        Err(error) => {
            // The file may have been removed.
            location.check()?;
            location.check_exists()?;
            return Err(SqliteError::from(error).into());
        }
    };
    location.admit(&connection)?;
    // SQLite opens a file for reading if it may not write it.
    if connection.is_readonly(MAIN_DB).map_err(SqliteError::from)? {
        let path = location.path().display().to_string();
        let cause = io::Error::new(io::ErrorKind::PermissionDenied, path);
        return Err(Error::caused(
            "the process may not write the database file; check its permissions",
            cause,
        ));
    }
    Ok(connection)
}

/// Sets whether closing this connection leaves the log as it is. The log of another application
/// must not be checkpointed.
fn keep_as_found(connection: &Connection, keep: bool) -> Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep)?;
    Ok(())
}

/// Distrusts the schema, because a database may come from elsewhere.
///
/// Nothing that is stored in the schema runs in this process, and no foreign key of another table
/// to one of larder's changes that table. Larder has no trigger, view or foreign key of its own.
pub(crate) fn distrust_schema(connection: &Connection) -> Result<()> {
    let settings = [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    ];
    for (setting, value) in settings {
        connection.set_db_config(setting, value)?;
    }
    Ok(())
}

/// Sets how long the connection waits for the locks of other connections.
pub(crate) fn wait_for_locks(connection: &Connection, wait: Duration) -> Result<()> {
    // rusqlite panics if the milliseconds do not fit SQLite's type, from about 25 days on.
    const MAX: Duration = Duration::from_millis(i32::MAX as u64);
    Ok(connection.busy_timeout(wait.min(MAX))?)
}

/// Makes the connection checkpoint in its commits. For connections that are used without a store.
pub(crate) fn checkpoint_by_itself(connection: &Connection) -> Result<()> {
    const PAGES: i64 = 1_000;
    Ok(connection.pragma_update(None, "wal_autocheckpoint", PAGES)?)
}

fn set_up(connection: &Connection, options: SqliteOptions, wait: Duration) -> larder_core::Result<()> {
    wait_for_locks(connection, wait)?;
    let mode = use_wal(connection, wait)?;
    if mode != "wal" {
        return Err(Error::other(
            "SQLite cannot use a write-ahead log for the database file; move the file to another file system",
        ));
    }
    let synchronous = match options.synchronous {
        Synchronous::Off => "OFF",
        Synchronous::Normal => "NORMAL",
        Synchronous::Full => "FULL",
    };
    let pragmas = || -> Result<()> {
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // A task makes the checkpoints, beside the commits.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "journal_size_limit", Unsigned(LOG_BYTES_KEPT))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(())
    };
    Ok(pragmas()?)
}

/// Switches to WAL mode. The switch takes an exclusive lock, for which SQLite does not wait.
fn use_wal(connection: &Connection, wait: Duration) -> Result<String> {
    let since = Instant::now();
    loop {
        let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0));
        match mode.map_err(SqliteError::from) {
            Err(error) if error.is_busy() && since.elapsed() < wait => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_the_same_settings() {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::resolve(&folder.path().join("a.db")).unwrap();
        let options = SqliteOptions::default().synchronous(Synchronous::Full);
        let writer = open_writer(&location, options).unwrap();
        for connection in
            [writer, open(&location, options).unwrap(), open_reader(&location, options).unwrap()]
        {
            let setting =
                |name: &str| -> i64 { connection.pragma_query_value(None, name, |row| row.get(0)).unwrap() };
            assert_eq!(setting("busy_timeout"), 5_000);
            assert_eq!(setting("foreign_keys"), 0);
            assert_eq!(setting("synchronous"), 2);
            assert_eq!(setting("wal_autocheckpoint"), 0);
            assert_eq!(setting("trusted_schema"), 0);
            assert_eq!(setting("secure_delete"), 1);
        }
    }

    #[test]
    fn a_writer_keeps_a_quarter_of_the_cache_in_pages_and_what_sqlite_keeps_at_least() {
        let folder = tempfile::tempdir().unwrap();
        for (cache_bytes, kib) in [(64 << 20, 16 << 10), (0, 2_000), (u64::MAX, i64::from(i32::MAX))] {
            let options = SqliteOptions::default().cache_bytes(cache_bytes);
            let writer =
                open_writer(&Location::resolve(&folder.path().join("a.db")).unwrap(), options).unwrap();
            let size: i64 = writer.pragma_query_value(None, "cache_size", |row| row.get(0)).unwrap();
            assert_eq!(size, -kib);
        }
    }

    #[test]
    fn a_file_that_is_no_database_is_corrupt() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        std::fs::write(&path, [b'x'; 4_096]).unwrap();
        let location = Location::resolve(&path).unwrap();
        assert!(matches!(open_writer(&location, SqliteOptions::default()), Err(Error::Corrupt(_))));
    }
}
