//! Long calls.

use larder_guest::raw::store::Migration;
use larder_guest::raw::tx::{Range, Tx};
use larder_guest::raw::types::Error;

use super::{Attacker, MUTATIONS_MAX, ROWS, entries, keys, one_entry, range};

/// Requests the first row of a namespace whose other rows have expired. A scan of keys only is
/// never cached.
pub(super) fn scan_expired(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.view()?;
    tx.scan_page("expired", &Range { keys_only: true, ..one_entry(false) }, None)?;
    Tx::commit(tx).map(drop)
}

/// Scans all of the smallest rows, or as many as one call returns.
pub(super) fn scan_tiny(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.view()?;
    match tx.scan("tiny", "") {
        Err(Error::LimitExceeded(_)) => {
            tx.scan_page("tiny", &Range { limit: None, ..one_entry(false) }, None)?;
        }
        outcome => {
            outcome?;
        }
    }
    Tx::commit(tx).map(drop)
}

/// Puts 9,000 rows, and deletes them by their range.
pub(super) fn delete_range(attacker: &mut Attacker) -> Result<(), Error> {
    attacker.put(0, 9_000, b"")?;
    let tx = attacker.update()?;
    tx.delete_range(&attacker.namespace, &range(0, 9_000))?;
    Tx::commit(tx).map(drop)
}

/// Reads 10,000 rows in one call.
pub(super) fn get_many(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.view()?;
    tx.get_many(ROWS, &keys(0, MUTATIONS_MAX))?;
    Tx::commit(tx).map(drop)
}

/// Stages 10,000 rows in one call, and rolls back.
pub(super) fn put_many(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    tx.put_many(&attacker.namespace, &entries(0, MUTATIONS_MAX, b"never committed"))?;
    Tx::rollback(tx);
    Ok(())
}

/// Reads the largest value.
pub(super) fn largest_value(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.view()?;
    tx.get("largest", "value")?;
    Tx::commit(tx).map(drop)
}

/// Puts and deletes 9,000 rows, and then requests the last row of the empty namespace, 49 times.
pub(super) fn reverse_over_deleted(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.steps.is_multiple_of(50) {
        return delete_range(attacker);
    }
    let tx = attacker.view()?;
    tx.scan_page(&attacker.namespace, &one_entry(true), None)?;
    Tx::commit(tx).map(drop)
}

/// Declares the largest set of migrations, none of them applied, and requests the pending ones.
pub(super) fn migrations(attacker: &mut Attacker) -> Result<(), Error> {
    let declared: Vec<Migration> =
        keys(0, MUTATIONS_MAX).into_iter().map(|id| Migration { id, checksum: vec![7; 32] }).collect();
    attacker.store.pending_migrations(&attacker.identity, &declared).map(drop)
}
