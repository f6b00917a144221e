//! The ledger of migrations, as transactions read and write it.

use super::Transaction;
use crate::commit::Mutation;
use crate::error::{LimitKind, Result};
use crate::migrations::{AppliedMigration, LEDGER_NAMESPACE, Migration, entry};
use crate::name::{Key, KeyRange, Namespace, RowKey, Value};
use crate::pairs::Pairs;
use crate::scan::Scan;

impl Transaction {
    /// What the ledger holds of one component, in the order in which it was applied. An update watches it.
    pub(crate) async fn ledger(&mut self, component: &str) -> Result<Vec<AppliedMigration>> {
        let rows = self.ledger_rows(component).await?;
        let applied = rows.iter().map(|(key, value)| AppliedMigration::from_row(key, value));
        entry::in_order(applied.collect::<Result<_>>()?)
    }

    /// The rows of one component in the ledger, in the order of their ids. An update watches them.
    pub(crate) async fn ledger_rows(&mut self, component: &str) -> Result<Pairs> {
        let max = self.limits.transaction_mutations;
        let found = self
            .find(Scan {
                range: KeyRange::prefix(ledger()?, format!("{component}\0").as_bytes()),
                reverse: false,
                keys_only: false,
                max_entries: usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX),
                max_bytes: u64::MAX,
            })
            .await?;
        self.limits.check(LimitKind::TransactionMutations, found.entries.len() as u64)?;
        Ok(found.entries)
    }

    /// Stages the entry of a step that follows `applied` others.
    pub(crate) fn record_migration(
        &mut self,
        component: &str,
        step: &Migration,
        applied: usize,
    ) -> Result<()> {
        let key = Key::new(format!("{component}\0{}", step.id), &self.limits)?;
        let now = self.open.store.clock().now();
        let value = entry::value(step, applied, now)?;
        let row = RowKey { namespace: ledger()?, key };
        self.stage_if(row, Mutation::Put { value: Value::trusted(value), ttl_millis: None }, None)
    }

    /// Stages the removal of a step's entry.
    pub(crate) fn forget_migration(&mut self, component: &str, id: &str) -> Result<()> {
        let key = Key::from_stored(format!("{component}\0{id}").into_bytes())?;
        self.stage_if(RowKey { namespace: ledger()?, key }, Mutation::Delete, None)
    }
}

/// The limits of a guest don't bind larder's own name.
fn ledger() -> Result<Namespace> {
    Namespace::from_stored(LEDGER_NAMESPACE.into())
}
