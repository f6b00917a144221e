//! Snapshots that are small in object storage and large on disk.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host::{World, count, get_in, put_in};
use larder_tenants::faults::{FaultyStore, Operation, set_disk_space};
use larder_tenants::{SnapshotRef, TenantError, Tenants};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use support::{Files, NO_WAIT, database, holder, key, publish, random_bytes, remote};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The beginning of a database of `bytes`, in pages of 512 bytes.
fn header(bytes: u64) -> Vec<u8> {
    let mut header = database([])[..512].to_vec();
    header[28..32].copy_from_slice(&u32::try_from(bytes / 512).unwrap().to_be_bytes());
    header
}

/// A beginning followed by zeros, compressed. A zstd file is a sequence of frames.
fn bomb(beginning: &[u8], bytes: u64) -> Vec<u8> {
    let zeros = zstd::encode_all(vec![0; 16 << 20].as_slice(), 3).unwrap();
    let rest = bytes - beginning.len() as u64;
    let mut packed = zstd::encode_all(beginning, 3).unwrap();
    for _ in 0..rest / (16 * MIB) {
        packed.extend(&zeros);
    }
    packed.extend(zstd::encode_all(vec![0; (rest % (16 * MIB)) as usize].as_slice(), 3).unwrap());
    packed
}

fn sha256(beginning: &[u8], bytes: u64) -> String {
    let (mut hash, zeros) = (Sha256::new_with_prefix(beginning), vec![0; 1 << 20]);
    let mut rest = bytes - beginning.len() as u64;
    while rest > 0 {
        let piece = rest.min(MIB);
        hash.update(&zeros[..piece as usize]);
        rest -= piece;
    }
    hex::encode(hash.finalize())
}

/// Puts an object at the path of a snapshot with this hash. Returns a reference that a head could
/// have.
async fn put(
    store: &dyn ObjectStore,
    folder: &str,
    sha256: &str,
    bytes: u64,
    packed: Vec<u8>,
) -> SnapshotRef {
    let name = format!("{sha256}-{}.zst", "0".repeat(32));
    let compressed_bytes = packed.len() as u64;
    store.put(&ObjectPath::from(format!("{folder}/snapshots/{name}")), packed.into()).await.unwrap();
    let sha256 = sha256.to_string();
    SnapshotRef { name, bytes, compressed_bytes, sha256, taken_at: 0, generation: 1, covers: 0, version: 0 }
}

fn corrupt(error: TenantError) -> String {
    let TenantError::Corrupt { reason, .. } = error else { panic!("{error}") };
    reason
}

const OF_ANN: &str = "pre/fix/acme/users/ann.db";

#[tokio::test]
async fn a_bomb_that_is_not_a_database_of_its_size_is_refused_at_its_first_bytes() {
    let (store, files) = (Arc::new(InMemory::new()), Files::new());
    let remote = remote(store.clone());
    let any = "ab".repeat(32);
    let into = files.path("fetched");
    let cases = [
        (vec![0; 512], "the snapshot is not a SQLite database"),
        (b"SQLite format 3\0".repeat(32), "the snapshot is not a SQLite database"),
        (
            header(8 * GIB),
            "the database has 8589934592 bytes according to its header, but 17179869184 according to the head",
        ),
    ];
    for (beginning, expected) in cases {
        let packed = bomb(&beginning, 16 * GIB);
        assert!((packed.len() as u64) < 2 * MIB);
        let snapshot = put(&*store, OF_ANN, &any, 16 * GIB, packed).await;
        let error = remote.fetch(&key(), &snapshot, &into, 16 * GIB).await.unwrap_err();
        assert_eq!(corrupt(error), expected);
        let error = remote.fetch(&key(), &snapshot, &into, 16 * GIB - 1).await.unwrap_err();
        assert_eq!(corrupt(error), "the snapshot has 17179869184 bytes, and max_database allows 17179869183");
        assert!(files.names().is_empty());
    }
}

