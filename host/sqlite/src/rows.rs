//! The SQL statements on rows.

use larder_core::backend::{SweepOptions, Swept};
use larder_core::chunk::{Chunk, ChunkRow, ScanOptions};
use larder_core::clock::UnixMillis;
use larder_core::commit::{CurrentRow, Need, RowWrite};
use larder_core::name::{Key, KeyRange, Namespace, RowKey, just_after};
use larder_core::read_set::{Allowance, CurrentState, RangePart};
use larder_core::row::{StoredValue, Version};
use larder_core::slice::{STORED_ROW, Slice};
use larder_core::{Error, Result};
use rusqlite::types::{Value as SqlValue, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use crate::error::{Result as SqliteResult, SqliteError};
use crate::unsigned::Unsigned;

/// An upper bound of the versions in use: the version of the last commit, or the end of the block
/// that its process reserved.
pub(crate) fn last_version(connection: &Connection) -> Result<Version> {
    let mut statement = prepare(connection, "SELECT last FROM larder_commit_sequence")?;
    Ok(statement.query_row([], |row| version(row, 0)).map_err(SqliteError::from)?)
}

pub(crate) fn set_last_version(connection: &Connection, version: Version) -> SqliteResult<()> {
    connection
        .prepare_cached("UPDATE larder_commit_sequence SET last = ?1")?
        .execute([Unsigned(version.0)])?;
    Ok(())
}

pub(crate) fn get(connection: &Connection, row: &RowKey, now: UnixMillis) -> Result<Option<StoredValue>> {
    let mut statement = prepare(
        connection,
        "SELECT value, version, expires_at FROM larder_entries
         WHERE namespace = ?1 AND key = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
    )?;
    let found = statement
        .query_row((row.namespace.as_bytes(), row.key.as_bytes(), sql_millis(now)), stored_value)
        .optional();
    Ok(found.map_err(SqliteError::from)?)
}

/// The result of one slice of a scan.
pub(crate) enum Scanned {
    /// The first rows of the range.
    Rows(Chunk),
    /// The slice found only expired rows. This is the rest of the range.
    Expired(KeyRange),
}

/// Reads rows of a range until they fill a chunk, or for one [slice](larder_core::slice) of work.
///
/// Expired rows are skipped here and not in SQL, because a single step of the statement could pass
/// any number of them.
pub(crate) fn scan(
    connection: &Connection,
    range: &KeyRange,
    options: ScanOptions,
    now: UnixMillis,
) -> Result<Scanned> {
    let value_column = if options.keys_only { "length(value)" } else { "value" };
    let order = if options.reverse { "DESC" } else { "ASC" };
    let (bounds, parameters) = range_bounds(range);
    let mut statement = prepare(
        connection,
        &format!(
            "SELECT key, {value_column}, version, expires_at FROM larder_entries WHERE {bounds} ORDER BY key {order}"
        ),
    )?;
    let mut found = statement.query(params_from_iter(parameters)).map_err(SqliteError::from)?;
    let mut chunk = Chunk::default();
    let mut slice = Slice::default();
    while let Some(row) = found.next().map_err(SqliteError::from)? {
        if chunk.is_full(&options) || (slice.is_over() && !chunk.is_empty()) {
            return Ok(Scanned::Rows(chunk));
        }
        let value = value(row, 1)?;
        slice.count(STORED_ROW, value.len());
        if is_live(row, 3, now)? {
            let (version, expires_at) =
                (version(row, 2).map_err(SqliteError::from)?, expiry(row, 3).map_err(SqliteError::from)?);
            let key = bytes(row, 0)?;
            chunk.push_stored(ChunkRow { key, value: value.bytes(), version, expires_at });
        } else if slice.is_over() && chunk.is_empty() {
            return Ok(Scanned::Expired(behind(range, bytes(row, 0)?, options.reverse)));
        }
    }
    chunk.exhausted = true;
    Ok(Scanned::Rows(chunk))
}

/// The part of a range that follows one of its keys.
fn behind(range: &KeyRange, key: &[u8], reverse: bool) -> KeyRange {
    match reverse {
        true => range.clone().narrowed_until(key),
        false => range.clone().narrowed_from(&just_after(key)),
    }
}

/// The progress of a search for the next namespace.
pub(crate) enum NextNamespace {
    /// The next namespace. `None` if there is no further one.
    Found(Option<Namespace>),
    /// The slice found only expired rows. The search continues here.
    Expired(Position),
}

/// A namespace and a key.
pub(crate) type Position = (Vec<u8>, Vec<u8>);

/// The position at which a search for the next namespace begins.
pub(crate) fn position_after(namespace: Option<&Namespace>) -> Position {
    (namespace.map_or(Vec::new(), |namespace| just_after(namespace.as_bytes())), Vec::new())
}

/// Reads rows from a position on until one is live, or for one [slice](larder_core::slice) of work.
pub(crate) fn next_namespace(
    connection: &Connection,
    (namespace, key): &Position,
    now: UnixMillis,
) -> Result<NextNamespace> {
    let mut statement = prepare(
        connection,
        "SELECT namespace, key, expires_at, length(value) FROM larder_entries WHERE (namespace, key) >= (?1, ?2)
         ORDER BY namespace, key",
    )?;
    let mut found = statement.query((namespace, key)).map_err(SqliteError::from)?;
    let mut slice = Slice::default();
    while let Some(row) = found.next().map_err(SqliteError::from)? {
        let (namespace, key) = (bytes(row, 0)?, bytes(row, 1)?);
        if is_live(row, 2, now)? {
            return Ok(NextNamespace::Found(Some(Namespace::from_stored(namespace.to_vec())?)));
        }
        slice.count(STORED_ROW, key.len() + value(row, 3)?.len());
        if slice.is_over() {
            return Ok(NextNamespace::Expired((namespace.to_vec(), just_after(key))));
        }
    }
    Ok(NextNamespace::Found(None))
}

/// Reads a row as it is stored, live or not.
pub(crate) fn current_row(connection: &Connection, row: &RowKey, need: Need) -> Result<Option<CurrentRow>> {
    let value = match need {
        Need::Header => "NULL",
        Need::Value => "value",
    };
    let mut statement = prepare(
        connection,
        &format!(
            "SELECT version, expires_at, length(value), {value} FROM larder_entries
             WHERE namespace = ?1 AND key = ?2"
        ),
    )?;
    let found = statement.query_row((row.namespace.as_bytes(), row.key.as_bytes()), |row| {
        Ok(CurrentRow {
            version: version(row, 0)?,
            expires_at: expiry(row, 1)?,
            value_bytes: row.get::<_, Unsigned>(2)?.0,
            value: row.get(3)?,
        })
    });
    Ok(found.optional().map_err(SqliteError::from)?)
}

/// Writes a row. False if nothing changed, as for the deletion of an absent row.
pub(crate) fn write(
    connection: &Connection,
    row: &RowKey,
    write: &RowWrite<'_>,
    version: Version,
) -> SqliteResult<bool> {
    let (namespace, key) = (row.namespace.as_bytes(), row.key.as_bytes());
    let changed = match write {
        RowWrite::Put { value, expires_at } => connection
            .prepare_cached(
                "INSERT INTO larder_entries (namespace, key, value, version, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (namespace, key) DO UPDATE
                 SET value = excluded.value, version = excluded.version, expires_at = excluded.expires_at",
            )?
            .execute((namespace, key, value.as_ref(), Unsigned(version.0), expires_at.map(Unsigned)))?,
        RowWrite::Delete => connection
            .prepare_cached("DELETE FROM larder_entries WHERE namespace = ?1 AND key = ?2")?
            .execute((namespace, key))?,
    };
    Ok(changed > 0)
}

pub(crate) fn stored_bytes(connection: &Connection) -> Result<u64> {
    let mut statement = prepare(
        connection,
        "SELECT (SELECT coalesce(sum(length(namespace) + length(key) + length(value)), 0) FROM larder_entries)
             + (SELECT coalesce(sum(length(tenant_id) + length(user_id) + length(session_id) + length(run_id)
                    + octet_length(kind) + length(bytes)), 0) FROM larder_memory_state)",
    )?;
    let bytes: Unsigned = statement.query_row([], |row| row.get(0)).map_err(SqliteError::from)?;
    Ok(bytes.0)
}

/// Removes expired rows. Returns the name and the bytes of each.
pub(crate) fn sweep(
    connection: &Connection,
    now: UnixMillis,
    options: &SweepOptions,
) -> SqliteResult<Vec<(StoredName, u64)>> {
    let expired = expired(connection, now, options)?;
    let mut delete =
        connection.prepare_cached("DELETE FROM larder_entries WHERE namespace = ?1 AND key = ?2")?;
    for (StoredName { namespace, key }, _) in &expired {
        delete.execute((namespace, key))?;
    }
    Ok(expired)
}

/// Finds expired rows, within the bounds of a sweep.
fn expired(
    connection: &Connection,
    now: UnixMillis,
    options: &SweepOptions,
) -> SqliteResult<Vec<(StoredName, u64)>> {
    let mut statement = connection.prepare_cached(
        "SELECT namespace, key, length(namespace) + length(key) + length(value)
         FROM larder_entries WHERE expires_at <= ?1",
    )?;
    let mut found = statement.query([sql_millis(now)])?;
    let (mut expired, mut swept) = (Vec::new(), Swept::default());
    while !options.is_reached_by(&swept)
        && let Some(row) = found.next()?
    {
        let Unsigned(bytes) = row.get(2)?;
        swept.rows += 1;
        swept.bytes += bytes;
        expired.push((StoredName { namespace: row.get(0)?, key: row.get(1)? }, bytes));
    }
    Ok(expired)
}

/// The name of a row as the file holds it.
pub(crate) struct StoredName {
    namespace: Vec<u8>,
    key: Vec<u8>,
}

impl StoredName {
    /// The row. `None` if the names are not valid UTF-8: such a row is never read.
    pub(crate) fn row(self) -> Option<RowKey> {
        let namespace = Namespace::from_stored(self.namespace).ok()?;
        Some(RowKey { namespace, key: Key::from_stored(self.key).ok()? })
    }
}

/// The committed state that a transaction sees.
pub(crate) struct Current<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) now: UnixMillis,
}

