//! Data-source names of SQLite stores.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::Backend;
use larder_core::{Driver, Error, ReadOnly, Result};
use larder_schema::{Ledger, MigrationError, SchemaMigrator};
use percent_encoding::percent_decode_str;

use crate::read_only::SqliteReadOnly;
use crate::{Sqlite, SqliteMigrator, SqliteOptions, Synchronous, migrate};

/// The driver of `sqlite:PATH`, `sqlite:PATH?durability=full&cache_bytes=0` and `sqlite::memory:`.
///
/// The part after `?` holds options, separated by `&`. A `?` or `%` in the path itself is written
/// `%3F` or `%25`. The file is created if it does not exist, unless `create=no` is set; its
/// directory must exist. The other options are `durability=normal` or `full`, `cache_bytes=NUMBER`
/// ([`SqliteOptions::cache_bytes`]) and `other_tables=yes` or `no`
/// ([`SqliteOptions::other_tables`]). `sqlite::memory:` takes no options.
///
/// ```
/// use larder_core::Drivers;
/// use larder_sqlite::SqliteDriver;
///
/// let mut drivers = Drivers::new();
/// drivers.register(SqliteDriver)?;
/// assert_eq!(drivers.names(), ["sqlite"]);
/// # Ok::<(), larder_core::DriverError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteDriver;

impl SqliteDriver {
    /// Returns the path of the file that a data-source name refers to.
    ///
    /// `None` if the name refers to a private database, is malformed, or is for another driver.
    pub fn path(dsn: &str) -> Option<PathBuf> {
        match parse(dsn) {
            Ok((Database::File(path), _)) if dsn.starts_with(SCHEME) => Some(path),
            _ => None,
        }
    }
}

const SCHEME: &str = "sqlite:";

#[async_trait]
impl Driver for SqliteDriver {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn accepts(&self, dsn: &str) -> bool {
        dsn.starts_with(SCHEME)
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        let (database, options) = parse(dsn)?;
        let backend = match database {
            Database::Private => Sqlite::open_private().await?,
            Database::File(path) => Sqlite::open(path, options).await?,
        };
        Ok(Arc::new(backend))
    }

    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        let (database, options) = parse(dsn)?;
        Ok(match database {
            // The database is new, and no other caller can write to it.
            Database::Private => Arc::new(ReadOnly::new(Arc::new(Sqlite::open_private().await?))),
            Database::File(path) => {
                Arc::new(ReadOnly::new(Arc::new(SqliteReadOnly::open(path, options).await?)))
            }
        })
    }

    fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator<Error = Error>>>> {
        let (database, options) = parse(dsn)?;
        let Database::File(path) = database else { return Ok(None) };
        let steps = migrate::steps().map_err(MigrationError::from)?;
        Ok(Some(Box::new(SqliteMigrator::new(path, steps, Ledger::larder()).options(options))))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Database {
    Private,
    File(PathBuf),
}

fn parse(dsn: &str) -> Result<(Database, SqliteOptions)> {
    let rest = dsn.strip_prefix(SCHEME).unwrap_or(dsn);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let options = parse_options(query)?;
    if path == ":memory:" {
        return match query {
            "" => Ok((Database::Private, options)),
            _ => {
                Err(Error::invalid_argument("`sqlite::memory:` takes no options; remove the part after `?`"))
            }
        };
    }
    if path.is_empty() {
        return Err(Error::invalid_argument(
            "the name of a SQLite store has no path; use `sqlite:PATH` or `sqlite::memory:`",
        ));
    }
    let path = percent_decode_str(path).decode_utf8().map_err(|error| {
        Error::caused(
            "the path in the name of a SQLite store is not valid UTF-8 after percent-decoding",
            error,
        )
    })?;
    if path.contains('\0') {
        return Err(Error::invalid_argument(
            "the path in the name of a SQLite store contains a NUL byte; remove `%00`",
        ));
    }
    Ok((Database::File(PathBuf::from(path.as_ref())), options))
}

fn parse_options(query: &str) -> Result<SqliteOptions> {
    let mut options = SqliteOptions::default();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option {
            "durability=normal" => options.synchronous = Synchronous::Normal,
            "durability=full" => options.synchronous = Synchronous::Full,
            "create=yes" => options.create = true,
            "create=no" => options.create = false,
            "other_tables=yes" => options.other_tables = true,
            "other_tables=no" => options.other_tables = false,
            _ => match option.strip_prefix("cache_bytes=").map(str::parse) {
                Some(Ok(bytes)) => options.cache_bytes = bytes,
                _ => {
                    // The option is not quoted: an option for another engine may be a password or a
                    // key.
                    return Err(Error::invalid_argument(
                        "unknown option of a SQLite store, or invalid value of one; use `durability=normal`, \
                         `durability=full`, `create=yes`, `create=no`, `other_tables=yes`, `other_tables=no` or \
                         `cache_bytes=NUMBER`",
                    ));
                }
            },
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dsn: &str) -> (String, Synchronous) {
        let (Database::File(path), options) = parse(dsn).unwrap() else { panic!("not a file") };
        (path.to_str().unwrap().to_string(), options.synchronous)
    }

    #[test]
    fn a_path_may_hold_anything_once_it_is_encoded() {
        assert_eq!(file("sqlite:/tmp/a b.db"), ("/tmp/a b.db".to_string(), Synchronous::Normal));
        assert_eq!(file("sqlite:a%3Fb%25.db?durability=full"), ("a?b%.db".to_string(), Synchronous::Full));
    }

    #[test]
    fn the_cache_has_the_size_that_is_asked_for() {
        let bytes = |dsn| parse(dsn).unwrap().1.cache_bytes;
        assert_eq!(bytes("sqlite:a.db"), SqliteOptions::CACHE_BYTES);
        assert_eq!(bytes("sqlite:a.db?cache_bytes=0&durability=full"), 0);
        assert_eq!(bytes("sqlite:a.db?cache_bytes=1000"), 1_000);
    }

    #[test]
    fn memory_is_private_and_takes_no_options() {
        assert_eq!(parse("sqlite::memory:").unwrap().0, Database::Private);
        assert!(matches!(parse("sqlite::memory:?durability=full"), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for dsn in [
            "sqlite:",
            "sqlite:x?durability=some",
            "sqlite:x?mode=ro",
            "sqlite:a%00b",
            "sqlite:x?cache_bytes=1M",
            "sqlite:x?cache_bytes=-1",
            "sqlite:x?password=hunter2",
            "sqlite:x?durability=hunter2",
            "sqlite:x?hunter2",
            "sqlite::memory:?key=hunter2",
        ] {
            let Err(Error::InvalidArgument(reason)) = parse(dsn) else { panic!("accepted {dsn}") };
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
