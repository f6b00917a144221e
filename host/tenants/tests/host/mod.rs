//! Helpers shared by the tests of whole hosts.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod kill;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_core::{Event, EventSink, Handle, HandleOptions, Limits, Mode, Range, Version};
use larder_tenants::faults::{FaultyStore, replace_cache_folder};
use larder_tenants::{
    FolderStore, Holder, RemoteOptions, Tenant, TenantError, TenantKey, Tenants, TenantsBuilder,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;

pub(crate) fn key(text: &str) -> TenantKey {
    text.parse().unwrap()
}

/// Object storage, and the cache folders of hosts that use it.
pub(crate) struct World {
    pub(crate) objects: FaultyStore,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }

    /// Object storage in a folder, whose files a test may damage.
    pub(crate) fn in_folder() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(FolderStore::open(folder.path().join("objects")).unwrap());
        Self { objects: FaultyStore::new(store), folder }
    }

    pub(crate) fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { objects: FaultyStore::new(store), folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn cache(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A host without background work: no interval ends, and no tenant becomes idle.
    pub(crate) fn builder(&self, name: &str) -> TenantsBuilder {
        self.builder_over(&self.objects, name)
    }

    pub(crate) fn builder_over(&self, objects: &FaultyStore, name: &str) -> TenantsBuilder {
        let options = RemoteOptions::default()
            .call_timeout(Duration::from_millis(500))
            .transfer_timeout(Duration::from_secs(5))
            .attempts(2);
        Tenants::builder(Arc::new(objects.clone()))
            .cache_folder(self.cache(name))
            .remote_options(options)
            .lease_wait(Duration::ZERO)
            .idle(None)
            .checkpoint_writes(1_000_000)
            .checkpoint_interval(Duration::from_secs(3_600))
            .sweep_interval(None)
    }

    pub(crate) async fn host(&self, name: &str) -> Tenants {
        self.builder(name).open().await.unwrap()
    }
}

/// Simulates a crash, except that the lock stays: nothing is sent or released. Copies the cache
/// folder, because this process still has its files open.
pub(crate) async fn crash(world: &World, name: &str, into: &str) {
    copy(&world.cache(name), &world.cache(into));
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    if to.join(".holder").exists() {
        replace_cache_folder(to).unwrap();
    }
}

/// The holder name of a cache folder.
pub(crate) fn holder_of(folder: &Path) -> Holder {
    let text = std::fs::read_to_string(folder.join(".holder")).unwrap();
    Holder::new(text.lines().next().unwrap()).unwrap()
}

pub(crate) fn handle(tenant: &Tenant) -> Handle {
    // If a segment cannot be shipped, the commit must fail for that reason and not because of a
    // timeout.
    let limits = Limits::default().transaction_timeout(Duration::from_secs(300));
    tenant.store().handle(HandleOptions::default().limits(limits))
}

pub(crate) async fn put(tenant: &Tenant, name: &str, value: &str) -> larder_core::Result<()> {
    let mut update = handle(tenant).begin(Mode::Update)?;
    update.put("n".into(), name.into(), value.into())?;
    update.commit().await.map(drop)
}

pub(crate) async fn get(tenant: &Tenant, name: &str) -> larder_core::Result<Option<String>> {
    let value = handle(tenant).begin(Mode::View)?.get("n".into(), name.into()).await?;
    Ok(value.map(|value| String::from_utf8(value).unwrap()))
}

pub(crate) async fn count(tenant: &Tenant) -> usize {
    let mut view = handle(tenant).begin(Mode::View).unwrap();
    let page = view.scan_page("n".into(), Range { keys_only: true, ..Range::default() }, None);
    page.await.unwrap().entries.len()
}

pub(crate) async fn version_of(tenant: &Tenant, row: &str) -> Version {
    let mut view = handle(tenant).begin(Mode::View).unwrap();
    view.get_versioned("n".into(), row.into()).await.unwrap().unwrap().1
}

/// Puts one row, and drops the tenant.
pub(crate) async fn put_in(tenants: &Tenants, name: &TenantKey, row: &str, value: &str) {
    put(&tenants.get(name).await.unwrap(), row, value).await.unwrap();
}

pub(crate) async fn get_in(tenants: &Tenants, name: &TenantKey, row: &str) -> Option<String> {
    get(&tenants.get(name).await.unwrap(), row).await.unwrap()
}

/// Records the events it gets.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    /// The events of this kind of background work, or with this name.
    pub(crate) fn of(&self, what: &str) -> Vec<String> {
        let events = self.0.lock();
        let is_it = |event: &&Event| match event {
            Event::BackgroundFailed { work, .. } => *work == what,
            event => event.name() == what,
        };
        events.iter().filter(is_it).map(|event| format!("{:?}", event.fields())).collect()
    }
}

impl EventSink for Events {
    fn emit(&self, event: Event) {
        self.0.lock().push(event);
    }
}

/// Waits until a condition holds. The limit is longer than any machine needs.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..3_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("timed out waiting for {what}");
}

pub(crate) fn is_lease_held(error: &TenantError) -> bool {
    matches!(error, TenantError::LeaseHeld { .. })
}
