//! What a backend keeps of memory: records, of which it knows nothing but where they are.

use crate::backend::Version;
use crate::clock::UnixMillis;
use crate::memory::identity::Identity;
use crate::quota::StoredCost;
use crate::share::Share;

/// Where a record is. The order is that of its parts' bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Whose it is.
    pub identity: Identity,
    /// What it is: [`RecordKey::CONVERSATION`], as yet.
    pub kind: String,
}

impl RecordKey {
    /// The kind of a record that holds a conversation.
    pub const CONVERSATION: &'static str = "conversation";

    /// The conversation of an identity.
    pub fn conversation(identity: Identity) -> Self {
        Self { identity, kind: Self::CONVERSATION.to_string() }
    }

    /// On whose behalf it is read and written: that of its tenant, whichever instance asks.
    pub fn share(&self) -> Share {
        Share::tenant(self.identity.tenant())
    }

    /// Bytes of all its parts.
    pub fn bytes(&self) -> u64 {
        self.identity.bytes() + self.kind.len() as u64
    }
}

/// What is kept under a [`RecordKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// The strategy's name, for an operator who groups by it.
    pub strategy: String,
    /// The record, as this crate writes it.
    pub bytes: Vec<u8>,
    /// Drawn at random for each write, so that a record which was deleted and made again never has the
    /// version of the old one, and a writer that lost its connection recognises its own write. Below 2⁶³, and
    /// never [`Version::ABSENT`].
    pub version: Version,
    /// When work on it is due that no guest waits for; none for never.
    pub due_at: Option<UnixMillis>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it was written.
    pub updated_at: UnixMillis,
}

/// One change of one record.
#[derive(Clone, Debug)]
pub struct RecordWrite {
    /// Which record.
    pub key: RecordKey,
    /// The version that it must be at; [`Version::ABSENT`] where there must be none.
    pub expected: Version,
    /// What it becomes; none where it is deleted.
    pub record: Option<StoredRecord>,
}

impl StoredRecord {
    /// A version for a new write.
    pub(crate) fn draw_version() -> Version {
        Version(fastrand::u64(1..1 << 63))
    }
}

impl RecordWrite {
    /// By how many bytes the store grows, beside key and bytes, by what each record takes.
    pub(crate) fn overhead_growth(&self, cost: StoredCost) -> i64 {
        let overhead = i64::try_from(cost.record(0, 0)).unwrap_or(i64::MAX);
        let change = i64::from(self.record.is_some()) - i64::from(self.expected != Version::ABSENT);
        overhead.saturating_mul(change)
    }

    /// By how many bytes the store grows where a record becomes another; none stands for no record.
    pub(crate) fn growth(key: &RecordKey, old: Option<&StoredRecord>, new: Option<&StoredRecord>) -> i64 {
        let bytes = |record: Option<&StoredRecord>| {
            record.map_or(0, |record| {
                i64::try_from(key.bytes() + record.bytes.len() as u64).unwrap_or(i64::MAX)
            })
        };
        bytes(new) - bytes(old)
    }
}
