//! Publishes snapshots, and removes superseded ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use larder_core::clock::UnixMillis;
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef};
use crate::lease::Lease;
use crate::objects::written_at;
use crate::segments::{SEGMENTS, position_of};
use crate::snapshot_transfer::{pack, upload};
use crate::write_id::WriteId;

/// The number of objects that [`Lease::collect`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Snapshots that were superseded long ago, or that no head ever named.
    pub snapshots: usize,
    /// Segments that the current snapshot covers.
    pub segments: usize,
    /// Whether there may be more, which another call would remove.
    pub has_more: bool,
}

pub(crate) const SNAPSHOTS: &str = "snapshots";

/// The most objects of each kind that one call of [`Lease::collect`] removes, and the most that one
/// listing returns.
const MAX_COLLECTED: usize = 10_000;
const LOOKED_AT_ONCE: usize = 10_000;

/// The most deletions at once.
pub(crate) const DELETIONS: usize = 8;

/// The least age of a removed object. Snapshots that no head names and segments that a snapshot
/// covers are not needed. They are only kept for hosts that still read them, and so that a delayed
/// append does not find its position free. Many leases fit into this time.
const LEAST_AGE: Duration = Duration::from_secs(60 * 60);

impl Lease {
    /// Uploads a database file and makes it the current snapshot.
    ///
    /// `covers` is the last log position whose commit the file contains. If it contains all, use
    /// [`Lease::log_end`]. `file` must be a complete database to which no process writes. It is
    /// compressed into a temporary file beside it. If its bytes equal those of the current
    /// snapshot, it is not uploaded again.
    ///
    /// # Errors
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::InvalidArgument`] if the file is empty or too large, or if `covers` is
    ///   before that of the current snapshot or after the end of the log.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head or the log is damaged
    ///   or of a newer release.
    /// - [`TenantError::File`] if the file cannot be read or compressed.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached. The snapshot may still
    ///   have become the current one, and the caller may publish it again.
    pub async fn publish(&self, file: &Path, covers: u64) -> Result<SnapshotRef> {
        self.publish_as(file, covers, WriteId::random(), 0).await
    }

    /// The same with a new upload id, and the version of the last commit.
    pub(crate) async fn publish_as(
        &self,
        file: &Path,
        covers: u64,
        upload_id: WriteId,
        version: u64,
    ) -> Result<SnapshotRef> {
        let _turn = self.publishing().await;
        self.check()?;
        let (from, end) = (self.head().covers(), self.log_end().await?);
        if covers < from || covers > end {
            return Err(TenantError::invalid_argument(format!(
                "a snapshot must cover a position from {from} to {end}, and not {covers}"
            )));
        }
        let packed = pack(file, self.remote().options().max_snapshot_bytes).await?;
        let same = self.head().snapshot.filter(|current| current.sha256 == packed.sha256);
        if let Some(current) = same {
            return self.make_current(SnapshotRef { covers, ..current }).await;
        }
        // The upload id makes each name unique. If the name were only the hash, a running deletion
        // of an object with the same bytes, which no head has named for long, could hit this one.
        let name = SnapshotRef::object_name(&packed.sha256, upload_id);
        let path = self.snapshot_path(&name);
        upload(self.remote().objects(), &path, &packed).await?;
        let taken_at = self.remote().objects().written_at(&path).await?;
        let taken_at =
            taken_at.ok_or_else(|| TenantError::corrupt(&path, "an uploaded object no longer exists"))?;
        let (bytes, compressed_bytes, sha256) =
            (packed.bytes, packed.compressed_bytes, packed.sha256.clone());
        let snapshot =
            SnapshotRef { name, bytes, compressed_bytes, sha256, taken_at, generation: 0, covers, version };
        self.make_current(snapshot).await
    }

    fn snapshot_path(&self, name: &str) -> ObjectPath {
        self.remote().folder_path(self.key(), &format!("{SNAPSHOTS}/{name}"))
    }

    /// The current time by the clock of the object storage, which all hosts share.
    pub(crate) async fn store_time(&self) -> Result<UnixMillis> {
        self.renew().await?;
        let now = self.remote().objects().written_at(&self.remote().head_path(self.key())).await?;
        now.ok_or_else(|| TenantError::corrupt(self.key(), "the head no longer exists"))
    }

    /// Swaps a snapshot in as the current one, with the generation of this swap.
    async fn make_current(&self, snapshot: SnapshotRef) -> Result<SnapshotRef> {
        let head = self.change(|head| {
            make_current(head, snapshot.clone());
            Ok(())
        });
        head.await?
            .snapshot
            .ok_or_else(|| TenantError::corrupt(self.key(), "the head has no current snapshot"))
    }

    /// Removes superseded snapshots, snapshots that no head names, and segments that the current
    /// snapshot covers.
    ///
    /// A snapshot is removed if it was superseded longer ago than `keep_for`. The snapshot that was
    /// current `keep_for` ago stays. Objects that are younger than an hour or 16 leases stay,
    /// unless `keep_for` is shorter.
    ///
    /// # Errors
    /// After an error, the next call removes the rest.
    ///
    /// - [`TenantError::InvalidArgument`] if `keep_for` is shorter than four leases.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head is damaged or of a
    ///   newer release.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn collect(&self, keep_for: Duration) -> Result<Collected> {
        let least = self.remote().options().least_keep_for();
        if keep_for < least {
            return Err(TenantError::invalid_argument(format!(
                "snapshots must be kept for at least {least:?}, and not {keep_for:?}"
            )));
        }
        // While this is held, no snapshot is about to enter the head.
        let _turn = self.publishing().await;
        self.check()?;
        let now = self.store_time().await?;
        let before = now.saturating_sub(millis(keep_for));
        // The head drops the names first, so that it never names an object that was removed. Once
        // this swap is done, an earlier swap that seemed to fail can no longer succeed, so a
        // snapshot that this head does not name is never named again.
        let earlier = self.head();
        let head = self.change(|head| {
            head.forget_before(before);
            Ok(())
        });
        let head = head.await?;
        let before = now.saturating_sub(millis(keep_for.min(LEAST_AGE.max(least * 4))));
        let (snapshots, more_snapshots) = self.unnamed_snapshots([&earlier, &head], before).await?;
        let (segments, more_segments) = self.covered_segments(&head, before).await?;
        Ok(Collected {
            snapshots: self.delete_all(snapshots).await?,
            segments: self.delete_all(segments).await?,
            has_more: more_snapshots || more_segments,
        })
    }

    /// Snapshots that neither head names. One that the head has just dropped may still be read by
    /// another host, so a later call removes it.
    async fn unnamed_snapshots(
        &self,
        heads: [&Head; 2],
        before: UnixMillis,
    ) -> Result<(Vec<ObjectPath>, bool)> {
        let named = heads.into_iter().flat_map(Head::snapshots);
        let named: BTreeSet<_> = named.map(|snapshot| self.snapshot_path(&snapshot.name)).collect();
        self.find(SNAPSHOTS, |meta| is_older(meta, before) && !named.contains(&meta.location)).await
    }

    async fn covered_segments(&self, head: &Head, before: UnixMillis) -> Result<(Vec<ObjectPath>, bool)> {
        if !head.has_log {
            return Ok((Vec::new(), false));
        }
        let is_covered = |meta: &ObjectMeta| {
            is_older(meta, before)
                && position_of(&meta.location).is_some_and(|position| position <= head.covers())
        };
        self.find(SEGMENTS, is_covered).await
    }

    /// Finds objects in a folder, up to [`MAX_COLLECTED`], and returns whether there may be more.
    /// If a server does not list in the order of names, some may be left for a later call.
    async fn find(
        &self,
        folder: &str,
        is_wanted: impl Fn(&ObjectMeta) -> bool,
    ) -> Result<(Vec<ObjectPath>, bool)> {
        let folder = self.remote().folder_path(self.key(), folder);
        let (mut wanted, mut after) = (Vec::new(), None);
        loop {
            let found = self.remote().objects().list(&folder, after.as_ref(), LOOKED_AT_ONCE).await?;
            wanted.extend(found.iter().filter(|meta| is_wanted(meta)).map(|meta| meta.location.clone()));
            if wanted.len() >= MAX_COLLECTED {
                wanted.truncate(MAX_COLLECTED);
                return Ok((wanted, true));
            }
            if found.len() < LOOKED_AT_ONCE {
                return Ok((wanted, false));
            }
            self.check()?;
            let last = found.into_iter().map(|meta| meta.location).max();
            if last <= after {
                // A server that ignores the offset returns the same objects again.
                return Ok((wanted, true));
            }
            after = last;
        }
    }

    async fn delete_all(&self, paths: Vec<ObjectPath>) -> Result<usize> {
        let deletions = futures_util::stream::iter(paths).map(|path| async move {
            // A later holder makes its own decisions.
            self.check()?;
            self.remote().objects().delete(&path).await
        });
        deletions.buffer_unordered(DELETIONS).try_fold(0, |deleted, ()| async move { Ok(deleted + 1) }).await
    }
}

/// Makes a snapshot the current one. If it already is, only updates the log position that it
/// covers.
pub(crate) fn make_current(head: &mut Head, snapshot: SnapshotRef) {
    match &mut head.snapshot {
        Some(current) if current.name == snapshot.name => current.covers = snapshot.covers,
        _ => head.supersede(SnapshotRef { generation: head.generation, ..snapshot }),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn is_older(meta: &ObjectMeta, before: UnixMillis) -> bool {
    written_at(meta) < before
}
