//! Runs the conformance suite, which is a guest component, on any backend.
//!
//! Each case gets its own hosts on a fresh store. To test a backend, implement [`TestBed`], which
//! makes the stores. The test beds of larder's own backends are [`InMemoryTestBed`],
//! [`SqliteTestBed`], [`PostgresTestBed`] and [`TenantsTestBed`].
//!
//! ```no_run
//! use larder_suite::{InMemoryTestBed, Suite};
//!
//! # async fn run() -> anyhow::Result<()> {
//! let suite = Suite::load().await?;
//! for name in suite.cases() {
//!     suite.run(name, &InMemoryTestBed).await.map_err(anyhow::Error::msg)?;
//! }
//! # Ok(())
//! # }
//! ```

mod case;
mod memory;
mod probe;
mod suite;
mod test_bed;

pub use suite::{CaseResult, Suite, TIMEOUT};
pub use test_bed::{
    InMemoryTestBed, PostgresTestBed, Scratch, SqliteTestBed, TenantsTestBed, TestBed, test_bed_for,
};

/// The limits of every case.
///
/// They are small, so that cases reach them quickly. Only the transaction timeout is longer than a
/// case: cases reach it by moving the clock, and a slow disk must not.
pub fn limits() -> larder_host::Limits {
    larder_host::Limits::default()
        .namespace_bytes(64)
        .key_bytes(1_024)
        .value_bytes(64 << 10)
        .result_bytes(128 << 10)
        .transaction_bytes(256 << 10)
        .transaction_mutations(200)
        .open_transactions(130)
        .open_stores(8)
        .identity_bytes(128)
        .turn_bytes(8 << 10)
        .open_memories(6)
        .instance_bytes(8 << 20)
        .transaction_timeout(TIMEOUT.saturating_mul(2))
}

/// The quota of the store `main`, in bytes.
pub const STORE_BYTES: u64 = 1 << 20;

/// Compiles the programs of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
