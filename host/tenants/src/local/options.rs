//! Options of the tenants of a host.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{Clock, EventSink, RatedEvents};
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;

use crate::dsn::{Durability, Opened, TenantsDsn};
use crate::error::{Result, TenantError};
use crate::local::tenants::Tenants;
use crate::remote::RemoteOptions;

/// The options of the half that keeps open databases on this host.
#[derive(Clone, Debug)]
pub(crate) struct LocalOptions {
    pub(crate) capacity: usize,
    pub(crate) idle: Option<Duration>,
    pub(crate) checkpoint_writes: u64,
    pub(crate) checkpoint_interval: Duration,
    pub(crate) durability: Durability,
    pub(crate) lease_wait: Duration,
    pub(crate) room_wait: Duration,
    pub(crate) sweep_interval: Option<Duration>,
    pub(crate) keep_copies: bool,
    pub(crate) quota_bytes: Option<u64>,
}

/// Builds the [`Tenants`] of a host.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use std::time::Duration;
/// use larder_tenants::{Durability, Tenants};
///
/// # let folder = tempfile::tempdir()?;
/// # let cache = folder.path();
/// let objects = Arc::new(object_store::memory::InMemory::new());
/// let tenants = Tenants::builder(objects)
///     .cache_folder(cache)
///     .durability(Durability::Object)
///     .checkpoint_interval(Duration::from_secs(30))
///     .open()
///     .await?;
/// tenants.close().await?;
/// # Ok(()) }
/// ```
pub struct TenantsBuilder {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: ObjectPath,
    pub(crate) cache: PathBuf,
    pub(crate) local: LocalOptions,
    pub(crate) remote: RemoteOptions,
    pub(crate) events: Arc<dyn EventSink>,
}

