//! Commits that are large, frequent, or fail.

use larder_guest::raw::tx::{PutOptions, Tx};
use larder_guest::raw::types::Error;

use super::{Attacker, LARGE_VALUE_BYTES, LARGE_VALUES_MAX, MUTATIONS_MAX, key, keys};

/// Commits 10,000 rows.
pub(super) fn many_rows(attacker: &mut Attacker) -> Result<(), Error> {
    attacker.put(0, MUTATIONS_MAX, &[attacker.steps as u8; 100])
}

/// Commits 3.75 MiB.
pub(super) fn many_bytes(attacker: &mut Attacker) -> Result<(), Error> {
    let (value, tx) = (vec![attacker.steps as u8; LARGE_VALUE_BYTES], attacker.update()?);
    for number in 0..LARGE_VALUES_MAX {
        tx.put(&attacker.namespace, &key(number), &value)?;
    }
    Tx::commit(tx).map(drop)
}

/// Commits 1,800 rows with keys of 2,048 bytes.
pub(super) fn long_keys(attacker: &mut Attacker) -> Result<(), Error> {
    let (rest, tx) = ("x".repeat(2_042), attacker.update()?);
    for number in 0..1_800 {
        tx.put(&attacker.namespace, &(key(number) + &rest), b"")?;
    }
    Tx::commit(tx).map(drop)
}

/// Deletes 10,000 rows that do not exist, and commits.
pub(super) fn absent_rows(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    tx.delete_many(&attacker.namespace, &keys(0, MUTATIONS_MAX))?;
    Tx::commit(tx).map(drop)
}

/// Commits one row.
pub(super) fn small(attacker: &mut Attacker) -> Result<(), Error> {
    attacker.put(attacker.steps % 1_000, 1, b"small")
}

/// Increments 10,000 counters, and commits.
pub(super) fn increments(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    for number in 0..MUTATIONS_MAX {
        tx.increment(&attacker.namespace, &key(number), 1)?;
    }
    Tx::commit(tx).map(drop)
}

/// Reads and writes the one row that all attackers read and write.
pub(super) fn hot_row(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    tx.get("hot", "row")?;
    tx.put("hot", "row", &attacker.steps.to_le_bytes())?;
    Tx::commit(tx).map(drop)
}

/// Commits 7,000 rows on conditions that fail.
pub(super) fn failing_conditions(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    let options = PutOptions { ttl_ms: None, if_version: Some(1) };
    for number in 0..7_000 {
        tx.put_with(&attacker.namespace, &key(number), b"", options)?;
    }
    match Tx::commit(tx) {
        Err(Error::Conflict) => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Commits 5,000 new rows with a time to live of 1 ms.
pub(super) fn short_lived_rows(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    let options = PutOptions { ttl_ms: Some(1), if_version: None };
    for number in 0..MUTATIONS_MAX / 2 {
        tx.put_with(&attacker.namespace, &key(attacker.steps * MUTATIONS_MAX + number), b"", options)?;
    }
    Tx::commit(tx).map(drop)
}

/// Scans 1,000 namespaces, writes a row into each, and commits.
pub(super) fn many_namespaces(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    for number in 0..1_000 {
        let namespace = format!("{}-{}-{number}", attacker.namespace, attacker.steps % 50);
        tx.scan(&namespace, "")?;
        tx.put(&namespace, "row", b"")?;
    }
    Tx::commit(tx).map(drop)
}
