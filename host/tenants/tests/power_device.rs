//! Power cuts on a real file system. The cache folder is on ext4 on a loop device, which is copied
//! while a host commits and uploads checkpoints. The copy is what a machine finds after a power cut
//! at that moment.
//!
//! The copy shows a single moment. The host is stopped first, so that only the kernel could still
//! write. The counters of the device tell whether it did so while the file behind the device was
//! copied. If it did, the copy is made again. The copy lacks what the host had written and the
//! kernel had not, such as the last commits of a database that is not synced.
//!
//! The tests need to mount a loop device. If that is not allowed, as in most containers, they are
//! listed as ignored, with the reason.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use host::*;
use larder_core::{Handle, HandleOptions, Limits, Mode, Store, Version};
use larder_tenants::{FolderStore, Remote, RemoteOptions, Tenant, TenantKey, Tenants};
use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object_store::path::Path as ObjectPath;

/// The number of power cuts. Set `LARDER_POWER_CUTS` to override it.
const CUTS: u64 = 3;

/// Long enough that a busy machine renews it in time.
const LEASE: Duration = Duration::from_secs(4);

/// The folders of the child process for its database and its objects.
const CACHE: &str = "LARDER_POWER_CACHE";
const OBJECTS: &str = "LARDER_POWER_OBJECTS";

/// Whether a child process without objects syncs its commits.
const SYNCED: &str = "LARDER_POWER_SYNCED";

fn main() {
    if let Some(folder) = std::env::var_os(CACHE) {
        let folder = Path::new(&folder);
        return runtime().block_on(async {
            match (std::env::var_os(OBJECTS), std::env::var_os(SYNCED)) {
                (Some(objects), _) => commit_until_killed(folder, Path::new(&objects)).await,
                (None, synced) => commit_to_sqlite_until_killed(folder, synchronous(synced.is_some())).await,
            }
        });
    }
    let arguments = Arguments::from_args();
    let can_mount = try_to_mount().inspect_err(|reason| eprintln!("no loop device can be mounted: {reason}"));
    let name = "nothing_that_was_published_is_undone_by_a_power_cut_on_ext4";
    let sqlite = [
        (true, "synced_commits_survive_a_power_cut_on_ext4"),
        (false, "commits_that_are_not_synced_survive_a_power_cut_on_ext4_up_to_one_of_them"),
    ];
    let sqlite =
        sqlite.map(|(is_synced, name)| Trial::test(name, move || Ok(cut_the_power_of_sqlite(is_synced)?)));
    let tenants = Trial::test(name, || Ok(cut_the_power()?));
    let trials = sqlite.into_iter().chain([tenants]).map(|trial| trial.with_ignored_flag(can_mount.is_err()));
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn ann() -> TenantKey {
    key("acme/users/ann")
}

fn cut_the_power() -> Result<(), String> {
    let cuts = cuts();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let (mut random, mut lost, mut behind) = (Rng::with_seed(seed), 0, 0);
    for cut in 0..cuts {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let found = one_cut(folder.path(), &mut random);
        let Found { acknowledged, published, recovered, .. } = found;
        println!(
            "cut {cut}: {acknowledged} commits acknowledged, {published} published, {recovered} recovered"
        );
        lost += found.lost;
        behind += u64::from(found.is_behind);
    }
    println!(
        "{cuts} power cuts: {lost} acknowledged commits were lost, none of them published; {behind} databases were behind their snapshots"
    );
    if lost == 0 { Err("no commit was lost, so the copies prove nothing".to_string()) } else { Ok(()) }
}

fn synchronous(is_synced: bool) -> larder_sqlite::Synchronous {
    if is_synced { larder_sqlite::Synchronous::Full } else { larder_sqlite::Synchronous::Normal }
}

/// A store on a SQLite file, without tenants.
fn cut_the_power_of_sqlite(is_synced: bool) -> Result<(), String> {
    let (mut acknowledged, mut lost) = (0, 0);
    for _ in 0..cuts() {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, cut_image) = (folder.path().join("device"), folder.path().join("cut"));
        make_device(&image).unwrap();
        let disk = Mounted::new(&image, &folder.path().join("disk")).unwrap();
        let told = folder.path().join("told");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(CACHE, &disk.path);
        if is_synced {
            command.env(SYNCED, "1");
        }
        let mut child = start(command, &told);
        std::thread::sleep(Duration::from_millis(fastrand::u64(300..1_200)));
        stop(&child);
        image_of_one_moment(&disk, &image, &cut_image);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(disk);
        let told = Told::read(&told).versions;
        let disk = Mounted::new(&cut_image, &folder.path().join("again")).unwrap();
        let found = runtime().block_on(rows_of_sqlite(&disk.path));
        let count = found.len() as u64;
        assert!(found.keys().copied().eq(1..=count), "commits are missing between two others: {found:?}");
        assert!(found.iter().all(|(number, version)| told.get(number).is_none_or(|told| told == version)));
        acknowledged += told.len() as u64;
        lost += (told.len() as u64).saturating_sub(count);
    }
    println!("synced: {is_synced}, {acknowledged} commits acknowledged, {lost} lost");
    match (is_synced, lost) {
        (true, 0) => Ok(()),
        (true, _) => Err(format!("{lost} synced commits are lost")),
        (false, 0) => Err("no commit was lost, so the copies prove nothing".to_string()),
        (false, _) => Ok(()),
    }
}

