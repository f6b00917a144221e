//! The conformance suite on every backend, each case a test: `sqlite::tx::lost_update_is_a_conflict`.

fn main() {}
