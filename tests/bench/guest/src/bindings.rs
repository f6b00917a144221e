//! Generated from the WIT.
#![allow(missing_docs, unreachable_pub, reason = "the WIT documents them")]

wit_bindgen::generate!({ path: "../wit", world: "larder:bench/guest", pub_export_macro: true });
