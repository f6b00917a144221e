//! The ledger of migrations, as transactions read and write it.

use super::Transaction;
use crate::commit::Mutation;
use crate::error::{LimitKind, Result};
use crate::migrations::{AppliedMigration, LEDGER_NAMESPACE, LedgerEntry, Migration, entry};
use crate::name::{Key, KeyRange, Namespace, RowKey, Value, just_after};
use crate::pairs::Pairs;
use crate::scan::Scan;

impl Transaction {
    /// What the ledger holds of one component, in the order in which it was applied. An update watches it.
    pub(crate) async fn ledger(&mut self, component: &str) -> Result<Vec<AppliedMigration>> {
        let rows = self.ledger_rows(component).await?;
        let applied = rows.iter().map(|(key, value)| AppliedMigration::from_row(key, value));
        entry::in_order(component, applied.collect::<Result<_>>()?)
    }

    /// The rows of one component in the ledger, in the order of their ids, those too that are not valid entries. An update
    /// watches them.
    pub(crate) async fn ledger_rows(&mut self, component: &str) -> Result<Pairs> {
        let max = self.limits.transaction_mutations;
        let found = self
            .find(Scan {
                range: KeyRange::prefix(ledger()?, format!("{component}\0").as_bytes()),
                reverse: false,
                keys_only: false,
                max_entries: usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX),
                max_bytes: u64::MAX,
                entry_bytes: 0,
                any_keys: true,
            })
            .await?;
        self.limits.check(LimitKind::TransactionMutations, found.entries.len() as u64)?;
        Ok(found.entries)
    }

    /// The first rows of the ledger from a key on, of whatever component. An update watches them.
    pub(crate) async fn ledger_page(&mut self, from: Vec<u8>) -> Result<Pairs> {
        const MAX_ENTRIES: usize = 1_024;
        let scan = Scan {
            range: KeyRange::new(ledger()?, from, None),
            reverse: false,
            keys_only: false,
            max_entries: MAX_ENTRIES,
            max_bytes: u64::MAX,
            entry_bytes: 0,
            any_keys: true,
        };
        Ok(self.find(scan).await?.entries)
    }

    /// The row of the ledger with this key, if it is there. An update watches it.
    pub(crate) async fn ledger_row(&mut self, key: &[u8]) -> Result<Option<LedgerEntry>> {
        let scan = Scan {
            range: KeyRange::new(ledger()?, key.to_vec(), Some(just_after(key))),
            reverse: false,
            keys_only: false,
            max_entries: 1,
            max_bytes: u64::MAX,
            entry_bytes: 0,
            any_keys: true,
        };
        let found = self.find(scan).await?;
        Ok(found.entries.iter().next().map(|(key, value)| LedgerEntry::from_row(key, value)))
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

    /// Stages the removal of a row, whatever its key is.
    pub(crate) fn forget_migration(&mut self, key: Vec<u8>) -> Result<()> {
        let key = Key::of_ledger(key);
        self.stage_if(RowKey { namespace: ledger()?, key }, Mutation::Delete, None)
    }
}

/// The limits of a guest don't bind larder's own name.
fn ledger() -> Result<Namespace> {
    Namespace::from_stored(LEDGER_NAMESPACE.into())
}
