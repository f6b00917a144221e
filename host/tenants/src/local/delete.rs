//! Deletes a tenant, and what this host has of it.

use std::sync::Arc;
use std::time::Duration;

use crate::deletion::Deletion;
use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::lease::Existence;
use crate::local::resident::{End, acquire, keep};
use crate::local::tenant_entry::TenantEntry;
use crate::local::tenants::{EntryState, Inner, Surroundings, Tenants, give_up, to_its_end};

impl Tenants {
    /// Deletes a tenant. Its objects stay for the grace period.
    ///
    /// During the grace period, [`Tenants::undelete`] restores the tenant with every commit that
    /// was acknowledged here. After it, [`Tenants::purge`] removes the objects.
    ///
    /// From this call on, no host can open the tenant: opening fails with [`TenantError::Deleted`].
    /// If the tenant is already deleted, its grace period can only become shorter. Databases of the
    /// tenant on other hosts stay until it is purged.
    ///
    /// If this fails or the process ends, the tenant may or may not be deleted, and the caller may
    /// repeat the call.
    ///
    /// # Errors
    /// - [`TenantError::NotFound`] if the tenant does not exist.
    /// - [`TenantError::InUse`] if the tenant is in use on this host.
    /// - [`TenantError::LeaseHeld`] if another host has the tenant.
    /// - [`TenantError::Fenced`] or [`TenantError::LeaseLapsed`] if the lease is lost meanwhile.
    /// - [`TenantError::Full`] if every tenant that this host can keep open is in use.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head cannot be read.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached. The tenant may still
    ///   have been deleted.
    /// - [`TenantError::DiskFull`], [`TenantError::File`] or [`TenantError::Database`] if the local
    ///   database cannot be written back.
    /// - [`TenantError::InvalidArgument`] if the local database is too large to be written back.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn delete(&self, key: &TenantKey, grace: Duration) -> Result<Deletion> {
        let (entry, mut state) = self.inner.unused_entry(key).await?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let deleted = inner.delete(&entry, &mut state, grace).await;
            drop(state);
            inner.forget(entry);
            deleted
        })
        .await
    }

    /// Undoes the deletion of a tenant, if all its objects still exist.
    ///
    /// A tenant that is not deleted stays as it is.
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if its objects are being removed, or were removed.
    /// - [`TenantError::NotFound`] if the tenant never existed.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head cannot be read.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn undelete(&self, key: &TenantKey) -> Result<()> {
        self.remote().undelete(key).await
    }

    /// Removes the objects of a deleted tenant, and its data on this host.
    ///
    /// The grace period must have passed. The data on this host is its local database and its
    /// databases in quarantine. Other hosts keep theirs until they are removed there. See
    /// [`Remote::purge`](crate::Remote::purge).
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if the grace period has not passed.
    /// - [`TenantError::InvalidArgument`] if the tenant is not deleted.
    /// - [`TenantError::NotFound`] if the tenant never existed.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head cannot be read.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::File`] if the cache folder cannot be written.
    /// - [`TenantError::ShutDown`] after [`Tenants::close`].
    pub async fn purge(&self, key: &TenantKey) -> Result<Deletion> {
        let entry = self.inner.entry(key)?;
        let mut state = entry.state.clone().lock_owned().await;
        self.inner.check_open()?;
        let inner = self.inner.clone();
        to_its_end(async move {
            let purged = inner.purge(&entry, &mut state).await;
            drop(state);
            inner.forget(entry);
            purged
        })
        .await
    }
}

impl Inner {
    async fn delete(
        self: &Arc<Self>,
        entry: &Arc<TenantEntry>,
        state: &mut EntryState,
        grace: Duration,
    ) -> Result<Deletion> {
        let (around, key) = (&self.around, &entry.key);
        let Some(head) = around.remote.head(key).await? else {
            let missing = || TenantError::NotFound { key: key.to_string() };
            return around.remote.purged(key).await?.ok_or_else(missing);
        };
        if head.deletion.is_some() {
            return around.remote.shorten_grace(key, grace).await;
        }
        let has_database = state.is_some() || around.cache.has_database(key);
        let is_sent = has_database && self.send(entry, state).await?;
        let deletion = delete(around, key, grace).await?;
        if is_sent {
            // Object storage has all of it, for as long as the deletion can be undone.
            around.cache.remove(key)?;
        }
        Ok(deletion)
    }

    /// Writes a tenant back and closes it. Returns `false` if it is damaged. Its database then
    /// stays, or goes into quarantine.
    async fn send(self: &Arc<Self>, entry: &Arc<TenantEntry>, state: &mut EntryState) -> Result<bool> {
        let resident = match self.open_in(entry, state, Existence::Required).await {
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

    async fn purge(self: &Arc<Self>, entry: &Arc<TenantEntry>, state: &mut EntryState) -> Result<Deletion> {
        let deletion = self.around.remote.purge(&entry.key).await?;
        // If the tenant was created again meanwhile, it is another tenant.
        if self.around.remote.purged(&entry.key).await?.is_some() {
            give_up(state).await?;
            self.erase(&entry.key)?;
        }
        Ok(deletion)
    }

    /// Removes what this host has of a tenant that no longer exists.
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
        // If this fails, the lease expires.
        let _ = lease.release().await;
    }
    deleted
}
