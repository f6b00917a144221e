//! Bindings to `larder:storage`, generated from its WIT.
#![allow(missing_docs, reason = "the WIT is their documentation")]

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "larder:storage/imports",
        imports: {
            // Staging one write only changes the transaction in memory, so it need not be async.
            "larder:storage/tx.[method]tx.put": trappable,
            "larder:storage/tx.[method]tx.put-with": trappable,
            "larder:storage/tx.[method]tx.delete": trappable,
            "larder:storage/tx.[method]tx.delete-if-version": trappable,
            "larder:storage/tx.[method]tx.increment": trappable,
            "larder:storage/tx.[static]tx.rollback": trappable,
            "larder:storage/tx.[drop]tx": trappable,
            "larder:storage/store.[method]store.begin": trappable,
            "larder:storage/store.[method]store.close": trappable,
            "larder:storage/store.[drop]store": trappable,
            "larder:storage/memory.[static]memory.open": trappable,
            "larder:storage/memory.[method]memory.close": trappable,
            "larder:storage/memory.[drop]memory": trappable,
            default: async | trappable,
        },
        trappable_error_type: { "larder:storage/types.error" => crate::StorageError },
        with: {
            "larder:storage/store.store": larder_core::Handle,
            "larder:storage/tx.tx": larder_core::Transaction,
            "larder:storage/memory.memory": larder_core::Memory,
        },
        require_store_data_send: true,
    });
}

pub use generated::larder::storage::*;
pub use generated::{Imports, ImportsPre};

/// Bindings for calling a component that makes summaries.
pub mod summarizer {
    mod generated {
        wasmtime::component::bindgen!({
            path: "wit",
            world: "larder:storage/summarizer-plugin",
            exports: { default: async },
            with: {
                "larder:storage/types": crate::bindings::types,
                "larder:storage/memory": crate::bindings::memory,
            },
            require_store_data_send: true,
        });
    }

    pub use generated::exports::larder::storage::summarizer::*;
    pub use generated::{SummarizerPlugin, SummarizerPluginPre};
}
