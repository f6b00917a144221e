//! Reads of the committed state, and the read set that a transaction keeps of them.

use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use super::Transaction;
use crate::call::Mode;
use crate::commit::Mutation;
use crate::error::{Error, LimitExceeded, LimitKind, Result};
use crate::limits::Limits;
use crate::name::{Key, Namespace, RowKey};
use crate::row::{StoredValue, Version};
use crate::scan::{Found, Scan};
use crate::slice::{STORED_ROW, Slice};
use crate::snapshot::{Many, Snapshot, SnapshotOptions};
use crate::transaction_state::BorrowedSnapshot;

impl Transaction {
    /// Whether a read of the row needs its committed value.
    pub(super) fn needs_committed(&self, row: &RowKey) -> bool {
        matches!(self.writes.get(row), None | Some(Mutation::Increment(_)))
    }

    /// Applies the staged write of the row, if any, to its committed value.
    pub(super) fn on_top(&self, row: &RowKey, stored: Option<StoredValue>) -> Result<Option<Vec<u8>>> {
        let stored = stored.map(|stored| stored.value);
        let value = match self.writes.get(row) {
            None => stored,
            Some(mutation) => mutation.applied_to(stored)?,
        };
        let bytes = value.as_ref().map_or(0, |value| value.len() as u64);
        self.held.count().check_result(bytes)?;
        Ok(value)
    }

    /// The committed row, if the snapshot can tell without waiting. This is not async, because most
    /// rows are read this way, and a future would move everything in and out.
    pub(super) fn committed_now(&mut self, row: &RowKey) -> Result<Option<Option<StoredValue>>> {
        let stored = self.open.transaction.read_now(|snapshot| snapshot.get_now(row))?;
        if let Some(stored) = &stored {
            self.record_row(row, stored.as_ref())?;
        }
        Ok(stored)
    }

    /// The committed row, if [`Transaction::committed_now`] could not tell.
    pub(super) async fn committed_later(&mut self, row: &RowKey) -> Result<Option<StoredValue>> {
        let mut borrowed = self.open.transaction.borrow_snapshot()?;
        let is_new = borrowed.snapshot.is_none();
        let result = match self.snapshot(&mut borrowed.snapshot).await {
            // `committed_now` has already asked a snapshot that existed before.
            Ok(snapshot) => match is_new.then(|| snapshot.get_now(row)).flatten() {
                Some(stored) => Ok(stored),
                None => snapshot.get(row).await,
            },
            Err(error) => Err(error),
        };
        let stored = self.settle(borrowed, result)?;
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
        // The keys are in memory twice: the caller's and the backend's.
        let names = keys.iter().map(|key| namespace.as_bytes().len() + key.as_bytes().len());
        let mut held = self.held.count().hold(Limits::RESULT_COPIES * names.sum::<usize>() as u64)?;
        let max_bytes = self.room_for_result(self.limits.result_bytes);
        let mut borrowed = self.open.transaction.borrow_snapshot()?;
        let result = match self.snapshot(&mut borrowed.snapshot).await {
            Ok(snapshot) => self.while_open(snapshot.get_many(namespace, &keys, max_bytes)).await,
            Err(error) => Err(error),
        };
        let rows = match self.settle(borrowed, result)? {
            Many::Rows(rows) => rows,
            Many::TooLarge(requested) => {
                self.held.count().check_result(requested.min(self.limits.result_bytes))?;
                let max = self.limits.result_bytes;
                return Err(LimitExceeded { kind: LimitKind::ResultBytes, max, requested }.into());
            }
        };
        let values = rows.iter().flatten().map(|stored| stored.value.len()).sum::<usize>();
        held.add(Limits::RESULT_COPIES * values as u64)?;
        for (key, stored) in keys.into_iter().zip(&rows) {
            slice.count(STORED_ROW, key.as_bytes().len());
            slice.pause().await;
            let row = RowKey { namespace: namespace.clone(), key };
            self.record_row(&row, stored.as_ref())?;
        }
        Ok(rows)
    }

