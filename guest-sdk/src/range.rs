//! Ranges of keys.

use crate::raw::tx;

/// A range of a namespace's keys, with an order and a limit.
///
/// Keys are ordered by their UTF-8 bytes.
///
/// ```
/// use larder_guest::Range;
/// let newest = Range::prefix("task:").from("task:2026").reversed().limit(10);
/// assert_eq!(Range::all(), Range::prefix(""));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    prefix: String,
    start: Option<String>,
    end: Option<String>,
    reverse: bool,
    limit: Option<u32>,
    keys_only: bool,
}

impl Range {
    /// Selects every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Selects the keys that begin with `prefix`; no character of it is a wildcard.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// Restricts the range to keys at or after `start`.
    pub fn from(mut self, start: impl Into<String>) -> Self {
        self.start = Some(start.into());
        self
    }

    /// Restricts the range to keys before `end`.
    pub fn until(mut self, end: impl Into<String>) -> Self {
        self.end = Some(end.into());
        self
    }

    /// Reverses the order, to go from the last key to the first.
    pub fn reversed(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Limits the range to this number of entries, over all pages.
    pub fn limit(mut self, entries: u32) -> Self {
        self.limit = Some(entries);
        self
    }

    /// Leaves the values of entries empty.
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    pub(crate) fn entries_max(&self) -> Option<u32> {
        self.limit
    }

    pub(crate) fn into_raw(self) -> tx::Range {
        let Self { prefix, start, end, reverse, limit, keys_only } = self;
        tx::Range { prefix, start, end, reverse, limit, keys_only }
    }
}
