//! Whether a file is a database of larder, and intact.
//!
//! All of it is asked through SQLite. Whoever opens a database file by other means and closes it again drops every POSIX
//! lock that this process has on the file, and the next process takes the write-ahead log away.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use larder_core::schema::MigrationError;
use larder_core::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::location::Location;
use crate::{SqliteOptions, migrate};

/// Says in the header of a database that it is larder's: `LRDR`.
const APPLICATION_ID: i32 = 0x4c52_4452;

/// Bytes of the header with which every database of SQLite begins.
const HEADER_BYTES: u64 = 100;

/// Marks a database that holds nothing yet as larder's. Every other database stays as it is.
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

/// Why a database is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotLarders {
    /// Its header says so.
    #[error(
        "the database belongs to another application (its application_id is {0:#010x}, larder's is {APPLICATION_ID:#010x}); \
         check the path"
    )]
    Application(i32),
    /// It holds tables, and none of them is larder's ledger.
    #[error(
        "the database holds other tables ({0:?} among them) and none of larder's; check the path, or allow larder's \
         tables beside them with `other_tables`"
    )]
    OtherTables(String),
    /// One of larder's names is taken.
    #[error("the database holds {0:?}, a name of larder's, which larder did not create; check the path")]
    TakenName(String),
}

impl From<NotLarders> for Error {
    fn from(refusal: NotLarders) -> Self {
        Self::other(refusal.to_string())
    }
}

/// Refuses a database that is not larder's and must not become it. It reads, and changes nothing.
///
/// # Errors
/// [`Error::Other`] says whose it is, [`Error::Corrupt`] that it is not a database.
pub(crate) fn check_belongs(connection: &Connection, options: SqliteOptions) -> Result<()> {
    // All of it from one state: another process may be creating larder's tables.
    let in_transaction = !connection.is_autocommit();
    if !in_transaction {
        connection.execute_batch("BEGIN").map_err(SqliteError::from)?;
    }
    let checked = check_belongs_in_one_state(connection, options);
    if !in_transaction && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").map_err(SqliteError::from)?;
    }
    checked
}

fn check_belongs_in_one_state(connection: &Connection, options: SqliteOptions) -> Result<()> {
    if has_ledger(connection)? {
        return Ok(());
    }
    match application_id(connection)? {
        0 | APPLICATION_ID => {}
        other => return Err(NotLarders::Application(other).into()),
    }
    let names = names(connection)?;
    if let Some(taken) = names.iter().find(|name| is_larders_name(name)) {
        return Err(NotLarders::TakenName(taken.clone()).into());
    }
    match names.into_iter().next() {
        Some(other) if !options.other_tables && application_id(connection)? == 0 => {
            Err(NotLarders::OtherTables(other).into())
        }
        _ => Ok(()),
    }
}

/// The names of all tables, views and indexes that someone has made.
fn names(connection: &Connection) -> SqliteResult<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid",
    )?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// SQLite compares names without regard to the case of ASCII letters.
fn is_larders_name(name: &str) -> bool {
    name.get(..LARDERS_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(LARDERS_PREFIX))
}

const LARDERS_PREFIX: &str = "larder_";

/// Refuses a database with a table or an index under one of larder's names that larder did not create: its rules would not
/// be those that larder relies on. The schema is up to date. The ledger is the migrator's own concern.
///
/// # Errors
/// [`Error::Corrupt`] names the table or index.
pub(crate) fn check_tables(connection: &Connection) -> Result<()> {
    let found = definitions(connection)?;
    let expected = expected_definitions()?;
    for (name, definition) in expected {
        if found.get(name) != Some(definition) {
            return Err(Error::Corrupt(format!(
                "the file is no intact database of larder: its {name:?} is not the one that larder creates"
            )));
        }
    }
    match found.iter().find(|(name, (kind, ..))| kind == "index" && !expected.contains_key(*name)) {
        Some((name, (_, table, _))) => Err(Error::Corrupt(format!(
            "the file is no intact database of larder: larder did not create the index {name:?} of its {table:?}; drop it"
        ))),
        None => Ok(()),
    }
}

