//! Rows: the version and the expiry that a stored value has.

use crate::clock::UnixMillis;

/// The version of a row's last write; 0 if the row does not exist.
///
/// A later write of the same row has a larger version, also after a delete. A version is never
/// reused within a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of a row that does not exist.
    pub const ABSENT: Self = Self(0);
}

/// A stored row without its [`RowKey`](crate::name::RowKey).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    /// The value.
    pub value: Vec<u8>,
    /// The version of its last write.
    pub version: Version,
    /// When the row expires; `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

/// Whether a row with this expiry is live at `now`.
pub fn is_live(expires_at: Option<UnixMillis>, now: UnixMillis) -> bool {
    expires_at.is_none_or(|expires_at| expires_at > now)
}
