//! The tenants of one object storage.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_core::clock::{Clock, SystemClock, UnixMillis};
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;

use crate::error::{Result, TenantError};
use crate::head::{Head, MAX_HEAD_BYTES, SnapshotRef};
use crate::key::TenantKey;
use crate::objects::{CallLimits, Found, Objects};
use crate::segments::position_of;
use crate::watch::Watches;
use crate::{probe, snapshot_transfer};

/// How object storage is used.
#[derive(Clone)]
pub struct RemoteOptions {
    /// How long a lease holds from a renewal on.
    pub lease_ttl: Duration,
    /// By how much a holder stops before its lease ends, and by how much longer another waits. It covers clocks that
    /// run at different speeds, and the time between a check and what it allows.
    pub lease_margin: Duration,
    /// How long one call may take that moves little.
    pub call_timeout: Duration,
    /// How long one call may take that moves up to 8 MiB.
    pub transfer_timeout: Duration,
    /// How often a call is made before it is given up, 1 to 100.
    pub attempts: u32,
    /// How long snapshots are kept after they were superseded.
    pub keep_for: Duration,
    /// The largest database, in bytes; see [`TenantsBuilder::max_database`](crate::TenantsBuilder::max_database).
    pub max_snapshot_bytes: u64,
    /// The largest payload of a segment, in bytes.
    pub max_segment_bytes: u64,
    /// The same object store, by which a part of an upload that failed is sent again alone. With `None`, such an upload begins
    /// again with its first part. See [`TenantsBuilder::multipart_store`](crate::TenantsBuilder::multipart_store).
    pub multipart: Option<Arc<dyn MultipartStore>>,
    /// Wall-clock time, for times to live. Snapshots have the times of the object storage, and leases are measured by tokio's
    /// monotonic clock.
    pub clock: Arc<dyn Clock>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(15),
            lease_margin: Duration::from_secs(2),
            call_timeout: Duration::from_secs(5),
            transfer_timeout: Duration::from_secs(60),
            attempts: 4,
            keep_for: Duration::from_secs(7 * 24 * 60 * 60),
            max_snapshot_bytes: 16 << 30,
            max_segment_bytes: 64 << 20,
            multipart: None,
            clock: Arc::new(SystemClock::default()),
        }
    }
}

impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RemoteOptions")
            .field("lease_ttl", &self.lease_ttl)
            .field("lease_margin", &self.lease_margin)
            .field("keep_for", &self.keep_for)
            .finish_non_exhaustive()
    }
}

/// The longest time to live of a lease.
pub(crate) const MAX_LEASE_TTL: Duration = Duration::from_secs(60 * 60);

impl RemoteOptions {
    /// What is kept is kept for several leases, so that nothing late meets a place that was given free.
    pub(crate) fn least_keep_for(&self) -> Duration {
        (self.lease_ttl + self.lease_margin) * 4
    }

    fn check(&self) -> Result<()> {
        let wrong = |reason: String| Err(TenantError::InvalidArgument(reason));
        if self.lease_ttl < Duration::from_millis(10) || self.lease_ttl > MAX_LEASE_TTL {
            return wrong(format!("a lease holds for 10 ms to one hour, and not for {:?}", self.lease_ttl));
        }
        if self.lease_margin * 2 >= self.lease_ttl {
            return wrong(format!(
                "the margin of a lease is less than half of the {:?} that it holds, and not {:?}",
                self.lease_ttl, self.lease_margin
            ));
        }
        if self.keep_for < self.least_keep_for() {
            return wrong(format!(
                "snapshots are kept for at least {:?} with these leases, and not for {:?}",
                self.least_keep_for(),
                self.keep_for
            ));
        }
        if self.attempts == 0 || self.attempts > 100 {
            return wrong(format!("a call is attempted 1 to 100 times, and not {}", self.attempts));
        }
        Ok(())
    }
}

/// The tenants of one object storage. Clones are the same.
#[derive(Clone)]
pub struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    options: RemoteOptions,
    watches: Watches,
}

const HEAD_NAME: &str = "head.json";

/// Objects of a tenant without a head that are looked at.
const OBJECTS_LOOKED_AT: usize = 1_000;

/// Whether larder made an object for a tenant: a snapshot or a segment.
fn is_of_tenant(path: &ObjectPath) -> bool {
    let is_snapshot = || path.filename().is_some_and(|name| SnapshotRef::upload_of(name).is_some());
    position_of(path).is_some() || is_snapshot()
}

const LOST_HEAD: &str = "its head.json is missing, and other objects of it are there; `larder tenants repair` makes it anew of them";

