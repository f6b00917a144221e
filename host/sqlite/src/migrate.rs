//! The schema of larder's own tables.

use larder_core::schema::{LOCK_WAIT, Ledger, MigrationError, StepFileError, StepSet};
use rusqlite::Connection;

use crate::connection::BUSY_TIMEOUT;
use crate::error::SqliteError;
use crate::migrator;

/// The steps. The files are the same numbers as those of the other engine.
pub(crate) fn steps() -> Result<StepSet, StepFileError> {
    StepSet::embedded(&[
        ("0001_entries.sql", include_str!("../../../migrations/sqlite/0001_entries.sql")),
        ("0002_memory_state.sql", include_str!("../../../migrations/sqlite/0002_memory_state.sql")),
    ])
}

/// Brings the schema up to date, on a connection that is used for other work from then on.
pub(crate) fn migrate(connection: &mut Connection) -> Result<(), MigrationError> {
    migrator::up(connection, &steps()?, &Ledger::larder(), LOCK_WAIT)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(|error| SqliteError::from(error).into())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use larder_core::Error;
    use larder_core::error::Cause;
    use larder_core::schema::SchemaError;

    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    #[test]
    fn every_file_is_a_step_of_this_release() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations/sqlite");
        assert_eq!(steps().unwrap(), StepSet::from_folder(folder).unwrap());
    }

    #[test]
    fn a_fresh_database_gets_every_step_once() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        migrate(&mut connection).unwrap();
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
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.execute("UPDATE larder_migrations SET checksum = x'00' WHERE number = 1", []).unwrap();
        assert_eq!(refusal(&mut connection), SchemaError::Edited(1));
        connection.execute("UPDATE larder_migrations SET number = 99 WHERE number = 2", []).unwrap();
        let known = steps().unwrap().newest();
        assert_eq!(refusal(&mut connection), SchemaError::Newer { applied: 99, known });
    }

    /// As who opens a store is told.
    fn refusal(connection: &mut Connection) -> SchemaError {
        let error = Error::from(migrate(connection).unwrap_err());
        error.source().unwrap().downcast_ref::<Cause>().unwrap().downcast_ref().cloned().unwrap()
    }
}
