//! Checks whether a file is a larder database, and intact.
//!
//! All checks go through SQLite. Opening a database file by other means and closing it again would
//! drop every POSIX lock that this process has on the file, and another process could then remove
//! the write-ahead log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use larder_core::{Error, Result};
use larder_schema::MigrationError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::connection::distrust_schema;
use crate::error::{Result as SqliteResult, SqliteError};
use crate::location::Location;
use crate::{SqliteOptions, migrate, migrator, release};

/// The application id in the header of larder's databases: `LRDR`.
const APPLICATION_ID: i32 = 0x4c52_4452;

/// Bytes of the header with which every SQLite database begins.
const HEADER_BYTES: u64 = 100;

/// Marks an empty database as larder's. Does not change any other database.
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
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 && application_id(connection)? == 0)
}

/// Flag in the user version: every change moves the position, including a write of records alone.
const POSITIONED: i32 = 1;

/// Whether every change moves the position of this database. `wanted` sets this for good.
///
/// The flag is in the file, so that it binds every process that opens it: one that did not count
/// its changes would hide them.
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
    /// Its header names another application.
    #[error(
        "the database belongs to another application (its application_id is {0:#010x}, not {APPLICATION_ID:#010x}); \
         check the path"
    )]
    Application(i32),
    /// It holds tables, but not larder's ledger.
    #[error(
        "the database holds tables of another application ({0:?} is one) and no tables of larder; check the path, or \
         allow larder's tables beside them with `other_tables`"
    )]
    OtherTables(String),
    /// It uses one of larder's names.
    #[error(
        "the database holds {0:?}, which has a name of larder's tables but was not created by larder; check the path"
    )]
    TakenName(String),
}

impl From<NotLarders> for Error {
    fn from(refusal: NotLarders) -> Self {
        Self::other(refusal.to_string())
    }
}

