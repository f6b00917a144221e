//! This crate has no code. Its dependencies enable all features that tests and optional features of
//! larder need, so that every build of the workspace uses the same ones. Otherwise Cargo would
//! build most dependencies again for `cargo doc`, which builds no tests, and for the packages of
//! the published crates (`.ci/package`), which are built without the command line.
