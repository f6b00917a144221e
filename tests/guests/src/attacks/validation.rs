//! Updates whose reads take long to validate.
//!
//! Each reads much, commits 20,000 rows that it did not read, so that the log of the last commits no longer tells what
//! has changed since, and commits its own update then.

use std::time::{Duration, Instant};

use larder_guest::raw::tx::Tx;
use larder_guest::raw::types::Error;

use super::{Attacker, MUTATIONS_MAX, ROW_COUNT, ROWS, keys, range};

/// How long an update reads at most, so that it has time left to commit on a backend whose reads are slow.
const READS: Duration = Duration::from_secs(1);

/// Reads 5,000 ranges that overlap, of 200 rows each.
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

/// Reads 50,000 rows, most of them absent: nearly as many as an update may remember.
pub(super) fn rows(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    for number in 0..5 {
        tx.get_many(ROWS, &keys(number * MUTATIONS_MAX, MUTATIONS_MAX))?;
    }
    commit_beyond_the_log(attacker, tx)
}

fn commit_beyond_the_log(attacker: &Attacker, tx: Tx) -> Result<(), Error> {
    attacker.put(0, MUTATIONS_MAX, b"")?;
    attacker.put(0, MUTATIONS_MAX, b"")?;
    let outcome = tx.put(&attacker.namespace, "read much", b"");
    match outcome.and_then(|()| Tx::commit(tx)) {
        // The host did the work of the reads and of the validation all the same.
        Err(Error::Conflict | Error::TimedOut | Error::CommitUnknown(_)) => Ok(()),
        outcome => outcome.map(drop),
    }
}
