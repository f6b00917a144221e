//! Paths of the guest components that larder's tests, command line and examples run.

include!(concat!(env!("OUT_DIR"), "/artifacts.rs"));

/// The bytes of the conformance suite, for embedding in a program.
pub const CONFORMANCE_COMPONENT: &[u8] = include_bytes!(env!("LARDER_CONFORMANCE_COMPONENT"));
