//! The schema of tables in SQL databases: numbered steps, checked before they are applied.
//!
//! larder's own tables and those of an embedder are brought up to date by the same rules, which stand here once. An
//! engine reads its [`Ledger`], asks [`pending`] what is to do, and applies each [`Step`] in a transaction that also
//! records it, all under a lock of its own. The runners are `SqliteMigrator` of `larder-sqlite` and `PostgresMigrator`
//! of `larder-postgres`; what they have in common is [`SchemaMigrator`].
//!
//! # What a step may hold
//!
//! Statements of its engine, but none that begins, ends or divides a transaction: the runner begins one for each step
//! and ends it. A step with such a command is refused as [`MigrationError::ForbiddenCommand`] when the command is
//! reached, and nothing of the step stays. What the engines refuse beyond that is said in the documentation of the
//! runners.

mod step_set;

use std::time::Duration;

use async_trait::async_trait;

use crate::clock::UnixMillis;
use crate::error::Error;

pub use step_set::{Step, StepFileError, StepSet};

/// How long a runner waits for others who bring the same database up to date, where it isn't told otherwise.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A step that the ledger of a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedStep {
    /// Its number.
    pub number: u32,
    /// Its name when it was applied.
    pub name: String,
    /// SHA-256 of the statements that were run.
    pub checksum: Vec<u8>,
    /// When.
    pub applied_at: UnixMillis,
}

/// What was applied to a database, and what is still to apply. Both are in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What the ledger holds.
    pub applied: Vec<AppliedStep>,
    /// What comes next.
    pub pending: Vec<Step>,
}

impl Status {
    /// Holds a set of steps against what a ledger holds.
    ///
    /// # Errors
    /// Where one doesn't continue the other.
    pub fn of(steps: &StepSet, applied: Vec<AppliedStep>) -> Result<Self, SchemaError> {
        let pending = pending(steps, &applied)?.to_vec();
        Ok(Self { applied, pending })
    }

    /// Whether no step was ever applied.
    pub fn is_fresh(&self) -> bool {
        self.applied.is_empty()
    }
}

/// Brings the tables of one database up to date.
#[async_trait]
pub trait SchemaMigrator: Send + Sync {
    /// What was applied, and what is still to apply. It writes nothing, and makes neither a database nor a ledger:
    /// where there is none yet, every step is pending.
    ///
    /// # Errors
    /// [`MigrationError::Schema`] where the steps don't fit the database, and [`MigrationError::Database`] where it
    /// can't be read.
    async fn status(&self) -> Result<Status, MigrationError>;

    /// Applies what is pending and returns it. Of several who do so at once each step is applied by one, and all of
    /// them end well.
    ///
    /// # Errors
    /// Those of [`MigrationError`], [`MigrationError::Fresh`] aside.
    async fn up(&self) -> Result<Vec<Step>, MigrationError>;
}

/// Why a database's schema can't be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A newer release has migrated the database, or the last files are missing.
    #[error(
        "the database has schema step {applied:04}, and this release knows {known:04} at most; use a newer release"
    )]
    Newer {
        /// The number in the database.
        applied: u32,
        /// The last number known here.
        known: u32,
    },
    /// The ledger lacks a step below one that it holds.
    #[error("the database's ledger lacks schema step {0:04}")]
    Missing(u32),
    /// The statements that were run are not those of this release.
    #[error("schema step {0:04} was applied with other statements than this release has")]
    Edited(u32),
}

impl From<SchemaError> for Error {
    fn from(error: SchemaError) -> Self {
        Self::caused("the schema of the database does not fit this release of larder", error)
    }
}

/// What of `steps` is still to apply, after what the ledger holds, in the order of its numbers.
///
/// # Errors
/// Where one doesn't continue the other.
pub fn pending<'a>(steps: &'a StepSet, applied: &[AppliedStep]) -> Result<&'a [Step], SchemaError> {
    let known = steps.newest();
    if let Some(newest) = applied.iter().map(|step| step.number).max().filter(|newest| *newest > known) {
        return Err(SchemaError::Newer { applied: newest, known });
    }
    for (step, applied) in steps.steps().iter().zip(applied) {
        if applied.number != step.number() {
            return Err(SchemaError::Missing(step.number()));
        }
        if applied.checksum != step.checksum() {
            return Err(SchemaError::Edited(step.number()));
        }
    }
    Ok(steps.steps().get(applied.len()..).unwrap_or_default())
}

