//! The errors of a run of steps.

use std::error::Error;
use std::time::Duration;

use crate::foreign_keys::ForeignKeyViolations;
use crate::position::StepPosition;
use crate::status::SchemaError;
use crate::step_set::{Step, StepFileError, file};

/// An error of the database that a runner works on, of the runner's own type.
pub trait DatabaseError: Error + Send + Sync + 'static {
    /// Whether the database was not available, so that the same step may succeed later.
    ///
    /// It decides whether the error of a step tells the user to correct the step's file.
    fn is_unavailable(&self) -> bool;
}

/// An error of a [`SchemaMigrator`](crate::SchemaMigrator) whose database has errors of the type
/// `E`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError<E: DatabaseError> {
    /// No step was ever applied to the database, or the database does not exist.
    ///
    /// See [`is_missing_migration`].
    #[error("the database is fresh: no step of {0:?} was applied to it; apply the steps first")]
    Fresh(String),
    /// The steps do not match the database. Nothing was applied.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The files are not a valid set of steps.
    #[error(transparent)]
    Files(#[from] StepFileError),
    /// A step failed and was rolled back. The steps before it are applied.
    #[error(
        "schema step {:?} failed{} and was rolled back; {}",
        file(*number, name),
        at(position),
        advice(*is_larders, cause)
    )]
    StepFailed {
        /// The number of the step.
        number: u32,
        /// The name of the step.
        name: String,
        /// The statement that failed; `None` if it was the commit.
        position: Option<StepPosition>,
        /// Whether it is a step of larder's own tables, which the user cannot edit.
        is_larders: bool,
        /// The error of the database.
        #[source]
        cause: E,
    },
    /// A step would have left rows that refer to missing rows, and was rolled back.
    ///
    /// The steps before it are applied.
    #[error(
        "schema step {:?} was rolled back because it leaves rows that refer to missing rows: {violations}; delete or \
         change these rows in the step; if they did so before the step, keep their row ids and rename tables and columns in \
         a step that drops nothing",
        file(*number, name)
    )]
    ForeignKeys {
        /// The number of the step.
        number: u32,
        /// The name of the step.
        name: String,
        /// The rows.
        violations: ForeignKeyViolations,
    },
    /// A step holds a command that steps must not have, and was rolled back.
    ///
    /// The steps before it are applied.
    #[error("schema step {:?} was rolled back{}: it {reason}", file(*number, name), at(position))]
    ForbiddenCommand {
        /// The number of the step.
        number: u32,
        /// The name of the step.
        name: String,
        /// The statement that was refused; `None` if it is not known.
        position: Option<StepPosition>,
        /// What the command does, and what to do instead.
        reason: &'static str,
    },
    /// The ledger is in another schema of the search path than the first.
    ///
    /// New tables would be created in the first schema. A second ledger there would hide the
    /// existing one and its tables, so nothing was applied.
    #[error(
        "cannot tell which schema holds {ledger:?}: new tables are created in schema {first:?}, but the table is in schema \
         {holder:?}; name the schema in the data-source name, as schema={holder}"
    )]
    ShadowedLedger {
        /// The ledger's table.
        ledger: String,
        /// The first schema of the search path, in which new tables are created.
        first: String,
        /// The schema that has the table.
        holder: String,
    },
    /// Several schemas of the search path have the ledger, so the right one is not known.
    ///
    /// Nothing was applied.
    #[error(
        "cannot tell which schema holds {ledger:?}: the schemas {} of the search path have it; name one of them in the \
         data-source name, as schema={}",
        quoted(schemas),
        schemas.first().map_or("public", String::as_str)
    )]
    SeveralLedgers {
        /// The ledger's table.
        ledger: String,
        /// The schemas that have the table, in the order of the search path.
        schemas: Vec<String>,
    },
    /// The first schema of the search path changed between two steps of a run.
    ///
    /// The steps before the change are applied.
    #[error(
        "stopped after schema step {:?}: it was recorded in {ledger:?} of schema {schema:?}, but the search path now leads \
         to schema {found:?}; name the schema in the data-source name, as schema={schema}",
        file(*number, name)
    )]
    SchemaChanged {
        /// The number of the last step that was applied.
        number: u32,
        /// The name of the step.
        name: String,
        /// The ledger's table.
        ledger: String,
        /// The schema in which the steps were applied.
        schema: String,
        /// The schema in which the next step would have been applied.
        found: String,
    },
    /// Another process held the migration lock for as long as the runner waits.
    #[error("another process has held the migration lock for {waited:?}")]
    LockHeld {
        /// How long the runner waited.
        waited: Duration,
        /// The error of the database.
        #[source]
        cause: E,
    },
    /// The database failed or cannot be reached.
    #[error(transparent)]
    Database(E),
}

impl<E: DatabaseError> MigrationError<E> {
    /// Creates a [`MigrationError::StepFailed`] for a step.
    ///
    /// `position` is that of the statement that failed, or `None` if it was the commit.
    pub fn step_failed(step: &Step, position: Option<StepPosition>, cause: E) -> Self {
        let (number, name, is_larders) = (step.number(), step.name().to_string(), step.is_larders());
        Self::StepFailed { number, name, position, is_larders, cause }
    }

