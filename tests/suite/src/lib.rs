//! Runs the conformance suite, which is a guest component, on any backend.
//!
//! Each case gets a host of its own over a fresh store. A backend joins by implementing [`Bench`], which makes
//! such stores: those of larder's own are [`MemoryBench`], [`SqliteBench`], [`PostgresBench`] and [`TenantsBench`].

mod bench;
mod case;
mod memory;
mod probe;
mod suite;

pub use bench::{Bench, MemoryBench, PostgresBench, Scratch, SqliteBench, TenantsBench, bench_for};
pub use suite::{CaseResult, Suite, TIMEOUT};

/// The bounds under which every case runs: small, so that reaching them is quick. Time alone is ample: cases reach it by
/// the clock that they move, and no disk is so slow that one runs into it.
pub fn limits() -> larder_host::Limits {
    larder_host::Limits {
        namespace_bytes: 64,
        key_bytes: 1_024,
        value_bytes: 64 << 10,
        result_bytes: 128 << 10,
        transaction_bytes: 256 << 10,
        transaction_mutations: 200,
        open_transactions: 130,
        open_stores: 8,
        identity_bytes: 128,
        turn_bytes: 8 << 10,
        open_memories: 6,
        instance_bytes: 8 << 20,
        transaction_timeout: TIMEOUT.saturating_mul(2),
    }
}

/// The quota of the store `main`.
pub const STORE_BYTES: u64 = 1 << 20;
