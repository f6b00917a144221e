//! No code. Its dependencies have the features that tests and optional features of larder demand, so every build of the
//! workspace has the same ones. Cargo would otherwise build most dependencies again for `cargo doc`, which has no tests.
