//! How rows are read from the server's answers. Nothing that it sends is taken on trust.

use larder_core::Version;
use larder_core::backend::StoredValue;
use larder_core::clock::UnixMillis;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

use crate::error::{Failure, Result};

/// A column by its name.
pub(crate) fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T> {
    row.try_get(name).map_err(|_| Failure::corrupt("a stored row is not as larder writes it"))
}

/// A column with a size, a count or a time.
pub(crate) fn unsigned(row: &Row, name: &str) -> Result<u64> {
    checked(column(row, name)?)
}

/// The moment at which a row expires.
pub(crate) fn expires_at(row: &Row) -> Result<Option<UnixMillis>> {
    column::<Option<i64>>(row, "expires_at")?.map(checked).transpose()
}

/// The version of a row.
pub(crate) fn version(row: &Row) -> Result<Version> {
    unsigned(row, "version").map(Version)
}

/// A row's value and what belongs to it.
pub(crate) fn stored_value(row: &Row) -> Result<StoredValue> {
    Ok(StoredValue { value: column(row, "value")?, version: version(row)?, expires_at: expires_at(row)? })
}

/// A number that the server keeps with a sign that it never has.
pub(crate) fn checked(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Failure::corrupt("a stored row has a negative version or time"))
}

/// A time or a bound as the server takes it. What is beyond its largest number is beyond all that it stores.
pub(crate) fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
