//! A tenant is deleted, with what this host has of it.

use std::sync::Arc;
use std::time::Duration;

use crate::deletion::Deletion;
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::lease::Existence;
use crate::local::resident::{End, acquire, keep};
use crate::local::slot::Slot;
use crate::local::tenants::{Inner, SlotState, Surroundings, Tenants, give_up, to_its_end};

impl Tenants {
    /// Deletes a tenant. Its objects stay for the grace period, in which [`Tenants::undelete`] brings it
    /// back with every commit that was acknowledged here; after it, [`Tenants::purge`] removes them.
    ///
    /// From this call on, no host can open the tenant: they get [`TenantError::Deleted`]. A tenant that
    /// is deleted already keeps the earlier end of its grace period. Databases of the tenant on other
    /// hosts stay until it is purged.
    ///
    /// If it fails or this process ends, the tenant is deleted or not, and the call may be repeated.
    ///
    /// # Errors
    /// [`TenantError::NotFound`], [`TenantError::InUse`] if the tenant is in use on this host,
    /// [`TenantError::LeaseHeld`] if another host has it, and what keeps it from being written back.
    /// After [`TenantError::Unavailable`] it may be done all the same.
    pub async fn delete(&self, key: &TenantKey, grace: Duration) -> Result<Deletion> {
        let (slot, mut state) = self.inner.unused_slot(key).await?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let deleted = inner.delete(&slot, &mut state, grace).await;
            drop(state);
            inner.forget(slot);
            deleted
        })
        .await
    }

    /// Brings a tenant back that was deleted, if its objects all exist: see
    /// [`Remote::undelete`](crate::Remote::undelete).
    ///
    /// # Errors
    /// As [`Remote::undelete`](crate::Remote::undelete).
    pub async fn undelete(&self, key: &TenantKey) -> Result<()> {
        self.remote().undelete(key).await
    }

    /// Removes the objects of a tenant whose grace period has passed, and what this host has of it: the
    /// local database, and databases in quarantine. Those of other hosts stay until they are removed
    /// there. See [`Remote::purge`](crate::Remote::purge).
    ///
    /// # Errors
    /// As [`Remote::purge`](crate::Remote::purge), and [`TenantError::File`].
    pub async fn purge(&self, key: &TenantKey) -> Result<Deletion> {
        let slot = self.inner.slot(key)?;
        let mut state = slot.state.clone().lock_owned().await;
        self.inner.check_open()?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let purged = inner.purge(&slot, &mut state).await;
            drop(state);
            inner.forget(slot);
            purged
        })
        .await
    }
}

impl Inner {
    async fn delete(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        state: &mut SlotState,
        grace: Duration,
    ) -> Result<Deletion> {
        let (around, key) = (&self.around, &slot.key);
        let Some(head) = around.remote.head(key).await? else {
            let missing = || TenantError::NotFound { key: key.to_string() };
            return around.remote.purged(key).await?.ok_or_else(missing);
        };
        if head.deletion.is_some() {
            return around.remote.shorten_grace(key, grace).await;
        }
        let has_database = state.is_some() || around.cache.has_database(key);
        let is_sent = has_database && self.send(slot, state).await?;
        let deletion = delete(around, key, grace).await?;
        if is_sent {
            // Object storage has all of it, for as long as the deletion can be undone.
            around.cache.remove(key)?;
        }
        Ok(deletion)
    }

    /// Writes a tenant back and closes it. `false` if it is damaged: then its database stays, or goes into quarantine.
    async fn send(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut SlotState) -> Result<bool> {
        let resident = match self.open_in(slot, state, Existence::Required).await {
            Err(TenantError::Corrupt { .. }) => return Ok(false),
            opened => opened?,
        };
        match resident.leave().await {
            Ok(()) => **state = None,
            Err(TenantError::Corrupt { .. }) => {
                resident.end(End::Failed);
                give_up(state).await?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    async fn purge(self: &Arc<Self>, slot: &Arc<Slot>, state: &mut SlotState) -> Result<Deletion> {
        let deletion = self.around.remote.purge(&slot.key).await?;
        // A tenant that was made anew since is another one.
        if self.around.remote.purged(&slot.key).await?.is_some() {
            give_up(state).await?;
            self.erase(&slot.key)?;
        }
        Ok(deletion)
    }

    /// Removes what this host has of a tenant that does not exist any more.
    pub(crate) fn erase(&self, key: &TenantKey) -> Result<()> {
        let cache = &self.around.cache;
        cache.remove(key)?;
        for quarantined in cache.quarantined()? {
            if quarantined.tenant == key.to_string() {
                cache.remove_from_quarantine(&quarantined.name)?;
            }
        }
        Ok(())
    }
}

async fn delete(around: &Surroundings, key: &TenantKey, grace: Duration) -> Result<Deletion> {
    let lease = acquire(around, key, Existence::Required).await?;
    let keeping = tokio::spawn(keep(lease.clone()));
    let deleted = lease.delete(grace).await;
    keeping.abort();
    if deleted.is_err() {
        // If this fails, the lease runs out.
        let _ = lease.release().await;
    }
    deleted
}
