//! What a transaction sees of the committed state, and what it remembers of that.

use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use super::Transaction;
use crate::backend::{Many, Mode, Snapshot, SnapshotOptions, StoredValue, Version};
use crate::commit::Mutation;
use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::limits::Limits;
use crate::name::{Key, Namespace, RowKey};
use crate::scan::{Found, Scan};
use crate::slice::{STORED_ROW, Slice};
use crate::slot::Lease;

impl Transaction {
    /// Whether a read of the row has to look at what is committed.
    pub(super) fn needs_committed(&self, row: &RowKey) -> bool {
        matches!(self.writes.get(row), None | Some(Mutation::Increment(_)))
    }

    /// The row as the transaction sees it, given what is committed.
    pub(super) fn on_top(&self, row: &RowKey, stored: Option<StoredValue>) -> Result<Option<Vec<u8>>> {
        let stored = stored.map(|stored| stored.value);
        match self.writes.get(row) {
            None => Ok(stored),
            Some(mutation) => mutation.applied_to(stored),
        }
    }

    /// The row as it is committed, where that is known without waiting. Not part of a future, as most rows are: into and
    /// out of each future, everything is moved.
    pub(super) fn committed_now(&mut self, row: &RowKey) -> Result<Option<Option<StoredValue>>> {
        let stored = self.open.slot.read_now(|snapshot| snapshot.get_now(row))?;
        if let Some(stored) = &stored {
            self.record_row(row, stored.as_ref())?;
        }
        Ok(stored)
    }

    /// The row as it is committed, where [`Transaction::committed_now`] could not tell.
    pub(super) async fn committed_later(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        let mut lease = self.open.slot.lease()?;
        let is_new = lease.snapshot.is_none();
        let result = match self.snapshot(&mut lease.snapshot).await {
            // One that was there could not tell.
            Ok(snapshot) => match is_new.then(|| snapshot.get_now(row)).flatten() {
                Some(stored) => Ok(stored),
                None => snapshot.get(row).await,
            },
            Err(error) => Err(error),
        };
        let stored = self.settle(lease, result)?;
        self.record_row(row, stored.as_ref())?;
        Ok(stored)
    }

    pub(super) async fn committed_many(
        &mut self,
        namespace: &Namespace,
        keys: Vec<Key>,
        slice: &mut Slice,
    ) -> Result<Vec<Option<StoredValue>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let max_bytes = self.limits.result_bytes;
        let mut lease = self.open.slot.lease()?;
        let result = match self.snapshot(&mut lease.snapshot).await {
            Ok(snapshot) => self.while_open(snapshot.get_many(namespace, &keys, max_bytes)).await,
            Err(error) => Err(error),
        };
        let rows = match self.settle(lease, result)? {
            Many::Rows(rows) => rows,
            Many::TooLarge(requested) => {
                return Err(LimitExceeded { kind: LimitKind::ResultBytes, max: max_bytes, requested }.into());
            }
        };
        for (key, stored) in keys.into_iter().zip(&rows) {
            slice.count(STORED_ROW, key.as_bytes().len());
            slice.pause().await;
            let row = RowKey { namespace: namespace.clone(), key };
            self.record_row(&row, stored.as_ref())?;
        }
        Ok(rows)
    }

    pub(super) async fn find(&mut self, scan: Scan) -> Result<Found> {
        // It tells nothing of any state, so it takes no snapshot.
        if scan.range.is_empty() {
            return Ok(scan.nothing());
        }
        let mut lease = self.open.slot.lease()?;
        let result = match self.snapshot(&mut lease.snapshot).await {
            Ok(snapshot) => self.while_open(scan.run(snapshot, &self.writes)).await,
            Err(error) => Err(error),
        };
        let found = self.settle(lease, result)?;
        if self.mode == Mode::Update {
            self.charge(self.reads.range_cost(&found.read))?;
            self.reads.record_range(found.read.clone());
            self.reads.record_expiry(found.earliest_expiry);
        }
        Ok(found)
    }

    /// What a read gives that may take long. At each of its pauses it ends if the transaction has ended.
    pub(super) async fn while_open<T>(&self, read: impl Future<Output = Result<T>>) -> Result<T> {
        let mut read = pin!(read);
        std::future::poll_fn(|context| match read.as_mut().poll(context) {
            Poll::Pending => {
                self.open.check().map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
            }
            ready => ready,
        })
        .await
    }

    /// The snapshot, taken now where this is the first read.
    pub(super) async fn snapshot<'s>(
        &self,
        leased: &'s mut Option<Box<dyn Snapshot>>,
    ) -> Result<&'s mut dyn Snapshot> {
        let snapshot = match leased.take() {
            Some(snapshot) => snapshot,
            None => {
                self.open.slot.takes_snapshot(self.open.store.clock().monotonic());
                self.open.store.snapshot(self.snapshot_options()).await?
            }
        };
        Ok(leased.insert(snapshot).as_mut())
    }

    fn snapshot_options(&self) -> SnapshotOptions {
        let clock = self.open.store.clock();
        let left = self.open.slot.deadline.saturating_sub(clock.monotonic());
        // Limits that were never validated may hold any timeout.
        let left = left.min(Limits::TRANSACTION_TIMEOUT_MAX);
        let deadline = Instant::now() + left;
        let share = self.open.slot.share.clone();
        SnapshotOptions { mode: self.mode, clock: clock.clone(), deadline, share }
    }

    /// Puts the snapshot back for the next call. After an error of the backend nobody knows what the snapshot
    /// is worth: the transaction ends. A guest's mistake leaves it as it was.
    pub(super) fn settle<T>(&self, lease: Lease, result: Result<T>) -> Result<T> {
        self.open.slot.called(self.open.store.clock().monotonic());
        match result {
            Ok(value) => lease.give_back().map(|()| value),
            Err(error @ (Error::InvalidArgument(_) | Error::LimitExceeded(_))) => {
                lease.give_back()?;
                Err(error)
            }
            Err(error) => {
                self.open.end(error.clone());
                Err(error)
            }
        }
    }

    /// A view's snapshot is consistent in itself: what it read need not hold later.
    fn record_row(&mut self, row: &RowKey, stored: Option<&StoredValue>) -> Result<()> {
        if self.mode == Mode::View {
            return Ok(());
        }
        self.charge(self.reads.row_cost(row))?;
        self.reads.record_row(row.clone(), stored.map_or(Version::ABSENT, |stored| stored.version));
        self.reads.record_expiry(stored.and_then(|stored| stored.expires_at));
        Ok(())
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        let used = self.bytes + bytes;
        self.limits.check(LimitKind::TransactionBytes, used)?;
        self.bytes = used;
        Ok(())
    }
}
