//! Held snapshots, and writes beside them.

use std::thread::sleep;
use std::time::Duration;

use larder_guest::raw::tx::{Mode, Tx};
use larder_guest::raw::types::Error;

use super::{Attacker, OPEN_MAX, ROW_COUNT, ROWS, VALUE_BYTES_MAX, key, range};

/// A little longer than the transaction timeout.
const UNTIL_TIMED_OUT: Duration = Duration::from_millis(5_100);

/// Opens as many views as the limits allow, reads a row in each, and sleeps until they have timed
/// out.
pub(super) fn held_views(attacker: &mut Attacker) -> Result<(), Error> {
    hold(attacker, Mode::View, read_row)
}

/// The same as [`held_views`] with updates.
pub(super) fn held_updates(attacker: &mut Attacker) -> Result<(), Error> {
    hold(attacker, Mode::Update, read_row)
}

/// The same as [`held_views`] with a scan, which the cache of rows does not answer.
pub(super) fn held_scans(attacker: &mut Attacker) -> Result<(), Error> {
    hold(attacker, Mode::View, |tx, row| tx.scan_page(ROWS, &range(row, 2), None).map(drop))
}

/// Holds as many views as the limits allow and reads a row in each in turn, so that no view is
/// idle.
pub(super) fn touched_views(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.held.len() < OPEN_MAX {
        return hold(attacker, Mode::View, read_row);
    }
    sleep(Duration::from_millis(1));
    let tx = attacker.held.remove(0);
    let outcome = read_row(&tx, attacker.draw(ROW_COUNT));
    // A failed view is dropped; the next step opens another one.
    if outcome.is_ok() {
        attacker.held.push(tx);
    }
    outcome
}

fn read_row(tx: &Tx, row: u64) -> Result<(), Error> {
    tx.get(ROWS, &key(row)).map(drop)
}

fn hold(attacker: &mut Attacker, mode: Mode, read: fn(&Tx, u64) -> Result<(), Error>) -> Result<(), Error> {
    if attacker.held.len() == OPEN_MAX {
        sleep(UNTIL_TIMED_OUT);
        attacker.held.clear();
    }
    let tx = attacker.store.begin(mode)?;
    let outcome = read(&tx, attacker.draw(ROW_COUNT - 2));
    // A transaction whose read failed still counts as open.
    attacker.held.push(tx);
    outcome
}

/// The first attacker rewrites 3 MiB. The others hold views that overlap, so that SQLite always has
/// a reader of an old state.
pub(super) fn staggered_views(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.number == 0 {
        return rewrites(attacker);
    }
    if attacker.held.len() == OPEN_MAX {
        attacker.held.remove(0);
    }
    let tx = attacker.view()?;
    let outcome = read_row(&tx, attacker.draw(ROW_COUNT));
    attacker.held.push(tx);
    sleep(Duration::from_millis(30));
    outcome
}

/// The first attacker rewrites 3 MiB. The others make short views without a pause.
pub(super) fn views_back_to_back(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.number == 0 {
        return rewrites(attacker);
    }
    let tx = attacker.view()?;
    read_row(&tx, attacker.draw(ROW_COUNT))?;
    Tx::commit(tx).map(drop)
}

/// Rewrites 3 MiB.
pub(super) fn rewrites(attacker: &mut Attacker) -> Result<(), Error> {
    attacker.put(0, 3, &vec![attacker.steps as u8; VALUE_BYTES_MAX])
}