/// Refuses a database that is not larder's and must not become larder's. Changes nothing.
///
/// # Errors
/// - [`Error::Other`] if it belongs to another application, or holds other tables.
/// - [`Error::Corrupt`] if it is not a database.
pub(crate) fn check_belongs(connection: &Connection, options: SqliteOptions) -> Result<()> {
    // All reads must see one state, because another process may be creating larder's tables.
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

/// The names of all tables, views, indexes and triggers that SQLite did not create by itself.
fn names(connection: &Connection) -> SqliteResult<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid",
    )?;
    let names = statement.query_map([], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

/// SQLite ignores the case of ASCII letters in names.
fn is_larders_name(name: &str) -> bool {
    name.get(..LARDERS_PREFIX.len()).is_some_and(|prefix| prefix.eq_ignore_ascii_case(LARDERS_PREFIX))
}

const LARDERS_PREFIX: &str = "larder_";

/// Refuses a database with a table or an index under one of larder's names that larder did not
/// create: it may lack the constraints that larder relies on.
///
/// The schema must be up to date. The migrator checks the ledger.
///
/// # Errors
/// [`Error::Corrupt`] names the table or index.
pub(crate) fn check_tables(connection: &Connection) -> Result<()> {
    let found = definitions(connection)?;
    let expected = &own_schema()?.newest;
    for (name, definition) in expected {
        if !found.iter().any(|found| found.0 == *name && found.1 == *definition) {
            return Err(not_as_created(name));
        }
    }
    match found.iter().find(|(name, (kind, ..))| kind == "index" && !expected.contains_key(name)) {
        Some((name, (_, table, _))) => Err(foreign_index(name, table)),
        None => Ok(()),
    }
}

fn not_as_created(name: &str) -> Error {
    corrupt(&format!("its {name:?} is missing or altered"))
}

fn foreign_index(name: &str, table: &str) -> Error {
    corrupt(&format!("larder did not create the index {name:?} of its {table:?}; drop the index"))
}

/// Refuses a database that uses one of larder's names for something that no release up to this one
/// created. A database of a later release passes, because opening it reports the later release.
fn check_own_tables(connection: &Connection) -> Result<()> {
    if is_newer(connection)? {
        return Ok(());
    }
    let own = own_schema()?;
    for (name, definition) in &definitions(connection)? {
        let (kind, table, _) = definition;
        if own.has(name, definition) {
            continue;
        }
        if own.ever.contains_key(&name.to_ascii_lowercase()) {
            return Err(not_as_created(name));
        }
        if kind == "index" {
            return Err(foreign_index(name, table));
        }
    }
    Ok(())
}

fn is_newer(connection: &Connection) -> Result<bool> {
    if !has_ledger(connection)? {
        return Ok(false);
    }
    let sql = "SELECT coalesce(max(number), 0) FROM larder_migrations";
    let applied: i64 = connection.query_row(sql, [], |row| row.get(0)).map_err(SqliteError::from)?;
    let steps = migrate::steps().map_err(MigrationError::from)?;
    Ok(applied > i64::from(steps.newest()))
}

/// The definitions of larder's own tables and indexes.
struct OwnSchema {
    /// The definitions after all steps.
    newest: BTreeMap<String, Definition>,
    /// The definitions after any number of steps, and those of the ledger.
    ever: BTreeMap<String, Vec<Definition>>,
}

impl OwnSchema {
    fn has(&self, name: &str, definition: &Definition) -> bool {
        self.ever.get(name).is_some_and(|known| known.contains(definition))
    }
}

fn own_schema() -> Result<&'static OwnSchema> {
    static OWN: OnceLock<OwnSchema> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let connection = Connection::open_in_memory().map_err(SqliteError::from)?;
    let mut own = OwnSchema { newest: BTreeMap::new(), ever: BTreeMap::new() };
    for step in migrate::steps().map_err(MigrationError::from)?.steps() {
        connection.execute_batch(step.sql()).map_err(SqliteError::from)?;
        own.newest = definitions(&connection)?.into_iter().collect();
        for (name, definition) in own.newest.clone() {
            own.ever.entry(name).or_default().push(definition);
        }
    }
    connection.execute_batch(&migrator::ledger_sql(LEDGER)).map_err(SqliteError::from)?;
    for (name, (kind, table, sql)) in definitions(&connection)?.into_iter().filter(|found| found.0 == LEDGER)
    {
        // The first releases wrote its name without quotation marks.
        let plain = sql.as_ref().map(|sql| sql.replace(&format!("\"{LEDGER}\""), LEDGER));
        let both = [sql, plain].map(|sql| (kind.clone(), table.clone(), sql));
        own.ever.insert(name, both.into());
    }
    Ok(OWN.get_or_init(|| own))
}

/// The kind of a table or index, the table that it belongs to, and its SQL.
type Definition = (String, String, Option<String>);

/// All definitions under larder's names, and all indexes of its tables.
fn definitions(connection: &Connection) -> SqliteResult<Vec<(String, Definition)>> {
    let mut definitions = all_definitions(connection)?;
    definitions.retain(|(name, (kind, table, sql))| {
        // Indexes that SQLite created by itself have no SQL.
        is_larders_name(name) || kind == "index" && sql.is_some() && is_larders_name(table)
    });
    Ok(definitions)
}

