//! Updates with reads that take long to validate.
//!
//! Each reads many rows and commits 20,000 other rows. Then the log of the last commits no longer
//! reaches back to the update's snapshot. At last it commits the update.

use std::time::{Duration, Instant};

use larder_guest::raw::tx::Tx;
use larder_guest::raw::types::Error;

use super::{Attacker, MUTATIONS_MAX, ROW_COUNT, ROWS, keys, range};

/// The longest time for reads, so that an update can still commit on a backend with slow reads.
const READS: Duration = Duration::from_secs(1);

/// Reads 5,000 overlapping ranges of 200 rows.
pub(super) fn ranges(attacker: &mut Attacker) -> Result<(), Error> {
    read_ranges(attacker, 5_000, 200)
}

/// Reads 300 pages of 1,000 rows.
pub(super) fn pages(attacker: &mut Attacker) -> Result<(), Error> {
    read_ranges(attacker, 300, 1_000)
}

fn read_ranges(attacker: &Attacker, count: u64, rows: u64) -> Result<(), Error> {
    let (tx, since) = (attacker.update()?, Instant::now());
    for number in (0..count).take_while(|_| since.elapsed() < READS) {
        tx.scan_page(ROWS, &range(number * 7 % (ROW_COUNT - rows), rows), None)?;
    }
    commit_beyond_the_log(attacker, tx)
}

/// Reads 15,000 rows, most of them absent: nearly as many as `transaction-bytes` allows.
pub(super) fn rows(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    for number in 0..5 {
        tx.get_many(ROWS, &keys(number * 3_000, 3_000))?;
    }
    commit_beyond_the_log(attacker, tx)
}

fn commit_beyond_the_log(attacker: &Attacker, tx: Tx) -> Result<(), Error> {
    attacker.put(0, MUTATIONS_MAX, b"")?;
    attacker.put(0, MUTATIONS_MAX, b"")?;
    let outcome = tx.put(&attacker.namespace, "read much", b"");
    match outcome.and_then(|()| Tx::commit(tx)) {
        // The host has done the work of reading and validating in any case.
        Err(Error::Conflict | Error::TimedOut | Error::CommitUnknown(_)) => Ok(()),
        outcome => outcome.map(drop),
    }
}
