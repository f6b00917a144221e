//! What no attack may pass. Every bound of the group stands here.

/// Attackers that run at once, and well-behaved guests in the baseline.
pub(super) const NEIGHBOURS: u64 = 4;

/// The victim's median beside attackers, divided by that beside well-behaved guests.
pub(super) const MEDIAN_RATIO: f64 = 1.5;

/// The same for the 99th percentile.
pub(super) const TAIL_RATIO: f64 = 10.0;

/// By how many MiB the resident memory of the process may grow while attackers run.
pub(super) const RESIDENT_MEBIBYTES: f64 = (NEIGHBOURS * 64 + 192) as f64;

/// How many MiB the largest write-ahead log of SQLite may have.
pub(super) const LOG_MEBIBYTES: f64 = 320.0;

/// The quota of each store, as a platform sets one.
pub(super) const QUOTA_BYTES: u64 = 100_000_000;
