//! Tenants in several kinds of object storage. Each test bed is made when its first case runs.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use larder_suite::{Scratch, TenantsTestBed, TestBed};
use larder_tenants::{Durability, FolderStore};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::seaweed::Seaweed;

/// The kind of object storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objects {
    Memory,
    Folder,
    S3,
}

/// The storage that test beds share, kept for as long as the test beds exist.
#[derive(Default)]
pub(crate) struct SharedStorage {
    /// The S3 store, or why the server did not start. It is tried once.
    s3: OnceCell<Result<Arc<dyn ObjectStore>, String>>,
    server: Arc<Mutex<Option<Seaweed>>>,
    folder: Mutex<Option<TempDir>>,
}

impl SharedStorage {
    /// Stops the server, if one was started, and removes the folder.
    pub(crate) fn remove(&self) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn store(&self, objects: Objects) -> Result<Arc<dyn ObjectStore>> {
        match objects {
            Objects::Memory => Ok(Arc::new(InMemory::new())),
            Objects::Folder => {
                let folder = tempfile::tempdir()?;
                let store = FolderStore::open(folder.path())?;
                *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
                Ok(Arc::new(store))
            }
            Objects::S3 => {
                let started = self.s3.get_or_init(|| start(self.server.clone())).await;
                started.clone().map_err(|reason| anyhow!(reason))
            }
        }
    }
}

async fn start(running: Arc<Mutex<Option<Seaweed>>>) -> Result<Arc<dyn ObjectStore>, String> {
    // Seaweed panics if it does not start. The panic ends this task, so every case gets the reason,
    // not only the first.
    let starting = tokio::spawn(async move {
        let server = tokio::task::spawn_blocking(Seaweed::start).await?;
        let store = server.store();
        server.wait_until_ready(&store).await;
        *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok::<_, tokio::task::JoinError>(store)
    });
    starting.await.and_then(|started| started).map_err(|error| format!("cannot start the S3 server: {error}"))
}

/// One host with a tenant for each case. The host probes its object storage when it opens, which
/// takes longer than a case on some servers.
pub(crate) struct LazyTenants {
    objects: Objects,
    durability: Durability,
    storage: Arc<SharedStorage>,
    test_bed: OnceCell<Result<TenantsTestBed, String>>,
}

impl LazyTenants {
    pub(crate) fn new(objects: Objects, durability: Durability, storage: &Arc<SharedStorage>) -> Arc<Self> {
        Arc::new(Self { objects, durability, storage: storage.clone(), test_bed: OnceCell::new() })
    }

    async fn make(&self) -> Result<TenantsTestBed> {
        let store = self.storage.store(self.objects).await?;
        // Test beds of one store differ in their prefix.
        let prefix = ObjectPath::from(format!("{:?}", self.durability));
        TenantsTestBed::on(store, prefix, self.durability).await
    }
}

#[async_trait]
impl TestBed for LazyTenants {
    fn name(&self) -> &'static str {
        "tenants"
    }

    async fn scratch(&self) -> Result<Box<dyn Scratch>> {
        let make = || async { self.make().await.map_err(|error| format!("{error:#}")) };
        match self.test_bed.get_or_init(make).await {
            Ok(test_bed) => test_bed.scratch().await,
            Err(error) => Err(anyhow!(error.clone())),
        }
    }
}
