//! The one object of a tenant that changes.

use std::time::Duration;

use larder_core::Version;
use larder_core::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::deletion::{Deletion, DeletionStage};
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::remote::MAX_LEASE_TTL;
use crate::write_id::WriteId;

/// The format that this release writes. It reads format 1 too, which lacks deletions, takeovers,
/// versions of snapshots, and the folders of holders.
pub(crate) const FORMAT: u64 = 2;
const FORMAT_MIN: u64 = 1;

/// A head that is larger is none: its history is thinned long before.
pub(crate) const MAX_HEAD_BYTES: u64 = 1 << 20;

/// Earlier snapshots in a head, at most. It is written with each renewal, so it stays small.
pub(crate) const MAX_HISTORY: usize = 256;

/// Takeovers in a head, at most.
const MAX_TAKEOVERS: usize = 16;

/// What is known of a tenant: who writes it, and where its data is. Changed by compare-and-swap only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Head {
    pub(crate) format: u64,
    pub(crate) tenant: String,
    /// Grows with every swap.
    pub generation: u64,
    /// New with every swap.
    pub write_id: WriteId,
    /// Grows with every lease, every restoring and every deletion, and with nothing else.
    pub epoch: u64,
    /// Who may write; none where nobody does.
    pub lease: Option<LeaseRecord>,
    /// Whether there ever was a segment. While there was none, nobody has to look for one.
    pub has_log: bool,
    /// The current snapshot; none for a tenant that was never written back.
    pub snapshot: Option<SnapshotRef>,
    /// Earlier snapshots, the oldest first.
    pub history: Vec<SnapshotRef>,
    /// The last position of the log of an earlier tenant of this name, whose objects were removed; 0 for
    /// none. Positions up to here are not given again, so a removal that is late hits no other segment.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) log_start: u64,
    /// The last leases that were not released, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takeovers: Vec<Takeover>,
    /// Set from the deletion of the tenant until it is undone, or a new tenant of this name is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who may write a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// Who.
    pub holder: String,
    /// How long from each write of the head on.
    pub ttl_ms: u64,
    /// The holder's cache folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// A lease that was not released, and that another host took over. Commits that its holder acknowledged
/// and did not send are in its cache folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Takeover {
    /// The host that had the lease.
    pub holder: String,
    /// Its cache folder, if it is known.
    pub folder: Option<String>,
    /// The epoch of its lease.
    pub epoch: u64,
}

impl LeaseRecord {
    /// How long from each write of the head on.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

/// An immutable snapshot of a tenant's database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// The object below `snapshots/`: the hash, and a number that no other upload has.
    pub name: String,
    /// Bytes of the database file.
    pub bytes: u64,
    /// Bytes of the object.
    pub compressed_bytes: u64,
    /// SHA-256 of the database file, in hexadecimal.
    pub sha256: String,
    /// When it was uploaded or restored, in milliseconds since 1970 by the clock of the object storage.
    pub taken_at: UnixMillis,
    /// The generation of the head that made it the current one. No other snapshot of the tenant has it, and later ones have
    /// larger ones.
    pub generation: u64,
    /// The last segment that it contains; 0 for none.
    pub covers: u64,
    /// The version of the last commit that it contains; 0 if that is not known. For a snapshot that was
    /// restored, a version that is larger than all before: later snapshots have larger ones.
    #[serde(default)]
    pub version: u64,
}

impl SnapshotRef {
    /// The object's name for these bytes and this upload.
    pub(crate) fn object_name(sha256: &str, upload: WriteId) -> String {
        format!("{sha256}-{upload}.zst")
    }

    /// The number that no other upload has.
    pub(crate) fn upload(&self) -> Option<WriteId> {
        let (sha256, upload) = Self::upload_of(&self.name)?;
        (sha256 == self.sha256).then_some(upload)
    }

    /// The hash and the number in the name of an object.
    pub(crate) fn upload_of(name: &str) -> Option<(&str, WriteId)> {
        let (sha256, upload) = name.strip_suffix(".zst")?.split_once('-')?;
        Some((sha256, WriteId::parse(upload)?))
    }

    /// What is wrong with it, if anything. A name leads to no other object than a snapshot of this hash.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let is_hash = self.sha256.len() == 64
            && self.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hash {
            return Some("a snapshot's hash is not 64 digits of 0-9a-f");
        }
        self.upload().is_none().then_some("a snapshot's name is not made of its hash and a write id")
    }
}

/// The least version under a lease. Each lease has 2^32 versions of its own, so none is given twice, whatever a host or a restore
/// leaves behind. After 2^30 leases they follow on each other.
pub(crate) fn min_version(epoch: u64) -> Version {
    Version(epoch.min((1 << 30) - 1) << 32)
}

/// What every format of the future has too.
#[derive(Deserialize)]
pub(crate) struct AnyFormat {
    pub(crate) format: u64,
}

