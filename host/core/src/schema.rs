//! Schema migrations: the numbered steps that create and change tables in SQL databases.
//!
//! The same rules apply to larder's own tables and to those of an embedder. An engine reads its
//! [`Ledger`], asks [`pending`] for the steps to apply, and applies each [`Step`] in a transaction
//! that also records it. It holds a lock of its own meanwhile. The runners are `SqliteMigrator` of
//! `larder-sqlite` and `PostgresMigrator` of `larder-postgres`. Both implement [`SchemaMigrator`].
//!
//! # Contents of a step
//!
//! A step may hold any statement of its engine, except commands that begin, end or divide a
//! transaction: the runner begins and ends one for each step. A step with such a command fails with
//! [`MigrationError::ForbiddenCommand`] when it reaches the command, and is rolled back. The
//! documentation of each runner lists what else its engine refuses.

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

/// The default time that a runner waits for another one that migrates the same database.
pub const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A step that is recorded in the ledger of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedStep {
    /// The number of the step.
    pub number: u32,
    /// The name of the step when it was applied.
    pub name: String,
    /// SHA-256 of the statements that were run, as in [`Step::checksum`].
    ///
    /// A row that an earlier release wrote may have the SHA-256 of the file.
    pub checksum: Vec<u8>,
    /// When the step was applied.
    pub applied_at: UnixMillis,
}

/// The applied and the pending steps of a database, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The steps in the ledger.
    pub applied: Vec<AppliedStep>,
    /// The steps still to apply.
    pub pending: Vec<Step>,
}

impl Status {
    /// Compares a set of steps with the steps in a ledger.
    ///
    /// # Errors
    ///
    /// - [`SchemaError::Newer`] if the ledger has a step after the last one of the set.
    /// - [`SchemaError::Missing`] if the ledger lacks a step below one that it has.
    /// - [`SchemaError::Edited`] if a step was applied with different statements.
    pub fn of(steps: &StepSet, applied: Vec<AppliedStep>) -> Result<Self, SchemaError> {
        let pending = pending(steps, &applied)?.to_vec();
        Ok(Self { applied, pending })
    }

    /// Whether no step was ever applied.
    pub fn is_fresh(&self) -> bool {
        self.applied.is_empty()
    }
}

