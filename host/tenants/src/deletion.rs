//! Deletion of a tenant: it is marked first, and its objects are removed after a grace period.
//!
//! The head stays forever, with its epoch, and each step is one swap of the head. So a host that
//! had the tenant is fenced, and versions keep increasing if a tenant with the same name is created
//! later. A purge lists objects and then reads the head again. If the head still has the same
//! deletion, the listed objects belong to the deleted tenant and are removed. Names of objects are
//! never reused: those of snapshots are unique, and the log of a later tenant starts after the last
//! position.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use larder_core::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::attempts::Attempts;
use crate::error::{Result, TenantError};
use crate::head::{Head, MAX_HEAD_BYTES};
use crate::key::TenantKey;
use crate::lease::{Lease, changes_all_the_time, is_write};
use crate::objects::Written;
use crate::remote::Remote;
use crate::snapshots::{DELETIONS, millis};

/// The deletion of a tenant, and its stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Deletion {
    /// When it was deleted, in milliseconds since 1970 by the clock of the object storage.
    pub at: UnixMillis,
    /// When its objects may be removed, by the same clock.
    pub purge_at: UnixMillis,
    /// The stage of the deletion.
    pub stage: DeletionStage,
    /// The last position of the tenant's log.
    log_end: u64,
}

/// The stage of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletionStage {
    /// All objects exist, and the deletion can be undone.
    Marked,
    /// Objects are being removed. The deletion can't be undone.
    Purging,
    /// All objects except the head were removed.
    ///
    /// The next host that opens the tenant creates a new one.
    Purged,
}

/// The most attempts to swap a head that other hosts change meanwhile.
const SWAPS: u32 = 20;

/// The most passes over the objects of a tenant. Each pass removes the objects of one listing.
const PURGE_PASSES: u32 = 10_000;
const PURGE_PAUSE: Duration = Duration::from_millis(20);

/// The most objects that one listing returns.
const LISTED: usize = 10_000;

impl Lease {
    /// Marks the tenant as deleted, and ends the lease in the same swap.
    ///
    /// [`Remote::purge`] may remove its objects once `grace` has passed. Changes that were not
    /// published are lost if the deletion is undone.
    ///
    /// # Errors
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head is damaged or of a
    ///   newer release.
    /// - [`TenantError::File`] if a segment cannot be compressed.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached. The tenant may still
    ///   have been deleted.
    pub async fn delete(&self, grace: Duration) -> Result<Deletion> {
        let _turn = self.publishing().await;
        self.check()?;
        // After this, no earlier holder can append, even if segments are missing.
        let log_end = self.seal_damaged().await?;
        let at = self.store_time().await?;
        let purge_at = at.saturating_add(millis(grace));
        let deletion = Deletion { at, purge_at, stage: DeletionStage::Marked, log_end };
        let marked = self.change(|head| {
            head.deletion = Some(deletion.clone());
            head.next_epoch()?;
            head.lease = None;
            Ok(())
        });
        marked.await?;
        Ok(deletion)
    }
}

impl Remote {
    /// Undoes a deletion, if all objects still exist.
    ///
    /// A tenant that is not deleted stays as it is.
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if its objects are being removed, or were removed.
    /// - [`TenantError::NotFound`] if the tenant never existed.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head is damaged or of a
    ///   newer release.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached, or if other hosts keep
    ///   changing the head.
    pub async fn undelete(&self, key: &TenantKey) -> Result<()> {
        let undone = self.change_head(key, |head| match &head.deletion {
            None => Ok(false),
            Some(Deletion { stage: DeletionStage::Marked, .. }) => {
                head.deletion = None;
                Ok(true)
            }
            Some(deletion) => Err(deletion.error(key)),
        });
        undone.await.map(drop)
    }

    /// The deletion of a tenant whose objects were removed. `None` if the tenant exists, or never
    /// existed.
    pub(crate) async fn purged(&self, key: &TenantKey) -> Result<Option<Deletion>> {
        let deletion = self.read_head(key).await?.and_then(|(head, _)| head.deletion);
        Ok(deletion.filter(Deletion::is_done))
    }

    /// Shortens the grace period of a deleted tenant. Never extends it.
    pub(crate) async fn shorten_grace(&self, key: &TenantKey, grace: Duration) -> Result<Deletion> {
        let shortened = self.change_head(key, |head| {
            let deletion = head.deletion.as_mut().ok_or_else(|| not_deleted(key))?;
            let purge_at = deletion.at.saturating_add(millis(grace)).min(deletion.purge_at);
            Ok(std::mem::replace(&mut deletion.purge_at, purge_at) != purge_at)
        });
        shortened.await?.deletion.ok_or_else(|| not_deleted(key))
    }

    /// Removes the objects of a deleted tenant whose grace period has passed.
    ///
    /// The head stays, with a few hundred bytes. The caller may repeat this after an error, from
    /// several hosts at once, and after it is done. It then removes objects that a host that had
    /// the tenant has uploaded late.
    ///
    /// # Errors
    /// - [`TenantError::Deleted`] if the grace period has not passed.
    /// - [`TenantError::InvalidArgument`] if the tenant is not deleted.
    /// - [`TenantError::NotFound`] if the tenant never existed.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head is damaged or of a
    ///   newer release.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached, or if other hosts keep
    ///   changing the head.
    pub async fn purge(&self, key: &TenantKey) -> Result<Deletion> {
        let now = self.time_of_marked(key).await?;
        for _ in 0..PURGE_PASSES {
            let deletion = self.begin_purge(key, now).await?;
            match self.remove_some(key, &deletion).await? {
                Pass::Empty => return self.end_purge(key, &deletion).await,
                // Object storage may keep listing removed objects for a while.
                Pass::Removed => tokio::time::sleep(PURGE_PAUSE).await,
                Pass::HeadChanged => {}
            }
        }
        let reason = format!("object storage still lists objects of {key} that were removed");
        Err(TenantError::Unavailable { reason, cause: None })
    }

