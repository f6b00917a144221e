//! The in-memory format of a row.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::{InMemory, row_name};
use crate::clock::UnixMillis;
use crate::commit::CurrentRow;
use crate::row::{StoredValue, Version, is_live};

/// A row with its name, in one allocation that clones share. Finding a row by its name thus reads
/// both together.
///
/// Rows are equal if their names are, so a set holds one row of each name.
#[derive(Clone)]
pub(super) struct StoredRow {
    /// The version, the expiry, the name and the value.
    memory: Arc<[u8]>,
    /// Kept outside the allocation: the position of the value is known before the allocation is
    /// read, so all of it is fetched at once.
    name_length: usize,
}

/// Stands for no expiry. No row can expire then, because a commit sets times below 2⁶³.
const NEVER: UnixMillis = UnixMillis::MAX;

/// The bytes of an allocation beside those of the row: the reference counts, the allocator's
/// header, and rounding.
const ALLOCATION_OVERHEAD: u64 = 40;

/// The parts of a row, in the order of its bytes.
struct Parts<'a> {
    version: Version,
    expires_at: Option<UnixMillis>,
    name: &'a [u8],
    value: &'a [u8],
}

impl StoredRow {
    pub(super) fn new(name: &[u8], value: &[u8], version: Version, expires_at: Option<UnixMillis>) -> Self {
        let expiry = expires_at.unwrap_or(NEVER);
        let header = [version.0, expiry].map(u64::to_ne_bytes);
        let memory = [header.as_flattened(), name, value].concat().into();
        Self { memory, name_length: name.len() }
    }

    fn parts(&self) -> Parts<'_> {
        let (version, rest) = number(&self.memory);
        let (expiry, rest) = number(rest);
        let (name, value) = rest.split_at_checked(self.name_length).unwrap_or_default();
        Parts { version: Version(version), expires_at: (expiry != NEVER).then_some(expiry), name, value }
    }

    pub(super) fn name(&self) -> &[u8] {
        self.parts().name
    }

    pub(super) fn version(&self) -> Version {
        self.parts().version
    }

    pub(super) fn is_live(&self, now: UnixMillis) -> bool {
        is_live(self.parts().expires_at, now)
    }

    /// The bytes that a quota counts.
    pub(super) fn cost(&self) -> u64 {
        let Parts { name, value, .. } = self.parts();
        InMemory::STORED_COST.row(row_name::bytes(name), value.len() as u64)
    }

    /// The bytes of the allocation that clones share.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.len() as u64 + ALLOCATION_OVERHEAD
    }

    /// The value with its version and expiry; `None` if the row has expired.
    pub(super) fn live(&self, now: UnixMillis) -> Option<StoredValue> {
        let Parts { version, expires_at, value, .. } = self.parts();
        is_live(expires_at, now).then(|| StoredValue { value: value.to_vec(), version, expires_at })
    }

    /// The value and the expiry.
    pub(super) fn value(&self) -> (&[u8], Option<UnixMillis>) {
        let Parts { expires_at, value, .. } = self.parts();
        (value, expires_at)
    }

    /// The row in the form that [`Commit::plan`](crate::commit::Commit::plan) needs.
    pub(super) fn current(&self, with_value: bool) -> CurrentRow {
        let Parts { version, expires_at, value, .. } = self.parts();
        let value_bytes = value.len() as u64;
        CurrentRow { version, expires_at, value_bytes, value: with_value.then(|| value.to_vec()) }
    }

    /// The allocation that clones share.
    #[cfg(test)]
    pub(super) fn memory(&self) -> &Arc<[u8]> {
        &self.memory
    }
}

/// Splits a number from the front. Every row has both of its numbers, because only this module
/// makes rows.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    bytes.split_first_chunk().map_or((0, &[]), |(number, rest)| (u64::from_ne_bytes(*number), rest))
}

/// Sets look rows up by name, so a row must hash and compare as its name does.
impl Borrow<[u8]> for StoredRow {
    fn borrow(&self) -> &[u8] {
        self.name()
    }
}

impl Hash for StoredRow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialEq for StoredRow {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for StoredRow {}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    #[test]
    fn a_row_gives_back_what_it_was_made_of() {
        for name in [b"n\0\0key".as_slice(), b"\0\0", b""] {
            for expires_at in [None, Some(0), Some(7), Some(i64::MAX as u64)] {
                let row = StoredRow::new(name, b"value", Version(3), expires_at);
                let stored = StoredValue { value: b"value".to_vec(), version: Version(3), expires_at };
                assert_eq!(row.name(), name);
                assert_eq!(row.version(), Version(3));
                let now = expires_at.map_or(0, |expiry| expiry.saturating_sub(1));
                assert_eq!(row.live(now), (expires_at != Some(0)).then_some(stored));
            }
        }
    }

    #[test]
    fn the_cost_of_a_row_is_that_of_its_namespace_key_and_value() {
        let cost = InMemory::STORED_COST;
        assert_eq!(StoredRow::new(b"n\0\0key", b"value", Version(1), None).cost(), cost.row(4, 5));
        assert_eq!(StoredRow::new(b"\0\0", b"", Version(1), None).cost(), cost.row_overhead);
    }

    #[test]
    fn an_expired_row_is_not_live() {
        let row = StoredRow::new(b"a", b"", Version(1), Some(10));
        assert!(row.is_live(9) && !row.is_live(10));
        assert_eq!(row.live(10), None);
        assert_eq!(row.value(), (b"".as_slice(), Some(10)));
    }

    #[test]
    fn a_row_hashes_and_compares_as_its_name_does() {
        let row = StoredRow::new(b"a", b"bc", Version(1), None);
        let newer = StoredRow::new(b"a", b"other", Version(2), Some(10));
        let longer = StoredRow::new(b"ab", b"c", Version(1), None);
        assert!(row == newer && row != longer);
        let state = RandomState::new();
        assert_eq!(state.hash_one(&row), state.hash_one(b"a".as_slice()));
        assert_eq!(Borrow::<[u8]>::borrow(&row), b"a");
    }
}
