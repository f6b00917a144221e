//! The migrations that components declare: forward-only steps, each applied once, in the order of their set.
//!
//! What was applied stands in a ledger in the store itself, in a namespace that guests read and never write. A step's
//! entry is written by the transaction that makes the step, which has read the whole ledger of its component: where
//! another host changes that in between, the commit gives [`Error::Conflict`], and the next look finds what changed.

mod declared;
pub(crate) mod entry;
mod ledger;
mod scope;

use crate::backend::Mode;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::transaction::Transaction;

pub(crate) use declared::Declared;
pub use entry::AppliedMigration;
pub use ledger::{LedgerEntry, MigrationLedger};
pub use scope::MigrationScope;

/// The namespace of the ledger. A row's key is its component's name, a NUL, and the step's id; its value is JSON.
pub const LEDGER_NAMESPACE: &str = "__store_migrations__";

/// A step, as a component declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// What tells it from the other steps of its component, for ever.
    pub id: String,
    /// SHA-256 of the step's content.
    pub checksum: Vec<u8>,
}

/// A step that is to be made now.
#[derive(Debug)]
pub struct NextMigration {
    /// Which.
    pub id: String,
    /// Where to make it. Its commit also records the step.
    pub transaction: Transaction,
}

/// The ids of what is still to apply, in the order of the set.
pub(crate) async fn pending(
    begin: impl FnOnce(Mode) -> Result<Transaction>,
    declared: &Declared,
) -> Result<Vec<String>> {
    if declared.is_empty() {
        return Ok(Vec::new());
    }
    let applied = begin(Mode::View)?.ledger(declared.component()).await?;
    let pending = declared.pending(&applied)?;
    Ok(pending.iter().map(|step| step.id.clone()).collect())
}

/// Begins the first step that is still to apply, if there is one.
pub(crate) async fn begin_next(
    begin: impl FnOnce(Mode) -> Result<Transaction>,
    declared: &Declared,
) -> Result<Option<NextMigration>> {
    if declared.is_empty() {
        return Ok(None);
    }
    let mut transaction = begin(Mode::Update)?;
    let applied = transaction.ledger(declared.component()).await?;
    let Some(step) = declared.pending(&applied)?.first() else {
        return Ok(None);
    };
    transaction.record_migration(declared.component(), step, applied.len())?;
    Ok(Some(NextMigration { id: step.id.clone(), transaction }))
}
