//! Snapshots: what a backend gives a transaction to read from.
//!
//! The [contract](crate::backend) says what a snapshot has to guarantee.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;

use crate::call::Mode;
use crate::chunk::{Chunk, ScanOptions};
use crate::clock::ForwardClock;
use crate::commit::{Commit, Committed};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::name::{Key, KeyRange, Namespace, RowKey};
use crate::row::StoredValue;
use crate::share::Share;

/// Options of [`Backend::snapshot`](crate::backend::Backend::snapshot).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SnapshotOptions {
    /// Whether the transaction may write.
    pub mode: Mode,
    /// The clock for the moment of the snapshot. The backend reads it once the state is fixed.
    pub clock: ForwardClock,
    /// When a wait for the engine fails with [`Error::TimedOut`].
    pub deadline: Instant,
    /// The share that the snapshot counts against.
    pub share: Share,
}

impl SnapshotOptions {
    /// Creates options for a snapshot.
    pub fn new(mode: Mode, clock: ForwardClock, deadline: Instant, share: Share) -> Self {
        Self { mode, clock, deadline, share }
    }
}

/// One committed state of a backend, for the reads and the commit of one transaction.
#[async_trait]
pub trait Snapshot: Send {
    /// Reads a row without waiting, if the engine can.
    ///
    /// The outer `None` means that the caller must use [`Snapshot::get`]. The inner `None` means
    /// that the row does not exist. Must not block, or take longer than a lookup in memory. An
    /// engine with rows in memory thereby saves most reads the cost of a future.
    fn get_now(&mut self, row: &RowKey) -> Option<Option<StoredValue>> {
        let _ = row;
        None
    }

    /// Reads a row; `None` if it does not exist. The caller has tried [`Snapshot::get_now`] before.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn get(&mut self, row: &RowKey) -> Result<Option<StoredValue>>;

    /// Reads the rows of `keys`, in their order. A key may occur twice.
    ///
    /// If the values are larger than `max_bytes` in total, returns [`Many::TooLarge`] before all of
    /// them are in memory.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn get_many(&mut self, namespace: &Namespace, keys: &[Key], max_bytes: u64) -> Result<Many>;

    /// Reads the first rows of a range, which is not empty.
    ///
    /// It may return fewer rows than the options allow. After a few [slices](crate::slice) of
    /// expired rows it yields its thread.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn scan(&mut self, range: &KeyRange, options: ScanOptions) -> Result<Chunk>;

    /// Returns the first namespace after `after` that holds a row; `None` if there is none.
    ///
    /// # Errors
    /// - [`Error::Conflict`] if an engine that tracks reads finds a conflict.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn next_namespace(&mut self, after: Option<&Namespace>) -> Result<Option<Namespace>>;

    /// Whether the snapshot pins a connection, or data that the engine could otherwise clean up.
    /// Must not block.
    fn pins(&self) -> bool {
        false
    }

    /// Whether the backend keeps an old state for this snapshot. Must not block.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Releases what the snapshot pins, if it can read on without it.
    ///
    /// Later reads see the same state. Returns false, and does nothing, if the snapshot cannot read
    /// on. Must not block.
    fn release(&mut self) -> bool {
        false
    }

    /// Makes the commit of the transaction that read this snapshot.
    ///
    /// # Errors
    /// - Any error of [`Commit::plan`], such as [`Error::TimedOut`].
    /// - [`Error::Conflict`] if something that the transaction read has changed.
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::CommitUnknown`] if the outcome is unknown.
    /// - [`Error::Closed`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`], as the
    ///   contract defines them.
    async fn commit(self: Box<Self>, commit: Arc<Commit>) -> Result<Committed>;
}

/// The result of [`Snapshot::get_many`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Many {
    /// The rows, in the order of the keys.
    Rows(Vec<Option<StoredValue>>),
    /// The values exceed the maximum: their size in bytes, as far as it was counted.
    TooLarge(u64),
}

/// Collects the result of [`Snapshot::get_many`], for an engine that reads row by row.
///
/// ```
/// use larder_core::snapshot::{Many, ManyRows};
///
/// let mut rows = ManyRows::new(1, 100);
/// assert!(rows.push(None));
/// assert_eq!(rows.finish(), Many::Rows(vec![None]));
/// ```
#[derive(Debug)]
pub struct ManyRows {
    rows: Vec<Option<StoredValue>>,
    bytes: u64,
    max_bytes: u64,
}

impl ManyRows {
    /// Creates a collector for the rows of `keys` keys.
    pub fn new(keys: usize, max_bytes: u64) -> Self {
        Self { rows: Vec::with_capacity(keys), bytes: 0, max_bytes }
    }

    /// Adds the next row. Returns false if the values now exceed the maximum.
    pub fn push(&mut self, row: Option<StoredValue>) -> bool {
        self.bytes += row.as_ref().map_or(0, |row| row.value.len() as u64);
        self.rows.push(row);
        self.bytes <= self.max_bytes
    }

    /// Returns the result.
    pub fn finish(self) -> Many {
        if self.bytes > self.max_bytes { Many::TooLarge(self.bytes) } else { Many::Rows(self.rows) }
    }
}
