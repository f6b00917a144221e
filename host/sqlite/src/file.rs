//! Whether a file is an intact database of larder.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use larder_core::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::checkpoint::log_path;
use crate::error::Result as SqliteResult;

/// Says in the header of a database that it is larder's: `LRDR`.
const APPLICATION_ID: i32 = 0x4c52_4452;

/// What every database of SQLite begins with.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of the header.
const HEADER_BYTES: usize = 100;

/// Marks a database that holds nothing yet as larder's. What an earlier release or somebody else made stays as it is.
pub(crate) fn mark(connection: &mut Connection) -> Result<()> {
    if is_fresh(connection)? {
        mark_fresh(connection)?;
    }
    Ok(())
}

fn mark_fresh(connection: &mut Connection) -> SqliteResult<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    if is_fresh(&transaction)? {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    Ok(transaction.commit()?)
}

fn is_fresh(connection: &Connection) -> SqliteResult<bool> {
    let tables: u64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 && application_id(connection)? == 0)
}

/// Bit of the user version: every change moves the position, a write of records alone too.
const POSITIONED: i32 = 1;

/// Whether every change moves the position of this database, as it does for good once that is `wanted`. What is said in the
/// file holds for every process that opens it: one that did not count its changes would hide them.
pub(crate) fn is_positioned(connection: &Connection, wanted: bool) -> Result<bool> {
    let flags: i32 = user_version(connection)?;
    if wanted && flags & POSITIONED == 0 {
        set_user_version(connection, flags | POSITIONED)?;
    }
    Ok(wanted || flags & POSITIONED != 0)
}

fn user_version(connection: &Connection) -> SqliteResult<i32> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

fn set_user_version(connection: &Connection, flags: i32) -> SqliteResult<()> {
    Ok(connection.pragma_update(None, "user_version", flags)?)
}

fn application_id(connection: &Connection) -> SqliteResult<i32> {
    Ok(connection.pragma_query_value(None, "application_id", |row| row.get(0))?)
}

/// Checks a file, on this thread.
pub(crate) fn verify(path: &Path) -> Result<()> {
    check_header(path)?;
    let connection = open(path)?;
    match application_id(&connection)? {
        APPLICATION_ID => {}
        // Earlier releases set none.
        0 if has_ledger(&connection)? => {}
        0 => return Err(corrupt("it has no tables of larder")),
        _ => return Err(corrupt("it belongs to another application")),
    }
    if !is_intact(&connection)? {
        return Err(corrupt("its pages contradict each other"));
    }
    Ok(())
}

fn check_header(path: &Path) -> Result<()> {
    let unreadable = |error| Error::unavailable("the database file can't be read", error);
    let mut header = [0; HEADER_BYTES];
    match File::open(path).map_err(unreadable)?.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            return Err(corrupt("it is shorter than a database's header"));
        }
        Err(error) => return Err(unreadable(error)),
    }
    if header.starts_with(MAGIC) { Ok(()) } else { Err(corrupt("it does not begin as a SQLite database")) }
}

/// Without a log beside it the file is all there is, and is looked at without leaving anything behind. With one, opening it
/// takes what was committed out of the log first.
fn open(path: &Path) -> SqliteResult<Connection> {
    let no_mutex = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match path.to_str() {
        Some(text) if !log_path(path).exists() => {
            let uri = format!("file:{}?immutable=1", utf8_percent_encode(text, UNRESERVED));
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | no_mutex;
            Connection::open_with_flags(uri, flags)?
        }
        _ => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex)?,
    };
    connection.busy_timeout(Duration::from_secs(5))?;
    Ok(connection)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

fn has_ledger(connection: &Connection) -> SqliteResult<bool> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'larder_migrations'";
    let tables: u64 = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(tables > 0)
}

/// SQLite answers with one row that says `ok`, or with what is wrong.
fn is_intact(connection: &Connection) -> SqliteResult<bool> {
    let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok(answer == "ok")
}

fn corrupt(reason: &str) -> Error {
    Error::Corrupt(format!("the file is no intact database of larder: {reason}"))
}
