//! A row as it lies in memory.

use std::sync::Arc;

use crate::backend::{StoredValue, Version, is_live};
use crate::clock::UnixMillis;
use crate::commit::CurrentRow;

/// A value with its version and expiry in front, all in one piece: who finds a row reads them together. Clones share it.
#[derive(Clone)]
pub(super) struct StoredRow(Arc<[u8]>);

/// Stands for no expiry. No row expires then: a commit gives moments below 2⁶³.
const NEVER: UnixMillis = UnixMillis::MAX;

/// What is read in front of a value.
struct Parts<'a> {
    version: Version,
    expires_at: Option<UnixMillis>,
    value: &'a [u8],
}

impl StoredRow {
    pub(super) fn new(value: &[u8], version: Version, expires_at: Option<UnixMillis>) -> Self {
        let expiry = expires_at.unwrap_or(NEVER);
        Self([&version.0.to_ne_bytes(), &expiry.to_ne_bytes(), value].concat().into())
    }

    fn parts(&self) -> Parts<'_> {
        let (version, rest) = number(&self.0);
        let (expiry, value) = number(rest);
        Parts { version: Version(version), expires_at: (expiry != NEVER).then_some(expiry), value }
    }

    pub(super) fn version(&self) -> Version {
        self.parts().version
    }

    pub(super) fn is_live(&self, now: UnixMillis) -> bool {
        is_live(self.parts().expires_at, now)
    }

    pub(super) fn value_bytes(&self) -> u64 {
        self.parts().value.len() as u64
    }

    /// All of it, where it is live.
    pub(super) fn live(&self, now: UnixMillis) -> Option<StoredValue> {
        let Parts { version, expires_at, value } = self.parts();
        is_live(expires_at, now).then(|| StoredValue { value: value.to_vec(), version, expires_at })
    }

    /// Its value, and when it expires.
    pub(super) fn value(&self) -> (&[u8], Option<UnixMillis>) {
        let Parts { expires_at, value, .. } = self.parts();
        (value, expires_at)
    }

    /// As a commit asks for it.
    pub(super) fn current(&self, with_value: bool) -> CurrentRow {
        let Parts { version, expires_at, value } = self.parts();
        let value_bytes = value.len() as u64;
        CurrentRow { version, expires_at, value_bytes, value: with_value.then(|| value.to_vec()) }
    }
}

/// The number in front, and what follows it. Rows are made here alone and have both of theirs.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    bytes.split_first_chunk().map_or((0, &[]), |(number, rest)| (u64::from_ne_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_back_what_it_was_made_of() {
        for expires_at in [None, Some(0), Some(7), Some(i64::MAX as u64)] {
            let row = StoredRow::new(b"value", Version(3), expires_at);
            let stored = StoredValue { value: b"value".to_vec(), version: Version(3), expires_at };
            assert_eq!(row.version(), Version(3));
            assert_eq!(row.value_bytes(), 5);
            let now = expires_at.map_or(0, |expiry| expiry.saturating_sub(1));
            assert_eq!(row.live(now), (expires_at != Some(0)).then_some(stored));
        }
    }

    #[test]
    fn an_expired_row_is_not_live() {
        let row = StoredRow::new(b"", Version(1), Some(10));
        assert!(row.is_live(9) && !row.is_live(10));
        assert_eq!(row.live(10), None);
        assert_eq!(row.value(), (b"".as_slice(), Some(10)));
    }
}
