//! The head of a tenant: its only mutable object.

use std::time::Duration;

use larder_core::Version;
use larder_core::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::deletion::{Deletion, DeletionStage};
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::remote::MAX_LEASE_TTL;
use crate::write_id::WriteId;

/// The format that this release writes. This release also reads format 1, which lacks deletions,
/// takeovers, the versions of snapshots and the cache folders of holders.
pub(crate) const FORMAT: u64 = 2;
const FORMAT_MIN: u64 = 1;

/// The largest valid head, in bytes. History is thinned long before a head reaches this size.
pub(crate) const MAX_HEAD_BYTES: u64 = 1 << 20;

/// The most earlier snapshots in a head. Every renewal writes the head, so it must stay small.
pub(crate) const MAX_HISTORY: usize = 256;

/// The most takeovers in a head.
const MAX_TAKEOVERS: usize = 16;

/// The mutable state of a tenant: its lease and its snapshots.
///
/// A head is only changed by compare-and-swap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Head {
    pub(crate) format: u64,
    pub(crate) tenant: String,
    /// Increases with every swap.
    pub generation: u64,
    /// New with every swap.
    pub write_id: WriteId,
    /// The fencing epoch. Increases with every lease, restore and deletion, and only with those.
    pub epoch: u64,
    /// The current lease. `None` if no host may write.
    pub lease: Option<LeaseRecord>,
    /// Whether the tenant has ever had a segment. While `false`, no reader needs to list the log.
    pub has_log: bool,
    /// The current snapshot. `None` if the tenant was never written back.
    pub snapshot: Option<SnapshotRef>,
    /// Earlier snapshots, oldest first.
    pub history: Vec<SnapshotRef>,
    /// The last log position of an earlier tenant with this name whose objects were removed. 0 if
    /// there was none. Positions up to this one are not assigned again, so a late removal cannot
    /// hit a new segment.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) log_start: u64,
    /// The last leases that were taken over without a release, newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub takeovers: Vec<Takeover>,
    /// The deletion of the tenant. Reset when it is undone, or when a new tenant with this name is
    /// created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<Deletion>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The lease in a head: the right to write the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRecord {
    /// The name of the holder.
    pub holder: String,
    /// How long the lease is valid after each write of the head, in milliseconds.
    pub ttl_ms: u64,
    /// The cache folder of the holder, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
}

/// A lease that another host took over, because its holder had not released it.
///
/// The holder's cache folder has the commits that it acknowledged and did not send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Takeover {
    /// The holder of the lost lease.
    pub holder: String,
    /// The cache folder of that holder, if known.
    pub folder: Option<String>,
    /// The epoch of the lost lease.
    pub epoch: u64,
}

impl LeaseRecord {
    /// How long the lease is valid after each write of the head.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

/// A reference to an immutable snapshot of a tenant's database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRef {
    /// The name of the object below `snapshots/`: the hash and the id of the upload, which is
    /// unique.
    pub name: String,
    /// The size of the database file, in bytes.
    pub bytes: u64,
    /// The size of the compressed object, in bytes.
    pub compressed_bytes: u64,
    /// The SHA-256 of the database file, in hexadecimal.
    pub sha256: String,
    /// When it was uploaded or restored, in milliseconds since 1970 by the clock of the object
    /// storage.
    pub taken_at: UnixMillis,
    /// The generation of the head that made it the current snapshot.
    ///
    /// It is unique within the tenant, and later snapshots have larger ones.
    pub generation: u64,
    /// The last log position that it contains. 0 if it contains none.
    pub covers: u64,
    /// The version of the last commit that it contains.
    ///
    /// 0 if unknown. A restored snapshot gets a version larger than all earlier ones, so versions
    /// keep increasing.
    #[serde(default)]
    pub version: u64,
}

impl SnapshotRef {
    /// The object name for a content hash and an upload.
    pub(crate) fn object_name(sha256: &str, upload: WriteId) -> String {
        format!("{sha256}-{upload}.zst")
    }

    /// The id of the upload. `None` if the name is invalid.
    pub(crate) fn upload(&self) -> Option<WriteId> {
        let (sha256, upload) = Self::upload_of(&self.name)?;
        (sha256 == self.sha256).then_some(upload)
    }

    /// Splits an object name into its hash and its upload id.
    pub(crate) fn upload_of(name: &str) -> Option<(&str, WriteId)> {
        let (sha256, upload) = name.strip_suffix(".zst")?.split_once('-')?;
        Some((sha256, WriteId::parse(upload)?))
    }

    /// Returns what is invalid about it, if anything. A valid name cannot refer to any object but a
    /// snapshot with this hash.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let is_hash = self.sha256.len() == 64
            && self.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hash {
            return Some("a snapshot's hash is not 64 lower-case hexadecimal digits");
        }
        self.upload().is_none().then_some("a snapshot's name does not consist of its hash and a write id")
    }
}

/// The smallest version that a lease may assign. Each lease has 2^32 versions of its own, so no
/// version is assigned twice, whatever a host or a restore leaves behind. From epoch 2^30 on, this
/// no longer grows, and versions continue from the last one.
pub(crate) fn min_version(epoch: u64) -> Version {
    Version(epoch.min((1 << 30) - 1) << 32)
}