/// Applies the schema migrations of one database.
#[async_trait]
pub trait SchemaMigrator: Send + Sync {
    /// Returns the applied and the pending steps, without writing anything.
    ///
    /// If there is no database or no ledger, every step is pending, and neither is created.
    ///
    /// # Errors
    ///
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::ShadowedLedger`] or [`MigrationError::SeveralLedgers`] if the ledger's
    ///   schema in Postgres is ambiguous.
    /// - [`MigrationError::Database`] if the database cannot be read.
    async fn status(&self) -> Result<Status, MigrationError>;

    /// Applies the pending steps and returns them.
    ///
    /// Several processes may call this at once. Each step is applied by one of them, and all of
    /// them succeed.
    ///
    /// # Errors
    ///
    /// - [`MigrationError::Schema`] if the steps do not match the ledger.
    /// - [`MigrationError::StepFailed`], [`MigrationError::ForeignKeys`] or
    ///   [`MigrationError::ForbiddenCommand`] if a step failed and was rolled back. The steps
    ///   before it stay applied.
    /// - [`MigrationError::ShadowedLedger`], [`MigrationError::SeveralLedgers`] or
    ///   [`MigrationError::SchemaChanged`] if the ledger's schema in Postgres is ambiguous or
    ///   changed.
    /// - [`MigrationError::LockHeld`] if another process held the migration lock for too long.
    /// - [`MigrationError::Database`] if the database fails or cannot be reached.
    async fn up(&self) -> Result<Vec<Step>, MigrationError>;
}

/// The reason why the steps of a set do not match a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A newer release migrated the database, or the last files of the set are missing.
    #[error(
        "the database has schema step {applied:04}, but this release knows no step after {known:04}; use a newer release"
    )]
    Newer {
        /// The newest step of the database.
        applied: u32,
        /// The newest step of this release.
        known: u32,
    },
    /// The database lacks steps of this release and is open read-only, so they cannot be applied.
    #[error(
        "the database is at schema step {applied:04}, but this release needs step {known:04}; run `larder schema up` \
         on it first"
    )]
    Behind {
        /// The newest step of the database; 0 if it has no tables of larder.
        applied: u32,
        /// The newest step of this release.
        known: u32,
    },
    /// The ledger lacks a step below one that it has.
    #[error("the database's ledger lacks schema step {0:04}")]
    Missing(u32),
    /// The statements that were run differ from those of this release.
    #[error("schema step {0:04} was applied with statements that differ from this release")]
    Edited(u32),
}

impl From<SchemaError> for Error {
    fn from(error: SchemaError) -> Self {
        Self::caused("the schema of the database does not match this release of larder", error)
    }
}

/// Checks that no step is pending, so that a database can be opened read-only.
///
/// # Errors
///
/// - [`SchemaError::Behind`] if a step is pending.
/// - [`SchemaError::Newer`] if the ledger has a step after the last one of the set.
/// - [`SchemaError::Missing`] if the ledger lacks a step below one that it has.
/// - [`SchemaError::Edited`] if a step was applied with different statements.
pub fn check_current(steps: &StepSet, applied: &[AppliedStep]) -> Result<(), SchemaError> {
    if pending(steps, applied)?.is_empty() {
        return Ok(());
    }
    let newest = applied.last().map_or(0, |step| step.number);
    Err(SchemaError::Behind { applied: newest, known: steps.newest() })
}

/// Returns the pending steps of a set, in the order of their numbers.
///
/// # Errors
///
/// - [`SchemaError::Newer`] if the ledger has a step after the last one of the set.
/// - [`SchemaError::Missing`] if the ledger lacks a step below one that it has.
/// - [`SchemaError::Edited`] if a step was applied with different statements.
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

/// Returns the steps whose checksums an earlier release recorded in another form.
///
/// An engine records their new checksums in the transaction of the next step that it applies, and
/// not before. Until then, hosts of the earlier release can still open the database. Afterwards
/// they refuse it in any case, because the ledger has a step that they lack.
pub fn recorded_otherwise<'a>(steps: &'a StepSet, applied: &[AppliedStep]) -> Vec<&'a Step> {
    let both = steps.steps().iter().zip(applied);
    both.filter(|(step, applied)| applied.checksum != step.checksum()).map(|(step, _)| step).collect()
}

/// The name of the table that records the applied steps of one set.
///
/// Each set has a table of its own, so several sets can share a database.
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
    /// The longest table name in Postgres.
    const NAME_MAX: usize = 63;

    /// Prefixes of the names that belong to larder and the engines.
    const RESERVED: [&str; 3] = ["larder_", "sqlite_", "pg_"];

    /// Creates the ledger of an embedder's own steps.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if the name is invalid or reserved. It must start with a
    /// lower-case ASCII letter or `_`, continue with these and digits, and have at most 63 bytes.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !begins || name.len() > Self::NAME_MAX || !name.bytes().all(is_plain) {
            return Err(Error::invalid_argument(format!(
                "a ledger's name must be a lower-case ASCII letter or `_`, then letters, digits and `_`, at most {} in all; \
                 use a name like `platform_migrations`",
                Self::NAME_MAX
            )));
        }
        if Self::RESERVED.iter().any(|reserved| name.starts_with(reserved)) {
            return Err(Error::invalid_argument(
                "names that begin with `larder_`, `sqlite_` or `pg_` are reserved; choose another name for the ledger",
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

/// An error of a [`SchemaMigrator`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
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
        cause: Error,
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
        cause: Error,
    },
    /// The database failed or cannot be reached.
    #[error(transparent)]
    Database(#[from] Error),
}

impl MigrationError {
    /// Creates a [`MigrationError::StepFailed`] for a step.
    ///
    /// `position` is that of the statement that failed, or `None` if it was the commit.
    pub fn step_failed(step: &Step, position: Option<StepPosition>, cause: Error) -> Self {
        let (number, name, is_larders) = (step.number(), step.name().to_string(), step.is_larders());
        Self::StepFailed { number, name, position, is_larders, cause }
    }
}

impl From<MigrationError> for Error {
    /// Converts a failure of larder's own schema migrations.
    ///
    /// The kind of the cause stays, and its reason also names the step and the statement.
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::Schema(error) => error.into(),
            MigrationError::StepFailed { number, name, position, cause, .. } => {
                let failure = format!("schema step {:?} failed{}", file(number, &name), at(&position));
                explained(cause, &failure)
            }
            MigrationError::LockHeld { waited, cause } => {
                explained(cause, &format!("another process has held the migration lock for {waited:?}"))
            }
            MigrationError::Database(cause) => cause,
            MigrationError::ShadowedLedger { .. } => {
                Self::caused("the store is in a schema that is not the first of the search path", error)
            }
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

/// What the user can do about a failed step.
fn advice(is_larders: bool, cause: &Error) -> &'static str {
    match cause {
        Error::Unavailable { .. } | Error::CommitUnknown { .. } | Error::TimedOut => {
            "the file is not at fault: apply it again when the database is available"
        }
        _ if is_larders => {
            "the step is larder's own: check that nothing else has created or changed tables named `larder_…`, and that the \
             role may create tables"
        }
        _ => "correct the file and apply it again",
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
/// use larder_core::schema::{MigrationError, SchemaError, is_missing_migration};
///
/// assert!(is_missing_migration(&MigrationError::Fresh("platform_migrations".to_string())));
/// assert!(!is_missing_migration(&SchemaError::Edited(1).into()));
/// ```
pub fn is_missing_migration(error: &MigrationError) -> bool {
    matches!(error, MigrationError::Fresh(_))
}

/// Returns the number of the newest applied step.
///
/// # Errors
///
/// [`MigrationError::Fresh`] if no step was applied.
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
        let failure = "schema step \"0002_two.sql\" failed in line 2, at \"SELECT x\" and was rolled back; ";
        let other = || Error::other("no such column");
        assert_eq!(failed(false, other()), format!("{failure}correct the file and apply it again"));
        for is_larders in [false, true] {
            for cause in [Error::TimedOut, Error::unavailable("the disk is full", std::fmt::Error)] {
                let advice = "the file is not at fault: apply it again when the database is available";
                assert_eq!(failed(is_larders, cause), format!("{failure}{advice}"));
            }
        }
        let larders = failed(true, other());
        assert!(larders.starts_with(&format!("{failure}the step is larder's own: check")), "{larders}");
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
