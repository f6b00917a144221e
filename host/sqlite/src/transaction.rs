//! The end of a SQLite transaction.
//!
//! A failed statement may have ended its transaction: after an I/O error, on a full disk or without
//! memory, SQLite rolls the whole transaction back and returns to autocommit mode. Each further
//! statement then commits by itself. No error code tells this, but [`Connection::is_autocommit`]
//! does.

use std::sync::Arc;

use larder_core::Error;
use rusqlite::Connection;

use crate::error::{Result, SqliteError};

/// Why a commit failed.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// Nothing was committed. The transaction may still be open.
    NotMade(Error),
    /// The write-ahead log may hold the commit. The error is [`Error::CommitUnknown`].
    Unknown(Error),
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotMade(error) | CommitError::Unknown(error) => error,
        }
    }
}

/// Commits the open transaction.
pub(crate) fn commit(connection: &Connection) -> Result<(), CommitError> {
    if connection.is_autocommit() {
        let reason = "SQLite rolled the transaction back before its commit; try again".to_string();
        return Err(CommitError::NotMade(Error::Unavailable { reason, cause: None }));
    }
    let committed = connection.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([]));
    match committed.map_err(SqliteError::from) {
        Ok(_) => Ok(()),
        // A transaction that is still open was not committed.
        Err(error) if error.is_certain() || !connection.is_autocommit() => {
            Err(CommitError::NotMade(error.into()))
        }
        Err(error) => Err(CommitError::Unknown(Error::CommitUnknown {
            reason: "the disk did not confirm the commit".to_string(),
            cause: Some(Arc::new(error)),
        })),
    }
}

/// Rolls the transaction back, unless SQLite has done so.
pub(crate) fn roll_back(connection: &Connection) -> Result<()> {
    if !connection.is_autocommit() {
        connection.prepare_cached("ROLLBACK")?.execute([])?;
    }
    Ok(())
}

/// Empties the connection's page cache as far as possible. SQLite would otherwise reuse pages that
/// a failed read left incomplete.
pub(crate) fn forget_pages(connection: &Connection) {
    if let Err(error) = connection.execute_batch("PRAGMA shrink_memory") {
        tracing::debug!(error = &error as &dyn std::error::Error, "cannot empty the page cache");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_is_gone_is_rolled_back_and_is_not_committed() {
        let connection = Connection::open_in_memory().unwrap();
        roll_back(&connection).unwrap();
        let gone = commit(&connection);
        assert!(matches!(gone, Err(CommitError::NotMade(Error::Unavailable { .. }))), "{gone:?}");
    }

    #[test]
    fn a_commit_that_leaves_its_transaction_open_was_not_made() {
        let connection = Connection::open_in_memory().unwrap();
        let tables = "CREATE TABLE parent (id INTEGER PRIMARY KEY);
            CREATE TABLE child (parent INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED);";
        connection.execute_batch(tables).unwrap();
        connection.execute_batch("BEGIN; INSERT INTO child VALUES (7)").unwrap();
        assert!(matches!(commit(&connection), Err(CommitError::NotMade(_))));
        assert!(!connection.is_autocommit());
        roll_back(&connection).unwrap();
        assert!(connection.is_autocommit());
    }
}