    /// Removes all names of objects from the head. From here on, the deletion can't be undone.
    async fn begin_purge(&self, key: &TenantKey, now: Option<UnixMillis>) -> Result<Deletion> {
        let head = self.change_head(key, |head| {
            let deletion = head.deletion.clone().ok_or_else(|| not_deleted(key))?;
            if deletion.stage != DeletionStage::Marked {
                return Ok(false);
            }
            if now.is_none_or(|now| now < deletion.purge_at) {
                return Err(deletion.error(key));
            }
            head.snapshot = None;
            head.history.clear();
            head.log_start = head.log_start.max(deletion.log_end);
            head.has_log = false;
            head.deletion = Some(Deletion { stage: DeletionStage::Purging, ..deletion });
            Ok(true)
        });
        head.await?.deletion.ok_or_else(|| not_deleted(key))
    }

    async fn end_purge(&self, key: &TenantKey, purged: &Deletion) -> Result<Deletion> {
        let head = self.change_head(key, |head| match &mut head.deletion {
            Some(deletion) if deletion.is_same(purged) && deletion.stage == DeletionStage::Purging => {
                deletion.stage = DeletionStage::Purged;
                Ok(true)
            }
            _ => Ok(false),
        });
        // A new tenant with this name may have been created by now.
        let purged = Deletion { stage: DeletionStage::Purged, ..purged.clone() };
        Ok(head.await?.deletion.filter(|deletion| deletion.is_same(&purged)).unwrap_or(purged))
    }

    /// The current time by the clock of the object storage, if the tenant is marked. It is the time
    /// of a swap of the head that changes nothing. No host has the lease of such a tenant.
    async fn time_of_marked(&self, key: &TenantKey) -> Result<Option<UnixMillis>> {
        let is_marked = |head: &Head| {
            head.deletion.as_ref().is_some_and(|deletion| deletion.stage == DeletionStage::Marked)
        };
        let head = self.change_head(key, |head| Ok(is_marked(head))).await?;
        if is_marked(&head) { self.objects().written_at(&self.head_path(key)).await } else { Ok(None) }
    }

    /// Swaps the head of a tenant without its lease. Does nothing if `edit` returns `false`. `edit`
    /// runs again if another swap came first.
    async fn change_head(&self, key: &TenantKey, edit: impl Fn(&mut Head) -> Result<bool>) -> Result<Head> {
        let mut attempts = Attempts::new(SWAPS);
        loop {
            let missing = || TenantError::NotFound { key: key.to_string() };
            let (found, version) = self.read_head(key).await?.ok_or_else(missing)?;
            let mut head = found.successor()?;
            if !edit(&mut head)? {
                return Ok(found);
            }
            let (path, bytes) = (self.head_path(key), Bytes::from(head.to_bytes()?));
            let is_own = |found: &[u8]| is_write(key, found, &head);
            match self.objects().swap(&path, bytes, &version.version, is_own, MAX_HEAD_BYTES).await? {
                Written::Done(_) => return Ok(head),
                Written::Lost(_) if attempts.wait().await => {}
                Written::Lost(_) => return Err(changes_all_the_time(key)),
            }
        }
    }

    /// Removes objects of a tenant that is being purged.
    async fn remove_some(&self, key: &TenantKey, deletion: &Deletion) -> Result<Pass> {
        let own = self.head_path(key);
        let found = self.objects().list(&self.tenant_path(key), None, LISTED).await?;
        let paths: Vec<_> = found.into_iter().map(|meta| meta.location).filter(|path| *path != own).collect();
        if paths.is_empty() {
            return Ok(Pass::Empty);
        }
        // The listed objects belong to the deleted tenant, unless a new tenant was created before
        // the listing.
        let now = self.read_head(key).await?.and_then(|(now, _)| now.deletion);
        if now.is_none_or(|now| !now.is_same(deletion)) {
            return Ok(Pass::HeadChanged);
        }
        let removals = futures_util::stream::iter(paths)
            .map(|path| async move { self.objects().delete(&path).await })
            .buffer_unordered(DELETIONS);
        removals.try_for_each(|()| std::future::ready(Ok(()))).await?;
        Ok(Pass::Removed)
    }
}

/// The outcome of one pass over the objects of a tenant.
enum Pass {
    /// There were no objects.
    Empty,
    Removed,
    /// A new tenant with this name was created.
    HeadChanged,
}

fn not_deleted(key: &TenantKey) -> TenantError {
    TenantError::invalid_argument(format!("{key} is not deleted, so its objects are not removed"))
}

impl Deletion {
    /// Whether both are of the same tenant. The stage and the grace period may differ.
    fn is_same(&self, other: &Self) -> bool {
        (self.at, self.log_end) == (other.at, other.log_end)
    }

    /// Whether the tenant no longer exists, so that a new one with this name may be created.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == DeletionStage::Purged
    }

    pub(crate) fn error(&self, key: &TenantKey) -> TenantError {
        let Self { at, purge_at, stage, .. } = *self;
        TenantError::Deleted { key: key.to_string(), at, purge_at, stage }
    }
}
