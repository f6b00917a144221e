//! Parameters of SQL statements.

use tokio_postgres::types::{ToSql, Type};

/// A parameter with its SQL type. For a statement that is not prepared, the client must send the
/// types.
pub(crate) trait Param: Sync {
    fn sql(&self) -> &(dyn ToSql + Sync);
    fn sql_type(&self) -> Type;
}

/// Parameters of a statement.
pub(crate) type Params<'a> = [&'a dyn Param];

/// Pairs the parameters with their SQL types.
pub(crate) fn typed<'p>(params: &Params<'p>) -> Vec<(&'p (dyn ToSql + Sync), Type)> {
    params.iter().map(|param| (param.sql(), param.sql_type())).collect()
}

macro_rules! param {
    ($($rust:ty => $sql:ident),* $(,)?) => {
        $(impl Param for $rust {
            fn sql(&self) -> &(dyn ToSql + Sync) {
                self
            }

            fn sql_type(&self) -> Type {
                Type::$sql
            }
        })*
    };
}

param!(
    bool => BOOL,
    Vec<bool> => BOOL_ARRAY,
    i32 => INT4,
    i64 => INT8,
    Option<i64> => INT8,
    Vec<i64> => INT8_ARRAY,
    Vec<Option<i64>> => INT8_ARRAY,
    &[u8] => BYTEA,
    Vec<u8> => BYTEA,
    Vec<&[u8]> => BYTEA_ARRAY,
    Vec<Option<&[u8]>> => BYTEA_ARRAY,
    &str => TEXT,
    String => TEXT,
    &[&str] => TEXT_ARRAY,
    Vec<&str> => TEXT_ARRAY,
    Vec<String> => TEXT_ARRAY,
);