async fn rows_of_sqlite(folder: &Path) -> BTreeMap<u64, Version> {
    let store = sqlite(folder, larder_sqlite::Synchronous::Normal).await;
    let rows = rows_of(&store).await;
    store.close().await;
    larder_sqlite::Sqlite::verify(folder.join("store.db")).await.unwrap();
    rows
}

async fn sqlite(folder: &Path, synchronous: larder_sqlite::Synchronous) -> Store {
    let options = larder_sqlite::SqliteOptions::default().synchronous(synchronous);
    let database = larder_sqlite::Sqlite::open(folder.join("store.db"), options).await.unwrap();
    Store::builder(database).sweep_interval(None).build().unwrap()
}

async fn commit_to_sqlite_until_killed(folder: &Path, synchronous: larder_sqlite::Synchronous) {
    let store = sqlite(folder, synchronous).await;
    commit_to(&store).await;
}

fn cuts() -> u64 {
    std::env::var("LARDER_POWER_CUTS").ok().and_then(|cuts| cuts.parse().ok()).unwrap_or(CUTS)
}

/// The state after a power cut.
struct Found {
    acknowledged: u64,
    published: u64,
    recovered: u64,
    lost: u64,
    /// Whether the database on the device was behind the snapshot.
    is_behind: bool,
}

fn one_cut(folder: &Path, random: &mut Rng) -> Found {
    let (image, cut_image) = (folder.join("device"), folder.join("cut"));
    make_device(&image).unwrap();
    let objects = folder.join("objects");
    std::fs::create_dir(&objects).unwrap();
    let disk = Mounted::new(&image, &folder.join("disk")).unwrap();
    let told = folder.join("told");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CACHE, disk.path.join("cache")).env(OBJECTS, &objects);
    let mut child = start(command, &told);
    std::thread::sleep(Duration::from_millis(random.u64(300..1_500)));
    stop(&child);
    image_of_one_moment(&disk, &image, &cut_image);
    child.kill().unwrap();
    child.wait().unwrap();
    drop(disk);
    let told = Told::read(&told);
    // The machine starts again.
    let disk = Mounted::new(&cut_image, &folder.join("again")).unwrap();
    runtime().block_on(check(&told, &disk.path.join("cache"), &objects, folder))
}

