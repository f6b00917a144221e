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

mod foreign_keys;
mod position;
mod step_set;

use std::time::Duration;

use async_trait::async_trait;

use crate::clock::UnixMillis;
use crate::error::Error;

pub use foreign_keys::{ForeignKeyViolation, ForeignKeyViolations};
pub use position::StepPosition;
use step_set::file;
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
    /// SHA-256 of the statements that were run, as [`Step::checksum`]; in a row of an earlier release, of the file.
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
    /// The database lacks steps of this release, and may not be changed: it is open for reading only.
    #[error(
        "the database is at schema step {applied:04}, and this release reads step {known:04}; run `larder migrate up` \
         on it first"
    )]
    Behind {
        /// The newest step of the database; 0 if it has no tables of larder.
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

/// Checks that a database can be read as it is, without applying a step.
///
/// # Errors
/// [`SchemaError::Behind`] if a step is pending, and the errors of [`pending`].
pub fn check_current(steps: &StepSet, applied: &[AppliedStep]) -> Result<(), SchemaError> {
    if pending(steps, applied)?.is_empty() {
        return Ok(());
    }
    let newest = applied.last().map_or(0, |step| step.number);
    Err(SchemaError::Behind { applied: newest, known: steps.newest() })
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
        if !step.is_checksum(&applied.checksum) {
            return Err(SchemaError::Edited(step.number()));
        }
    }
    Ok(steps.steps().get(applied.len()..).unwrap_or_default())
}

/// The steps whose checksums an earlier release recorded in another form. An engine records their new checksums in the
/// transaction of the next step that it applies, and not before: as long as a ledger holds no step that the earlier release
/// lacks, hosts of that release go on with what they find, and later they are refused anyway.
pub fn recorded_otherwise<'a>(steps: &'a StepSet, applied: &[AppliedStep]) -> Vec<&'a Step> {
    let both = steps.steps().iter().zip(applied);
    both.filter(|(step, applied)| applied.checksum != step.checksum()).map(|(step, _)| step).collect()
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
    #[error(
        "schema step {:?} failed{} and was rolled back; {}",
        file(*number, name),
        at(position),
        advice(*is_larders, cause)
    )]
    StepFailed {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The statement that failed; `None` if it was the commit.
        position: Option<StepPosition>,
        /// Whether it is a step of larder's own tables, which its user can't edit.
        is_larders: bool,
        /// What the database said.
        #[source]
        cause: Error,
    },
    /// A step would have left rows that refer to missing rows, and was rolled back. Those before it are applied.
    #[error(
        "schema step {:?} was rolled back because it leaves rows that refer to missing rows: {violations}; delete or \
         change these rows in the step, and if they did so before it, keep their row ids, and rename tables and columns in \
         a step that drops nothing",
        file(*number, name)
    )]
    ForeignKeys {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The rows.
        violations: ForeignKeyViolations,
    },
    /// A step holds a command that none can have, and was rolled back. Those before it are applied.
    #[error("schema step {:?} was rolled back{}: it {reason}", file(*number, name), at(position))]
    ForbiddenCommand {
        /// Its number.
        number: u32,
        /// Its name.
        name: String,
        /// The statement that was refused; `None` if it is not known.
        position: Option<StepPosition>,
        /// What it does that it can't, and what to do instead.
        reason: &'static str,
    },
    /// The ledger is not in the schema in which tables are made, but in another one of the search path. Nothing was
    /// done: to make a second ledger there would hide the first one with all that belongs to it.
    #[error(
        "cannot tell which schema holds {ledger:?}: tables are made in schema {first:?}, but the table is in schema \
         {holder:?}; name the schema in the data-source name, as schema={holder}"
    )]
    ShadowedLedger {
        /// The table.
        ledger: String,
        /// The schema in which tables are made, the first one of the search path.
        first: String,
        /// The schema that has the table.
        holder: String,
    },
    /// Several schemas of the search path have the ledger, and each may be the one that is meant. Nothing was done.
    #[error(
        "cannot tell which schema holds {ledger:?}: the schemas {} of the search path have it; name one of them in the \
         data-source name, as schema={}",
        quoted(schemas),
        schemas.first().map_or("public", String::as_str)
    )]
    SeveralLedgers {
        /// The table.
        ledger: String,
        /// The schemas that have it, in the order of the search path.
        schemas: Vec<String>,
    },
    /// Between two steps of a run, the schema in which tables are made became another one. The steps before are applied.
    #[error(
        "stopped after schema step {:?}: it was recorded in {ledger:?} of schema {schema:?}, but the search path now leads \
         to schema {found:?}; name the schema in the data-source name, as schema={schema}",
        file(*number, name)
    )]
    SchemaChanged {
        /// The number of the last step that was applied.
        number: u32,
        /// Its name.
        name: String,
        /// The table.
        ledger: String,
        /// The schema in which the steps were applied.
        schema: String,
        /// The schema in which a further step would have been applied.
        found: String,
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

impl MigrationError {
    /// That a step failed. `position` is that of the statement that failed; `None` if it was the commit.
    pub fn step_failed(step: &Step, position: Option<StepPosition>, cause: Error) -> Self {
        let (number, name, is_larders) = (step.number(), step.name().to_string(), step.is_larders());
        Self::StepFailed { number, name, position, is_larders, cause }
    }
}

impl From<MigrationError> for Error {
    /// As larder's own schema fails. The kind of a cause stays, and its reason says which step failed, and where.
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Schema(error) => error.into(),
            MigrationError::StepFailed { number, name, position, cause, .. } => {
                let place = format!("schema step {:?} failed{}", file(number, &name), at(&position));
                explained(cause, &place)
            }
            MigrationError::LockHeld { waited, cause } => {
                explained(cause, &format!("others have held the lock of the migrations for {waited:?}"))
            }
            MigrationError::Database(cause) => cause,
            MigrationError::ShadowedLedger { .. } => Self::caused(
                "the store is in another schema of the database than the first of the search path",
                error,
            ),
            MigrationError::SeveralLedgers { .. } => {
                Self::caused("several schemas of the search path hold a store", error)
            }
            MigrationError::Fresh(_)
            | MigrationError::Files(_)
            | MigrationError::ForeignKeys { .. }
            | MigrationError::SchemaChanged { .. }
            | MigrationError::ForbiddenCommand { .. } => {
                Self::caused("the schema of the database could not be brought up to date", error)
            }
        }
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

/// The error with what led to it before its reason. An error without a reason stays as it is.
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

/// What the user can do about a step that failed.
fn advice(is_larders: bool, cause: &Error) -> &'static str {
    match cause {
        Error::Unavailable { .. } | Error::CommitUnknown { .. } | Error::TimedOut => {
            "the file is not at fault: apply it again when the database can be used"
        }
        _ if is_larders => {
            "the step is larder's own: check that nothing else has made or changed tables named `larder_…`, and that the \
             role may create tables"
        }
        _ => "correct the file and apply it again",
    }
}

