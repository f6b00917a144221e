//! Adds the interfaces of `larder:storage` to a linker: all of them, or what a component may use.

use wasmtime::component::Linker;

use crate::bindings;
use crate::ctx::{HasStorage, StorageView};

/// Adds every interface of `larder:storage` to a linker.
///
/// To let components use stores or conversations only, use [`store::add_to_linker`], with
/// [`packed::add_to_linker`] or without it, or [`memory::add_to_linker`] instead. A component that
/// imports an interface which is not there cannot be instantiated.
///
/// The linker's engine needs no special setting. [`engine_config`](crate::engine_config) has the
/// settings with which calls cost least.
///
/// # Errors
/// Fails if the linker already defines one of the interfaces.
pub fn add_to_linker<T: StorageView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    store::add_to_linker(linker)?;
    packed::add_to_linker(linker)?;
    bindings::memory::add_to_linker::<T, HasStorage>(linker, T::storage)
}

/// Stores and their transactions, without packed entries and without conversations.
pub mod store {
    use super::{HasStorage, Linker, StorageView, bindings};

    /// Adds the interfaces `types`, `store` and `tx` of `larder:storage` to a linker.
    ///
    /// # Errors
    /// Fails if the linker already defines one of the interfaces.
    pub fn add_to_linker<T: StorageView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
        bindings::types::add_to_linker::<T, HasStorage>(linker, T::storage)?;
        bindings::store::add_to_linker::<T, HasStorage>(linker, T::storage)?;
        bindings::tx::add_to_linker::<T, HasStorage>(linker, T::storage)
    }
}

/// Packed reads and writes of transactions, beside stores.
pub mod packed {
    use super::{HasStorage, Linker, StorageView, bindings};

    /// Adds the interface `packed` of `larder:storage` to a linker.
    ///
    /// Its transactions are those of the interface `tx`, so call
    /// [`store::add_to_linker`](super::store::add_to_linker) too. The SDK for guests in Rust
    /// imports this interface if the guest scans, iterates or puts several rows in one call.
    ///
    /// # Errors
    /// Fails if the linker already defines the interface.
    pub fn add_to_linker<T: StorageView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
        bindings::packed::add_to_linker::<T, HasStorage>(linker, T::storage)
    }
}

/// Conversations, without stores.
pub mod memory {
    use super::{HasStorage, Linker, StorageView, bindings};

    /// Adds the interfaces `types` and `memory` of `larder:storage` to a linker.
    ///
    /// # Errors
    /// Fails if the linker already defines one of the interfaces.
    pub fn add_to_linker<T: StorageView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
        bindings::types::add_to_linker::<T, HasStorage>(linker, T::storage)?;
        bindings::memory::add_to_linker::<T, HasStorage>(linker, T::storage)
    }
}
