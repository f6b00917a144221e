//! How a tenant is deleted: marked first, and removed for good after a grace period.
//!
//! The head stays for ever, with its epoch, and each step is one swap of it. So a host that had the
//! tenant is fenced, and versions go on growing if a tenant of the same name is made later. Objects are
//! removed only if the head still says so after they were listed. Their names are never given again:
//! those of snapshots are unique, and the log of a later tenant begins behind the last position.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use larder_core::clock::UnixMillis;
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;
use crate::error::{Result, TenantError};
use crate::head::{Head, MAX_HEAD_BYTES};
use crate::key::TenantKey;
use crate::lease::{Lease, changes_all_the_time, is_write};
use crate::objects::Written;
use crate::remote::Remote;
use crate::snapshots::{DELETIONS, millis};

/// That a tenant is deleted, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Deletion {
    /// When it was deleted, in milliseconds since 1970 by the clock of the object storage.
    pub at: UnixMillis,
    /// From when on its objects may be removed, by the same clock.
    pub purge_at: UnixMillis,
    /// How far it is.
    pub stage: DeletionStage,
    /// The last position of the tenant's log.
    log_end: u64,
}

/// How far a deletion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeletionStage {
    /// All objects exist, and the deletion can be undone.
    Marked,
    /// Objects are being removed. This can't be undone.
    Purging,
    /// All objects but the head were removed. The next host that opens the tenant makes a new one.
    Purged,
}

/// Swaps of a head that are tried if others change it meanwhile.
const SWAPS: u32 = 20;

/// Objects that are listed at once.
const LISTED: usize = 10_000;

impl Lease {
    /// Marks the tenant as deleted, and ends the lease in the same swap. Its objects may be removed by
    /// [`Remote::purge`] once `grace` has passed.
    ///
    /// Nothing is lost yet, but what only this host has: publish it first.
    ///
    /// # Errors
    /// As [`Lease::publish`]. After [`TenantError::Unavailable`] it may be done all the same.
    pub async fn delete(&self, grace: Duration) -> Result<Deletion> {
        let _turn = self.publishing().await;
        self.check()?;
        // No earlier holder can append after this, also if segments are missing.
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
    /// Undoes a deletion whose objects all exist. A tenant that is not deleted stays as it is.
    ///
    /// # Errors
    /// [`TenantError::Deleted`] if its objects are being removed or were removed, and as
    /// [`Remote::head`].
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

    /// Whether the objects of a tenant were removed, and no other tenant of its name was made since.
    pub(crate) async fn is_purged(&self, key: &TenantKey) -> Result<bool> {
        let deletion = self.read_head(key).await?.and_then(|(head, _)| head.deletion);
        Ok(deletion.is_some_and(|deletion| deletion.is_done()))
    }

    /// Ends the grace period of a deleted tenant earlier, if it then ends earlier.
    pub(crate) async fn shorten_grace(&self, key: &TenantKey, grace: Duration) -> Result<Deletion> {
        let shortened = self.change_head(key, |head| {
            let deletion = head.deletion.as_mut().ok_or_else(|| not_deleted(key))?;
            let purge_at = deletion.at.saturating_add(millis(grace)).min(deletion.purge_at);
            Ok(std::mem::replace(&mut deletion.purge_at, purge_at) != purge_at)
        });
        shortened.await?.deletion.ok_or_else(|| not_deleted(key))
    }

    /// Removes the objects of a tenant that was deleted, once its grace period has passed. The head
    /// stays, with a few hundred bytes.
    ///
    /// It may be called again after an error, by several hosts at once, and after it is done: then it
    /// removes what a host that had the tenant has uploaded late.
    ///
    /// # Errors
    /// [`TenantError::Deleted`] before the end of the grace period, [`TenantError::InvalidArgument`] if
    /// the tenant is not deleted, and as [`Remote::head`].
    pub async fn purge(&self, key: &TenantKey) -> Result<Deletion> {
        let now = self.time_of_deleted(key).await?;
        let purging = self.change_head(key, |head| {
            let deletion = head.deletion.clone().ok_or_else(|| not_deleted(key))?;
            match deletion.stage {
                DeletionStage::Marked if now < deletion.purge_at => Err(deletion.error(key)),
                DeletionStage::Marked => {
                    head.snapshot = None;
                    head.history.clear();
                    head.log_start = head.log_start.max(deletion.log_end);
                    head.has_log = false;
                    head.deletion = Some(Deletion { stage: DeletionStage::Purging, ..deletion });
                    Ok(true)
                }
                DeletionStage::Purging | DeletionStage::Purged => Ok(false),
            }
        });
        let head = purging.await?;
        while self.remove_some(key, &head).await? {}
        let purged = self.change_head(key, |head| match &mut head.deletion {
            Some(deletion) if deletion.stage == DeletionStage::Purging => {
                deletion.stage = DeletionStage::Purged;
                Ok(true)
            }
            _ => Ok(false),
        });
        purged.await?.deletion.or(head.deletion).ok_or_else(|| not_deleted(key))
    }

    /// What time it is by the clock of the object storage: when a swap of the head was made that changes
    /// nothing. Nobody has the lease of a deleted tenant.
    async fn time_of_deleted(&self, key: &TenantKey) -> Result<UnixMillis> {
        self.change_head(key, |head| Ok(head.deletion.is_some())).await?;
        let now = self.objects().written_at(&self.head_path(key)).await?;
        now.ok_or_else(|| TenantError::corrupt(key, "the head is gone"))
    }

    /// Swaps the head of a tenant of which nobody need have the lease, unless `edit` says that it stays.
    async fn change_head(&self, key: &TenantKey, edit: impl Fn(&mut Head) -> Result<bool>) -> Result<Head> {
        let mut backoff = Backoff::new(SWAPS);
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
                Written::Lost(_) if backoff.wait().await => {}
                Written::Lost(_) => return Err(changes_all_the_time(key)),
            }
        }
    }

    /// Removes objects of a tenant whose head says that they go. Whether there were any.
    async fn remove_some(&self, key: &TenantKey, head: &Head) -> Result<bool> {
        let own = self.head_path(key);
        let found = self.objects().list(&self.tenant_path(key), None, LISTED).await?;
        let paths: Vec<ObjectPath> = found.into_iter().map(|meta| meta.location).collect();
        let paths: Vec<_> = paths.into_iter().filter(|path| *path != own).collect();
        if paths.is_empty() {
            return Ok(false);
        }
        // What was listed before is of the deleted tenant only if no other one was made by now.
        let now = self.read_head(key).await?;
        if now.is_none_or(|(now, _)| now.write_id != head.write_id) {
            return Ok(false);
        }
        let removals = futures_util::stream::iter(paths)
            .map(|path| async move { self.objects().delete(&path).await })
            .buffer_unordered(DELETIONS);
        removals.try_for_each(|()| std::future::ready(Ok(()))).await?;
        Ok(true)
    }
}

fn not_deleted(key: &TenantKey) -> TenantError {
    TenantError::invalid_argument(format!("{key} is not deleted, so its objects are not removed"))
}

impl Deletion {
    /// Whether the tenant is no more, so that another one of its name may be made.
    pub(crate) fn is_done(&self) -> bool {
        self.stage == DeletionStage::Purged
    }

    pub(crate) fn error(&self, key: &TenantKey) -> TenantError {
        let Self { at, purge_at, stage, .. } = *self;
        TenantError::Deleted { key: key.to_string(), at, purge_at, stage }
    }
}