impl TenantsBuilder {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        let local = LocalOptions {
            capacity: 1_000,
            idle: Some(Duration::from_secs(5 * 60)),
            checkpoint_writes: 100,
            checkpoint_interval: Duration::from_secs(60),
            durability: Durability::Local,
            lease_wait: Duration::from_secs(5),
            room_wait: Duration::from_secs(10),
            sweep_interval: Some(Duration::from_secs(60)),
            keep_copies: false,
            quota_bytes: None,
        };
        Self {
            store,
            prefix: ObjectPath::default(),
            cache: PathBuf::from("larder-cache"),
            local,
            remote: RemoteOptions::default(),
            events: Arc::new(RatedEvents::default()),
        }
    }

    /// Creates a builder with the settings of a data-source name.
    ///
    /// The capacity, the cache folder and the other settings that a data-source name cannot have
    /// keep their defaults.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`](larder_core::Error::InvalidArgument) if this build does not
    ///   support the object store, or the settings in the environment are invalid.
    /// - [`Error::NotFound`](larder_core::Error::NotFound) if the folder does not exist and
    ///   `create=no` is set.
    /// - [`Error::Unavailable`](larder_core::Error::Unavailable) if the folder cannot be used.
    pub fn from_dsn(dsn: &TenantsDsn) -> larder_core::Result<Self> {
        let Opened { store, multipart } = dsn.open()?;
        let mut builder =
            Self::new(store).multipart_store(multipart).prefix(dsn.prefix.clone()).durability(dsn.durability);
        if let Some(writes) = dsn.checkpoint_writes {
            builder = builder.checkpoint_writes(writes);
        }
        if let Some(interval) = dsn.checkpoint_interval {
            builder = builder.checkpoint_interval(interval);
        }
        if let Some(ttl) = dsn.lease_ttl {
            builder = builder.lease_ttl(ttl);
        }
        if let Some(wait) = dsn.lease_wait {
            builder = builder.lease_wait(wait);
        }
        if let Some(keep_for) = dsn.keep_for {
            builder.remote.keep_for = keep_for;
        }
        if let Some(bytes) = dsn.max_database {
            builder = builder.max_database(bytes);
        }
        Ok(builder)
    }

    /// The path in the object store below which tenants are kept. Default: the root.
    pub fn prefix(mut self, prefix: ObjectPath) -> Self {
        self.prefix = prefix;
        self
    }

    /// The folder for open databases. Default: `larder-cache` in the working directory.
    ///
    /// Only one process may use the folder at a time.
    pub fn cache_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// The most tenants that are open at once, at least 1. Default: 1,000.
    ///
    /// To open another one, the host writes the least recently used tenant back and closes it.
    pub fn capacity(mut self, tenants: usize) -> Self {
        self.local.capacity = tenants;
        self
    }

    /// How long a tenant stays open that is not in use. Default: 5 minutes.
    ///
    /// With `None`, it stays open until the capacity is needed.
    pub fn idle(mut self, idle: Option<Duration>) -> Self {
        self.local.idle = idle;
        self
    }

    /// The number of commits after which a tenant is written back. Default: 100.
    pub fn checkpoint_writes(mut self, writes: u64) -> Self {
        self.local.checkpoint_writes = writes;
        self
    }

    /// The longest time from a commit until the tenant is written back. Default: 60 seconds.
    ///
    /// With [`Durability::Local`], the commits of this interval are what the loss of the disk can
    /// lose.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.local.checkpoint_interval = interval;
        self
    }

    /// The bytes of keys and values that each tenant's database may hold. Default: no limit.
    ///
    /// See [`StoreBuilder::quota_bytes`].
    ///
    /// [`StoreBuilder::quota_bytes`]: larder_core::StoreBuilder::quota_bytes
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.local.quota_bytes = Some(bytes);
        self
    }

    /// The largest database file of a tenant, in bytes. Default: 16 GiB.
    ///
    /// A larger file is neither downloaded nor uploaded. Opening it fails with
    /// [`TenantError::Corrupt`], and writing it back with [`TenantError::InvalidArgument`]. Set
    /// [`TenantsBuilder::quota_bytes`] well below this size.
    pub fn max_database(mut self, bytes: u64) -> Self {
        self.remote.max_snapshot_bytes = bytes;
        self
    }

    /// What an acknowledged commit survives. Default: [`Durability::Local`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.local.durability = durability;
        self
    }

    /// How long a lease is valid without a renewal.
    ///
    /// Default: 15 seconds, with a margin of 2.
    ///
    /// Other hosts wait this long after a host has died. Each open tenant writes its head every
    /// third of this time. The margin is an eighth of it, at most 2 seconds.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.remote.lease_ttl = ttl;
        self.remote.lease_margin = (ttl / 8).min(Duration::from_secs(2));
        self
    }

    /// How long opening a tenant waits for another host's lease. Default: 5 seconds.
    pub fn lease_wait(mut self, wait: Duration) -> Self {
        self.local.lease_wait = wait;
        self
    }

    /// Sets the lease wait so that the lease of a host that died expires meanwhile.
    ///
    /// Use it for a short-lived process: how long it has seen a lease unchanged is lost when it
    /// ends. It assumes that other hosts use the same time to live.
    pub fn outwait_lease(self) -> Self {
        let RemoteOptions { lease_ttl, lease_margin, .. } = self.remote;
        self.lease_wait(lease_ttl + lease_margin + Duration::from_secs(2))
    }

    /// How long opening a tenant waits if all open tenants are in use.
    ///
    /// Default: 10 seconds.
    pub fn room_wait(mut self, wait: Duration) -> Self {
        self.local.room_wait = wait;
        self
    }

    /// How often expired rows of an open tenant are removed. Default: every minute.
    ///
    /// With `None`, they are not removed at intervals.
    pub fn sweep_interval(mut self, interval: Option<Duration>) -> Self {
        self.local.sweep_interval = interval;
        self
    }

    /// Whether databases of closed tenants stay in the cache folder. Default: `false`.
    ///
    /// The next process that opens the folder reuses such a database, unless another host had the
    /// tenant since.
    pub fn keep_copies(mut self, keep: bool) -> Self {
        self.local.keep_copies = keep;
        self
    }

    /// Replaces all options of object storage.
    ///
    /// A store set with [`TenantsBuilder::multipart_store`] stays, unless `options` has one.
    pub fn remote_options(mut self, options: RemoteOptions) -> Self {
        let multipart = options.multipart.clone().or(self.remote.multipart);
        self.remote = options.multipart(multipart);
        self
    }

    /// The same object store as a [`MultipartStore`], to retry single parts of an upload.
    ///
    /// Default: `None`.
    ///
    /// `AmazonS3`, `MicrosoftAzure`, `GoogleCloudStorage`, `InMemory` and
    /// [`FolderStore`](crate::FolderStore) implement it. Without it, an upload whose part fails
    /// starts again with its first part. [`TenantsBuilder::from_dsn`] sets it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use larder_tenants::Tenants;
    /// let store = Arc::new(object_store::memory::InMemory::new());
    /// let builder = Tenants::builder(store.clone()).multipart_store(store);
    /// ```
    pub fn multipart_store(mut self, store: Arc<dyn MultipartStore>) -> Self {
        self.remote.multipart = Some(store);
        self
    }

    /// The clock for times to live of rows. Default: the system clock.
    ///
    /// Snapshots have the times of the object storage, and leases use tokio's monotonic clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.remote.clock = clock;
        self
    }

    /// The sink for events of background work. Default: [`tracing`].
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Self {
        self.events = events;
        self
    }

    /// Locks the cache folder, probes the object storage and starts background tasks.
    ///
    /// Call this within a tokio runtime.
    ///
    /// # Errors
    /// - [`TenantError::NoConditions`] if the object storage does not honour conditional writes.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::CacheInUse`] if another process is using the cache folder.
    /// - [`TenantError::OtherLocation`] if the cache folder belongs to another location.
    /// - [`TenantError::Corrupt`] if the record of the location is invalid, in the cache folder or
    ///   in object storage.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote that record.
    /// - [`TenantError::File`] if the cache folder cannot be used.
    /// - [`TenantError::InvalidArgument`] if an option is invalid, or the process may not open as
    ///   many files as the capacity needs.
    pub async fn open(self) -> Result<Tenants> {
        if self.local.capacity == 0 || self.local.checkpoint_writes == 0 {
            return Err(TenantError::invalid_argument(
                "the capacity and `checkpoint_writes` must be at least 1",
            ));
        }
        Tenants::open(self).await
    }
}
