//! Invalid stored data, and full disks.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use host::*;
use larder_core::{Error, HandleOptions, Mode, Store};
use larder_sqlite::{Sqlite, rusqlite};
use larder_tenants::{FolderStore, Holder, Slug, TenantError, TenantKey, Tenants};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

fn ann() -> TenantKey {
    key("acme/users/ann")
}

fn head_path() -> ObjectPath {
    ObjectPath::from("acme/users/ann.db/head.json")
}

async fn bytes_of(world: &World, path: &ObjectPath) -> Vec<u8> {
    world.objects.get(path).await.unwrap().bytes().await.unwrap().to_vec()
}

async fn put_object(world: &World, path: &ObjectPath, bytes: Vec<u8>) {
    world.objects.put(path, bytes.into()).await.unwrap();
}

/// A tenant with one row in object storage that no host has open.
async fn with_a_row(world: &World) {
    let a = world.host("a").await;
    put_in(&a, &ann(), "a", "1").await;
    a.close().await.unwrap();
}

/// Checks that the host has no file of the tenant.
fn is_clean(tenants: &Tenants, world: &World, name: &str) {
    assert_eq!(tenants.cache().tenants().unwrap(), []);
    assert_eq!(tenants.cache().quarantined().unwrap(), []);
    assert_eq!(std::fs::read_dir(world.cache(name).join(".temporary")).unwrap().count(), 0);
    assert_eq!(tenants.resident(), []);
}

fn corrupt(error: &TenantError) -> &str {
    let TenantError::Corrupt { key, reason } = error else { panic!("{error:?}") };
    assert_eq!(key, "acme/users/ann");
    reason
}

