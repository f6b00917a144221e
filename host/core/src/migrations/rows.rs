//! The rows of the ledger, as a transaction reads and writes them.

use super::{AppliedMigration, LEDGER_NAMESPACE, LedgerEntry, Migration, entry};
use crate::commit::Mutation;
use crate::error::{LimitKind, Result};
use crate::name::{Key, KeyRange, Namespace, RowKey, Value, just_after};
use crate::pairs::Pairs;
use crate::scan::Scan;
use crate::transaction::Transaction;

impl Transaction {
    /// Reads a component's entries, in the order in which they were applied. An update records the
    /// read.
    pub(crate) async fn ledger(&mut self, component: &str) -> Result<Vec<AppliedMigration>> {
        let rows = self.ledger_rows(component).await?;
        let applied = rows.iter().map(|(key, value)| AppliedMigration::from_row(key, value));
        entry::in_order(component, applied.collect::<Result<_>>()?)
    }

    /// Reads a component's rows in the order of their ids, including those that are not valid
    /// entries. An update records the read.
    pub(crate) async fn ledger_rows(&mut self, component: &str) -> Result<Pairs> {
        let max = self.limits().transaction_mutations;
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
        self.limits().check(LimitKind::TransactionMutations, found.entries.len() as u64)?;
        Ok(found.entries)
    }

    /// Reads the first rows of the ledger from a key on, of any component. An update records the
    /// read.
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

    /// Reads the row with this key; `None` if it does not exist. An update records the read.
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

    /// Stages the entry of a step that follows `applied` other steps.
    pub(crate) fn record_migration(
        &mut self,
        component: &str,
        step: &Migration,
        applied: usize,
    ) -> Result<()> {
        let key = Key::new(format!("{component}\0{}", step.id), self.limits())?;
        let now = self.store_time();
        let value = entry::value(step, applied, now)?;
        let row = RowKey { namespace: ledger()?, key };
        self.stage_if(row, Mutation::Put { value: Value::trusted(value), ttl_ms: None }, None)
    }

    /// Stages the deletion of a row. Its key may be any bytes.
    pub(crate) fn forget_migration(&mut self, key: Vec<u8>) -> Result<()> {
        let key = Key::of_ledger(key);
        self.stage_if(RowKey { namespace: ledger()?, key }, Mutation::Delete, None)
    }
}

/// The ledger's namespace. The limits of a guest do not apply to larder's own name.
fn ledger() -> Result<Namespace> {
    Namespace::from_stored(LEDGER_NAMESPACE.into())
}