    /// Reads a range. The result counts for the instance until it is dropped.
    pub(crate) async fn find(&mut self, scan: Scan) -> Result<Found> {
        self.find_some(scan, usize::MAX).await
    }

    /// Reads as many entries of a range as the instance has memory for. Fails if these are fewer
    /// than `enough` and more exist.
    pub(super) async fn find_some(&mut self, mut scan: Scan, enough: usize) -> Result<Found> {
        // The answer does not depend on the state, so no snapshot is needed.
        if scan.range.is_empty() {
            return Ok(scan.nothing());
        }
        let (max_bytes, max_entries) = (scan.max_bytes, scan.max_entries);
        scan.max_bytes = self.room_for_result(max_bytes);
        let is_narrowed = scan.max_bytes < max_bytes;
        let mut borrowed = self.open.transaction.borrow_snapshot()?;
        let result = match self.snapshot(&mut borrowed.snapshot).await {
            Ok(snapshot) => self.while_open(scan.run(snapshot, &self.writes)).await,
            Err(error) => Err(error),
        };
        let mut found = self.settle(borrowed, result)?;
        let is_short = is_narrowed && found.entries.len() < max_entries.min(enough);
        if let (Some(next), true) = (found.next_entry_bytes, is_short) {
            // The limits allow more, but the instance holds too much memory.
            return Err(self.held.count().result_exceeded(found.bytes.saturating_add(next)));
        }
        found.held = Some(self.held.count().hold(Limits::RESULT_COPIES * found.entries.end() as u64)?);
        if self.mode == Mode::Update {
            self.charge(self.reads.range_cost(&found.read))?;
            self.reads.record_range(found.read.clone());
            self.reads.record_expiry(found.earliest_expiry);
        }
        Ok(found)
    }

    /// The largest result that the instance has memory for, and `max_bytes` at most.
    fn room_for_result(&self, max_bytes: u64) -> u64 {
        max_bytes.min(self.held.count().left() / Limits::RESULT_COPIES)
    }

    /// Awaits a read that may take long. It fails at the read's next pause if the transaction has
    /// ended.
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

    /// The snapshot. The first read takes it.
    pub(super) async fn snapshot<'s>(
        &self,
        borrowed: &'s mut Option<Box<dyn Snapshot>>,
    ) -> Result<&'s mut dyn Snapshot> {
        let snapshot = match borrowed.take() {
            Some(snapshot) => snapshot,
            None => {
                self.open.transaction.takes_snapshot(self.open.store.clock().monotonic());
                self.open.store.snapshot(self.snapshot_options()).await?
            }
        };
        Ok(borrowed.insert(snapshot).as_mut())
    }

    fn snapshot_options(&self) -> SnapshotOptions {
        let clock = self.open.store.clock();
        let left = self.open.transaction.deadline.saturating_sub(clock.monotonic());
        // The timeout is unbounded if the limits were never validated.
        let left = left.min(Limits::TRANSACTION_TIMEOUT_MAX);
        let deadline = Instant::now() + left;
        let share = self.open.transaction.share.clone();
        SnapshotOptions::new(self.mode, clock.clone(), deadline, share)
    }

    /// Returns the snapshot for the next call. A mistake of the guest leaves it as it was. After an
    /// error of the backend its state is unknown, so the transaction ends.
    pub(super) fn settle<T>(&self, borrowed: BorrowedSnapshot, result: Result<T>) -> Result<T> {
        self.open.transaction.called(self.open.store.clock().monotonic());
        match result {
            Ok(value) => borrowed.give_back().map(|()| value),
            Err(error @ (Error::InvalidArgument(_) | Error::LimitExceeded(_))) => {
                borrowed.give_back()?;
                Err(error)
            }
            Err(error) => {
                self.open.end(error.clone());
                Err(error)
            }
        }
    }

    /// Adds a row to the read set of an update. A view needs no read set: its snapshot is
    /// consistent, and later changes do not matter.
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
        self.limits.check(LimitKind::TransactionBytes, self.held.bytes() + bytes)?;
        self.held.add(bytes)
    }
}
