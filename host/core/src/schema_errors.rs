//! The errors of schema migrations as errors of a store.

use larder_schema::{DatabaseError, LedgerNameError, MigrationError, SchemaError};

use crate::error::Error;

impl DatabaseError for Error {
    fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::CommitUnknown { .. } | Self::TimedOut)
    }
}

impl From<LedgerNameError> for Error {
    fn from(error: LedgerNameError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<SchemaError> for Error {
    fn from(error: SchemaError) -> Self {
        Self::caused("the schema of the database does not match this release of larder", error)
    }
}

impl From<Error> for MigrationError<Error> {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl From<MigrationError<Error>> for Error {
    /// Converts a failure of larder's own schema migrations.
    ///
    /// The kind of the cause stays, and its reason also names the step and the statement.
    fn from(error: MigrationError<Self>) -> Self {
        match error.into_cause() {
            Ok((cause, Some(failure))) => explained(cause, &failure),
            Ok((cause, None)) => cause,
            Err(MigrationError::Schema(error)) => error.into(),
            Err(error @ MigrationError::ShadowedLedger { .. }) => {
                Self::caused("the store is in a schema that is not the first of the search path", error)
            }
            Err(error @ MigrationError::SeveralLedgers { .. }) => {
                Self::caused("several schemas of the search path hold a store", error)
            }
            Err(error) => Self::caused("the schema of the database could not be brought up to date", error),
        }
    }
}

/// Prefixes an error's reason. An error without a reason stays as it is.
fn explained(error: Error, what: &str) -> Error {
    let explained = |reason: String| format!("{what}: {reason}");
    match error {
        Error::Unavailable { reason, cause } => Error::Unavailable { reason: explained(reason), cause },
        Error::CommitUnknown { reason, cause } => Error::CommitUnknown { reason: explained(reason), cause },
        Error::NotFound { reason, cause } => Error::NotFound { reason: explained(reason), cause },
        Error::Other { reason, cause } => Error::Other { reason: explained(reason), cause },
        Error::Corrupt(reason) => Error::Corrupt(explained(reason)),
        Error::AccessDenied(reason) => Error::AccessDenied(explained(reason)),
        Error::InvalidArgument(reason) => Error::InvalidArgument(explained(reason)),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use larder_schema::{StepPosition, StepSet};

    use super::*;

    #[test]
    fn a_database_that_cannot_be_reached_or_does_not_answer_is_unavailable() {
        let unknown = Error::CommitUnknown { reason: String::new(), cause: None };
        for error in [Error::TimedOut, Error::unavailable("the disk is full", std::fmt::Error), unknown] {
            assert!(error.is_unavailable(), "{error}");
        }
        for error in [Error::other("no such column"), Error::Corrupt("a page".to_string()), Error::Closed] {
            assert!(!error.is_unavailable(), "{error}");
        }
    }

    #[test]
    fn a_ledgers_name_that_is_refused_is_an_invalid_argument() {
        let error = Error::from(larder_schema::Ledger::new("larder_x").unwrap_err());
        assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("are reserved")), "{error}");
    }

    #[test]
    fn as_an_error_of_a_store_the_cause_stays_and_the_step_the_file_and_the_line_are_named() {
        let step = |cause| {
            let position = Some(StepPosition::new("SELECT 1;\nSELECT x", 10..18, None));
            let steps = StepSet::embedded(&[("0001_one.sql", "1")]).unwrap();
            Error::from(MigrationError::step_failed(&steps.steps()[0], position, cause))
        };
        let failure = "schema step \"0001_one.sql\" failed in line 2, at \"SELECT x\": ";
        let cause = || std::io::Error::other("the cause");
        let errors = [
            (step(Error::caused("the database failed", cause())), format!("{failure}the database failed")),
            (
                step(Error::unavailable("the disk is full", cause())),
                format!("the store is unavailable: {failure}the disk is full"),
            ),
            (step(Error::Corrupt("a page".to_string())), format!("stored data is corrupt: {failure}a page")),
        ];
        for (error, text) in &errors {
            assert_eq!(error.to_string(), *text);
        }
        use std::error::Error as _;
        assert_eq!(errors[0].0.source().unwrap().to_string(), "the cause");
        let lock = MigrationError::LockHeld {
            waited: Duration::from_secs(1),
            cause: Error::unavailable("another process holds the lock", cause()),
        };
        assert_eq!(
            Error::from(lock).to_string(),
            "the store is unavailable: another process has held the migration lock for 1s: another process holds the lock"
        );
        for error in [step(Error::TimedOut), MigrationError::Database(Error::TimedOut).into()] {
            assert!(matches!(error, Error::TimedOut));
        }
    }
}
