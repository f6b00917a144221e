//! Guest migrations: forward-only steps that a component declares.
//!
//! Each step is applied once, in the order of its set. A ledger in the store itself records the
//! applied steps, in a namespace that guests can read and never write. The transaction that makes a
//! step reads the whole ledger of its component and writes the step's entry. If another host
//! changes that ledger meanwhile, the commit fails with [`Error::Conflict`], and the next attempt
//! sees the change.

mod declared;
pub(crate) mod entry;
mod ledger;
mod rows;
mod scope;
mod steps;

#[cfg(doc)]
use crate::error::Error;
use crate::transaction::Transaction;

pub use entry::AppliedMigration;
pub use ledger::{LedgerEntry, MigrationLedger};
pub use scope::MigrationScope;

/// The namespace of the ledger.
///
/// The key of a row is the component's name, a NUL, and the step's id. The value is JSON.
pub const LEDGER_NAMESPACE: &str = "__store_migrations__";

/// A step of a guest migration, as a component declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The id, unique among the steps of the component and never reused.
    pub id: String,
    /// SHA-256 of the step's content.
    pub checksum: Vec<u8>,
}

/// A step to apply now.
#[derive(Debug)]
pub struct NextMigration {
    /// The id of the step.
    pub id: String,
    /// The transaction in which to apply the step. Its commit also records the step.
    pub transaction: Transaction,
}
