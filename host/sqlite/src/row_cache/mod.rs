//! The newest committed rows and ranges, in memory.
//!
//! - A cached row or range holds for every state from its `since` up to the newest state. A
//!   snapshot of a state before `since` does not use it.
//! - The cache only changes under the lock of the commit clock, which owns the [`ChangeRight`].
//!   [`crate::commit_clock`] says when it changes. Eviction may remove any entry at any time.

mod ranges;
mod rows;

use std::sync::Arc;

use larder_core::Result;
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::clock::UnixMillis;
use larder_core::commit::RowWrite;
use larder_core::name::{KeyRange, RowKey};
use larder_core::row::{StoredValue, Version};

pub(crate) use ranges::Beginning;
use ranges::CachedRanges;
use rows::{CachedRows, ChangedRows};

use crate::state_number::StateNumber;

/// One in this many bytes of the cache is for ranges.
const RANGES_PART: u64 = 4;

/// The cached rows and ranges of one database.
pub(crate) struct RowCache {
    bytes: u64,
    rows: CachedRows,
    ranges: CachedRanges,
}

/// The right to change what is cached. A cache has exactly one.
///
/// Its owner keeps it under the lock that guards the newest state, so nothing enters or leaves the
/// cache without that lock, except by eviction.
pub(crate) struct ChangeRight(());

/// The state that a snapshot reads, and the time at which it decides which rows are live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) state: StateNumber,
    pub(crate) now: UnixMillis,
}

/// The commit that wrote a row: the state that it leaves, and the version that it allocates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub(crate) state: StateNumber,
    pub(crate) version: Version,
}

/// What a commit changes in the cache once it is made.
#[derive(Default)]
pub(crate) struct Changes {
    rows: ChangedRows,
    /// The rows of the commit that are within cached ranges.
    in_ranges: Vec<RowKey>,
}

impl RowCache {
    /// A cache within a bound of bytes, and the right to change it. With 0 bytes, nothing is
    /// cached.
    pub(crate) fn new(bytes: u64) -> (Self, ChangeRight) {
        let for_ranges = bytes / RANGES_PART;
        let (rows, ranges) = (CachedRows::new(bytes - for_ranges), CachedRanges::new(for_ranges));
        (Self { bytes, rows, ranges }, ChangeRight(()))
    }

    /// Whether rows are cached at all.
    pub(crate) fn is_on(&self) -> bool {
        self.bytes > 0
    }

    /// The row as a snapshot sees it. `None` if the caller must read the database.
    pub(crate) fn get(&self, row: &RowKey, moment: Moment) -> Option<Option<StoredValue>> {
        self.rows.get(row, moment)
    }

    /// The first rows of a range as a snapshot sees them, or the first part of it that the caller
    /// must read from the database. The range must not be empty.
    pub(crate) fn beginning(
        &self,
        range: &KeyRange,
        options: ScanOptions,
        moment: Moment,
    ) -> Result<Beginning> {
        self.ranges.beginning(range, options, moment)
    }

    /// Whether the result of a scan is small enough to be cached.
    pub(crate) fn takes(&self, range: &KeyRange, chunk: &Chunk) -> bool {
        self.ranges.takes(range, chunk)
    }

    /// Caches a row, or its absence, that a snapshot of the newest state read from the database.
    pub(crate) fn fill(
        &self,
        _right: &mut ChangeRight,
        row: &RowKey,
        moment: Moment,
        found: Option<&StoredValue>,
    ) {
        self.rows.fill(row, moment, found);
    }

    /// Caches the rows that a snapshot of the newest state read from the database in a forward scan
    /// with values.
    pub(crate) fn fill_range(
        &self,
        _right: &mut ChangeRight,
        range: &KeyRange,
        chunk: Arc<Chunk>,
        moment: Moment,
    ) {
        self.ranges.fill(range, chunk, moment);
    }

    /// Adds a write of the commit that is under way to its changes, if it concerns a cached row or
    /// range.
    ///
    /// From the first note of a commit until its changes are applied or dropped, nothing may be
    /// filled: the note would have missed it.
    pub(crate) fn note(&self, changes: &mut Changes, row: &RowKey, write: &RowWrite<'_>, written: Written) {
        self.rows.note(&mut changes.rows, row, write, written);
        if self.ranges.contains(row) {
            changes.in_ranges.push(row.clone());
        }
    }

    /// Makes the changes of a commit: updates the rows, and removes the ranges around them.
    pub(crate) fn apply(&self, _right: &mut ChangeRight, changes: Changes) {
        self.rows.apply(changes.rows);
        changes.in_ranges.iter().for_each(|row| self.ranges.forget(row));
    }

    /// Removes everything.
    pub(crate) fn clear(&self, _right: &mut ChangeRight) {
        self.rows.clear();
        self.ranges.clear();
    }
}