impl Head {
    /// The head of a tenant that has none yet.
    pub(crate) fn new(key: &TenantKey) -> Self {
        Self {
            format: FORMAT,
            tenant: key.to_string(),
            generation: 0,
            write_id: WriteId::random(),
            epoch: 0,
            lease: None,
            has_log: false,
            snapshot: None,
            history: Vec::new(),
            log_start: 0,
            takeovers: Vec::new(),
            deletion: None,
        }
    }

    /// The head that comes after this one.
    pub(crate) fn successor(&self) -> Result<Self> {
        let exhausted = || TenantError::corrupt(&self.tenant, "the head's generation is the last there is");
        let generation = self.generation.checked_add(1).ok_or_else(exhausted)?;
        Ok(Self { format: FORMAT, generation, write_id: WriteId::random(), ..self.clone() })
    }

    /// Notes that a lease was taken over that had not been released.
    pub(crate) fn note_takeover(&mut self, LeaseRecord { holder, folder, .. }: LeaseRecord, epoch: u64) {
        self.takeovers.push(Takeover { holder, folder, epoch });
        let superfluous = self.takeovers.len().saturating_sub(MAX_TAKEOVERS);
        self.takeovers.drain(..superfluous);
    }

    /// Fences the lease under which the tenant was open.
    pub(crate) fn next_epoch(&mut self) -> Result<()> {
        let last = || TenantError::corrupt(&self.tenant, "the head's epoch is the last there is");
        self.epoch = self.epoch.checked_add(1).ok_or_else(last)?;
        Ok(())
    }

    /// Reads a head.
    pub(crate) fn parse(key: &TenantKey, bytes: &[u8]) -> Result<Self> {
        let corrupt = |reason: String| TenantError::corrupt(key, reason);
        let AnyFormat { format } = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("the head is no JSON with a format: {error}")))?;
        if format > FORMAT {
            return Err(TenantError::NewerFormat { key: key.to_string(), format, supported: FORMAT });
        }
        let head: Self = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("the head is malformed: {error}")))?;
        match head.fault(key) {
            Some(fault) => Err(corrupt(fault.to_string())),
            None => Ok(head),
        }
    }

    fn fault(&self, key: &TenantKey) -> Option<&'static str> {
        if self.format < FORMAT_MIN {
            return Some("the head is of a format that never was");
        }
        if self.tenant != key.to_string() {
            return Some("the head is another tenant's");
        }
        if self.history.len() > MAX_HISTORY {
            return Some("the head's history is too long");
        }
        if let Some(deletion) = &self.deletion {
            let is_named = self.snapshot.is_some() || !self.history.is_empty();
            if self.lease.is_some() || is_named && deletion.stage != DeletionStage::Marked {
                return Some("the head of a deleted tenant has a lease, or names objects that were removed");
            }
        }
        if self.takeovers.len() > MAX_TAKEOVERS {
            return Some("the head has too many takeovers");
        }
        if self.lease.as_ref().is_some_and(|lease| lease.ttl().is_zero() || lease.ttl() > MAX_LEASE_TTL) {
            return Some("the lease in the head holds for no time, or for more than an hour");
        }
        self.snapshots().find_map(SnapshotRef::fault)
    }

    /// The bytes that are stored.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            TenantError::corrupt(&self.tenant, format!("the head can't be written: {error}"))
        })
    }

    /// The tenant's name.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// All snapshots that it names, the oldest first and the current one last.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotRef> {
        self.history.iter().chain(&self.snapshot)
    }

    /// Whether both name the same current snapshot of the same tenant.
    pub(crate) fn names_same(&self, other: &Self) -> bool {
        let named = |head: &Self| (head.snapshot.clone(), head.log_start, head.deletion.clone());
        named(self) == named(other)
    }

    /// The last segment that the current snapshot contains.
    pub fn covers(&self) -> u64 {
        self.snapshot.as_ref().map_or(self.log_start, |snapshot| snapshot.covers)
    }

    /// Makes a snapshot the current one, and the current one history.
    pub(crate) fn supersede(&mut self, next: SnapshotRef) {
        self.history.extend(self.snapshot.replace(next));
        while self.history.len() > MAX_HISTORY {
            let newest = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.taken_at);
            thin(&mut self.history, newest);
        }
    }

    /// Drops what was superseded before `moment`. The snapshot that was current at that moment stays, so that the state
    /// of every moment since can be had.
    pub(crate) fn forget_before(&mut self, moment: UnixMillis) {
        let superseded: Vec<_> = self.snapshots().skip(1).map(|next| next.taken_at < moment).collect();
        let mut superseded = superseded.into_iter();
        self.history.retain(|_| !superseded.next().unwrap_or(false));
    }
}