/// What larder's own steps create.
fn expected_definitions() -> Result<&'static BTreeMap<String, Definition>> {
    static EXPECTED: OnceLock<BTreeMap<String, Definition>> = OnceLock::new();
    if let Some(expected) = EXPECTED.get() {
        return Ok(expected);
    }
    let connection = Connection::open_in_memory().map_err(SqliteError::from)?;
    for step in migrate::steps().map_err(MigrationError::from)?.steps() {
        connection.execute_batch(step.sql()).map_err(SqliteError::from)?;
    }
    let expected = definitions(&connection)?;
    Ok(EXPECTED.get_or_init(|| expected))
}

/// The kind of a table or index, the table that it belongs to, and its SQL.
type Definition = (String, String, Option<String>);

/// Everything under larder's names, and every index of its tables. Blanks don't count: a file of steps may have been checked out with other line ends.
fn definitions(connection: &Connection) -> SqliteResult<BTreeMap<String, Definition>> {
    let mut statement = connection.prepare("SELECT name, type, tbl_name, sql FROM sqlite_schema")?;
    let rows = statement.query_map([], |row| {
        let sql: Option<String> = row.get(3)?;
        let sql = sql.map(|sql| sql.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        Ok((row.get(0)?, (row.get(1)?, row.get(2)?, sql)))
    })?;
    let definitions = rows.collect::<rusqlite::Result<BTreeMap<String, Definition>>>()?;
    let is_larders = |name: &str, (kind, table, sql): &Definition| {
        // SQLite's own indexes have no SQL.
        is_larders_name(name) || kind == "index" && sql.is_some() && is_larders_name(table)
    };
    Ok(definitions.into_iter().filter(|(name, definition)| is_larders(name, definition)).collect())
}

/// Checks a file, on this thread.
pub(crate) fn verify(path: &Path) -> Result<()> {
    let location = Location::resolve(path)?;
    check_length(&location)?;
    let connection = open(&location)?;
    match application_id(&connection)? {
        APPLICATION_ID => {}
        // Earlier releases set none, and a database that an application shares with larder keeps the application's.
        _ if has_ledger(&connection)? => {}
        0 => return Err(corrupt("it has no tables of larder")),
        _ => return Err(corrupt("it belongs to another application")),
    }
    if !is_intact(&connection, Check::Full)? {
        return Err(corrupt("its pages contradict each other"));
    }
    Ok(())
}

/// SQLite takes an empty file for an empty database.
fn check_length(location: &Location) -> Result<()> {
    let unreadable = |error| Error::unavailable("the database file can't be read", error);
    let length = location.path().metadata().map_err(unreadable)?.len();
    if length < HEADER_BYTES { Err(corrupt("it is shorter than a database's header")) } else { Ok(()) }
}

/// Without a log beside it the file is all there is, and is looked at without leaving anything behind. With one, opening it
/// takes what was committed out of the log first.
fn open(location: &Location) -> Result<Connection> {
    let path = location.path();
    let no_mutex = OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match path.to_str() {
        Some(text) if !location.log_path().exists() => {
            let uri = format!("file:{}?immutable=1", utf8_percent_encode(text, UNRESERVED));
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | no_mutex;
            Connection::open_with_flags(uri, flags)
        }
        _ => Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex),
    };
    let connection = connection.map_err(SqliteError::from)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(SqliteError::from)?;
    Ok(connection)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

const LEDGER: &str = "larder_migrations";

const LEDGER_COLUMNS: &str = "number INTEGER, name TEXT, checksum BLOB, applied_at INTEGER";

/// Whether there is a ledger as larder creates it. A table that only has its name proves nothing.
fn has_ledger(connection: &Connection) -> SqliteResult<bool> {
    let sql = "SELECT group_concat(name || ' ' || type, ', ') FROM pragma_table_info(?1)";
    let columns: Option<String> = connection.query_row(sql, [LEDGER], |row| row.get(0))?;
    Ok(columns.as_deref() == Some(LEDGER_COLUMNS))
}

/// How closely a database is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Its pages hang together.
    Pages,
    /// The rows are in order too, and each is in every index. It takes several times as long.
    Full,
}

/// SQLite answers with one row that says `ok`, or with what is wrong.
pub(crate) fn is_intact(connection: &Connection, check: Check) -> SqliteResult<bool> {
    let sql = match check {
        Check::Pages => "PRAGMA quick_check(1)",
        Check::Full => "PRAGMA integrity_check(1)",
    };
    let answer: String = connection.query_row(sql, [], |row| row.get(0))?;
    Ok(answer == "ok")
}

fn corrupt(reason: &str) -> Error {
    Error::Corrupt(format!("the file is no intact database of larder: {reason}"))
}