/// All tables, views and indexes. SQLite refuses a schema in which a name, a kind or a table
/// contradicts the SQL. White space does not count, because a file of steps may have been checked
/// out with other line ends.
fn all_definitions(connection: &Connection) -> SqliteResult<Vec<(String, Definition)>> {
    let sql = "SELECT name, type, tbl_name, sql FROM sqlite_schema WHERE type <> 'trigger'";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let sql: Option<String> = row.get(3)?;
        let sql = sql.map(|sql| sql.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        Ok((row.get(0)?, (row.get(1)?, row.get(2)?, sql)))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Checks a file, on the calling thread.
pub(crate) fn verify(path: &Path) -> Result<()> {
    let location = Location::resolve(path)?;
    check_length(&location)?;
    let connection = open(&location)?;
    match application_id(&connection)? {
        APPLICATION_ID => {}
        // Earlier releases set no application id, and a database that an application shares with
        // larder keeps that of the application.
        _ if has_ledger(&connection)? => {}
        0 => return Err(corrupt("it has no tables of larder")),
        _ => return Err(corrupt("it belongs to another application")),
    }
    check_own_tables(&connection)?;
    if !is_intact(&connection, Check::Full)? {
        return Err(corrupt("SQLite found damaged pages"));
    }
    Ok(())
}

/// SQLite treats an empty file as an empty database.
fn check_length(location: &Location) -> Result<()> {
    let unreadable = |error| Error::unavailable("cannot read the database file", error);
    let length = location.path().metadata().map_err(unreadable)?.len();
    if length < HEADER_BYTES { Err(corrupt("it is shorter than the header of a database")) } else { Ok(()) }
}

/// Opens a file for a check. Without a log beside it, the file is opened as immutable, which leaves
/// nothing behind. With a log, opening it recovers the log first.
fn open(location: &Location) -> Result<Connection> {
    release::check_linked()?;
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
    distrust_schema(&connection)?;
    Ok(connection)
}

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

const LEDGER: &str = "larder_migrations";

/// Whether the database has the ledger as larder creates it, without an index. A table that only
/// has its name proves nothing, and a table with an additional column may compute forever when a
/// step is recorded.
fn has_ledger(connection: &Connection) -> Result<bool> {
    let own = own_schema()?;
    let mut found = all_definitions(connection)?;
    found.retain(|(_, (_, table, _))| table.eq_ignore_ascii_case(LEDGER));
    Ok(matches!(found.as_slice(), [(name, definition)] if name == LEDGER && own.has(name, definition)))
}

/// How thorough a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Checks the structure of the pages.
    Pages,
    /// Also checks the order of the rows, and that each is in every index. Takes several times as
    /// long.
    Full,
}

/// Whether SQLite finds nothing wrong.
///
/// A check of a table evaluates its constraints, generated columns and indexes, and SQLite cannot
/// interrupt a function that computes forever. So if there are tables or indexes that larder does
/// not create, only larder's own tables are checked.
pub(crate) fn is_intact(connection: &Connection, check: Check) -> Result<bool> {
    let pragma = match check {
        Check::Pages => "quick_check",
        Check::Full => "integrity_check",
    };
    let Some(tables) = tables_to_check(connection)? else {
        return is_ok(connection, &format!("PRAGMA {pragma}(1)"));
    };
    for table in tables {
        if !is_ok(connection, &format!("PRAGMA {pragma}(\"{table}\")"))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// SQLite returns rows that describe the damage, or a single row `ok`.
fn is_ok(connection: &Connection, sql: &str) -> Result<bool> {
    let answer: String = connection.query_row(sql, [], |row| row.get(0)).map_err(SqliteError::from)?;
    Ok(answer == "ok")
}

/// Larder's own tables, if they and their indexes are as larder creates them. `None` if the
/// database holds no others.
fn tables_to_check(connection: &Connection) -> Result<Option<Vec<String>>> {
    let own = own_schema()?;
    let mut found = all_definitions(connection)?;
    found.retain(|(_, (kind, ..))| kind != "view");
    let is_own = |(name, definition): &(String, Definition)| {
        let (kind, table, sql) = definition;
        // SQLite creates indexes without SQL for the constraints of a table.
        own.has(name, definition) || kind == "index" && sql.is_none() && own.ever.contains_key(table)
    };
    let (own, foreign): (Vec<_>, Vec<_>) = found.into_iter().partition(is_own);
    if foreign.is_empty() {
        return Ok(None);
    }
    let has_foreign = |name: &str| foreign.iter().any(|(_, (_, table, _))| table.eq_ignore_ascii_case(name));
    let tables = own.into_iter().filter(|(name, (kind, ..))| kind == "table" && !has_foreign(name));
    Ok(Some(tables.map(|(name, _)| name).collect()))
}

fn corrupt(reason: &str) -> Error {
    Error::Corrupt(format!("the file is not an intact larder database: {reason}"))
}