fn at(position: &Option<StepPosition>) -> String {
    position.as_ref().map(|position| format!(" in {position}")).unwrap_or_default()
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
    fn only_a_database_with_every_step_is_current() {
        let behind = |applied| SchemaError::Behind { applied, known: 3 };
        assert_eq!(check_current(&steps(), &applied(&[1, 2, 3])), Ok(()));
        assert_eq!(check_current(&steps(), &applied(&[1, 2])), Err(behind(2)));
        assert_eq!(check_current(&steps(), &[]), Err(behind(0)));
        let newer = SchemaError::Newer { applied: 4, known: 3 };
        assert_eq!(check_current(&steps(), &applied(&[1, 2, 3, 4])), Err(newer));
    }

    #[test]
    fn an_edited_step_is_found() {
        let mut edited = applied(&[1, 2]);
        edited[1].checksum[0] ^= 1;
        assert_eq!(pending(&steps(), &edited).unwrap_err(), SchemaError::Edited(2));
    }

    #[test]
    fn a_checksum_of_an_earlier_release_is_accepted_and_known_as_such() {
        use sha2::{Digest, Sha256};
        let mut earlier = applied(&[1, 2]);
        earlier[1].checksum = Sha256::digest("2").to_vec();
        let numbers = |steps: &[Step]| steps.iter().map(Step::number).collect::<Vec<_>>();
        assert_eq!(numbers(pending(&steps(), &earlier).unwrap()), [3]);
        let set = steps();
        assert_eq!(recorded_otherwise(&set, &earlier), [&set.steps()[1]]);
        assert!(recorded_otherwise(&set, &applied(&[1, 2])).is_empty());
    }

    #[test]
    fn an_error_of_a_step_names_its_file_the_statement_and_the_line() {
        let position = StepPosition::new("SELECT 1;\nSELECT x", 10..18, None);
        let (number, name) = (2, "two".to_string());
        let failed = |is_larders, cause| {
            let (name, position) = (name.clone(), Some(position.clone()));
            MigrationError::StepFailed { number, name, position, is_larders, cause }.to_string()
        };
        let place = "schema step \"0002_two.sql\" failed in line 2, at \"SELECT x\" and was rolled back; ";
        let other = || Error::other("no such column");
        assert_eq!(failed(false, other()), format!("{place}correct the file and apply it again"));
        for is_larders in [false, true] {
            for cause in [Error::TimedOut, Error::unavailable("the disk is full", std::fmt::Error)] {
                let advice = "the file is not at fault: apply it again when the database can be used";
                assert_eq!(failed(is_larders, cause), format!("{place}{advice}"));
            }
        }
        let larders = failed(true, other());
        assert!(larders.starts_with(&format!("{place}the step is larder's own: check")), "{larders}");
        assert!(!larders.contains("correct the file"), "{larders}");
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
    fn as_an_error_of_a_store_the_cause_stays_and_the_step_the_file_and_the_line_are_named() {
        let step = |cause| {
            let position = Some(StepPosition::new("SELECT 1;\nSELECT x", 10..18, None));
            Error::from(MigrationError::step_failed(&steps().steps()[0], position, cause))
        };
        let place = "schema step \"0001_one.sql\" failed in line 2, at \"SELECT x\": ";
        let cause = || std::io::Error::other("the cause");
        let errors = [
            (step(Error::caused("the database failed", cause())), format!("{place}the database failed")),
            (
                step(Error::unavailable("the disk is full", cause())),
                format!("the store is unavailable: {place}the disk is full"),
            ),
            (step(Error::Corrupt("a page".to_string())), format!("stored data is corrupt: {place}a page")),
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
            "the store is unavailable: others have held the lock of the migrations for 1s: another process holds the lock"
        );
        for error in [step(Error::TimedOut), MigrationError::Database(Error::TimedOut).into()] {
            assert!(matches!(error, Error::TimedOut));
        }
    }
}
