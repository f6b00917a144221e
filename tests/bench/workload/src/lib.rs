//! Which rows the benchmark's loops touch, and with what values. A guest and a native program that are given the same seed
//! make the same calls in the same order, and both sum up what they read.

mod digest;
mod key;
mod random;
mod rows;

pub use digest::Digest;
pub use key::{KEY_BYTES_MAX, KEY_BYTES_MIN, Key};
pub use random::Random;
pub use rows::{Rows, Shape};

/// Puts in one update, and keys in one call, of the workloads that have many.
pub const BATCH: u64 = 100;

/// Rows of one scan.
pub const SCAN: u32 = 10_000;
