//! The steps that a database has and those that it lacks.

use crate::error::{DatabaseError, MigrationError};
use crate::ledger::Ledger;
use crate::step_set::{Step, StepSet};

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
    /// When the step was applied, in milliseconds since the Unix epoch.
    pub applied_at: u64,
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

/// The reason why the steps of a set do not match a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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

/// Returns the number of the newest applied step.
///
/// # Errors
///
/// [`MigrationError::Fresh`] if no step was applied.
pub fn version<E: DatabaseError>(ledger: &Ledger, status: &Status) -> Result<u32, MigrationError<E>> {
    let newest = status.applied.last().map(|step| step.number);
    newest.ok_or_else(|| MigrationError::Fresh(ledger.name().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::is_missing_migration;
    use crate::error::tests::Cause;

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
    fn a_gap_is_found_in_the_ledger() {
        assert_eq!(pending(&steps(), &applied(&[1, 3])).unwrap_err(), SchemaError::Missing(2));
    }

    #[test]
    fn a_version_is_the_newest_step_and_a_fresh_database_has_none() {
        let status = |numbers: &[u32]| Status::of(&steps(), applied(numbers)).unwrap();
        let ledger = Ledger::new("mine").unwrap();
        assert_eq!(version::<Cause>(&ledger, &status(&[1, 2])).unwrap(), 2);
        assert!(is_missing_migration(&version::<Cause>(&ledger, &status(&[])).unwrap_err()));
    }
}
