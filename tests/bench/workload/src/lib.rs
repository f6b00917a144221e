//! The rows and values that the benchmark's loops use.
//!
//! With the same seed, a guest and a native program make the same calls in the same order, and both
//! digest what they read.

mod digest;
mod key;
mod random;
mod rows;

pub use digest::Digest;
pub use key::{KEY_BYTES_MAX, KEY_BYTES_MIN, Key};
pub use random::Random;
pub use rows::{Rows, Shape};

/// Puts of one update, or keys of one call, in workloads with many.
pub const BATCH: u64 = 100;

/// Rows of one scan.
pub const SCAN: u32 = 10_000;
