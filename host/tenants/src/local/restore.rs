//! Restores an open tenant to an earlier snapshot.

use std::sync::Arc;

use larder_core::clock::UnixMillis;
use larder_sqlite::Sqlite;
use tokio::sync::OwnedRwLockWriteGuard;

use crate::error::{Result, TenantError};
use crate::head::{Head, SnapshotRef};
use crate::key::TenantKey;
use crate::lease::Existence;
use crate::local::resident::{Resident, acquire, keep};
use crate::local::tenants::{Surroundings, Tenants, give_up, to_its_end};
use crate::restore::{Log, RestorePoint};

/// The result of [`Tenants::restore`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Restored {
    /// The snapshot of the state before. It stays in the history, so restoring it undoes this
    /// restore.
    pub before: SnapshotRef,
    /// The snapshot that was restored, as the history has it. It may be the same as `before`.
    pub found: SnapshotRef,
    /// Why the state before could not be opened. If set, `before` may lack some of it, or be
    /// damaged.
    pub damage: Option<TenantError>,
}

impl Tenants {
    /// Restores the newest snapshot that was taken at or before `moment`; see [`Tenants::restore`].
    ///
    /// `moment` is in milliseconds since 1970, by the clock of the object storage.
    ///
    /// # Errors
    /// - [`TenantError::NoSnapshot`] if no snapshot is that old.
    /// - [`TenantError::NotFound`] if the tenant does not exist.
    /// - [`TenantError::InUse`] if the tenant is in use on this host.
    /// - [`TenantError::LeaseHeld`] if another host has the tenant.
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Corrupt`] if the snapshot is damaged.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached. The restore may still
    ///   have been done.
    /// - [`TenantError::Fenced`] or [`TenantError::LeaseLapsed`] if the lease is lost meanwhile.
    /// - [`TenantError::Full`] if every tenant that this host can keep open is in use.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::DiskFull`], [`TenantError::File`] or [`TenantError::Database`] if the local
    ///   database cannot be opened, read or written back.
    /// - [`TenantError::InvalidArgument`] if the database is too large to be written back.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn restore_at(&self, key: &TenantKey, moment: UnixMillis) -> Result<Restored> {
        self.restore(key, RestorePoint::At(moment)).await
    }

    /// Restores a tenant to a snapshot.
    ///
    /// All newer data of the tenant becomes a snapshot first, including the database that an
    /// earlier process of this cache folder left, and commits that are only in the log. Data that
    /// cannot be kept because another host had the tenant since goes into quarantine. The tenant is
    /// then closed here, and a single swap of its head restores the snapshot. Whenever the process
    /// ends, the tenant has either the old or the restored state.
    ///
    /// If the newest state is damaged and cannot be opened, the snapshot is restored all the same,
    /// and [`Restored::damage`] has the reason. A damaged snapshot is never made the current one.
    ///
    /// # Errors
    /// After any error but [`TenantError::Unavailable`], the tenant was not restored. After that
    /// one, it may have been.
    ///
    /// - [`TenantError::NoSnapshot`], [`TenantError::NoGeneration`] or [`TenantError::NoVersion`]
    ///   if no snapshot matches `point`.
    /// - [`TenantError::NotFound`] if the tenant does not exist.
    /// - [`TenantError::InUse`] if the tenant is in use on this host.
    /// - [`TenantError::LeaseHeld`] if another host has the tenant.
    /// - [`TenantError::Fenced`] or [`TenantError::LeaseLapsed`] if the lease is lost meanwhile.
    /// - [`TenantError::Deleted`] if the tenant is deleted and not yet purged.
    /// - [`TenantError::Full`] if every tenant that this host can keep open is in use.
    /// - [`TenantError::Corrupt`] if the snapshot is damaged.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the tenant.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if a database would fill the disk.
    /// - [`TenantError::File`] if the cache folder cannot be read or written.
    /// - [`TenantError::Database`] if the database cannot be opened or read.
    /// - [`TenantError::InvalidArgument`] if the database is too large to be written back.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn restore(&self, key: &TenantKey, point: RestorePoint) -> Result<Restored> {
        let (entry, mut state) = self.inner.unused_entry(key).await?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let resident = match inner.open_in(&entry, &mut state, Existence::Required).await {
                Err(damage @ TenantError::Corrupt { .. }) => {
                    let restored = restore_past_damage(&inner.around, &entry.key, point, damage).await;
                    drop(state);
                    inner.forget(entry);
                    return restored;
                }
                opened => opened?,
            };
            let prepared = resident.prepare_restore(point).await;
            if prepared.is_err() && !resident.is_usable() {
                give_up(&mut state).await?;
            }
            let (restored, shut) = prepared?;
            *state = None;
            let outcome = resident.restore(&restored.found).await;
            drop((shut, state));
            inner.forget(entry);
            outcome.map(|()| restored)
        })
        .await
    }
}

impl Resident {
    /// Rejects new calls and makes a snapshot of the current state, so that the restore can be
    /// undone.
    async fn prepare_restore(&self, point: RestorePoint) -> Result<(Restored, OwnedRwLockWriteGuard<()>)> {
        let found = point.find(&self.engine.lease().head())?;
        check_whole(&self.around, &self.key, &found).await?;
        let shut = self.shut().await?;
        self.checkpoint_with_log().await?;
        Ok((restorable(&self.engine.lease().head(), point)?, shut))
    }

    /// Closes the tenant and restores the snapshot.
    async fn restore(&self, found: &SnapshotRef) -> Result<()> {
        self.finish().await;
        let outcome = self.engine.lease().restore(RestorePoint::Generation(found.generation)).await;
        if outcome.is_err() {
            self.release().await;
        }
        // If the local copy stays, its epoch tells the next opening that it is not the newest
        // state.
        self.remove_copy();
        self.give_permit_back();
        outcome.map(drop)
    }
}

fn restorable(head: &Head, point: RestorePoint) -> Result<Restored> {
    let found = point.find(head)?;
    let none = || TenantError::corrupt(head.tenant(), "the head has a history but no current snapshot");
    let before = head.snapshot.clone().ok_or_else(none)?;
    Ok(Restored { before, found, damage: None })
}

/// Restores a snapshot although the newest state cannot be opened. The database in the cache folder
/// is gone by now, or in quarantine.
async fn restore_past_damage(
    around: &Arc<Surroundings>,
    key: &TenantKey,
    point: RestorePoint,
    damage: TenantError,
) -> Result<Restored> {
    let lease = acquire(around, key, Existence::Required).await?;
    // Downloading a large snapshot takes longer than a lease is valid.
    let keeping = tokio::spawn(keep(lease.clone()));
    let outcome = async {
        let restored = restorable(&lease.head(), point)?;
        check_whole(around, key, &restored.found).await?;
        let generation = restored.found.generation;
        lease.restore_with(RestorePoint::Generation(generation), Log::Damaged).await?;
        Ok(Restored { damage: Some(damage), ..restored })
    };
    let outcome = outcome.await;
    keeping.abort();
    if outcome.is_err() {
        // If this fails, the lease expires.
        let _ = lease.release().await;
    }
    outcome
}

/// Downloads a snapshot to verify that it can be opened.
async fn check_whole(around: &Surroundings, key: &TenantKey, snapshot: &SnapshotRef) -> Result<()> {
    let file = around.cache.temporary();
    let max_bytes = around.remote.options().max_snapshot_bytes;
    around.remote.fetch(key, snapshot, file.path(), max_bytes).await?;
    Sqlite::verify(file.path()).await.map_err(|error| TenantError::database(key, error))
}
