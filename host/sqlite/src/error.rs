//! Classifies SQLite's errors by code.

use larder_core::Error;
use larder_schema::MigrationError;
use rusqlite::ErrorCode;

/// An error of SQLite, or of a value that it stored.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct SqliteError(#[from] rusqlite::Error);

pub(crate) type Result<T, E = SqliteError> = std::result::Result<T, E>;

impl SqliteError {
    /// Whether another connection holds the lock.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }

    /// Whether a commit that failed in this way was certainly not made.
    ///
    /// The lock is taken before anything is written. A full disk did not take the last frame,
    /// without which the write-ahead log holds no commit.
    pub(crate) fn is_certain(&self) -> bool {
        self.is_busy() || self.code() == Some(ErrorCode::DiskFull)
    }

    /// Whether SQLite returned this code.
    pub(crate) fn has_code(&self, code: ErrorCode) -> bool {
        self.code() == Some(code)
    }

    fn code(&self) -> Option<ErrorCode> {
        self.0.sqlite_error_code()
    }
}

impl From<SqliteError> for Error {
    fn from(error: SqliteError) -> Self {
        match error.code() {
            Some(
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed,
            ) => Self::unavailable("another process holds the lock of the database; try again", error),
            Some(ErrorCode::OutOfMemory) => Self::unavailable("the database ran out of memory", error),
            Some(ErrorCode::DiskFull) => Self::unavailable("the disk is full", error),
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
                Self::unavailable("cannot read or write the database file", error)
            }
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt("the file is not an intact SQLite database".to_string())
            }
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::caused("the process may not write the database file; check its permissions", error)
            }
            Some(_) => Self::caused("the database failed", error),
            None => match error.0 {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..)
                | rusqlite::Error::QueryReturnedNoRows => {
                    Self::Corrupt("a stored row is not in the format that larder writes".to_string())
                }
                _ => Self::caused("the database failed", error),
            },
        }
    }
}

impl From<SqliteError> for MigrationError<Error> {
    fn from(error: SqliteError) -> Self {
        Self::Database(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> SqliteError {
        SqliteError(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None))
    }

    #[test]
    fn codes_decide_the_kind() {
        use rusqlite::ffi;
        for code in [
            ffi::SQLITE_BUSY,
            ffi::SQLITE_PROTOCOL,
            ffi::SQLITE_FULL,
            ffi::SQLITE_NOMEM,
            ffi::SQLITE_IOERR,
            ffi::SQLITE_CANTOPEN,
        ] {
            assert!(matches!(failure(code).into(), Error::Unavailable { .. }), "{code}");
        }
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
            assert!(matches!(failure(code).into(), Error::Corrupt(_)), "{code}");
        }
        assert!(matches!(failure(ffi::SQLITE_MISUSE).into(), Error::Other { .. }));
    }

    #[test]
    fn no_error_of_sqlite_is_the_refusal_of_one_transaction() {
        for code in 1..=101 {
            assert!(!Error::from(failure(code)).is_refusal(), "{code}");
        }
    }

    #[test]
    fn only_a_full_disk_or_a_lock_makes_a_failed_commit_certain() {
        use rusqlite::ffi;
        assert!(failure(ffi::SQLITE_FULL).is_certain());
        assert!(!failure(ffi::SQLITE_IOERR_FSYNC).is_certain());
    }
}
