//! Every call of SQLite to the file system fails, and the store must keep its promises.
//!
//! Each run does the same work while another call fails, once or from then on. A short form runs by
//! default. `LARDER_LONG_TESTS=1` fails every single call.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod model;
mod open;
mod replay;
mod single;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};

use larder_sqlite::{SqliteOptions, Synchronous};
use larder_sqlite_vfs::{Call, Counts, Fault};
use rusqlite::ffi;
use tokio::runtime::Runtime;
use work::{Setting, Template, Work};

/// The error codes that each call can return, as in the VFS for Unix.
const CODES: &[(Call, &[i32])] = &[
    (Call::Open, &[ffi::SQLITE_CANTOPEN, ffi::SQLITE_NOMEM]),
    (Call::Access, &[ffi::SQLITE_IOERR_ACCESS]),
    (Call::Delete, &[ffi::SQLITE_IOERR_DELETE]),
    (
        Call::Read,
        &[
            ffi::SQLITE_IOERR_READ,
            ffi::SQLITE_IOERR_CORRUPTFS,
            ffi::SQLITE_IOERR_SHORT_READ,
            ffi::SQLITE_NOMEM,
        ],
    ),
    (Call::Write, &[ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_FULL, ffi::SQLITE_NOMEM]),
    (Call::Sync, &[ffi::SQLITE_IOERR_FSYNC]),
    (Call::Truncate, &[ffi::SQLITE_IOERR_TRUNCATE]),
    (Call::FileSize, &[ffi::SQLITE_IOERR_FSTAT]),
    (Call::Lock, &[ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_LOCK]),
    (Call::CheckReservedLock, &[ffi::SQLITE_IOERR_CHECKRESERVEDLOCK]),
    (Call::ShmMap, &[ffi::SQLITE_IOERR_SHMMAP, ffi::SQLITE_NOMEM]),
    (Call::ShmLock, &[ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_SHMLOCK]),
];

fn is_long() -> bool {
    std::env::var_os("LARDER_LONG_TESTS").is_some()
}

/// The faults to try, given the number of calls in a run without faults: one in `share` of them, or
/// all in the long form.
fn faults(counts: &Counts, share: usize) -> Vec<Fault> {
    let share = if is_long() { 1 } else { share };
    let mut faults = Vec::new();
    for (&(call, victim), &count) in counts {
        let codes = CODES.iter().find(|(known, _)| *known == call).map_or(&[][..], |(_, codes)| codes);
        for (number, &code) in codes.iter().enumerate() {
            // Codes take turns, so that together they fail every call in the short form too.
            for nth in (1..=count).skip(number % share).step_by(share) {
                faults.push(Fault { call, victim, code, nth, is_lasting: false });
                // Waiting for a lock that stays taken would take seconds, and no other call returns
                // `SQLITE_BUSY`.
                if code != ffi::SQLITE_BUSY && (is_long() || nth % 2 == 0) {
                    faults.push(Fault { call, victim, code, nth, is_lasting: true });
                }
            }
        }
    }
    faults
}

/// Does the work once without a fault, and then with each fault. `run` returns how many calls
/// failed, and how many were made.
fn with_every_fault(share: usize, run: impl AsyncFn(Option<Fault>) -> (usize, Counts)) {
    let runtime = runtime();
    let (_, counts) = runtime.block_on(run(None));
    let faults = faults(&counts, share);
    let (mut reached, mut broken) = (0, Vec::new());
    for fault in &faults {
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(run(Some(*fault))))) {
            Ok((failed, _)) => reached += usize::from(failed > 0),
            Err(_) => broken.push(fault),
        }
    }
    assert!(broken.is_empty(), "{} of {} faults broke a promise: {broken:#?}", broken.len(), faults.len());
    assert!(reached * 10 > faults.len() * 9, "{reached} of {} faults were reached", faults.len());
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn with_every_fault_in(share: usize, setting: Setting) {
    let template = runtime().block_on(Template::make());
    with_every_fault(share, async |fault| work::run(&template, setting, fault).await);
}

#[test]
fn groups_of_commits_survive_every_fault() {
    with_every_fault_in(4, Setting::new(Work::Groups));
}

#[test]
fn groups_of_commits_that_are_synced_survive_every_fault() {
    let options = SqliteOptions::default().synchronous(Synchronous::Full);
    with_every_fault_in(17, Setting { options, ..Setting::new(Work::Groups) });
}

#[test]
fn groups_of_commits_and_snapshots_without_a_cache_survive_every_fault() {
    let options = SqliteOptions::default().cache_bytes(0);
    with_every_fault_in(17, Setting { options, ..Setting::new(Work::Groups) });
}

#[test]
fn groups_of_commits_that_a_journal_keeps_survive_every_fault() {
    with_every_fault_in(17, Setting { is_journaled: true, ..Setting::new(Work::Groups) });
}

#[test]
fn a_commit_that_is_larger_than_the_page_cache_survives_every_fault() {
    with_every_fault_in(150, Setting::new(Work::Spill));
}

#[test]
fn a_close_survives_every_fault() {
    with_every_fault_in(1, Setting::new(Work::Close));
}

#[test]
fn a_replay_survives_every_fault() {
    let redos = runtime().block_on(replay::redos());
    with_every_fault(3, async |fault| replay::run(&redos, fault).await);
}

#[test]
fn a_first_open_survives_every_fault() {
    with_every_fault(5, open::first_open);
}

#[test]
fn the_steps_of_a_platform_survive_every_fault() {
    with_every_fault(5, open::migrate);
}
