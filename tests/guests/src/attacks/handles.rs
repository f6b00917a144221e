//! Handles and transactions without effect, and refused calls.

use larder_guest::raw::store::Store;
use larder_guest::raw::tx::Tx;
use larder_guest::raw::types::Error;

use super::{Attacker, OPEN_MAX, ROWS, VALUE_BYTES_MAX, key, one_entry, tell};

/// Begins 100 updates, reads a row in each, and drops it.
pub(super) fn begin_and_drop(attacker: &mut Attacker) -> Result<(), Error> {
    for number in 0..100 {
        let tx = attacker.update()?;
        tx.get(ROWS, &key(number))?;
    }
    Ok(())
}

/// Opens as many more store handles as the limits allow, and closes them.
pub(super) fn open_stores(_attacker: &mut Attacker) -> Result<(), Error> {
    let stores: Vec<Store> = (0..63).map(|_| crate::open()).collect::<Result<_, _>>()?;
    stores.iter().for_each(Store::close);
    Ok(())
}

/// Requests pages of one row, with valid and with forged cursors.
pub(super) fn forged_cursors(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.view()?;
    let mut next = None;
    for number in 0..100 {
        next = tx.scan_page(ROWS, &one_entry(false), next.as_deref())?.next;
        let forged = format!("{}{number}", next.as_deref().unwrap_or_default());
        // The conformance suite checks that a forged cursor is refused.
        let _ = tx.scan_page(ROWS, &one_entry(true), Some(&forged));
    }
    Tx::commit(tx).map(drop)
}

/// Makes calls that the host refuses.
pub(super) fn refused_calls(attacker: &mut Attacker) -> Result<(), Error> {
    let (view, update) = (attacker.view()?, attacker.update()?);
    let large = vec![0; VALUE_BYTES_MAX + 1];
    for _ in 0..10 {
        let outcomes = [
            Store::open("never granted").map(drop),
            view.put(&attacker.namespace, "key", b""),
            update.put("__reserved", "key", b""),
            update.put(&attacker.namespace, "key", &large),
            attacker.store.pending_migrations("never bound", &[]).map(drop),
        ];
        if outcomes.iter().any(Result::is_ok) {
            return Err(Error::Other("a call that has to be refused was done".to_string()));
        }
    }
    Ok(())
}

/// Traps with as many open updates as the limits allow. The host then starts another instance.
pub(super) fn traps(attacker: &mut Attacker) -> Result<(), Error> {
    for number in 0..OPEN_MAX as u64 {
        let tx = attacker.update()?;
        tx.get(ROWS, &key(number))?;
        tx.put(&attacker.namespace, &key(number), &[7; 1_024])?;
        attacker.held.push(tx);
    }
    tell::<Error>(&Ok(()));
    std::process::abort()
}
