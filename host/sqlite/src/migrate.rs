//! The schema of larder's own tables.

use larder_core::Result;
use larder_core::schema::{AppliedStep, Step, pending};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::error::{Result as SqliteResult, SqliteError};

/// The steps, in order. The files are the same numbers as those of the other engine.
const STEPS: &[Step] = &[
    Step { number: 1, name: "entries", sql: include_str!("../../../migrations/sqlite/0001_entries.sql") },
    Step {
        number: 2,
        name: "memory_state",
        sql: include_str!("../../../migrations/sqlite/0002_memory_state.sql"),
    },
];

/// Brings the schema up to date. Each step is one transaction that holds the writer's lock from its beginning and
/// looks at the ledger again, so that two processes apply each step once.
pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    while apply_next(connection, STEPS)? {}
    Ok(())
}

/// Applies the first step that is pending; false where there is none.
fn apply_next(connection: &mut Connection, steps: &[Step]) -> Result<bool> {
    let transaction = begin(connection)?;
    let applied = ledger(&transaction)?;
    let Some(step) = pending(steps, &applied)?.first() else {
        return Ok(false);
    };
    apply(&transaction, step)?;
    transaction.commit().map_err(SqliteError::from)?;
    Ok(true)
}

fn begin(connection: &mut Connection) -> SqliteResult<Transaction<'_>> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

fn ledger(transaction: &Transaction<'_>) -> SqliteResult<Vec<AppliedStep>> {
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS larder_migrations (
             number     INTEGER PRIMARY KEY,
             name       TEXT NOT NULL,
             checksum   BLOB NOT NULL,
             applied_at INTEGER NOT NULL
         ) STRICT",
    )?;
    let mut statement =
        transaction.prepare("SELECT number, checksum FROM larder_migrations ORDER BY number")?;
    let rows =
        statement.query_map([], |row| Ok(AppliedStep { number: row.get(0)?, checksum: row.get(1)? }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn apply(transaction: &Transaction<'_>, step: &Step) -> SqliteResult<()> {
    transaction.execute_batch(step.sql)?;
    transaction.execute(
        "INSERT INTO larder_migrations (number, name, checksum, applied_at)
         VALUES (?1, ?2, ?3, CAST(unixepoch('subsec') * 1000 AS INTEGER))",
        (step.number, step.name, step.checksum()),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use larder_core::error::Cause;
    use larder_core::schema::SchemaError;

    use super::*;

    fn tables(connection: &Connection) -> Vec<String> {
        let mut statement =
            connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
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
        assert_eq!(applied, Ok(STEPS.len() as i64));
    }

    #[test]
    fn a_failed_step_is_rolled_back_and_those_before_it_stay() {
        let steps = [
            Step { number: 1, name: "good", sql: "CREATE TABLE one (x)" },
            Step { number: 2, name: "bad", sql: "CREATE TABLE two (x); INSERT INTO nowhere VALUES (1)" },
        ];
        let mut connection = Connection::open_in_memory().unwrap();
        assert!(apply_next(&mut connection, &steps).unwrap());
        apply_next(&mut connection, &steps).unwrap_err();
        assert_eq!(tables(&connection), ["larder_migrations", "one"]);
    }

    #[test]
    fn a_newer_database_and_an_edited_step_are_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.execute("UPDATE larder_migrations SET checksum = x'00' WHERE number = 1", []).unwrap();
        assert_eq!(refusal(&mut connection), SchemaError::Edited(1));
        connection.execute("UPDATE larder_migrations SET number = 99 WHERE number = 2", []).unwrap();
        assert_eq!(refusal(&mut connection), SchemaError::Newer { applied: 99, known: STEPS.len() as u32 });
    }

    fn refusal(connection: &mut Connection) -> SchemaError {
        let error = migrate(connection).unwrap_err();
        error.source().unwrap().downcast_ref::<Cause>().unwrap().downcast_ref().cloned().unwrap()
    }
}
