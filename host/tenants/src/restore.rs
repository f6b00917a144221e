//! Restores a tenant to an earlier snapshot.

use larder_core::clock::UnixMillis;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef, min_version};
use crate::lease::Lease;
use crate::snapshots::make_current;

/// Selects the snapshot to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestorePoint {
    /// The newest snapshot that was taken at or before this time, in milliseconds since 1970 by the
    /// clock of the object storage.
    At(UnixMillis),
    /// The snapshot with this [`SnapshotRef::generation`].
    Generation(u64),
    /// The newest snapshot whose [`SnapshotRef::version`] is at most this version, which a client
    /// has seen.
    ///
    /// It contains no commit of a later version.
    Version(u64),
}

impl RestorePoint {
    /// Finds the snapshot. Snapshots are ordered by generation, because a wrong clock may have
    /// given them other times.
    ///
    /// # Errors
    /// - [`TenantError::NoSnapshot`] if no snapshot is as old as the time.
    /// - [`TenantError::NoGeneration`] if no snapshot has the generation.
    /// - [`TenantError::NoVersion`] if no snapshot has the version or an earlier one.
    pub(crate) fn find(self, head: &Head) -> Result<SnapshotRef> {
        let key = || head.tenant().to_string();
        match self {
            Self::At(at) => {
                let oldest = head.snapshots().map(|snapshot| snapshot.taken_at).min();
                let found = head.snapshots().filter(|snapshot| snapshot.taken_at <= at).last();
                found.cloned().ok_or_else(|| TenantError::NoSnapshot { key: key(), at, oldest })
            }
            Self::Generation(generation) => {
                let found = head.snapshots().find(|snapshot| snapshot.generation == generation);
                found.cloned().ok_or_else(|| TenantError::NoGeneration { key: key(), generation })
            }
            Self::Version(version) => {
                let known = || head.snapshots().filter(|snapshot| snapshot.version > 0);
                let oldest = known().map(|snapshot| snapshot.version).min();
                let found = known().filter(|snapshot| snapshot.version <= version).last();
                found.cloned().ok_or_else(|| TenantError::NoVersion { key: key(), version, oldest })
            }
        }
    }
}

/// Whether the log after the current snapshot can be read.
pub(crate) enum Log {
    Whole,
    Damaged,
}

impl Lease {
    /// Makes an earlier snapshot the current one, and ends the lease in the same swap.
    ///
    /// The restored snapshot becomes a new entry of the history, so another restore can undo this
    /// one. Commits in the log after the last snapshot are lost, so publish them first if they may
    /// be needed.
    ///
    /// The restore raises the epoch, as if another host had had the tenant. A database that is open
    /// under this lease, or in a cache folder, is then superseded and never used as the current
    /// state. [`Tenants::restore`](crate::Tenants::restore) takes care of all this.
    ///
    /// # Errors
    /// If no snapshot matches `point`, the lease still holds.
    ///
    /// - [`TenantError::NoSnapshot`], [`TenantError::NoGeneration`] or [`TenantError::NoVersion`]
    ///   if no snapshot matches `point`.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head or the log is damaged
    ///   or of a newer release.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached. The restore may still
    ///   have been done, and then another attempt fails with [`TenantError::Fenced`].
    pub async fn restore(&self, point: RestorePoint) -> Result<SnapshotRef> {
        self.restore_with(point, Log::Whole).await
    }

    pub(crate) async fn restore_with(&self, point: RestorePoint, log: Log) -> Result<SnapshotRef> {
        let _turn = self.publishing().await;
        self.check()?;
        // The log continues after the segments that the restored state leaves out.
        let covers = match log {
            Log::Whole => self.log_end().await?,
            Log::Damaged => self.seal_damaged().await?,
        };
        let taken_at = self.store_time().await?;
        let head = self.change(|head| {
            let snapshot = point.find(head)?;
            head.next_epoch()?;
            let version = min_version(head.epoch).0;
            make_current(head, SnapshotRef { covers, taken_at, version, ..snapshot });
            head.lease = None;
            Ok(())
        });
        head.await?
            .snapshot
            .ok_or_else(|| TenantError::corrupt(self.key(), "the head has no current snapshot"))
    }
}
