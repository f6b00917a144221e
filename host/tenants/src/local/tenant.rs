//! An open tenant, as its users see it.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{Error, OpenSnapshots, Store};
use parking_lot::{Mutex, MutexGuard};

use crate::key::TenantKey;
use crate::local::engine::SharedEngine;
use crate::local::resident::Resident;
use crate::local::tenant_entry::Pin;
use crate::local::tenants::Tenants;

/// A tenant that is open on this host.
///
/// It stays open for at least as long as this value, or a store or backend made from it, exists.
#[derive(Clone)]
pub struct Tenant {
    resident: Arc<Resident>,
    pin: Arc<Pin>,
}

impl Tenant {
    pub(crate) fn new(resident: Arc<Resident>, pin: Pin) -> Self {
        Self { resident, pin: Arc::new(pin) }
    }

    /// The key of the tenant.
    pub fn key(&self) -> &TenantKey {
        &self.resident.key
    }

    /// The fencing epoch of the lease under which this host has the tenant.
    pub fn epoch(&self) -> u64 {
        self.resident.engine.lease().epoch()
    }

    /// The store of the tenant, which all its users on this host share.
    ///
    /// Do not close it: that closes it for all other users too.
    pub fn store(&self) -> Store {
        self.resident.store.guarded(self.pin.clone())
    }

    /// A backend for a store of the caller's own.
    ///
    /// Closing the backend releases the tenant, and leaves it open for other users.
    pub fn backend(&self) -> TenantBackend {
        self.backend_with(None)
    }

    /// A backend for the only tenant that the caller uses on a host. Closing it writes the tenant
    /// back and closes the host.
    pub(crate) fn backend_closing(&self, host: Tenants) -> TenantBackend {
        self.backend_with(Some(host))
    }

    fn backend_with(&self, host: Option<Tenants>) -> TenantBackend {
        TenantBackend {
            engine: SharedEngine(self.resident.engine.clone()),
            pin: Mutex::new(Some(self.pin.clone())),
            host,
        }
    }
}

impl std::fmt::Debug for Tenant {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tenant").field("key", self.key()).finish_non_exhaustive()
    }
}

/// A backend of one user of an open tenant; see [`Tenant::backend`].
pub struct TenantBackend {
    engine: SharedEngine,
    /// `None` once the backend is closed.
    pin: Mutex<Option<Arc<Pin>>>,
    /// The host that is closed with the backend.
    host: Option<Tenants>,
}

impl TenantBackend {
    fn open(&self) -> larder_core::Result<&SharedEngine> {
        if self.pin().is_some() { Ok(&self.engine) } else { Err(Error::Closed) }
    }

    fn pin(&self) -> MutexGuard<'_, Option<Arc<Pin>>> {
        self.pin.lock()
    }
}

#[async_trait]
impl Backend for TenantBackend {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.engine.attach(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> larder_core::Result<Box<dyn Snapshot>> {
        self.open()?.snapshot(options).await
    }

    async fn commit(&self, commit: Arc<Commit>) -> larder_core::Result<Committed> {
        self.open()?.commit(commit).await
    }

    async fn stored_bytes(&self) -> larder_core::Result<u64> {
        self.open()?.stored_bytes().await
    }

    async fn recount(&self) -> larder_core::Result<u64> {
        self.open()?.recount().await
    }

    async fn sweep(&self, options: SweepOptions) -> larder_core::Result<Swept> {
        self.open()?.sweep(options).await
    }

    async fn load_record(&self, key: &RecordKey) -> larder_core::Result<Option<StoredRecord>> {
        self.open()?.load_record(key).await
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> larder_core::Result<()> {
        self.open()?.write_record(write).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> larder_core::Result<Vec<RecordKey>> {
        self.open()?.list_records(after, max).await
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> larder_core::Result<Vec<RecordKey>> {
        self.open()?.due_records(now, max).await
    }

    async fn ping(&self) -> larder_core::Result<()> {
        self.open()?.ping().await
    }

    async fn close(&self) {
        let pin = self.pin().take();
        drop(pin);
        if let Some(host) = &self.host {
            host.close_or_log().await;
        }
    }
}