#[tokio::test]
async fn zeros_take_no_disk_and_the_file_is_as_it_was() {
    const BYTES: u64 = 256 * MIB;
    let (store, files) = (Arc::new(InMemory::new()), Files::new());
    let remote = remote(store.clone());
    let beginning = header(BYTES);
    let into = files.path("fetched");
    let hash = sha256(&beginning, BYTES);
    let snapshot = put(&*store, OF_ANN, &hash, BYTES, bomb(&beginning, BYTES)).await;
    remote.fetch(&key(), &snapshot, &into, GIB).await.unwrap();
    let file = std::fs::metadata(&into).unwrap();
    assert_eq!(file.len(), BYTES);
    assert!(file.blocks() * 512 <= 64 << 10, "{} blocks", file.blocks());
    let content = std::fs::read(&into).unwrap();
    assert!(content[..512] == beginning && content[512..].iter().all(|byte| *byte == 0));
}

/// A tenant with one intact snapshot, and with objects that only look like one.
#[tokio::test]
async fn a_repair_counts_bombs_as_damaged_and_spends_no_disk_on_them() {
    let world = World::new();
    let a = world.host("a").await;
    put_in(&a, &key(), "a", "1").await;
    a.close().await.unwrap();
    let folder = "acme/users/ann.db";
    let large = header(1 << 40);
    let claims = [(vec![0; 512], GIB), (header(64 * MIB), 64 * MIB), (header(64 * MIB), GIB), (large, GIB)];
    for (beginning, bytes) in claims {
        // Only the one that is read to its end needs the right hash.
        let hash = if bytes == 64 * MIB { sha256(&beginning, bytes) } else { hash_of(&beginning, bytes) };
        put(&world.objects, folder, &hash, bytes, bomb(&beginning, bytes)).await;
    }
    world.objects.delete(&ObjectPath::from(format!("{folder}/head.json"))).await.unwrap();
    let b = world.builder("b").max_database(GIB).open().await.unwrap();
    let planned = b.remote().plan_repair(&key(), b.cache()).await.unwrap();
    let mut reasons: Vec<_> = planned.damaged.into_iter().map(|(_, error)| corrupt(error)).collect();
    reasons.sort();
    assert_eq!(
        reasons,
        [
            "the file is not an intact SQLite database",
            "the snapshot has 1099511627776 bytes, and max_database allows 1073741824",
            "the snapshot is longer than its header says",
            "the snapshot is not a SQLite database",
        ]
    );
    assert_eq!(std::fs::read_dir(world.cache("b").join(".temporary")).unwrap().count(), 0);
    let planned = b.remote().plan_repair(&key(), b.cache()).await.unwrap();
    b.remote().repair(&key(), &planned).await.unwrap();
    assert_eq!(get_in(&b, &key(), "a").await.as_deref(), Some("1"));
}

/// A unique object name for what the object claims to be.
fn hash_of(beginning: &[u8], bytes: u64) -> String {
    let hash = Sha256::new_with_prefix(beginning).chain_update(bytes.to_be_bytes()).finalize();
    hex::encode(hash)
}

#[tokio::test]
async fn a_database_that_is_larger_than_allowed_is_refused_and_opened_with_a_larger_bound() {
    let world = World::new();
    let a = world.host("a").await;
    put_in(&a, &key(), "a", "1").await;
    a.close().await.unwrap();
    let open =
        async |name, bytes| -> Tenants { world.builder(name).max_database(bytes).open().await.unwrap() };
    let b = open("b", 20_000).await;
    let reason = corrupt(b.get(&key()).await.unwrap_err());
    assert!(reason.ends_with("and max_database allows 20000"), "{reason}");
    b.close().await.unwrap();
    assert_eq!(count(&open("c", MIB).await.get(&key()).await.unwrap()).await, 1);
}

