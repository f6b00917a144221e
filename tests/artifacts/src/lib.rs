//! Paths of the guest components that larder's tests, command line and examples run.

include!(concat!(env!("OUT_DIR"), "/artifacts.rs"));

/// The conformance suite, to carry along in a program.
pub const CONFORMANCE_COMPONENT: &[u8] = include_bytes!(env!("LARDER_CONFORMANCE_COMPONENT"));
