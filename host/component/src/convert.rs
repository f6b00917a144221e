//! larder's types as the WIT has them.

use larder_core::{Entry, Error, LimitExceeded, LimitKind, Mode, Page, PutOptions, Range, Version};

use crate::bindings::{tx, types};

/// Why a call from a guest failed: an error for the guest, or a trap.
#[derive(Debug)]
pub enum StorageError {
    /// The guest is told.
    Guest(Error),
    /// The host made a mistake, or the guest used a handle that it doesn't have.
    Trap(wasmtime::Error),
}

/// The result of a call from a guest.
pub type StorageResult<T> = Result<T, StorageError>;

impl From<Error> for StorageError {
    fn from(error: Error) -> Self {
        Self::Guest(error)
    }
}

impl From<wasmtime::component::ResourceTableError> for StorageError {
    fn from(error: wasmtime::component::ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed => Self::Closed,
            Error::ReadOnly => Self::ReadOnly,
            Error::Conflict => Self::Conflict,
            Error::TimedOut => Self::TimedOut,
            Error::NoSuchStore(name) => Self::NoSuchStore(name),
            Error::AccessDenied(reason) => Self::AccessDenied(reason),
            Error::InvalidArgument(reason) => Self::InvalidArgument(reason),
            Error::LimitExceeded(exceeded) => Self::LimitExceeded(exceeded.into()),
            Error::Unavailable { reason, .. } => Self::Unavailable(reason),
            Error::CommitUnknown { reason, .. } => Self::CommitUnknown(reason),
            Error::Corrupt(reason) => Self::Corrupt(reason),
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<LimitExceeded> for types::LimitExceeded {
    fn from(exceeded: LimitExceeded) -> Self {
        let kind = match exceeded.kind {
            LimitKind::NamespaceBytes => types::LimitKind::NamespaceBytes,
            LimitKind::KeyBytes => types::LimitKind::KeyBytes,
            LimitKind::ValueBytes => types::LimitKind::ValueBytes,
            LimitKind::ResultBytes => types::LimitKind::ResultBytes,
            LimitKind::TransactionBytes => types::LimitKind::TransactionBytes,
            LimitKind::TransactionMutations => types::LimitKind::TransactionMutations,
            LimitKind::OpenTransactions => types::LimitKind::OpenTransactions,
            LimitKind::OpenStores => types::LimitKind::OpenStores,
            LimitKind::StoreBytes => types::LimitKind::StoreBytes,
        };
        Self { kind, max: exceeded.max, requested: exceeded.requested }
    }
}

impl From<tx::Mode> for Mode {
    fn from(mode: tx::Mode) -> Self {
        match mode {
            tx::Mode::View => Self::View,
            tx::Mode::Update => Self::Update,
        }
    }
}

impl From<tx::Range> for Range {
    fn from(range: tx::Range) -> Self {
        let tx::Range { prefix, start, end, reverse, limit, keys_only } = range;
        Self { prefix, start, end, reverse, limit, keys_only }
    }
}

impl From<tx::PutOptions> for PutOptions {
    fn from(options: tx::PutOptions) -> Self {
        Self { ttl_millis: options.ttl_ms, if_version: options.if_version.map(Version) }
    }
}

impl From<Entry> for types::Entry {
    fn from(entry: Entry) -> Self {
        Self { key: entry.key, value: entry.value }
    }
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        Self { key: entry.key, value: entry.value }
    }
}

impl From<Page> for tx::Page {
    fn from(page: Page) -> Self {
        Self { entries: page.entries.into_iter().map(Into::into).collect(), next: page.next }
    }
}