fn set_space(root: &Path, free: u64, total: u64) {
    set_disk_space(root, move || [free, total]);
}

#[tokio::test]
async fn a_snapshot_that_would_take_the_last_of_the_disk_is_not_downloaded() {
    let (store, files) = (FaultyStore::new(Arc::new(InMemory::new())), Files::new());
    let remote = remote(Arc::new(store.clone()));
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let snapshot = publish(&lease, &files, random_bytes(1 << 20, 1)).await;
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("fetched");
    // 2 GiB of 200 stay reserved.
    let total = 200 * GIB;
    set_space(folder.path(), 2 * GIB + snapshot.bytes - 1, total);
    let gets = store.calls(Operation::Get);
    let error = remote.fetch(&key(), &snapshot, &into, GIB).await.unwrap_err();
    let TenantError::DiskFull { folder: full, needed, free, reserve } = &error else { panic!("{error}") };
    assert_eq!(Path::new(full), folder.path());
    assert_eq!((*needed, *free, *reserve), (snapshot.bytes, 2 * GIB + snapshot.bytes - 1, 2 * GIB));
    assert!(error.to_string().contains("1049088 bytes are needed"), "{error}");
    let told = larder_core::Error::from(error);
    assert!(matches!(told, larder_core::Error::Unavailable { .. }), "{told}");
    assert!(!told.to_string().contains(full_path(folder.path())), "{told}");
    assert_eq!((store.calls(Operation::Get), into.exists()), (gets, false));
    set_space(folder.path(), 2 * GIB + snapshot.bytes, total);
    remote.fetch(&key(), &snapshot, &into, GIB).await.unwrap();
}

fn full_path(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

/// Other downloads and other programs use space too.
#[tokio::test]
async fn a_download_ends_when_the_disk_becomes_full_meanwhile() {
    let (store, files) = (FaultyStore::new(Arc::new(InMemory::new())), Files::new());
    let remote = remote(Arc::new(store.clone()));
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let snapshot = publish(&lease, &files, random_bytes(40 << 20, 1)).await;
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("fetched");
    let looks = Arc::new(AtomicU64::new(0));
    let counted = looks.clone();
    set_disk_space(folder.path(), move || {
        // The free space before the download, at the header and after 16 MiB.
        let is_full = counted.fetch_add(1, Ordering::Relaxed) >= 3;
        [if is_full { GIB } else { 10 * GIB }, 100 * GIB]
    });
    let error = remote.fetch(&key(), &snapshot, &into, GIB).await.unwrap_err();
    let TenantError::DiskFull { needed, .. } = error else { panic!("{error}") };
    // After 32 MiB.
    assert!(needed < 10 * MIB && needed > 7 * MIB, "{needed}");
    assert_eq!((looks.load(Ordering::Relaxed), into.exists()), (4, false));
}

#[tokio::test]
async fn an_open_tenant_of_a_full_disk_goes_on_and_another_is_not_opened() {
    let world = World::new();
    let bob = "acme/users/bob".parse().unwrap();
    let a = world.host("a").await;
    put_in(&a, &key(), "a", "1").await;
    put_in(&a, &bob, "b", "2").await;
    a.close().await.unwrap();
    let b = world.host("b").await;
    let tenant = b.get(&key()).await.unwrap();
    let root = b.cache().database(&key()).ancestors().nth(3).unwrap().to_path_buf();
    set_space(&root, GIB, 100 * GIB);
    let error = b.get(&bob).await.unwrap_err();
    assert!(matches!(error, TenantError::DiskFull { free: GIB, reserve: GIB, .. }), "{error}");
    host::put(&tenant, "a", "2").await.unwrap();
    assert_eq!(b.remote().head(&bob).await.unwrap().unwrap().lease, None);
    set_space(&root, 10 * GIB, 100 * GIB);
    assert_eq!(get_in(&b, &bob, "b").await.as_deref(), Some("2"));
}
