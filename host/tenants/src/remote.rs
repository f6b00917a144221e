//! The tenants in one object store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_core::clock::{Clock, SystemClock, UnixMillis};
use larder_core::option_setters;
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

/// Options for the use of object storage.
#[derive(Clone)]
#[non_exhaustive]
pub struct RemoteOptions {
    /// How long a lease is valid after a renewal.
    pub lease_ttl: Duration,
    /// The safety margin of a lease.
    ///
    /// A holder stops this long before its lease expires, and another host waits this much longer.
    /// It covers clocks that run at different speeds, and the time between a check and the action
    /// that it allows.
    pub lease_margin: Duration,
    /// The timeout of a call that moves little data.
    pub call_timeout: Duration,
    /// The timeout of a call that moves up to 8 MiB.
    pub transfer_timeout: Duration,
    /// How often a call is attempted before it fails, 1 to 100.
    pub attempts: u32,
    /// How long a snapshot is kept after it was superseded.
    pub keep_for: Duration,
    /// The largest database file, in bytes; see
    /// [`TenantsBuilder::max_database`](crate::TenantsBuilder::max_database).
    pub max_snapshot_bytes: u64,
    /// The largest payload of a segment, in bytes.
    pub max_segment_bytes: u64,
    /// The same object store, to retry single parts of an upload.
    ///
    /// With `None`, an upload whose part fails starts again with its first part. See
    /// [`TenantsBuilder::multipart_store`](crate::TenantsBuilder::multipart_store).
    pub multipart: Option<Arc<dyn MultipartStore>>,
    /// The wall clock for times to live of rows.
    ///
    /// Snapshots have the times of the object storage, and leases use tokio's monotonic clock.
    pub clock: Arc<dyn Clock>,
}

option_setters!(RemoteOptions {
    lease_ttl: Duration,
    lease_margin: Duration,
    call_timeout: Duration,
    transfer_timeout: Duration,
    attempts: u32,
    keep_for: Duration,
    max_snapshot_bytes: u64,
    max_segment_bytes: u64,
    multipart: Option<Arc<dyn MultipartStore>>,
    clock: Arc<dyn Clock>,
});

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
    /// The shortest retention. It lasts for several leases, so that a late request cannot hit a
    /// name or position that was freed.
    pub(crate) fn least_keep_for(&self) -> Duration {
        (self.lease_ttl + self.lease_margin) * 4
    }

    fn check(&self) -> Result<()> {
        let wrong = |reason: String| Err(TenantError::InvalidArgument(reason));
        if self.lease_ttl < Duration::from_millis(10) || self.lease_ttl > MAX_LEASE_TTL {
            return wrong(format!(
                "the time to live of a lease must be 10 ms to 1 hour, and not {:?}",
                self.lease_ttl
            ));
        }
        if self.lease_margin * 2 >= self.lease_ttl {
            return wrong(format!(
                "the margin of a lease must be less than half of its time to live of {:?}, and not {:?}",
                self.lease_ttl, self.lease_margin
            ));
        }
        if self.keep_for < self.least_keep_for() {
            return wrong(format!(
                "snapshots must be kept for at least {:?} with these leases, and not {:?}",
                self.least_keep_for(),
                self.keep_for
            ));
        }
        if self.attempts == 0 || self.attempts > 100 {
            return wrong(format!("a call must be attempted 1 to 100 times, and not {}", self.attempts));
        }
        Ok(())
    }
}

/// The tenants below one prefix of an object store. Clones share the same state.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use larder_tenants::{Remote, RemoteOptions};
///
/// let objects = Arc::new(object_store::memory::InMemory::new());
/// let remote = Remote::new(objects, Default::default(), RemoteOptions::default())?;
/// remote.probe().await?;
/// assert!(remote.head(&"acme/users/ann".parse()?).await?.is_none());
/// # Ok(()) }
/// ```
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

/// The most objects that are listed for a tenant without a head.
const OBJECTS_LOOKED_AT: usize = 1_000;

/// Whether an object is a snapshot or a segment.
fn is_of_tenant(path: &ObjectPath) -> bool {
    let is_snapshot = || path.filename().is_some_and(|name| SnapshotRef::upload_of(name).is_some());
    position_of(path).is_some() || is_snapshot()
}

const LOST_HEAD: &str = "its head.json is missing, but other objects of it exist; \
                         run `larder tenants repair` to rebuild it from them";

impl Remote {
    /// Uses the objects below `prefix` of an object store.
    ///
    /// Sends no request; call [`Remote::probe`] to test the store.
    ///
    /// # Errors
    /// [`TenantError::InvalidArgument`] if an option is invalid, or options contradict each other.
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

    /// The options in use.
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

    /// Tests whether the object storage honours the conditional writes that tenants need.
    ///
    /// Call this at startup. It writes a few small objects below `.probe`, and removes them.
    ///
    /// # Errors
    /// - [`TenantError::NoConditions`] if it does not honour conditional writes.
    /// - [`TenantError::Unavailable`] if it cannot be reached.
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

    /// Reads the head of a tenant. `None` if the tenant has no objects. If it has some, the head is
    /// read again, because another host may just have created the tenant.
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

    /// Reads the head of a tenant. `None` if the tenant does not exist.
    ///
    /// A tenant does not exist if no host ever had it, or if it was deleted and purged.
    /// [`Head::deletion`] tells whether it is being deleted.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if the head is invalid, or is missing while other objects exist.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn head(&self, key: &TenantKey) -> Result<Option<Head>> {
        let head = self.read_head(key).await?.map(|(head, _)| head);
        Ok(head.filter(|head| head.deletion.as_ref().is_none_or(|deletion| !deletion.is_done())))
    }

    /// Lists the snapshots that can be restored, oldest first. The current one is last.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if the head is invalid, or is missing while other objects exist.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn history(&self, key: &TenantKey) -> Result<Vec<SnapshotRef>> {
        Ok(self.head(key).await?.map(|head| head.snapshots().cloned().collect()).unwrap_or_default())
    }

    /// Downloads a snapshot into the file `into`, and verifies it.
    ///
    /// The file must have at most `max_bytes`, the size and hash in the head, and the size in its
    /// own SQLite header. It is synced, but not its folder; the caller renames it to its final
    /// path. After an error, the file does not exist. Blocks of zeros become holes.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if the snapshot is missing, altered, too large or not a SQLite
    ///   database.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if the file would fill the disk.
    /// - [`TenantError::File`] if `into` cannot be written.
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
            RemoteOptions::default().lease_ttl(Duration::ZERO),
            RemoteOptions::default().lease_margin(Duration::from_secs(8)),
            RemoteOptions::default().keep_for(Duration::from_secs(1)),
            RemoteOptions::default().attempts(0),
        ];
        for options in wrong {
            let made = Remote::new(Arc::new(InMemory::new()), ObjectPath::default(), options);
            assert!(matches!(made, Err(TenantError::InvalidArgument(_))));
        }
    }
}