impl Remote {
    /// Uses what lies below `prefix` of an object store. Nothing is called yet: see [`Remote::probe`].
    ///
    /// # Errors
    /// [`TenantError::InvalidArgument`] where options contradict each other.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: ObjectPath, options: RemoteOptions) -> Result<Self> {
        options.check()?;
        let limits = CallLimits {
            call_timeout: options.call_timeout,
            transfer_timeout: options.transfer_timeout,
            attempts: options.attempts,
        };
        let objects = Objects::new(store, options.multipart.clone(), prefix, limits);
        Ok(Self { inner: Arc::new(Inner { objects, options, watches: Watches::default() }) })
    }

    /// How it is used.
    pub fn options(&self) -> &RemoteOptions {
        &self.inner.options
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    pub(crate) fn watches(&self) -> &Watches {
        &self.inner.watches
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.inner.options.clock.unix_millis()
    }

    /// Finds out whether the object storage honours the conditions that tenants rest on. To be called at start.
    ///
    /// # Errors
    /// [`TenantError::NoConditions`] where it doesn't, [`TenantError::Unavailable`] where it can't be reached.
    pub async fn probe(&self) -> Result<()> {
        probe::probe(self.objects()).await
    }

    pub(crate) fn tenant_path(&self, key: &TenantKey) -> ObjectPath {
        self.objects().path(&key.object_path())
    }

    pub(crate) fn head_path(&self, key: &TenantKey) -> ObjectPath {
        self.objects().path(&format!("{}/{HEAD_NAME}", key.object_path()))
    }

    pub(crate) fn folder_path(&self, key: &TenantKey, folder: &str) -> ObjectPath {
        self.objects().path(&format!("{}/{folder}", key.object_path()))
    }

    /// A tenant without a head has no objects. Others may have been made since it was looked for, so it is looked for again.
    pub(crate) async fn read_head(&self, key: &TenantKey) -> Result<Option<(Head, Found)>> {
        if let Some(found) = self.find_head(key).await? {
            return Ok(Some((Head::parse(key, &found.bytes)?, found)));
        }
        let found = self.objects().list(&self.tenant_path(key), None, OBJECTS_LOOKED_AT).await?;
        if !found.iter().any(|meta| is_of_tenant(&meta.location)) {
            return Ok(None);
        }
        match self.find_head(key).await? {
            Some(found) => Ok(Some((Head::parse(key, &found.bytes)?, found))),
            None => Err(TenantError::corrupt(key, LOST_HEAD)),
        }
    }

    pub(crate) async fn find_head(&self, key: &TenantKey) -> Result<Option<Found>> {
        self.objects().get(&self.head_path(key), MAX_HEAD_BYTES).await
    }

    /// The head of a tenant. `None` if the tenant does not exist: no host ever had it, or it was deleted
    /// and its objects were removed. [`Head::deletion`] tells that it is being deleted.
    ///
    /// # Errors
    /// [`TenantError::Corrupt`], [`TenantError::NewerFormat`], [`TenantError::Unavailable`].
    pub async fn head(&self, key: &TenantKey) -> Result<Option<Head>> {
        let head = self.read_head(key).await?.map(|(head, _)| head);
        Ok(head.filter(|head| head.deletion.as_ref().is_none_or(|deletion| !deletion.is_done())))
    }

    /// The snapshots that can be restored, the oldest first and the current one last.
    ///
    /// # Errors
    /// As [`Remote::head`].
    pub async fn history(&self, key: &TenantKey) -> Result<Vec<SnapshotRef>> {
        Ok(self.head(key).await?.map(|head| head.snapshots().cloned().collect()).unwrap_or_default())
    }

    /// Downloads a snapshot to the file `into`, and makes sure that it is whole: not more than `max_bytes`, of the size
    /// and the hash that the head says, and of the size that the database's own header says. The file is synced; putting it
    /// into its place is the caller's. After an error there is no file. Blocks of zeros take no disk.
    ///
    /// # Errors
    /// [`TenantError::Corrupt`] where the snapshot is missing, altered, too large or not a SQLite database,
    /// [`TenantError::Unavailable`], [`TenantError::DiskFull`] if it would take the last of the disk, and
    /// [`TenantError::File`] where `into` can't be written.
    pub async fn fetch(
        &self,
        key: &TenantKey,
        snapshot: &SnapshotRef,
        into: &Path,
        max_bytes: u64,
    ) -> Result<()> {
        let path = self.folder_path(key, &format!("snapshots/{}", snapshot.name));
        snapshot_transfer::fetch(self.objects(), key, &path, snapshot, into, max_bytes).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let wrong = [
            RemoteOptions { lease_ttl: Duration::ZERO, ..RemoteOptions::default() },
            RemoteOptions { lease_margin: Duration::from_secs(8), ..RemoteOptions::default() },
            RemoteOptions { keep_for: Duration::from_secs(1), ..RemoteOptions::default() },
            RemoteOptions { attempts: 0, ..RemoteOptions::default() },
        ];
        for options in wrong {
            let made = Remote::new(Arc::new(InMemory::new()), ObjectPath::default(), options);
            assert!(matches!(made, Err(TenantError::InvalidArgument(_))));
        }
    }
}