impl CurrentState for Current<'_> {
    fn version(&mut self, row: &RowKey) -> Result<Version> {
        let mut statement = prepare(
            self.connection,
            "SELECT version FROM larder_entries
             WHERE namespace = ?1 AND key = ?2 AND (expires_at IS NULL OR expires_at > ?3)",
        )?;
        let found = statement
            .query_row((row.namespace.as_bytes(), row.key.as_bytes(), sql_millis(self.now)), |row| {
                version(row, 0)
            })
            .optional()
            .map_err(SqliteError::from)?;
        Ok(found.unwrap_or(Version::ABSENT))
    }

    fn range(&mut self, range: &KeyRange, allowance: &mut Allowance) -> Result<RangePart> {
        let until = if range.end().is_some() { "AND key < ?3" } else { "AND ?3 IS NULL" };
        // SQLite reads a row only as far as its last column that is used, and the version follows
        // the value. So the version is read only of rows that count.
        let sql = format!(
            "SELECT key, version, expires_at FROM larder_entries
             WHERE namespace = ?1 AND key >= ?2 {until} ORDER BY key"
        );
        let mut statement = prepare(self.connection, &sql)?;
        let bounds = (range.namespace().as_bytes(), range.start(), range.end());
        let mut found = statement.query(bounds).map_err(SqliteError::from)?;
        let mut part = RangePart::default();
        let mut goes_on = true;
        while let Some(row) = found.next().map_err(SqliteError::from)? {
            if !goes_on {
                part.next = Some(bytes(row, 0)?.to_vec());
                break;
            }
            if is_live(row, 2, self.now)? {
                part.state.add(version(row, 1).map_err(SqliteError::from)?);
            }
            goes_on = allowance.spend();
        }
        Ok(part)
    }
}

