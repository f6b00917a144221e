//! The state of a range, as it was read and as it is at a commit.

use super::allowance::Allowance;
use crate::error::Result;
use crate::name::{KeyRange, RowKey};
use crate::row::Version;

/// A range that was read completely.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeRead {
    /// The keys of the range.
    pub range: KeyRange,
    /// Its state at the read.
    pub state: RangeState,
}

/// The state of a range. If two states of a range are equal, it holds the same rows.
///
/// If versions grow from commit to commit, `rows` and `newest` show every change: a new or changed
/// row is newer than all others, and a deleted row is missing. If a backend makes commits
/// concurrently, one with a smaller version may become visible later. `digest` shows that too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RangeState {
    /// Its live rows.
    pub rows: u64,
    /// The newest version among them.
    pub newest: Version,
    /// The sum of [`RangeState::digest_of`] of all their versions, modulo 2⁶³.
    pub digest: u64,
}

impl RangeState {
    const DIGEST_MASK: u64 = i64::MAX as u64;

    /// Adds a live row.
    pub fn add(&mut self, version: Version) {
        self.rows += 1;
        self.newest = self.newest.max(version);
        self.digest = Self::sum(self.digest, Self::digest_of(version));
    }

    /// The digest of a version `v`: `(x² mod P) · x`.
    ///
    /// `x` is the lowest 31 bits of `v`, and `P` is 2³¹ − 1. A database can also compute it, in
    /// signed 64-bit numbers.
    pub fn digest_of(version: Version) -> u64 {
        const P: u64 = (1 << 31) - 1;
        let x = version.0 & P;
        x * x % P * x
    }

    /// The digest of the union of two disjoint sets of rows.
    pub(crate) fn sum(one: u64, other: u64) -> u64 {
        one.wrapping_add(other) & Self::DIGEST_MASK
    }

    /// The digest of the rows in `all` but not in `before`.
    pub(crate) fn rest(all: u64, before: u64) -> u64 {
        all.wrapping_sub(before) & Self::DIGEST_MASK
    }
}

/// The committed state at the moment of a commit.
pub trait CurrentState {
    /// Returns the version of a live row, or [`Version::ABSENT`] if there is none.
    ///
    /// # Errors
    /// - Any error of the engine.
    fn version(&mut self, row: &RowKey) -> Result<Version>;
    /// Returns the state of a range, or of its first rows within the allowance.
    ///
    /// The range is not empty. The call looks at one row at least. An expired row does not count
    /// for the state, but does for the allowance.
    ///
    /// # Errors
    /// - Any error of the engine.
    fn range(&mut self, range: &KeyRange, allowance: &mut Allowance) -> Result<RangePart>;
}

/// The state of the first rows of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangePart {
    /// The state of its live rows.
    pub state: RangeState,
    /// The key from which the rest of the range has to be counted; `None` if this is all of it.
    pub next: Option<Vec<u8>>,
}
