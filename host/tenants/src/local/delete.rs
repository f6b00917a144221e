//! A tenant is deleted, with what this host has of it.

use std::sync::Arc;
use std::time::Duration;

use crate::deletion::{Deletion, DeletionStage};
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::local::resident::{Resident, keep};
use crate::local::tenants::{Inner, Surroundings, Tenants, to_its_end};

impl Tenants {
    /// Deletes a tenant. Its objects stay for the grace period, in which [`Tenants::undelete`] brings it
    /// back with every commit that was acknowledged here; after it, [`Tenants::purge`] removes them.
    ///
    /// From this call on, no host can open the tenant: they get [`TenantError::Deleted`]. A tenant that
    /// is deleted already keeps the earlier end of its grace period.
    ///
    /// If it fails or this process ends, the tenant is deleted or not, and the call may be repeated.
    ///
    /// # Errors
    /// [`TenantError::NotFound`], [`TenantError::InUse`] if the tenant is in use on this host,
    /// [`TenantError::LeaseHeld`] if another host has it, and what keeps it from being written back.
    /// After [`TenantError::Unavailable`] it may be done all the same.
    pub async fn delete(&self, key: &TenantKey, grace: Duration) -> Result<Deletion> {
        let slot = self.inner.slot(key)?;
        let mut state = slot.state.clone().lock_owned().await;
        self.inner.check_open()?;
        if slot.is_pinned() {
            return Err(TenantError::InUse { key: key.to_string() });
        }
        let inner = self.inner.clone();
        to_its_end(async move {
            let around = &inner.around;
            let head = around.remote.head(&slot.key).await?;
            let head = head.ok_or_else(|| TenantError::NotFound { key: slot.key.to_string() })?;
            let deleted = match head.deletion {
                Some(_) => around.remote.shorten_grace(&slot.key, grace).await,
                None => {
                    if state.is_some() || around.cache.has_database(&slot.key) {
                        let opened = inner.open_in(&slot, &mut state).await;
                        leave(opened).await?;
                        *state = None;
                    }
                    delete(around, &slot.key, grace).await
                }
            };
            if deleted.is_ok() {
                around.cache.remove(&slot.key)?;
            }
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
        let state = slot.state.clone().lock_owned().await;
        self.inner.check_open()?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let deletion = inner.around.remote.purge(&slot.key).await?;
            // A tenant that was made anew since is another one.
            if state.is_none() && deletion.stage == DeletionStage::Purged {
                inner.erase(&slot.key)?;
            }
            drop(state);
            inner.forget(slot);
            Ok(deletion)
        })
        .await
    }
}

/// Writes a tenant back and closes it. One that is damaged is deleted as it is.
async fn leave(opened: Result<Arc<Resident>>) -> Result<()> {
    match opened {
        Ok(resident) => resident.leave().await,
        Err(TenantError::Corrupt { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn delete(around: &Arc<Surroundings>, key: &TenantKey, grace: Duration) -> Result<Deletion> {
    let lease = around.remote.acquire(key, around.cache.holder(), around.options.lease_wait).await?;
    let keeping = tokio::spawn(keep(lease.clone()));
    let deleted = lease.delete(grace).await;
    keeping.abort();
    if deleted.is_err() {
        // If this fails, the lease runs out.
        let _ = lease.release().await;
    }
    deleted
}

impl Inner {
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
