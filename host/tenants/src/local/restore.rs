//! An open tenant goes back to an earlier moment.

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

/// What [`Tenants::restore_at`] did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Restored {
    /// The snapshot that holds all there was before: it stays in the history, and going back to its time undoes this.
    pub before: SnapshotRef,
    /// The snapshot that the tenant went back to, as the history had it. It may be the same.
    pub found: SnapshotRef,
    /// Why the state before could not be opened. Then `before` holds all there was only if it is whole itself.
    pub damage: Option<TenantError>,
}

impl Tenants {
    /// Goes back to the newest snapshot that was taken at `moment` or before, in milliseconds since 1970 by the clock of the object
    /// storage; see [`Tenants::restore`].
    ///
    /// # Errors
    /// As [`Tenants::restore`].
    pub async fn restore_at(&self, key: &TenantKey, moment: UnixMillis) -> Result<Restored> {
        self.restore(key, RestorePoint::At(moment)).await
    }

    /// Goes back to a snapshot.
    ///
    /// What there is of the tenant becomes a snapshot first: what an earlier process of this cache folder left, and what
    /// is in the log only. What can't be kept, as another host had the tenant since, is in quarantine then. After that
    /// the tenant is closed here, and one swap of its head goes back: whenever this ends, the tenant is as it was before
    /// or as it was at that moment.
    ///
    /// If the newest state is damaged, so that it can't be opened, the tenant goes back all the same, and
    /// [`Restored::damage`] says why. A snapshot that is itself damaged is never made the current one.
    ///
    /// # Errors
    /// [`TenantError::NoSnapshot`], [`TenantError::NoGeneration`], [`TenantError::NoVersion`],
    /// [`TenantError::NotFound`], [`TenantError::InUse`] if the tenant is in use on this host, what
    /// [`Tenants::get`] gives, and what keeps it from being written back: nothing was changed then.
    /// After [`TenantError::Unavailable`] it may be done all the same.
    pub async fn restore(&self, key: &TenantKey, point: RestorePoint) -> Result<Restored> {
        let (slot, mut state) = self.inner.unused_slot(key).await?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let resident = match inner.open_in(&slot, &mut state, Existence::Required).await {
                Err(damage @ TenantError::Corrupt { .. }) => {
                    let restored = restore_past_damage(&inner.around, &slot.key, point, damage).await;
                    drop(state);
                    inner.forget(slot);
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
            inner.forget(slot);
            outcome.map(|()| restored)
        })
        .await
    }
}

impl Resident {
    /// Lets nobody in any more, and makes a snapshot of all there is: so going back can be undone.
    async fn prepare_restore(&self, point: RestorePoint) -> Result<(Restored, OwnedRwLockWriteGuard<()>)> {
        let found = point.find(&self.engine.lease().head())?;
        check_whole(&self.around, &self.key, &found).await?;
        let shut = self.shut().await?;
        self.checkpoint_with_log().await?;
        Ok((restorable(&self.engine.lease().head(), point)?, shut))
    }

    /// Ends it, and goes back.
    async fn restore(&self, found: &SnapshotRef) -> Result<()> {
        self.finish().await;
        let outcome = self.engine.lease().restore(RestorePoint::Generation(found.generation)).await;
        if outcome.is_err() {
            self.release().await;
        }
        // Should it stay, its epoch tells the next opening that it is not the newest.
        self.remove_copy();
        self.give_place_back();
        outcome.map(drop)
    }
}

fn restorable(head: &Head, point: RestorePoint) -> Result<Restored> {
    let found = point.find(head)?;
    let none = || TenantError::corrupt(head.tenant(), "the head has a history and no snapshot");
    let before = head.snapshot.clone().ok_or_else(none)?;
    Ok(Restored { before, found, damage: None })
}

/// Goes back if the newest state can't be opened. What lay in the cache folder is gone by now, or in quarantine.
async fn restore_past_damage(
    around: &Arc<Surroundings>,
    key: &TenantKey,
    point: RestorePoint,
    damage: TenantError,
) -> Result<Restored> {
    let lease = acquire(around, key, Existence::Required).await?;
    // A large snapshot takes longer than a lease.
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
        // Where this fails, the lease runs out.
        let _ = lease.release().await;
    }
    outcome
}

/// Downloads a snapshot to see that it can be opened.
async fn check_whole(around: &Surroundings, key: &TenantKey, snapshot: &SnapshotRef) -> Result<()> {
    let file = around.cache.temporary();
    let max_bytes = around.remote.options().max_snapshot_bytes;
    around.remote.fetch(key, snapshot, file.path(), max_bytes).await?;
    Sqlite::verify(file.path()).await.map_err(|error| TenantError::database(key, error))
}