/// The table in which a database keeps what was applied to it: one for each set of steps, so that several share a
/// database.
///
/// ```
/// use larder_core::schema::Ledger;
///
/// assert_eq!(Ledger::new("platform_migrations")?.name(), "platform_migrations");
/// assert!(Ledger::new("larder_migrations").is_err());
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger(String);

impl Ledger {
    /// The longest name, that of a table in Postgres.
    const NAME_MAX: usize = 63;

    /// The names that belong to larder and the engines begin so.
    const RESERVED: [&str; 3] = ["larder_", "sqlite_", "pg_"];

    /// The ledger of an embedder's own steps.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the name is no plain one, or is reserved.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !begins || name.len() > Self::NAME_MAX || !name.bytes().all(is_plain) {
            return Err(Error::invalid_argument(format!(
                "a ledger's name is a lower-case ASCII letter or `_`, then letters, digits and `_`, {} in all at most; \
                 right is `platform_migrations`",
                Self::NAME_MAX
            )));
        }
        if Self::RESERVED.iter().any(|reserved| name.starts_with(reserved)) {
            return Err(Error::invalid_argument(
                "names that begin with `larder_`, `sqlite_` and `pg_` are taken; choose another for the ledger",
            ));
        }
        Ok(Self(name))
    }

    /// The ledger of larder's own tables.
    pub fn larder() -> Self {
        Self("larder_migrations".to_string())
    }

    /// The table's name. It needs no escapes within double quotes.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Why a runner of migrations didn't do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// No step was ever applied to the database, or there is no database yet: see [`is_missing_migration`].
    #[error("the database is fresh: no step of {0:?} was applied to it; apply them first")]
    Fresh(String),
    /// The steps don't fit the database. Nothing was done.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The files are no set of steps.
    #[error(transparent)]
    Files(#[from] StepFileError),
    /// A step failed and was rolled back. Those before it are applied.
    #[error("schema step {number:04}_{name} failed and was rolled back")]
    StepFailed {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// What the database said.
        #[source]
        cause: Error,
    },
    /// A step holds a command that none can have, and was rolled back. Those before it are applied.
    #[error(
        "schema step {number:04}_{name} was rolled back because it {reason}; a step runs in one transaction, which \
         the runner begins and ends"
    )]
    ForbiddenCommand {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// What it does that it can't.
        reason: &'static str,
    },
    /// Others held the lock of the migrations for as long as the runner waits.
    #[error("others have held the lock of the migrations for {waited:?}")]
    LockHeld {
        /// How long the runner waits.
        waited: Duration,
        /// What the database said.
        #[source]
        cause: Error,
    },
    /// The database failed, or can't be reached.
    #[error(transparent)]
    Database(#[from] Error),
}

impl From<MigrationError> for Error {
    /// As larder's own schema fails.
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Schema(error) => error.into(),
            MigrationError::StepFailed { cause, .. }
            | MigrationError::LockHeld { cause, .. }
            | MigrationError::Database(cause) => cause,
            MigrationError::Fresh(_) | MigrationError::Files(_) | MigrationError::ForbiddenCommand { .. } => {
                Self::caused("the schema of the database could not be brought up to date", error)
            }
        }
    }
}

/// Whether an error says that the database is fresh, so that applying the steps is what it needs. It is false for a
/// database that can't be reached, is damaged, or does not fit.
///
/// ```
/// use larder_core::schema::{MigrationError, SchemaError, is_missing_migration};
///
/// assert!(is_missing_migration(&MigrationError::Fresh("platform_migrations".to_string())));
/// assert!(!is_missing_migration(&SchemaError::Edited(1).into()));
/// ```
pub fn is_missing_migration(error: &MigrationError) -> bool {
    matches!(error, MigrationError::Fresh(_))
}

