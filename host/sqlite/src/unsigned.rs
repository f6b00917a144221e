//! Unsigned numbers in SQL, which knows signed ones only.
//!
//! `rusqlite` converts them itself, but from release 0.38 on only if its feature `fallible_uint` is
//! enabled, which earlier releases do not have. So no requirement of it covers both.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};

/// A number from 0 to 2^63 - 1. Any other one is an error, both in a parameter and in a column.
pub(crate) struct Unsigned(pub(crate) u64);

impl FromSql for Unsigned {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = i64::column_result(value)?;
        u64::try_from(number).map(Self).map_err(|_| FromSqlError::OutOfRange(number))
    }
}

impl ToSql for Unsigned {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number = i64::try_from(self.0)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(number.into())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn a_number_of_63_bits_is_kept() {
        let connection = Connection::open_in_memory().unwrap();
        for number in [0, 1, i64::MAX as u64] {
            let kept = connection.query_row("SELECT ?1", [Unsigned(number)], |row| row.get::<_, Unsigned>(0));
            assert_eq!(kept.map(|kept| kept.0), Ok(number));
        }
    }

    #[test]
    fn a_number_beyond_the_range_is_an_error() {
        let connection = Connection::open_in_memory().unwrap();
        let column = connection.query_row("SELECT -1", [], |row| row.get::<_, Unsigned>(0));
        let refused = rusqlite::Error::IntegralValueOutOfRange(0, -1);
        assert_eq!(column.map(|column| column.0), Err(refused));
        let parameter = connection.query_row("SELECT ?1", [Unsigned(1 << 63)], |_| Ok(()));
        assert!(matches!(parameter, Err(rusqlite::Error::ToSqlConversionFailure(_))));
    }
}