/// The SQL condition for the rows of a range, live or not.
fn range_bounds(range: &KeyRange) -> (&'static str, Vec<SqlValue>) {
    let mut parameters =
        vec![SqlValue::Blob(range.namespace().as_bytes().to_vec()), SqlValue::Blob(range.start().to_vec())];
    match range.end() {
        None => ("namespace = ?1 AND key >= ?2", parameters),
        Some(end) => {
            parameters.push(SqlValue::Blob(end.to_vec()));
            ("namespace = ?1 AND key >= ?2 AND key < ?3", parameters)
        }
    }
}

/// Whether a row is live by its expiry in this column. A negative expiry, before 1970, has passed.
fn is_live(row: &Row<'_>, column: usize, now: UnixMillis) -> SqliteResult<bool> {
    let expires_at: Option<i64> = row.get(column)?;
    Ok(expires_at.is_none_or(|expires_at| expires_at > sql_millis(now)))
}

/// A value, or its length if only that was selected.
enum Column<'r> {
    Value(&'r [u8]),
    Length(usize),
}

impl<'r> Column<'r> {
    fn bytes(&self) -> &'r [u8] {
        match self {
            Self::Value(value) => value,
            Self::Length(_) => &[],
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Value(value) => value.len(),
            Self::Length(length) => *length,
        }
    }
}

fn value<'r>(row: &'r Row<'_>, column: usize) -> SqliteResult<Column<'r>> {
    match row.get_ref(column)? {
        ValueRef::Integer(length) => Ok(Column::Length(usize::try_from(length).unwrap_or_default())),
        _ => bytes(row, column).map(Column::Value),
    }
}

/// The bytes of a column, without a copy.
pub(crate) fn bytes<'r>(row: &'r Row<'_>, column: usize) -> SqliteResult<&'r [u8]> {
    let found = row.get_ref(column)?;
    let unexpected = || rusqlite::Error::InvalidColumnType(column, String::new(), found.data_type());
    Ok(found.as_blob().map_err(|_| unexpected())?)
}

fn stored_value(row: &Row<'_>) -> rusqlite::Result<StoredValue> {
    Ok(StoredValue { value: row.get(0)?, version: version(row, 1)?, expires_at: expiry(row, 2)? })
}

/// Reads a version.
pub(crate) fn version(row: &Row<'_>, column: usize) -> rusqlite::Result<Version> {
    Ok(Version(row.get::<_, Unsigned>(column)?.0))
}

/// Reads the time at which a row expires or is due, if it has one.
pub(crate) fn expiry(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<UnixMillis>> {
    Ok(row.get::<_, Option<Unsigned>>(column)?.map(|millis| millis.0))
}

pub(crate) fn prepare<'c>(connection: &'c Connection, sql: &str) -> Result<rusqlite::CachedStatement<'c>> {
    connection.prepare_cached(sql).map_err(|error| Error::from(SqliteError::from(error)))
}

/// Converts a time for SQL. A time beyond SQLite's signed integers never comes.
pub(crate) fn sql_millis(millis: UnixMillis) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