/// The number of the newest step that was applied.
///
/// # Errors
/// [`MigrationError::Fresh`] where none was.
pub fn version(ledger: &Ledger, status: &Status) -> Result<u32, MigrationError> {
    let newest = status.applied.last().map(|step| step.number);
    newest.ok_or_else(|| MigrationError::Fresh(ledger.name().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> StepSet {
        StepSet::embedded(&[("0001_one.sql", "1"), ("0002_two.sql", "2"), ("0003_three.sql", "3")]).unwrap()
    }

    fn applied(numbers: &[u32]) -> Vec<AppliedStep> {
        let steps = steps();
        let checksum = |number: u32| {
            let step = steps.steps().iter().find(|step| step.number() == number);
            step.map_or(vec![0], |step| step.checksum().to_vec())
        };
        let applied = |number: &u32| AppliedStep {
            number: *number,
            name: String::new(),
            checksum: checksum(*number),
            applied_at: 7,
        };
        numbers.iter().map(applied).collect()
    }

    #[test]
    fn what_is_not_applied_is_pending_in_order() {
        let numbers = |applied: &[AppliedStep]| -> Vec<u32> {
            pending(&steps(), applied).unwrap().iter().map(Step::number).collect()
        };
        assert_eq!(numbers(&[]), [1, 2, 3]);
        assert_eq!(numbers(&applied(&[1])), [2, 3]);
        assert_eq!(numbers(&applied(&[1, 2, 3])), Vec::<u32>::new());
    }

    #[test]
    fn a_newer_database_is_refused() {
        let newer = SchemaError::Newer { applied: 4, known: 3 };
        assert_eq!(pending(&steps(), &applied(&[1, 2, 3, 4])).unwrap_err(), newer);
    }

    #[test]
    fn an_edited_step_is_found() {
        let mut edited = applied(&[1, 2]);
        edited[1].checksum[0] ^= 1;
        assert_eq!(pending(&steps(), &edited).unwrap_err(), SchemaError::Edited(2));
    }

    #[test]
    fn a_gap_is_found_in_the_ledger() {
        assert_eq!(pending(&steps(), &applied(&[1, 3])).unwrap_err(), SchemaError::Missing(2));
    }

    #[test]
    fn a_version_is_the_newest_step_and_a_fresh_database_has_none() {
        let status = |numbers: &[u32]| Status::of(&steps(), applied(numbers)).unwrap();
        let ledger = Ledger::new("mine").unwrap();
        assert_eq!(version(&ledger, &status(&[1, 2])).unwrap(), 2);
        assert!(is_missing_migration(&version(&ledger, &status(&[])).unwrap_err()));
    }

    #[test]
    fn a_ledger_has_a_plain_name_that_is_not_taken() {
        for name in ["a", "_a1", "platform_migrations", &"a".repeat(63)] {
            assert_eq!(Ledger::new(name).unwrap().name(), name);
        }
        let refused = [
            "",
            "1a",
            "Mine",
            "a b",
            "a\"; DROP TABLE x",
            "größe",
            "a.b",
            "larder_migrations",
            "larder_x",
            "sqlite_master",
            "pg_class",
            &"a".repeat(64),
        ];
        for name in refused {
            assert!(matches!(Ledger::new(name), Err(Error::InvalidArgument(_))), "{name}");
        }
        assert!(Ledger::new(Ledger::larder().name()).is_err());
    }

    #[test]
    fn as_an_error_of_a_store_the_cause_stays() {
        let cause = || Error::TimedOut;
        let step = MigrationError::StepFailed { number: 1, name: "one".to_string(), cause: cause() };
        let lock = MigrationError::LockHeld { waited: Duration::from_secs(1), cause: cause() };
        for error in [step, lock, MigrationError::Database(cause())] {
            assert!(matches!(Error::from(error), Error::TimedOut));
        }
    }
}