/// The part of a note or head that every future format shares.
#[derive(Deserialize)]
pub(crate) struct AnyFormat {
    pub(crate) format: u64,
}

impl Head {
    /// The head of a tenant that does not exist yet.
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

    /// The head that replaces this one.
    pub(crate) fn successor(&self) -> Result<Self> {
        let exhausted =
            || TenantError::corrupt(&self.tenant, "the head's generation has reached its maximum");
        let generation = self.generation.checked_add(1).ok_or_else(exhausted)?;
        Ok(Self { format: FORMAT, generation, write_id: WriteId::random(), ..self.clone() })
    }

    /// Records that a lease was taken over without having been released.
    pub(crate) fn note_takeover(&mut self, LeaseRecord { holder, folder, .. }: LeaseRecord, epoch: u64) {
        self.takeovers.push(Takeover { holder, folder, epoch });
        let superfluous = self.takeovers.len().saturating_sub(MAX_TAKEOVERS);
        self.takeovers.drain(..superfluous);
    }

    /// Raises the epoch, which fences the current lease.
    pub(crate) fn next_epoch(&mut self) -> Result<()> {
        let last = || TenantError::corrupt(&self.tenant, "the head's epoch has reached its maximum");
        self.epoch = self.epoch.checked_add(1).ok_or_else(last)?;
        Ok(())
    }

    pub(crate) fn parse(key: &TenantKey, bytes: &[u8]) -> Result<Self> {
        let corrupt = |reason: String| TenantError::corrupt(key, reason);
        let AnyFormat { format } = serde_json::from_slice(bytes)
            .map_err(|error| corrupt(format!("the head is not JSON with a format: {error}")))?;
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
            return Some("the head has an unknown format");
        }
        if self.tenant != key.to_string() {
            return Some("the head belongs to another tenant");
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
            return Some("the time to live of the lease in the head is zero, or more than an hour");
        }
        self.snapshots().find_map(SnapshotRef::fault)
    }

    /// Serialises the head.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            TenantError::corrupt(&self.tenant, format!("the head can't be written: {error}"))
        })
    }

    /// The name of the tenant.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// All snapshots in this head, oldest first. The current one is last.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotRef> {
        self.history.iter().chain(&self.snapshot)
    }

    /// Whether both heads name the same current snapshot of the same tenant.
    pub(crate) fn names_same(&self, other: &Self) -> bool {
        let named = |head: &Self| (head.snapshot.clone(), head.log_start, head.deletion.clone());
        named(self) == named(other)
    }

    /// The last log position that the current snapshot contains.
    pub fn covers(&self) -> u64 {
        self.snapshot.as_ref().map_or(self.log_start, |snapshot| snapshot.covers)
    }

    /// Makes a snapshot the current one, and moves the current one into the history.
    pub(crate) fn supersede(&mut self, next: SnapshotRef) {
        self.history.extend(self.snapshot.replace(next));
        while self.history.len() > MAX_HISTORY {
            let newest = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.taken_at);
            thin(&mut self.history, newest);
        }
    }

    /// Drops snapshots that were superseded before `moment`. The snapshot that was current at
    /// `moment` stays, so every state since then can be restored.
    pub(crate) fn forget_before(&mut self, moment: UnixMillis) {
        let superseded: Vec<_> = self.snapshots().skip(1).map(|next| next.taken_at < moment).collect();
        let mut superseded = superseded.into_iter();
        self.history.retain(|_| !superseded.next().unwrap_or(false));
    }
}

/// Drops the least useful entry: the one with the smallest gap between its neighbours, relative to
/// its age at `newest`. Recent history stays dense, and old history becomes sparse.
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
        assert!(reason(b"").starts_with("the head is not JSON"));
        assert!(reason(b"not json").starts_with("the head is not JSON"));
        assert!(reason(b"{\"format\":1}").starts_with("the head is malformed"));
        let head = Head::new(&"acme/users/bob".parse().unwrap());
        assert_eq!(reason(&head.to_bytes().unwrap()), "the head belongs to another tenant");
        let mut text = serde_json::to_value(Head::new(&key())).unwrap();
        text["format"] = 0.into();
        assert_eq!(reason(text.to_string().as_bytes()), "the head has an unknown format");
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
            let expected = "a snapshot's name does not consist of its hash and a write id";
            assert_eq!(reason(&head.to_bytes().unwrap()), expected);
        }
        let mut head = Head::new(&key());
        head.supersede(SnapshotRef { sha256: "../".into(), ..snapshot(5) });
        assert_eq!(
            reason(&head.to_bytes().unwrap()),
            "a snapshot's hash is not 64 lower-case hexadecimal digits"
        );
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
        assert!(young > 20, "{young} of the last hundred snapshots are kept");
        assert!(head.history.is_sorted_by_key(|kept| kept.taken_at));
        assert!((head.to_bytes().unwrap().len() as u64) < MAX_HEAD_BYTES / 4);
    }
}
