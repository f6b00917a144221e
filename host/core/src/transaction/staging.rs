//! Staging of writes until commit.

use std::collections::BTreeMap;

use super::Transaction;
use crate::commit::Mutation;
use crate::error::{LimitKind, Result};
use crate::limits::Limits;
use crate::name::RowKey;
use crate::row::Version;
use crate::slice::{STORED_ROW, Slice};

impl Transaction {
    /// Stages all changes, or none. If the caller cancels the call, the transaction is unchanged.
    pub(super) async fn stage_all(
        &mut self,
        mut changes: BTreeMap<RowKey, Mutation>,
        mut slice: Slice,
    ) -> Result<()> {
        let mut rows = self.writes.len() as u64;
        let mut bytes = self.held.bytes();
        for (row, mutation) in &changes {
            slice.count(STORED_ROW, row.key.as_bytes().len());
            slice.pause().await;
            rows += u64::from(!self.writes.contains_key(row));
            bytes = bytes - self.staged_bytes(row) + mutation_bytes(row, mutation);
        }
        self.take_room(rows, bytes)?;
        // No pause from here on. `append` visits every row, old and new. `extend` inserts only the
        // new rows, but takes longer for each.
        match changes.len() > self.writes.len() / 8 {
            true => self.writes.append(&mut changes),
            false => self.writes.extend(changes),
        }
        Ok(())
    }

    pub(crate) fn stage_if(
        &mut self,
        row: RowKey,
        mutation: Mutation,
        expected: Option<Version>,
    ) -> Result<()> {
        let rows = self.writes.len() as u64 + u64::from(!self.writes.contains_key(&row));
        let bytes = self.held.bytes() - self.staged_bytes(&row) + mutation_bytes(&row, &mutation);
        let is_new = expected.is_some() && !self.conditions.contains_key(&row);
        let condition = if is_new { row.bytes() + Limits::ENTRY_OVERHEAD } else { 0 };
        self.take_room(rows, bytes + condition)?;
        if let Some(expected) = expected {
            let before = self.conditions.insert(row.clone(), expected);
            self.contradiction |= before.is_some_and(|before| before != expected);
        }
        self.writes.insert(row, mutation);
        Ok(())
    }

    fn staged_bytes(&self, row: &RowKey) -> u64 {
        self.writes.get(row).map_or(0, |mutation| mutation_bytes(row, mutation))
    }

    /// Sets the total of staged rows and bytes. Fails if a limit does not allow it.
    fn take_room(&mut self, rows: u64, bytes: u64) -> Result<()> {
        self.limits.check(LimitKind::TransactionMutations, rows)?;
        self.limits.check(LimitKind::TransactionBytes, bytes)?;
        self.held.change_to(bytes)
    }
}

fn mutation_bytes(row: &RowKey, mutation: &Mutation) -> u64 {
    row.bytes() + mutation.value_bytes() + Limits::ENTRY_OVERHEAD
}
