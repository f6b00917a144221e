//! The bounds of every cell.

/// The number of attackers, and of well-behaved guests in the baseline.
pub(super) const NEIGHBOURS: u64 = 4;

/// The victim's median beside attackers, divided by that beside well-behaved guests.
pub(super) const MEDIAN_RATIO: f64 = 1.5;

/// The same for the 99th percentile.
pub(super) const TAIL_RATIO: f64 = 10.0;

/// For how many milliseconds a call of an attacker may hold a thread of the executor.
pub(super) const THREAD_MILLISECONDS: f64 = 5.0;

/// The largest growth of the process's resident memory during a cell, in MiB.
pub(super) const RESIDENT_MEBIBYTES: f64 = (NEIGHBOURS * 64 + 192) as f64;

/// The largest size of SQLite's write-ahead log, in MiB.
pub(super) const LOG_MEBIBYTES: f64 = 320.0;

/// The quota of each store.
pub(super) const QUOTA_BYTES: u64 = 100_000_000;
