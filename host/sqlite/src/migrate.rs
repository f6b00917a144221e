//! The schema of larder's own tables.

use larder_core::Error;
use larder_schema::{LOCK_WAIT, Ledger, MigrationError, StepFileError, StepSet};
use rusqlite::Connection;

use crate::connection::{self, BUSY_TIMEOUT};
use crate::location::Location;
use crate::{SqliteOptions, migrator};

/// The schema migrations of larder's own tables. The Postgres backend has steps of the same
/// numbers.
pub(crate) fn steps() -> Result<StepSet, StepFileError> {
    StepSet::larders(&[
        ("0001_entries.sql", include_str!("../migrations/0001_entries.sql")),
        ("0002_memory_state.sql", include_str!("../migrations/0002_memory_state.sql")),
    ])
}

/// Migrates larder's own tables. The caller uses the connection for other work afterwards, so its
/// busy timeout is reset.
pub(crate) fn migrate(
    connection: &Connection,
    location: &Location,
    options: SqliteOptions,
) -> Result<(), MigrationError<Error>> {
    let fresh = || connection::open(location, options);
    migrator::up(connection, fresh, &steps()?, &Ledger::larder(), LOCK_WAIT)?;
    Ok(connection::wait_for_locks(connection, BUSY_TIMEOUT)?)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use larder_core::error::Cause;
    use larder_schema::SchemaError;

    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// A new database, and a connection to it.
    fn database() -> (tempfile::TempDir, Location, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let location = Location::resolve(&folder.path().join("a.db")).unwrap();
        let connection =
            connection::open_for_larder(&location, SqliteOptions::default(), BUSY_TIMEOUT).unwrap();
        (folder, location, connection)
    }

    #[test]
    fn every_file_is_a_step_of_this_release() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        assert_eq!(steps().unwrap(), StepSet::from_folder(folder).unwrap());
    }

    #[test]
    fn a_fresh_database_gets_every_step_once() {
        let (_folder, location, connection) = database();
        for _ in 0..2 {
            migrate(&connection, &location, SqliteOptions::default()).unwrap();
        }
        assert_eq!(
            tables(&connection),
            ["larder_commit_sequence", "larder_entries", "larder_memory_state", "larder_migrations"]
        );
        let applied = connection.query_row("SELECT count(*) FROM larder_migrations", [], |row| row.get(0));
        assert_eq!(applied, Ok(i64::from(steps().unwrap().newest())));
        let wait = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0));
        assert_eq!(wait, Ok(5_000));
    }

    #[test]
    fn a_newer_database_and_an_edited_step_are_refused() {
        let (_folder, location, connection) = database();
        let refusal = || refusal(migrate(&connection, &location, SqliteOptions::default()).unwrap_err());
        migrate(&connection, &location, SqliteOptions::default()).unwrap();
        connection.execute("UPDATE larder_migrations SET checksum = x'00' WHERE number = 1", []).unwrap();
        assert_eq!(refusal(), SchemaError::Edited(1));
        connection.execute("UPDATE larder_migrations SET number = 99 WHERE number = 2", []).unwrap();
        let known = steps().unwrap().newest();
        assert_eq!(refusal(), SchemaError::Newer { applied: 99, known });
    }

    /// The refusal in the error that the caller which opens a store gets.
    fn refusal(error: MigrationError<Error>) -> SchemaError {
        let error = Error::from(error);
        error.source().unwrap().downcast_ref::<Cause>().unwrap().downcast_ref().cloned().unwrap()
    }
}
