//! The schema of larder's own tables in SQL databases: numbered steps, checked before they are applied.
//!
//! The rules stand here once; an engine reads its ledger, asks [`pending`] what is to do, and applies
//! each step in a transaction that also records it, all under a lock of its own.

use sha2::{Digest, Sha256};

use crate::error::Error;

/// One step, from `migrations/ENGINE/NNNN_name.sql`.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its number: 1, 2, 3, …
    pub number: u32,
    /// What it does, in a word or two.
    pub name: &'static str,
    /// Its statements.
    pub sql: &'static str,
}

impl Step {
    /// SHA-256 of its statements.
    pub fn checksum(&self) -> [u8; 32] {
        Sha256::digest(self.sql.as_bytes()).into()
    }
}

/// A step that the ledger of a database holds.
#[derive(Clone, Debug)]
pub struct AppliedStep {
    /// Its number.
    pub number: u32,
    /// SHA-256 of the statements that were run.
    pub checksum: Vec<u8>,
}

/// Why a database's schema can't be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The binary's own steps are not numbered 1, 2, 3, …
    #[error("schema step {0:04} is out of sequence in this release")]
    OutOfSequence(u32),
    /// A newer release has migrated the database.
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
pub fn pending<'a>(steps: &'a [Step], applied: &[AppliedStep]) -> Result<&'a [Step], SchemaError> {
    for (expected, step) in (1..).zip(steps) {
        if step.number != expected {
            return Err(SchemaError::OutOfSequence(step.number));
        }
    }
    let known = steps.len() as u32;
    if let Some(newest) = applied.iter().map(|step| step.number).max().filter(|newest| *newest > known) {
        return Err(SchemaError::Newer { applied: newest, known });
    }
    for (step, applied) in steps.iter().zip(applied) {
        if applied.number != step.number {
            return Err(SchemaError::Missing(step.number));
        }
        if applied.checksum != step.checksum() {
            return Err(SchemaError::Edited(step.number));
        }
    }
    Ok(steps.get(applied.len()..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 3] = [
        Step { number: 1, name: "one", sql: "1" },
        Step { number: 2, name: "two", sql: "2" },
        Step { number: 3, name: "three", sql: "3" },
    ];

    fn applied(numbers: &[u32]) -> Vec<AppliedStep> {
        let checksum = |number: &u32| {
            STEPS.iter().find(|step| step.number == *number).map_or(vec![0], |step| step.checksum().to_vec())
        };
        numbers.iter().map(|number| AppliedStep { number: *number, checksum: checksum(number) }).collect()
    }

    #[test]
    fn what_is_not_applied_is_pending_in_order() {
        let numbers = |applied: &[AppliedStep]| -> Vec<u32> {
            pending(&STEPS, applied).unwrap().iter().map(|step| step.number).collect()
        };
        assert_eq!(numbers(&[]), [1, 2, 3]);
        assert_eq!(numbers(&applied(&[1])), [2, 3]);
        assert_eq!(numbers(&applied(&[1, 2, 3])), Vec::<u32>::new());
    }

    #[test]
    fn a_newer_database_is_refused() {
        let newer = SchemaError::Newer { applied: 4, known: 3 };
        assert_eq!(pending(&STEPS, &applied(&[1, 2, 3, 4])).unwrap_err(), newer);
    }

    #[test]
    fn an_edited_step_is_found() {
        let mut edited = applied(&[1, 2]);
        edited[1].checksum[0] ^= 1;
        assert_eq!(pending(&STEPS, &edited).unwrap_err(), SchemaError::Edited(2));
    }

    #[test]
    fn a_gap_is_found_in_the_ledger_and_in_the_release() {
        assert_eq!(pending(&STEPS, &applied(&[1, 3])).unwrap_err(), SchemaError::Missing(2));
        assert_eq!(pending(&STEPS[1..], &[]).unwrap_err(), SchemaError::OutOfSequence(2));
    }
}