#[tokio::test]
async fn a_head_that_is_none_is_refused_and_stays_as_it_is() {
    let world = World::new();
    with_a_row(&world).await;
    let good = bytes_of(&world, &head_path()).await;
    let text = String::from_utf8(good.clone()).unwrap();
    let b = world.host("b").await;
    let cases = [
        (Vec::new(), "the head is not JSON"),
        (b"no json".to_vec(), "the head is not JSON"),
        (good[..good.len() / 2].to_vec(), "the head is not JSON"),
        (text.replace("acme/users/ann", "acme/users/bob").into_bytes(), "the head belongs to another tenant"),
        (text.replace("\"epoch\":", "\"epoc\":").into_bytes(), "the head is malformed"),
        (vec![b' '; 2 << 20], "an object has"),
    ];
    for (bytes, expected) in cases {
        put_object(&world, &head_path(), bytes.clone()).await;
        let error = b.get(&ann()).await.unwrap_err();
        let TenantError::Corrupt { reason, .. } = &error else { panic!("{error:?}") };
        assert!(reason.starts_with(expected), "{reason}");
        assert!(bytes_of(&world, &head_path()).await == bytes);
        is_clean(&b, &world, "b");
    }
    let newer = text.replacen("\"format\":2", "\"format\":7", 1).into_bytes();
    put_object(&world, &head_path(), newer.clone()).await;
    let error = b.get(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::NewerFormat { format: 7, supported: 2, .. }), "{error}");
    assert!(bytes_of(&world, &head_path()).await == newer);
    // The first format lacks none of this head's fields.
    let first = text.replacen("\"format\":2", "\"format\":1", 1).into_bytes();
    assert_ne!(first, good);
    put_object(&world, &head_path(), first).await;
    assert_eq!(get_in(&b, &ann(), "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_snapshot_that_is_missing_altered_or_cut_is_refused_and_the_lease_is_given_back() {
    let world = World::new();
    with_a_row(&world).await;
    let b = world.host("b").await;
    let snapshot = b.remote().head(&ann()).await.unwrap().unwrap().snapshot.unwrap();
    let path = ObjectPath::from(format!("acme/users/ann.db/snapshots/{}", snapshot.name));
    let good = bytes_of(&world, &path).await;
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    let other = zstd::encode_all(vec![7; snapshot.bytes as usize].as_slice(), 3).unwrap();
    let longer = zstd::encode_all(vec![7; snapshot.bytes as usize + 1].as_slice(), 3).unwrap();
    let cases = [
        Vec::new(),
        good[..good.len() / 2].to_vec(),
        good[..good.len() - 1].to_vec(),
        altered(2),
        altered(good.len() / 2),
        other,
        longer,
        b"no zstd".to_vec(),
    ];
    let epoch = |head: Option<larder_tenants::Head>| head.unwrap().epoch;
    for (number, bytes) in cases.into_iter().enumerate() {
        put_object(&world, &path, bytes.clone()).await;
        let before = b.remote().head(&ann()).await.unwrap();
        corrupt(&b.get(&ann()).await.unwrap_err());
        let after = b.remote().head(&ann()).await.unwrap();
        assert_eq!(after.as_ref().unwrap().lease, None, "case {number}");
        assert_eq!(after.as_ref().unwrap().snapshot.as_ref(), Some(&snapshot), "case {number}");
        assert_eq!(epoch(after), epoch(before) + 1);
        assert!(bytes_of(&world, &path).await == bytes);
        is_clean(&b, &world, "b");
    }
    world.objects.delete(&path).await.unwrap();
    assert_eq!(corrupt(&b.get(&ann()).await.unwrap_err()), "the snapshot that the head names is missing");
    is_clean(&b, &world, "b");
    put_object(&world, &path, good).await;
    assert_eq!(get_in(&b, &ann(), "a").await.as_deref(), Some("1"));
}

/// A database as larder creates it, with this many rows.
async fn database(path: PathBuf, rows: usize) -> PathBuf {
    let store = Store::builder(Sqlite::open(&path, Default::default()).await.unwrap()).build().unwrap();
    for number in 0..rows {
        let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        let value: Vec<u8> = (0..50_000).map(|_| fastrand::u8(..)).collect();
        update.put("n".into(), format!("row {number}").as_str().into(), value).unwrap();
        update.commit().await.unwrap();
    }
    store.close().await;
    path
}

#[tokio::test]
async fn a_snapshot_that_is_no_database_of_larder_is_refused_and_a_good_one_is_taken_again() {
    let world = World::new();
    let good = database(world.cache("good.db"), 4).await;
    let bytes = std::fs::read(&good).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = world.cache(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let another = write("another.db", b"");
    let connection = rusqlite::Connection::open(&another).unwrap();
    connection.execute_batch("PRAGMA application_id = 7; CREATE TABLE t (x)").unwrap();
    drop(connection);
    let random: Vec<u8> = (0..100_000).map(|_| fastrand::u8(..)).collect();
    let mut damaged = bytes.clone();
    damaged[4096..8192].fill(0xff);
    let files = [
        another,
        write("half.db", &bytes[..bytes.len() / 2 / 4096 * 4096]),
        write("torn.db", &bytes[..bytes.len() / 2 + 17]),
        write("random.db", &random),
        write("damaged.db", &damaged),
        write("short.db", b"SQLite"),
    ];
    let b = world.host("b").await;
    let publisher = Holder::new("publisher").unwrap();
    let publish = async |file: PathBuf| {
        let lease = b.remote().acquire(&ann(), &publisher, Duration::ZERO).await.unwrap();
        let published = lease.publish(&file, 0).await;
        lease.release().await.unwrap();
        published
    };
    let empty = publish(write("empty.db", b"")).await.unwrap_err();
    assert!(matches!(empty, TenantError::InvalidArgument(_)), "{empty}");
    for file in files {
        let published = publish(file.clone()).await.unwrap();
        corrupt(&b.get(&ann()).await.unwrap_err());
        let head = b.remote().head(&ann()).await.unwrap().unwrap();
        assert_eq!((head.snapshot.as_ref(), head.lease), (Some(&published), None), "{file:?}");
        is_clean(&b, &world, "b");
    }
    publish(good).await.unwrap();
    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 4);
}

#[tokio::test]
async fn a_snapshot_of_no_bytes_is_refused() {
    let world = World::new();
    with_a_row(&world).await;
    let b = world.host("b").await;
    let good = bytes_of(&world, &head_path()).await;
    let mut head: serde_json::Value = serde_json::from_slice(&good).unwrap();
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let name = format!("{sha256}-{}.zst", "0".repeat(32));
    head["snapshot"]["sha256"] = sha256.into();
    head["snapshot"]["name"] = name.as_str().into();
    head["snapshot"]["bytes"] = 0.into();
    let packed = zstd::encode_all([].as_slice(), 3).unwrap();
    put_object(&world, &ObjectPath::from(format!("acme/users/ann.db/snapshots/{name}")), packed).await;
    put_object(&world, &head_path(), head.to_string().into_bytes()).await;
    corrupt(&b.get(&ann()).await.unwrap_err());
    is_clean(&b, &world, "b");
    put_object(&world, &head_path(), good).await;
    assert_eq!(get_in(&b, &ann(), "a").await.as_deref(), Some("1"));
}

#[test]
fn names_that_could_lead_elsewhere_are_no_tenants() {
    let long = "a".repeat(129);
    for slug in ["..", ".", "", "/", "a/b", "a\0", "Ann", "a.db", "ä", long.as_str()] {
        assert!(matches!(Slug::new(slug), Err(Error::InvalidArgument(_))), "{slug:?}");
        for name in
            [format!("{slug}/org"), format!("acme/users/{slug}"), format!("acme/apps/a/projects/{slug}")]
        {
            assert!(matches!(name.parse::<TenantKey>(), Err(Error::InvalidArgument(_))), "{name:?}");
        }
    }
}

// A full disk.

const FOLDER: &str = "LARDER_TENANTS_FULL_DISK_FOLDER";

/// Limits the size of all files of this process, as on a full disk.
fn limit_files(bytes: Option<u64>) {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, bytes.unwrap_or(hard), hard).unwrap();
}

