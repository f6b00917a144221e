//! Writes that a transaction is going to make.

use std::collections::BTreeMap;

use super::Transaction;
use crate::backend::Version;
use crate::commit::Mutation;
use crate::error::{LimitKind, Result};
use crate::name::RowKey;
use crate::slice::{STORED_ROW, Slice};

impl Transaction {
    /// Stages all, or none. A caller that gives up while it waits leaves the transaction as it was.
    pub(super) async fn stage_all(
        &mut self,
        mut changes: BTreeMap<RowKey, Mutation>,
        mut slice: Slice,
    ) -> Result<()> {
        let mut rows = self.writes.len() as u64;
        let mut bytes = self.bytes;
        for (row, mutation) in &changes {
            slice.count(STORED_ROW, row.key.as_bytes().len());
            slice.pause().await;
            rows += u64::from(!self.writes.contains_key(row));
            bytes = bytes - self.staged_bytes(row) + mutation_bytes(row, mutation);
        }
        self.check_room(rows, bytes)?;
        self.bytes = bytes;
        // From here on there is no pause. To append takes time for all rows, and to extend for the new ones, but more for each.
        match changes.len() > self.writes.len() / 8 {
            true => self.writes.append(&mut changes),
            false => self.writes.extend(changes),
        }
        Ok(())
    }

    pub(super) fn stage_if(
        &mut self,
        row: RowKey,
        mutation: Mutation,
        expected: Option<Version>,
    ) -> Result<()> {
        let rows = self.writes.len() as u64 + u64::from(!self.writes.contains_key(&row));
        let bytes = self.bytes - self.staged_bytes(&row) + mutation_bytes(&row, &mutation);
        self.check_room(rows, bytes)?;
        self.bytes = bytes;
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

    fn check_room(&self, rows: u64, bytes: u64) -> Result<()> {
        self.limits.check(LimitKind::TransactionMutations, rows)?;
        self.limits.check(LimitKind::TransactionBytes, bytes)
    }
}

fn mutation_bytes(row: &RowKey, mutation: &Mutation) -> u64 {
    row.bytes() + mutation.value_bytes()
}