async fn check(told: &Told, cache: &Path, objects: &Path, folder: &Path) -> Found {
    let published = view(objects, folder).await;
    let file = cache.join("acme/users/ann.db");
    let is_behind = position_in(&file, folder).await < published.version.0;
    let host = open(cache, objects).await;
    let tenant = host.get(&ann()).await.unwrap();
    let recovered = rows(&tenant).await;
    let count = recovered.len() as u64;
    let acknowledged = told.versions.len() as u64;
    for (number, version) in &recovered {
        // The last commit may have been made but not acknowledged.
        assert!(
            told.versions.get(number).is_none_or(|told| told == version),
            "{number} has another version than the acknowledged one"
        );
    }
    assert!(recovered.keys().copied().eq(1..=count), "commits are missing between two others: {recovered:?}");
    assert!(count >= published.rows, "{} commits were published, but there are only {count}", published.rows);
    // Commits as many as were lost, so that versions would be reused if they could.
    let lost = acknowledged.saturating_sub(count);
    let newest = told.versions.values().max().copied().unwrap_or(Version::ABSENT);
    for number in 0..lost.max(1) {
        let version = put_number(&tenant.store(), count + 1 + number, "again").await;
        assert!(version > newest, "{version:?} may be the version of a lost commit");
    }
    drop(tenant);
    host.close().await.unwrap();
    assert_eq!(host.cache().quarantined().unwrap(), []);
    let other = open(&folder.join("other"), objects).await;
    let found = rows(&other.get(&ann()).await.unwrap()).await;
    assert_eq!(found.len() as u64, count + lost.max(1), "commits after the power cut are lost");
    other.close().await.unwrap();
    Found { acknowledged, published: published.rows, recovered: count, lost, is_behind }
}

/// A handle with limits that no test reaches.
fn unbound(store: &Store) -> Handle {
    let limits = Limits::default().result_bytes(64 << 20).transaction_bytes(64 << 20);
    store.handle(HandleOptions::default().limits(limits))
}

struct Published {
    rows: u64,
    version: Version,
}

/// What another host can have read at the moment of the power cut.
async fn view(objects: &Path, folder: &Path) -> Published {
    let store = Arc::new(FolderStore::open(objects).unwrap());
    let remote = Remote::new(store, ObjectPath::default(), RemoteOptions::default()).unwrap();
    let view = remote.view(&ann(), folder).await.unwrap().expect("the tenant exists");
    let store = Store::builder_shared(view.backend.clone()).sweep_interval(None).build().unwrap();
    let rows = unbound(&store).begin(Mode::View).unwrap().scan("n".into(), String::new()).await.unwrap().len()
        as u64;
    Published { rows, version: view.version }
}

/// The last version in a database file with its log. 0 if the file cannot be opened.
async fn position_in(file: &Path, folder: &Path) -> u64 {
    let copied = folder.join("looked-at.db");
    for suffix in ["", "-wal"] {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        drop(std::fs::copy(with(file), with(&copied)));
    }
    let options = larder_sqlite::SqliteOptions::default().create(false);
    let Ok(database) = larder_sqlite::Sqlite::open_positioned(&copied, options).await else { return 0 };
    let position = database.redo_position().await.map_or(0, |position| position.0);
    larder_core::backend::Backend::close(&database).await;
    position
}

/// The numbers in the tenant, with the versions of their rows.
async fn rows(tenant: &Tenant) -> BTreeMap<u64, Version> {
    rows_of(&tenant.store()).await
}

async fn rows_of(store: &Store) -> BTreeMap<u64, Version> {
    let mut view = unbound(store).begin(Mode::View).unwrap();
    let found = view.scan("n".into(), String::new()).await.unwrap();
    let mut rows = BTreeMap::new();
    for row in found {
        let (_, version) = view.get_versioned("n".into(), row.key.clone()).await.unwrap().unwrap();
        rows.insert(row.key.parse().unwrap(), version);
    }
    rows
}

async fn put_number(store: &Store, number: u64, value: &str) -> Version {
    let mut update = unbound(store).begin(Mode::Update).unwrap();
    update.put("n".into(), format!("{number:08}"), value.into()).unwrap();
    update.commit().await.unwrap()
}

