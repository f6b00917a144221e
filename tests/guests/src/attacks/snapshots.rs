//! Snapshots that are held, and writes beside them.

use std::thread::sleep;
use std::time::Duration;

use larder_guest::raw::tx::{Mode, Tx};
use larder_guest::raw::types::Error;

use super::{Attacker, OPEN_MAX, ROW_COUNT, ROWS, VALUE_BYTES_MAX, key};

/// A little longer than a transaction may be open.
const UNTIL_TIMED_OUT: Duration = Duration::from_millis(5_100);

/// Opens as many views as it may, reads a row in each, and sleeps until they time out.
pub(super) fn held_views(attacker: &mut Attacker) -> Result<(), Error> {
    hold(attacker, Mode::View)
}

/// The same with updates.
pub(super) fn held_updates(attacker: &mut Attacker) -> Result<(), Error> {
    hold(attacker, Mode::Update)
}

fn hold(attacker: &mut Attacker, mode: Mode) -> Result<(), Error> {
    if attacker.held.len() == OPEN_MAX {
        sleep(UNTIL_TIMED_OUT);
        attacker.held.clear();
    }
    let tx = attacker.store.begin(mode)?;
    let row = attacker.draw(ROW_COUNT);
    let outcome = tx.get(ROWS, &key(row));
    // A transaction whose read was refused counts as open, too.
    attacker.held.push(tx);
    outcome.map(drop)
}

/// The first attacker rewrites 4 MiB again and again. The others hold views that overlap, so that SQLite always has a
/// reader of an old state.
pub(super) fn staggered_views(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.number == 0 {
        return rewrites(attacker);
    }
    if attacker.held.len() == OPEN_MAX {
        attacker.held.remove(0);
    }
    let tx = attacker.view()?;
    let row = attacker.draw(ROW_COUNT);
    let outcome = tx.get(ROWS, &key(row));
    attacker.held.push(tx);
    sleep(Duration::from_millis(30));
    outcome.map(drop)
}

/// The first attacker rewrites 4 MiB again and again. The others make short views without a pause.
pub(super) fn views_back_to_back(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.number == 0 {
        return rewrites(attacker);
    }
    let tx = attacker.view()?;
    tx.get(ROWS, &key(attacker.draw(ROW_COUNT)))?;
    Tx::commit(tx).map(drop)
}

/// Rewrites 4 MiB.
pub(super) fn rewrites(attacker: &mut Attacker) -> Result<(), Error> {
    attacker.put(0, 4, &vec![attacker.steps as u8; VALUE_BYTES_MAX])
}
