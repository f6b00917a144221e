//! How a host keeps tenants.

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

/// What the local half is told.
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

/// Sets up [`Tenants`].
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

    /// As a data-source name says.
    ///
    /// # Errors
    /// As [`TenantsDsn::open_store`].
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

    /// Below which path of the object store tenants are kept. Default: its root.
    pub fn prefix(mut self, prefix: ObjectPath) -> Self {
        self.prefix = prefix;
        self
    }

    /// The folder in which databases are while they are open; one process at a time has it. Default: `larder-cache` in
    /// the working folder.
    pub fn cache_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// How many tenants are open at once, 1 at least. Where more are asked for, those that were used the longest ago
    /// are written back and closed. Default: 1,000.
    pub fn capacity(mut self, tenants: usize) -> Self {
        self.local.capacity = tenants;
        self
    }

    /// How long a tenant that nobody has stays open; none for as long as there is room. Default: 5 minutes.
    pub fn idle(mut self, idle: Option<Duration>) -> Self {
        self.local.idle = idle;
        self
    }

    /// After how many commits a tenant is written back. Default: 100.
    pub fn checkpoint_writes(mut self, writes: u64) -> Self {
        self.local.checkpoint_writes = writes;
        self
    }

    /// How long after a commit a tenant is written back at the latest: with durability `local`, this is what a lost disk
    /// can lose. Default: 60 seconds.
    pub fn checkpoint_interval(mut self, interval: Duration) -> Self {
        self.local.checkpoint_interval = interval;
        self
    }

    /// How many bytes each tenant's database may hold, keys and values: [`StoreBuilder::quota_bytes`]. Default: no bound.
    ///
    /// [`StoreBuilder::quota_bytes`]: larder_core::StoreBuilder::quota_bytes
    pub fn quota_bytes(mut self, bytes: u64) -> Self {
        self.local.quota_bytes = Some(bytes);
        self
    }

    /// The largest database of a tenant, in bytes of its file. A larger one is neither downloaded nor uploaded: opening it fails
    /// with [`TenantError::Corrupt`], and writing it back with [`TenantError::InvalidArgument`], so
    /// [`TenantsBuilder::quota_bytes`] should stay well below. Default: 16 GiB.
    pub fn max_database(mut self, bytes: u64) -> Self {
        self.remote.max_snapshot_bytes = bytes;
        self
    }

    /// What a commit survives once it is acknowledged. Default: [`Durability::Local`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.local.durability = durability;
        self
    }

    /// How long a lease holds without being renewed: so long others wait for a host that died. Each open tenant is a
    /// write every third of it. Default: 15 seconds, of which 2 are the margin.
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

    /// Waits for another host's lease for as long as one of these lasts, so that the lease of a host that died is free
    /// before: for a process that would end otherwise, as what it has seen of a lease ends with it.
    pub fn outwait_lease(self) -> Self {
        let RemoteOptions { lease_ttl, lease_margin, .. } = self.remote;
        self.lease_wait(lease_ttl + lease_margin + Duration::from_secs(2))
    }

    /// How long opening a tenant waits where all that are open are in use. Default: 10 seconds.
    pub fn room_wait(mut self, wait: Duration) -> Self {
        self.local.room_wait = wait;
        self
    }

    /// How often expired rows of an open tenant are removed; none for never. Default: every minute.
    pub fn sweep_interval(mut self, interval: Option<Duration>) -> Self {
        self.local.sweep_interval = interval;
        self
    }

    /// Whether the databases of tenants that were written back and closed stay in the cache folder. They are used by the
    /// next process that opens the folder, where no other host had the tenant since. Default: no.
    pub fn keep_copies(mut self, keep: bool) -> Self {
        self.local.keep_copies = keep;
        self
    }

    /// How object storage is used. What [`TenantsBuilder::multipart_store`] set stays, unless `options` has another one.
    pub fn remote_options(mut self, options: RemoteOptions) -> Self {
        let multipart = options.multipart.clone().or(self.remote.multipart);
        self.remote = RemoteOptions { multipart, ..options };
        self
    }

    /// The same object store as a [`MultipartStore`], which `AmazonS3`, `MicrosoftAzure`, `GoogleCloudStorage`, `InMemory` and
    /// [`FolderStore`](crate::FolderStore) are. A part of an upload that fails is then sent again alone. Default: none, so
    /// that such an upload begins again with its first part; a builder [from a data-source name](Self::from_dsn) sets it.
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

    /// What times to live, and the times of snapshots, are measured with. Leases are measured with the machine's own.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.remote.clock = clock;
        self
    }

    /// Who is told of what goes wrong where nobody waits for an answer. Default: `tracing`.
    pub fn events(mut self, events: Arc<dyn EventSink>) -> Self {
        self.events = events;
        self
    }

    /// Locks the cache folder and tries the object storage. It is called within a tokio runtime.
    ///
    /// # Errors
    /// [`TenantError::NoConditions`] where the object storage does not honour conditional writes,
    /// [`TenantError::Unavailable`] where it can't be reached, [`TenantError::CacheInUse`] where another process has
    /// the cache folder, [`TenantError::OtherPlace`] where that is of other tenants, [`TenantError::Corrupt`] where the
    /// note of whose it is can't be read, and [`TenantError::InvalidArgument`] for options that can't be, and where the
    /// process may not open as many files as the capacity needs.
    pub async fn open(self) -> Result<Tenants> {
        if self.local.capacity == 0 || self.local.checkpoint_writes == 0 {
            return Err(TenantError::invalid_argument(
                "the capacity, and the writes after which a tenant is written back, are 1 at least",
            ));
        }
        Tenants::open(self).await
    }
}