/// A process of its own, because the limit applies to the whole process.
#[tokio::test]
async fn child_whose_disk_is_full() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    // SAFETY: no handler is installed. The signal is ignored, so that a write returns an error
    // instead.
    unsafe {
        nix::sys::signal::signal(nix::sys::signal::Signal::SIGXFSZ, nix::sys::signal::SigHandler::SigIgn)
    }
    .unwrap();
    let world = World::new();
    let file = database(folder.join("big.db"), 40).await;
    let publisher = Holder::new("publisher").unwrap();
    let lease = world.host("p").await.remote().acquire(&ann(), &publisher, Duration::ZERO).await.unwrap();
    let published = lease.publish(&file, 0).await.unwrap();
    lease.release().await.unwrap();
    let a = world.host("a").await;

    // While a database is downloaded.
    limit_files(Some(1 << 20));
    let error = a.get(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::File { .. }), "{error:?}");
    let head = a.remote().head(&ann()).await.unwrap().unwrap();
    assert_eq!((head.snapshot.as_ref(), head.lease), (Some(&published), None));
    is_clean(&a, &world, "a");
    limit_files(None);
    let tenant = a.get(&ann()).await.unwrap();
    assert_eq!(count(&tenant).await, 40);

    // While it is written back.
    put(&tenant, "more", "1").await.unwrap();
    limit_files(Some(1 << 20));
    let error = a.checkpoint(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::Database { .. } | TenantError::File { .. }), "{error:?}");
    assert_eq!(a.remote().head(&ann()).await.unwrap().unwrap().snapshot, Some(published));
    assert_eq!(get(&tenant, "more").await.unwrap().as_deref(), Some("1"));
    drop(tenant);
    a.evict(&ann()).await.unwrap_err();
    assert_eq!(a.resident(), [ann()]);
    assert_eq!(std::fs::read_dir(world.cache("a").join(".temporary")).unwrap().count(), 0);

    // While the next process examines the leftovers of a killed one.
    limit_files(None);
    crash(&world, "a", "left").await;
    limit_files(Some(0));
    let left = world.host("left").await;
    for _ in 0..3 {
        let error = left.get(&ann()).await.unwrap_err();
        assert!(matches!(error, TenantError::File { .. }), "{error:?}");
    }
    limit_files(None);
    let tenant = left.get(&ann()).await.unwrap();
    assert_eq!(get(&tenant, "more").await.unwrap().as_deref(), Some("1"));
    assert_eq!(count(&tenant).await, 41);
    drop(tenant);
    assert_eq!(left.cache().quarantined().unwrap(), []);
    left.close().await.unwrap();
    assert_eq!(count(&world.host("b").await.get(&ann()).await.unwrap()).await, 41);
    println!("all of it");
}

#[test]
fn a_full_disk_is_an_error_that_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_whose_disk_is_full", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("all of it"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Files in the folder that the folder store did not write.
#[tokio::test]
async fn a_file_that_the_folder_store_did_not_write_is_no_head() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(FolderStore::open(folder.path()).unwrap());
    let world = World::over(store);
    with_a_row(&world).await;
    let head = folder.path().join("acme/users/ann.db/head.json");
    let good = std::fs::read(&head).unwrap();
    std::fs::write(&head, &good[10..]).unwrap();
    let b = world.host("b").await;
    let error = b.get(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::Unavailable { .. } | TenantError::Corrupt { .. }), "{error}");
    is_clean(&b, &world, "b");
    std::fs::write(&head, good).unwrap();
    assert_eq!(get_in(&b, &ann(), "a").await.as_deref(), Some("1"));
}
