//! The entries of the ledger of guest migrations.

use serde::{Deserialize, Serialize};

use super::{LEDGER_NAMESPACE, Migration};
use crate::clock::UnixMillis;
use crate::error::{Error, Result};

/// A step of a guest migration that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMigration {
    /// The component that declared the step.
    pub component: String,
    /// The id of the step.
    pub id: String,
    /// The number of the step within its component, from 1.
    pub ordinal: u64,
    /// SHA-256 of the step's content when it was applied, in hexadecimal digits.
    pub checksum: String,
    /// When the step was applied.
    pub applied_at: UnixMillis,
    /// The release of larder that applied the step.
    pub larder: String,
}

#[derive(Serialize, Deserialize)]
struct Value {
    ordinal: u64,
    checksum: String,
    applied_at: UnixMillis,
    larder: String,
}

impl AppliedMigration {
    /// Parses a row of the ledger.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if the row is not a valid entry. The message names the row and the
    /// repair.
    pub fn from_row(key: &[u8], value: &[u8]) -> Result<Self> {
        let corrupt = || {
            let (text, hex) = (String::from_utf8_lossy(key), hex::encode(key));
            Error::Corrupt(format!(
                "the row {text:?} of {LEDGER_NAMESPACE:?} is not a valid entry; remove it with `larder migrations remove \
                 --row {hex}`"
            ))
        };
        let (component, id) =
            std::str::from_utf8(key).ok().and_then(|key| key.split_once('\0')).ok_or_else(corrupt)?;
        let Value { ordinal, checksum, applied_at, larder } =
            serde_json::from_slice(value).map_err(|_| corrupt())?;
        let (component, id) = (component.to_string(), id.to_string());
        Ok(Self { component, id, ordinal, checksum, applied_at, larder })
    }
}

/// The value of a step's row.
pub(crate) fn value(step: &Migration, applied: usize, now: UnixMillis) -> Result<Vec<u8>> {
    let value = Value {
        ordinal: applied as u64 + 1,
        checksum: hex::encode(&step.checksum),
        applied_at: now,
        larder: env!("CARGO_PKG_VERSION").to_string(),
    };
    serde_json::to_vec(&value)
        .map_err(|error| Error::caused("the ledger entry of a migration could not be encoded as JSON", error))
}

/// Sorts a component's entries by their ordinals, which must be 1, 2, 3, ….
pub(crate) fn in_order(component: &str, mut applied: Vec<AppliedMigration>) -> Result<Vec<AppliedMigration>> {
    applied.sort_by_key(|entry| entry.ordinal);
    match applied.iter().zip(1..).find(|(entry, ordinal)| entry.ordinal != *ordinal) {
        None => Ok(applied),
        Some((_, missing)) => Err(Error::Corrupt(format!(
            "{LEDGER_NAMESPACE:?} does not have exactly one entry with number {missing} of {component:?}; remove all of its entries with \
             `larder migrations remove --component {component:?}`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ordinal: u64) -> AppliedMigration {
        let step = Migration { id: format!("{ordinal}"), checksum: vec![0xab; 32] };
        let value = value(&step, ordinal as usize - 1, 7).unwrap();
        AppliedMigration::from_row(format!("tasks\0{ordinal}").as_bytes(), &value).unwrap()
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let expected = AppliedMigration {
            component: "tasks".to_string(),
            id: "3".to_string(),
            ordinal: 3,
            checksum: "ab".repeat(32),
            applied_at: 7,
            larder: env!("CARGO_PKG_VERSION").to_string(),
        };
        assert_eq!(entry(3), expected);
    }

    #[test]
    fn entries_come_in_the_order_of_their_ordinals_and_a_gap_is_corrupt() {
        let numbers: Vec<u64> = (1..=11).rev().collect();
        let sorted = in_order("tasks", numbers.iter().map(|ordinal| entry(*ordinal)).collect()).unwrap();
        assert_eq!(
            sorted.iter().map(|entry| entry.ordinal).collect::<Vec<_>>(),
            (1..=11).collect::<Vec<_>>()
        );
        for broken in [vec![entry(2)], vec![entry(1), entry(3)], vec![entry(1), entry(1)]] {
            assert!(matches!(in_order("tasks", broken), Err(Error::Corrupt(_))));
        }
    }

    #[test]
    fn what_is_no_entry_is_corrupt() {
        for (key, value) in [
            (&b"tasks"[..], &b"{}"[..]),
            (b"tasks\x001", b"{}"),
            (b"tasks\x001", b"\xff"),
            (b"\xff\x001", br#"{"ordinal":1,"checksum":"","applied_at":1,"larder":""}"#),
        ] {
            assert!(matches!(AppliedMigration::from_row(key, value), Err(Error::Corrupt(_))));
        }
    }
}
