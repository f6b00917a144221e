//! Going back to an earlier snapshot.

use larder_core::clock::UnixMillis;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef};
use crate::lease::Lease;
use crate::snapshots::make_current;

impl Lease {
    /// Makes the newest snapshot that was taken at `moment` or before, in milliseconds since 1970, the current one again,
    /// and ends the lease in the same swap. It becomes a new entry of the history, so that this can be undone in the same
    /// way; but what the log holds after the last snapshot is left behind: publish it first where it may be wanted.
    ///
    /// The epoch grows with it, as if another had had the tenant: what is open under this lease, or lies in a cache
    /// folder, is not what the tenant is now, and is never taken for it. [`crate::Tenants::restore_at`] sees to all that.
    ///
    /// # Errors
    /// [`TenantError::NoSnapshot`] where there is none so old, and as [`Lease::publish`]: the lease holds on then. After
    /// [`TenantError::Unavailable`] it may be done all the same; then [`TenantError::Fenced`] tells whoever tries again.
    pub async fn restore_at(&self, moment: UnixMillis) -> Result<SnapshotRef> {
        self.restore(moment, Log::Whole).await
    }

    /// The same if the current snapshot or the log behind it is damaged.
    pub(crate) async fn restore_past_damage(&self, moment: UnixMillis) -> Result<SnapshotRef> {
        self.restore(moment, Log::Damaged).await
    }

    async fn restore(&self, moment: UnixMillis, log: Log) -> Result<SnapshotRef> {
        let _turn = self.publishing().await;
        self.check()?;
        // The log goes on behind what the restored state leaves out.
        let covers = match log {
            Log::Whole => self.log_end().await?,
            Log::Damaged => self.seal_damaged().await?,
        };
        let now = self.remote().now();
        let head = self.change(|head| {
            let found = newest_at(head, moment).cloned();
            let Some(snapshot) = found else {
                let oldest = head.snapshots().next().map(|snapshot| snapshot.taken_at);
                return Err(TenantError::NoSnapshot { key: self.key().to_string(), at: moment, oldest });
            };
            make_current(head, SnapshotRef { covers, ..snapshot }, now);
            let last = || TenantError::corrupt(self.key(), "the head's epoch is the last there is");
            head.epoch = head.epoch.checked_add(1).ok_or_else(last)?;
            head.lease = None;
            Ok(())
        });
        head.await?.snapshot.ok_or_else(|| TenantError::corrupt(self.key(), "the head names no snapshot"))
    }
}

/// Whether the log behind the current snapshot can be read.
enum Log {
    Whole,
    Damaged,
}

/// Snapshots are in the order of their times.
pub(crate) fn newest_at(head: &Head, moment: UnixMillis) -> Option<&SnapshotRef> {
    head.snapshots().filter(|snapshot| snapshot.taken_at <= moment).last()
}
