//! Records: what a backend stores of conversations.
//!
//! A backend does not interpret a record. It only finds it by its key.

use crate::clock::UnixMillis;
use crate::memory::identity::Identity;
use crate::row::Version;
use crate::share::Share;
use crate::stored_cost::StoredCost;

/// The key of a record, ordered by the bytes of its parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The identity that the record belongs to.
    pub identity: Identity,
    /// The kind of the record. So far only [`RecordKey::CONVERSATION`].
    pub kind: String,
}

impl RecordKey {
    /// The kind of a record that holds a conversation.
    pub const CONVERSATION: &'static str = "conversation";

    /// The key of an identity's conversation.
    pub fn conversation(identity: Identity) -> Self {
        Self { identity, kind: Self::CONVERSATION.to_string() }
    }

    /// The share that reads and writes count for: the tenant's, whichever instance asks.
    pub fn share(&self) -> Share {
        Share::tenant(self.identity.tenant())
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.identity.bytes() + self.kind.len() as u64
    }
}

/// A record as a backend stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The strategy's name, so that an operator can group by it.
    pub strategy: String,
    /// The record, as this crate encodes it.
    pub bytes: Vec<u8>,
    /// A random number, drawn for each write. Below 2⁶³, and never [`Version::ABSENT`].
    ///
    /// A record that was deleted and created again thus never has the version of the old one, and a
    /// writer that lost its connection recognises its own write.
    pub version: Version,
    /// When background work on the record is due; `None` if there is none.
    pub due_at: Option<UnixMillis>,
    /// When the record was created.
    pub created_at: UnixMillis,
    /// When the record was last written.
    pub updated_at: UnixMillis,
}

/// One write of one record.
#[derive(Clone, Debug)]
pub struct RecordWrite {
    /// The record's key.
    pub key: RecordKey,
    /// The version that the record must be at; [`Version::ABSENT`] if there must be no record.
    pub expected: Version,
    /// The new record; `None` to delete it.
    pub record: Option<StoredRecord>,
}

impl StoredRecord {
    /// Draws the version of a new write.
    pub(crate) fn draw_version() -> Version {
        Version(fastrand::u64(1..1 << 63))
    }
}

impl RecordWrite {
    /// By how many bytes the fixed cost of a record makes the store grow, beside key and bytes.
    pub(crate) fn overhead_growth(&self, cost: StoredCost) -> i64 {
        let overhead = i64::try_from(cost.record(0, 0)).unwrap_or(i64::MAX);
        let change = i64::from(self.record.is_some()) - i64::from(self.expected != Version::ABSENT);
        overhead.saturating_mul(change)
    }

    /// By how many bytes the store grows if `old` becomes `new`; `None` stands for no record.
    pub(crate) fn growth(key: &RecordKey, old: Option<&StoredRecord>, new: Option<&StoredRecord>) -> i64 {
        let bytes = |record: Option<&StoredRecord>| {
            record.map_or(0, |record| {
                i64::try_from(key.bytes() + record.bytes.len() as u64).unwrap_or(i64::MAX)
            })
        };
        bytes(new) - bytes(old)
    }
}
