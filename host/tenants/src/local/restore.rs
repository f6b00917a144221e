//! An open tenant goes back to an earlier moment.

use larder_core::clock::UnixMillis;
use tokio::sync::OwnedRwLockWriteGuard;

use crate::error::{Result, TenantError};
use crate::head::SnapshotRef;
use crate::key::TenantKey;
use crate::local::resident::Resident;
use crate::local::tenants::{Tenants, give_up, to_its_end};
use crate::restore::newest_at;

/// What [`Tenants::restore_at`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The snapshot that holds all there was before: it stays in the history, and going back to its time undoes this.
    pub before: SnapshotRef,
    /// The snapshot that the tenant went back to, as the history had it. It may be the same.
    pub found: SnapshotRef,
}

impl Tenants {
    /// Goes back to the newest snapshot that was taken at `moment` or before, in milliseconds since 1970.
    ///
    /// What there is of the tenant becomes a snapshot first: what an earlier process of this cache folder left, and what
    /// is in the log only. What can't be kept, as another host had the tenant since, is in quarantine then. After that
    /// the tenant is closed here, and one swap of its head goes back: whenever this ends, the tenant is as it was before
    /// or as it was at that moment.
    ///
    /// # Errors
    /// [`TenantError::NoSnapshot`], [`TenantError::InUse`] where somebody on this host has the tenant, what
    /// [`Tenants::get`] gives, and what keeps it from being written back: nothing was changed then. After
    /// [`TenantError::Unavailable`] it may be done all the same.
    pub async fn restore_at(&self, key: &TenantKey, moment: UnixMillis) -> Result<Restored> {
        let slot = self.inner.slot(key)?;
        let mut state = slot.state.clone().lock_owned().await;
        self.inner.check_open()?;
        if slot.is_pinned() {
            return Err(TenantError::InUse { key: key.to_string() });
        }
        let inner = self.inner.clone();
        to_its_end(async move {
            let resident = inner.open_in(&slot, &mut state).await?;
            let prepared = resident.prepare_restore(moment).await;
            if prepared.is_err() && !resident.is_usable() {
                give_up(&mut state).await?;
            }
            let (restored, shut) = prepared?;
            *state = None;
            let outcome = resident.restore_at(moment).await;
            drop((shut, state));
            inner.forget(slot);
            outcome.map(|()| restored)
        })
        .await
    }
}

impl Resident {
    /// Lets nobody in any more, and makes a snapshot of all there is: so going back can be undone.
    async fn prepare_restore(&self, moment: UnixMillis) -> Result<(Restored, OwnedRwLockWriteGuard<()>)> {
        self.restorable(moment)?;
        let shut = self.shut().await?;
        self.checkpoint_with_log().await?;
        Ok((self.restorable(moment)?, shut))
    }

    /// Ends it, and goes back.
    async fn restore_at(&self, moment: UnixMillis) -> Result<()> {
        self.finish().await;
        let outcome = self.engine.lease().restore_at(moment).await;
        if outcome.is_err() {
            self.release().await;
        }
        // Should it stay, its epoch tells the next opening that it is not the newest.
        self.remove_copy();
        self.give_place_back();
        outcome.map(drop)
    }

    fn restorable(&self, moment: UnixMillis) -> Result<Restored> {
        let head = self.engine.lease().head();
        let oldest = head.snapshots().next().map(|snapshot| snapshot.taken_at);
        let none = || TenantError::NoSnapshot { key: self.key.to_string(), at: moment, oldest };
        let found = newest_at(&head, moment).cloned().ok_or_else(none)?;
        let before = head.snapshot.ok_or_else(none)?;
        Ok(Restored { before, found })
    }
}
