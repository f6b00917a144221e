//! Decoding of rows in the server's responses. All values are checked.

use larder_core::Version;
use larder_core::clock::UnixMillis;
use larder_core::row::StoredValue;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::error::{Failure, Result};

/// Reads a column by name.
pub(crate) fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T> {
    row.try_get(name)
        .map_err(|_| Failure::corrupt("a stored row does not have the format that larder writes"))
}

/// Reads a column that holds a size, a count or a time.
pub(crate) fn unsigned(row: &Row, name: &str) -> Result<u64> {
    checked(column(row, name)?)
}

/// Reads the expiration time of a row.
pub(crate) fn expires_at(row: &Row) -> Result<Option<UnixMillis>> {
    column::<Option<i64>>(row, "expires_at")?.map(checked).transpose()
}

/// Reads the version of a row.
pub(crate) fn version(row: &Row) -> Result<Version> {
    unsigned(row, "version").map(Version)
}

/// Reads the value of a row, with its version and expiration time.
pub(crate) fn stored_value(row: &Row) -> Result<StoredValue> {
    Ok(StoredValue { value: column(row, "value")?, version: version(row)?, expires_at: expires_at(row)? })
}

/// Converts a number that Postgres stores as signed but that is never negative.
pub(crate) fn checked(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Failure::corrupt("a stored row has a negative version or time"))
}

/// Converts a time or a bound for the server, which has no unsigned type. Saturates, because no
/// stored number is larger than `i64::MAX`.
pub(crate) fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
