//! Helpers shared by the tests of tenants.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod scenarios;
#[cfg(feature = "s3")]
pub(crate) mod seaweed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_core::clock::MovableClock;
use larder_tenants::faults::FaultyStore;
use larder_tenants::{Holder, Lease, Remote, RemoteOptions, SnapshotRef, TenantKey};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

pub(crate) const TTL: Duration = Duration::from_secs(15);
pub(crate) const MARGIN: Duration = Duration::from_secs(2);
pub(crate) const NO_WAIT: Duration = Duration::ZERO;
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn key() -> TenantKey {
    "acme/users/ann".parse().unwrap()
}

pub(crate) fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

pub(crate) fn path(text: &str) -> ObjectPath {
    ObjectPath::parse(text).unwrap()
}

/// A host, and object storage whose clock the test can move.
pub(crate) fn remote_with_clock(store: Arc<dyn ObjectStore>) -> (Remote, Arc<MovableClock>) {
    let clock = Arc::new(MovableClock::default());
    let options = RemoteOptions::default().lease_ttl(TTL).lease_margin(MARGIN).clock(clock.clone());
    let store = Arc::new(FaultyStore::new(store).with_clock(clock.clone()));
    (Remote::new(store, path("pre/fix"), options).unwrap(), clock)
}

pub(crate) fn remote(store: Arc<dyn ObjectStore>) -> Remote {
    remote_with_clock(store).0
}

/// A folder for the files of a test.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A file with this content and a SQLite header that has the size of the file.
pub(crate) fn database(content: impl AsRef<[u8]>) -> Vec<u8> {
    const PAGE: usize = 512;
    let content = content.as_ref();
    let mut file = vec![0; 100];
    file.extend((content.len() as u64).to_be_bytes());
    file.extend(content);
    let pages = file.len().div_ceil(PAGE);
    file.resize(pages * PAGE, 0);
    file[..16].copy_from_slice(b"SQLite format 3\0");
    file[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    file[28..32].copy_from_slice(&(pages as u32).to_be_bytes());
    file
}

/// The content of such a file.
pub(crate) fn content_of(file: &[u8]) -> Vec<u8> {
    let length = u64::from_be_bytes(file[100..108].try_into().unwrap());
    file[108..][..length as usize].to_vec()
}

/// Publishes a snapshot that covers the whole log.
pub(crate) async fn publish(lease: &Lease, files: &Files, content: impl AsRef<[u8]>) -> SnapshotRef {
    let file = files.write("database", database(content));
    let end = lease.log_end().await.unwrap();
    lease.publish(&file, end).await.unwrap()
}

pub(crate) async fn fetch(
    remote: &Remote,
    snapshot: &SnapshotRef,
) -> larder_core::Result<Vec<u8>, larder_tenants::TenantError> {
    let files = Files::new();
    let into = files.path("fetched");
    let fetched = remote.fetch(&key(), snapshot, &into, 1 << 30).await;
    if fetched.is_err() {
        assert!(files.names().is_empty(), "a failed download left a file");
    }
    fetched.map(|()| content_of(&std::fs::read(into).unwrap()))
}

pub(crate) async fn current(remote: &Remote) -> Vec<u8> {
    let snapshot = remote.head(&key()).await.unwrap().unwrap().snapshot.unwrap();
    fetch(remote, &snapshot).await.unwrap()
}

pub(crate) async fn replayed(lease: &Lease) -> Vec<(u64, Bytes)> {
    let mut replay = lease.replay().await.unwrap();
    let mut payloads = Vec::new();
    while let Some(next) = replay.next().await.unwrap() {
        payloads.push(next);
    }
    payloads
}

pub(crate) async fn payloads(lease: &Lease) -> Vec<Bytes> {
    replayed(lease).await.into_iter().map(|(_, payload)| payload).collect()
}

pub(crate) fn random_bytes(count: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.u8(..)).collect()
}

/// The names of all objects below a folder of the tenant.
pub(crate) async fn objects_in(store: &dyn ObjectStore, folder: &str) -> Vec<String> {
    use futures_util::TryStreamExt;
    let folder = path(&format!("pre/fix/acme/users/ann.db/{folder}"));
    let found: Vec<_> = store.list(Some(&folder)).try_collect().await.unwrap();
    let mut names: Vec<_> = found.iter().map(|meta| meta.location.filename().unwrap().to_string()).collect();
    names.sort();
    names
}

pub(crate) fn write(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}
