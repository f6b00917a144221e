//! Bindings to `larder:storage`, generated from its WIT.
#![allow(missing_docs, unreachable_pub, reason = "the WIT is their documentation")]

wit_bindgen::generate!({ path: "wit", world: "larder:storage/imports" });

/// The world of components that make summaries.
///
/// Only a component that calls the export macro must export the interface. The metadata in this
/// crate describes the imports alone.
pub mod summarizer_plugin {
    wit_bindgen::generate!({
        path: "wit",
        world: "larder:storage/summarizer-plugin",
        with: {
            "larder:storage/types@0.1.0": crate::bindings::larder::storage::types,
            "larder:storage/memory@0.1.0": crate::bindings::larder::storage::memory,
        },
        pub_export_macro: true,
        export_macro_name: "export_raw_summarizer",
        default_bindings_module: "larder_guest::__summarizer_plugin",
    });
}