/// Drops the one entry that is missed least: that between the closest neighbours, seen from `newest`. What stays is
/// dense where it is young and sparse where it is old.
fn thin(history: &mut Vec<SnapshotRef>, newest: UnixMillis) {
    let missed = |window: &[SnapshotRef]| match window {
        [before, own, after] => {
            let gap = after.taken_at.saturating_sub(before.taken_at);
            gap as f64 / (1 + newest.saturating_sub(own.taken_at)) as f64
        }
        _ => f64::INFINITY,
    };
    let least = history
        .windows(3)
        .enumerate()
        .min_by(|(_, left), (_, right)| missed(left).total_cmp(&missed(right)))
        .map_or(0, |(index, _)| index + 1);
    if least < history.len() {
        history.remove(least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TenantKey {
        "acme/users/ann".parse().unwrap()
    }

    fn snapshot(taken_at: UnixMillis) -> SnapshotRef {
        let sha256 = format!("{taken_at:064x}");
        let name = SnapshotRef::object_name(&sha256, WriteId::random());
        SnapshotRef {
            name,
            bytes: 1,
            compressed_bytes: 1,
            sha256,
            taken_at,
            generation: 1,
            covers: 0,
            version: 0,
        }
    }

    fn reason(bytes: &[u8]) -> String {
        match Head::parse(&key(), bytes) {
            Err(TenantError::Corrupt { key, reason }) => {
                assert_eq!(key, "acme/users/ann");
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_head_is_read_back_as_it_was_written() {
        let mut head = Head::new(&key());
        head.supersede(snapshot(1));
        head.supersede(snapshot(2));
        head.lease = Some(LeaseRecord { holder: "one".into(), ttl_ms: 15_000, folder: None });
        assert_eq!(Head::parse(&key(), &head.to_bytes().unwrap()).unwrap(), head);
        let next = head.successor().unwrap();
        assert_eq!(next.generation, 1);
        assert_ne!(next.write_id, head.write_id);
    }

    #[test]
    fn bytes_that_are_no_head_are_corrupt() {
        assert!(reason(b"").starts_with("the head is no JSON"));
        assert!(reason(b"not json").starts_with("the head is no JSON"));
        assert!(reason(b"{\"format\":1}").starts_with("the head is malformed"));
        let head = Head::new(&"acme/users/bob".parse().unwrap());
        assert_eq!(reason(&head.to_bytes().unwrap()), "the head is another tenant's");
        let mut text = serde_json::to_value(Head::new(&key())).unwrap();
        text["format"] = 0.into();
        assert_eq!(reason(text.to_string().as_bytes()), "the head is of a format that never was");
        text["format"] = 1.into();
        text["more"] = 1.into();
        assert!(reason(text.to_string().as_bytes()).starts_with("the head is malformed"));
    }

    #[test]
    fn a_head_of_a_newer_release_says_so_whatever_else_it_holds() {
        let newer = b"{\"format\":3,\"something\":[\"else\"]}";
        let error = Head::parse(&key(), newer).unwrap_err();
        assert!(matches!(error, TenantError::NewerFormat { format: 3, supported: 2, .. }), "{error}");
    }

    #[test]
    fn a_snapshots_name_leads_nowhere_else() {
        for name in ["../../other/org.db/snapshots/x.zst", "", "x", &format!("{:064x}-1.zst", 5)] {
            let mut head = Head::new(&key());
            head.supersede(SnapshotRef { name: name.into(), ..snapshot(5) });
            let expected = "a snapshot's name is not made of its hash and a write id";
            assert_eq!(reason(&head.to_bytes().unwrap()), expected);
        }
        let mut head = Head::new(&key());
        head.supersede(SnapshotRef { sha256: "../".into(), ..snapshot(5) });
        assert_eq!(reason(&head.to_bytes().unwrap()), "a snapshot's hash is not 64 digits of 0-9a-f");
    }

    #[test]
    fn what_was_current_at_the_moment_is_kept() {
        let mut head = Head::new(&key());
        for taken_at in [10, 20, 30, 40] {
            head.supersede(snapshot(taken_at));
        }
        let kept = |head: &Head| head.snapshots().map(|snapshot| snapshot.taken_at).collect::<Vec<_>>();
        head.forget_before(20);
        assert_eq!(kept(&head), [10, 20, 30, 40]);
        head.forget_before(35);
        assert_eq!(kept(&head), [30, 40]);
        head.forget_before(100);
        assert_eq!(kept(&head), [40]);
    }

    #[test]
    fn a_long_history_stays_small_and_keeps_its_ends() {
        let mut head = Head::new(&key());
        for taken_at in 0..10_000 {
            head.supersede(snapshot(taken_at * 60_000));
        }
        assert_eq!(head.history.len(), MAX_HISTORY);
        assert_eq!(head.history.first().unwrap().taken_at, 0);
        let young = head.history.iter().filter(|kept| kept.taken_at > 9_900 * 60_000).count();
        assert!(young > 20, "{young} of the last hundred are kept");
        assert!(head.history.is_sorted_by_key(|kept| kept.taken_at));
        assert!((head.to_bytes().unwrap().len() as u64) < MAX_HEAD_BYTES / 4);
    }
}