    /// Returns the error of the database, and what failed because of it.
    ///
    /// The text names the step and the statement, or the lock. It is `None` for
    /// [`MigrationError::Database`].
    ///
    /// # Errors
    ///
    /// The error itself, if no error of the database caused it.
    pub fn into_cause(self) -> Result<(E, Option<String>), Self> {
        match self {
            Self::StepFailed { number, name, position, cause, .. } => {
                let failure = format!("schema step {:?} failed{}", file(number, &name), at(&position));
                Ok((cause, Some(failure)))
            }
            Self::LockHeld { waited, cause } => {
                Ok((cause, Some(format!("another process has held the migration lock for {waited:?}"))))
            }
            Self::Database(cause) => Ok((cause, None)),
            error => Err(error),
        }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// What the user can do about a failed step.
fn advice(is_larders: bool, cause: &impl DatabaseError) -> &'static str {
    match (cause.is_unavailable(), is_larders) {
        (true, _) => "the file is not at fault: apply it again when the database is available",
        (false, true) => {
            "the step is larder's own: check that nothing else has created or changed tables named `larder_…`, and that the \
             role may create tables"
        }
        (false, false) => "correct the file and apply it again",
    }
}

fn at(position: &Option<StepPosition>) -> String {
    position.as_ref().map(|position| format!(" in {position}")).unwrap_or_default()
}

/// Whether an error means that no step was ever applied to the database.
///
/// False for a database that cannot be reached, is damaged, or does not match the steps.
///
/// ```
/// use larder_schema::{DatabaseError, MigrationError, SchemaError, is_missing_migration};
///
/// #[derive(Debug, thiserror::Error)]
/// #[error("the database is locked")]
/// struct Locked;
///
/// impl DatabaseError for Locked {
///     fn is_unavailable(&self) -> bool {
///         true
///     }
/// }
///
/// let fresh = MigrationError::<Locked>::Fresh("platform_migrations".to_string());
/// assert!(is_missing_migration(&fresh));
/// assert!(!is_missing_migration(&MigrationError::Database(Locked)));
/// assert!(!is_missing_migration(&MigrationError::<Locked>::from(SchemaError::Edited(1))));
/// ```
pub fn is_missing_migration<E: DatabaseError>(error: &MigrationError<E>) -> bool {
    matches!(error, MigrationError::Fresh(_))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::step_set::StepSet;

    #[derive(Debug, PartialEq, Eq, thiserror::Error)]
    pub(crate) enum Cause {
        #[error("the disk is full")]
        DiskFull,
        #[error("no such column")]
        NoSuchColumn,
    }

    impl DatabaseError for Cause {
        fn is_unavailable(&self) -> bool {
            *self == Self::DiskFull
        }
    }

    #[test]
    fn an_error_of_a_step_names_its_file_the_statement_and_the_line() {
        let position = StepPosition::new("SELECT 1;\nSELECT x", 10..18, None);
        let (number, name) = (2, "two".to_string());
        let failed = |is_larders, cause| {
            let (name, position) = (name.clone(), Some(position.clone()));
            MigrationError::StepFailed { number, name, position, is_larders, cause }.to_string()
        };
        let failure = "schema step \"0002_two.sql\" failed in line 2, at \"SELECT x\" and was rolled back; ";
        let expected = format!("{failure}correct the file and apply it again");
        assert_eq!(failed(false, Cause::NoSuchColumn), expected);
        for is_larders in [false, true] {
            let advice = "the file is not at fault: apply it again when the database is available";
            assert_eq!(failed(is_larders, Cause::DiskFull), format!("{failure}{advice}"));
        }
        let larders = failed(true, Cause::NoSuchColumn);
        assert!(larders.starts_with(&format!("{failure}the step is larder's own: check")), "{larders}");
        assert!(!larders.contains("correct the file"), "{larders}");
    }

    #[test]
    fn only_an_error_that_the_database_caused_has_a_cause() {
        let steps = StepSet::embedded(&[("0001_one.sql", "SELECT 1;\nSELECT x")]).unwrap();
        let position = Some(StepPosition::new("SELECT 1;\nSELECT x", 10..18, None));
        let step = MigrationError::step_failed(&steps.steps()[0], position, Cause::NoSuchColumn);
        let failure = "schema step \"0001_one.sql\" failed in line 2, at \"SELECT x\"".to_string();
        assert_eq!(step.into_cause().unwrap(), (Cause::NoSuchColumn, Some(failure)));
        let lock = MigrationError::LockHeld { waited: Duration::from_secs(1), cause: Cause::DiskFull };
        let failure = "another process has held the migration lock for 1s".to_string();
        assert_eq!(lock.into_cause().unwrap(), (Cause::DiskFull, Some(failure)));
        let database = MigrationError::Database(Cause::DiskFull);
        assert_eq!(database.into_cause().unwrap(), (Cause::DiskFull, None));
        let edited = MigrationError::<Cause>::from(SchemaError::Edited(1)).into_cause();
        assert!(matches!(edited, Err(MigrationError::Schema(SchemaError::Edited(1)))));
    }
}
