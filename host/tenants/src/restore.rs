//! Going back to an earlier snapshot.

use larder_core::clock::UnixMillis;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef, min_version};
use crate::lease::Lease;
use crate::snapshots::make_current;

/// Which snapshot to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestorePoint {
    /// The newest one that was taken at this moment or before, in milliseconds since 1970 by the clock of the object storage.
    At(UnixMillis),
    /// The one with this [`SnapshotRef::generation`].
    Generation(u64),
    /// The newest one with a [`SnapshotRef::version`] up to this version, which a client saw: no commit
    /// of a later version is in it.
    Version(u64),
}

impl RestorePoint {
    /// Finds the snapshot. Generations are the order of snapshots; a clock that was wrong may have given them other times.
    ///
    /// # Errors
    /// [`TenantError::NoSnapshot`], [`TenantError::NoGeneration`], [`TenantError::NoVersion`].
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

/// Whether the log behind the current snapshot can be read.
pub(crate) enum Log {
    Whole,
    Damaged,
}

impl Lease {
    /// Makes a snapshot the current one again, and ends the lease in the same swap. It becomes a new entry of the history, so
    /// that this can be undone in the same way; but what the log holds after the last snapshot is left behind: publish it
    /// first where it may be wanted.
    ///
    /// The epoch grows with it, as if another had had the tenant: what is open under this lease, or lies in a cache
    /// folder, is not what the tenant is now, and is never taken for it. [`crate::Tenants::restore`] sees to all that.
    ///
    /// # Errors
    /// [`TenantError::NoSnapshot`], [`TenantError::NoGeneration`] and [`TenantError::NoVersion`] if there
    /// is no such snapshot, and as [`Lease::publish`]: the lease holds on then. After
    /// [`TenantError::Unavailable`] it may be done all the same; then a further attempt gets
    /// [`TenantError::Fenced`].
    pub async fn restore(&self, point: RestorePoint) -> Result<SnapshotRef> {
        self.restore_with(point, Log::Whole).await
    }

    pub(crate) async fn restore_with(&self, point: RestorePoint, log: Log) -> Result<SnapshotRef> {
        let _turn = self.publishing().await;
        self.check()?;
        // The log goes on behind what the restored state leaves out.
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
        head.await?.snapshot.ok_or_else(|| TenantError::corrupt(self.key(), "the head names no snapshot"))
    }
}