async fn open(cache: &Path, objects: &Path) -> Tenants {
    let store = Arc::new(FolderStore::open(objects).unwrap());
    let builder = Tenants::builder(store).cache_folder(cache).lease_ttl(LEASE);
    let builder = builder.lease_wait(Duration::from_secs(30)).sweep_interval(None);
    builder.checkpoint_interval(Duration::from_secs(3_600)).checkpoint_writes(1_000_000).open().await.unwrap()
}

// The device.

const DEVICE_BYTES: u64 = 48 << 20;

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_string()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn try_to_mount() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let image = folder.path().join("device");
    make_device(&image)?;
    Mounted::new(&image, &folder.path().join("disk")).map(drop)
}

fn make_device(image: &Path) -> Result<(), String> {
    std::fs::File::create(image).unwrap().set_len(DEVICE_BYTES).unwrap();
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]).map(drop)
}

/// A file system on a loop device. Both are released on drop.
struct Mounted {
    device: String,
    path: PathBuf,
}

impl Mounted {
    fn new(image: &Path, path: &Path) -> Result<Self, String> {
        std::fs::create_dir(path).unwrap();
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()])?;
        let mounted = Self { device, path: path.to_path_buf() };
        // The journal is only written on a sync, and not after an interval.
        let point = path.to_str().unwrap();
        run("mount", &["-t", "ext4", "-o", "commit=300", &mounted.device, point])?;
        Ok(mounted)
    }

    /// The kernel's counters of requests to the device, done and in flight.
    fn counters(&self) -> String {
        let name = self.device.rsplit('/').next().unwrap();
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        // Writes completed, sectors written, requests under way, discards, flushes.
        let words: Vec<_> = text.split_whitespace().collect();
        [4, 6, 8, 11, 15].map(|column| words.get(column).copied().unwrap_or_default()).join(" ")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.path).output());
        drop(Command::new("losetup").args(["--detach", &self.device]).output());
    }
}

fn image_of_one_moment(disk: &Mounted, image: &Path, copy: &Path) {
    let is_idle = |counters: &str| counters.split(' ').nth(2) == Some("0");
    for _ in 0..100 {
        let before = disk.counters();
        std::fs::copy(image, copy).unwrap();
        if is_idle(&before) && disk.counters() == before {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the device is never idle");
}

// The process that commits.

fn start(mut command: Command, told: &Path) -> Child {
    let mut child =
        command.stdin(Stdio::null()).stdout(std::fs::File::create(told).unwrap()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(told).unwrap().len() == 0 {
        assert!(
            Instant::now() < deadline && child.try_wait().unwrap().is_none(),
            "the child process acknowledges no commit"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Stops a process, and waits until none of its threads is in the kernel.
fn stop(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGSTOP).unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    let is_stopped = |task: &Path| {
        let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T')
    };
    for _ in 0..6_000 {
        let mut tasks = std::fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path());
        if tasks.all(|task| is_stopped(&task)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the child process does not stop");
}

/// The versions of the acknowledged commits.
struct Told {
    versions: BTreeMap<u64, Version>,
}

impl Told {
    fn read(told: &Path) -> Self {
        let text = std::fs::read_to_string(told).unwrap();
        // The last line may be torn.
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let parse = |line: &str| {
            let (number, version) = line.split_once(' ')?;
            Some((number.parse().ok()?, Version(version.parse().ok()?)))
        };
        Self { versions: lines.filter_map(parse).collect() }
    }
}

async fn commit_until_killed(cache: &Path, objects: &Path) {
    let host = open(cache, objects).await;
    let tenant = host.get(&ann()).await.unwrap();
    let checkpoints = async {
        loop {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
            host.checkpoint(&ann()).await.unwrap();
        }
    };
    let store = tenant.store();
    tokio::join!(checkpoints, commit_to(&store));
}

async fn commit_to(store: &Store) {
    for number in 1.. {
        let version = put_number(store, number, "first").await;
        std::io::stdout().write_all(format!("{number} {}\n", version.0).as_bytes()).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
