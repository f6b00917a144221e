//! Snapshots: how they become the current one, and how they go.

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

/// What [`Lease::collect`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Snapshots that were superseded long ago, or that no head ever named.
    pub snapshots: usize,
    /// Segments that the current snapshot covers.
    pub segments: usize,
    /// Whether there may be more, for another call.
    pub has_more: bool,
}

pub(crate) const SNAPSHOTS: &str = "snapshots";

/// Objects that one call of [`Lease::collect`] removes, of each kind, and those that it looks at together.
const MAX_COLLECTED: usize = 10_000;
const LOOKED_AT_ONCE: usize = 10_000;

/// Deletions at once.
pub(crate) const DELETIONS: usize = 8;

/// Snapshots that no head names, and segments that a snapshot covers, are of use to nobody. They wait only for who still reads
/// them, and so that an append that is stuck on its way doesn't find its position free: for many leases, and at least so long.
const LEAST_AGE: Duration = Duration::from_secs(60 * 60);

impl Lease {
    /// Uploads a database file and makes it the current snapshot. `covers` is the last position of the log that the file
    /// contains; [`Lease::log_end`] where it contains all.
    ///
    /// `file` is a complete database, and nobody writes to it. It is compressed into a temporary file beside it. A file
    /// of the same bytes as the current snapshot is not uploaded again.
    ///
    /// # Errors
    /// [`TenantError::Fenced`], [`TenantError::LeaseLapsed`], [`TenantError::Closed`]; [`TenantError::Unavailable`]
    /// where it is unknown whether it is the current one: it may be published again.
    /// [`TenantError::InvalidArgument`] where the file is empty or too large, or `covers` is no position of the log or
    /// before that of the current snapshot, and [`TenantError::File`].
    pub async fn publish(&self, file: &Path, covers: u64) -> Result<SnapshotRef> {
        self.publish_as(file, covers, WriteId::random(), 0).await
    }

    /// The same with the number of the upload, which is new, and the version of the last commit.
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
                "a snapshot covers a position from {from} to {end}, and not {covers}"
            )));
        }
        let packed = pack(file, self.remote().options().max_snapshot_bytes).await?;
        let same = self.head().snapshot.filter(|current| current.sha256 == packed.sha256);
        if let Some(current) = same {
            return self.make_current(SnapshotRef { covers, ..current }).await;
        }
        // The number makes the name of each upload its own. Were it the hash alone, a deletion that is under way for an
        // object of the same bytes, which nothing named for long, could hit this one.
        let name = SnapshotRef::object_name(&packed.sha256, upload_id);
        let path = self.snapshot_path(&name);
        upload(self.remote().objects(), &path, &packed).await?;
        let taken_at = self.remote().objects().written_at(&path).await?;
        let taken_at = taken_at.ok_or_else(|| TenantError::corrupt(&path, "an upload is gone"))?;
        let (bytes, compressed_bytes, sha256) =
            (packed.bytes, packed.compressed_bytes, packed.sha256.clone());
        let snapshot =
            SnapshotRef { name, bytes, compressed_bytes, sha256, taken_at, generation: 0, covers, version };
        self.make_current(snapshot).await
    }

    fn snapshot_path(&self, name: &str) -> ObjectPath {
        self.remote().folder_path(self.key(), &format!("{SNAPSHOTS}/{name}"))
    }

    /// What time it is by the clock of the object storage, which all hosts share.
    pub(crate) async fn store_time(&self) -> Result<UnixMillis> {
        self.renew().await?;
        let now = self.remote().objects().written_at(&self.remote().head_path(self.key())).await?;
        now.ok_or_else(|| TenantError::corrupt(self.key(), "the head is gone"))
    }

    /// Swaps a snapshot in as the current one, with the generation of this swap.
    async fn make_current(&self, snapshot: SnapshotRef) -> Result<SnapshotRef> {
        let head = self.change(|head| {
            make_current(head, snapshot.clone());
            Ok(())
        });
        head.await?.snapshot.ok_or_else(|| TenantError::corrupt(self.key(), "the head names no snapshot"))
    }

    /// Removes snapshots that were superseded longer ago than `keep_for`, those that no head names, and segments that the
    /// current snapshot covers. What is younger than an hour, and than 16 leases, stays, unless `keep_for` is shorter. The
    /// snapshot that was current `keep_for` ago stays.
    ///
    /// # Errors
    /// [`TenantError::Fenced`], [`TenantError::LeaseLapsed`], [`TenantError::Closed`], [`TenantError::Unavailable`]: what
    /// is left is removed by the next call. [`TenantError::InvalidArgument`] where `keep_for` is less than four leases.
    pub async fn collect(&self, keep_for: Duration) -> Result<Collected> {
        let least = self.remote().options().least_keep_for();
        if keep_for < least {
            return Err(TenantError::invalid_argument(format!(
                "snapshots are kept for at least {least:?}, and not for {keep_for:?}"
            )));
        }
        // No snapshot is on its way into the head while this is held.
        let _turn = self.publishing().await;
        self.check()?;
        let now = self.store_time().await?;
        let before = now.saturating_sub(millis(keep_for));
        // The head lets go of them first, so that it never names what is gone. And once this swap is done, an earlier one
        // that seemed to have failed can't be done any more: what this head doesn't name is never named again.
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

    /// Those that neither head names: what the head has just let go of may be on its way to another host, and goes next time.
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

    /// Objects in a folder that are wanted, up to [`MAX_COLLECTED`], and whether there may be more. A server that lists in another
    /// order than that of names may leave some out, until a later call.
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
                // A server that does not begin there gives the same again.
                return Ok((wanted, true));
            }
            after = last;
        }
    }

    async fn delete_all(&self, paths: Vec<ObjectPath>) -> Result<usize> {
        let deletions = futures_util::stream::iter(paths).map(|path| async move {
            // A later holder decides for itself.
            self.check()?;
            self.remote().objects().delete(&path).await
        });
        deletions.buffer_unordered(DELETIONS).try_fold(0, |deleted, ()| async move { Ok(deleted + 1) }).await
    }
}

/// Makes a snapshot the current one. One that is the current one already only covers more.
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
