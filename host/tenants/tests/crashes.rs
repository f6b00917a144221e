//! Killed hosts, and how the next process handles their cache folders.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use host::kill::{KillingStore, pass};
use host::*;
use larder_core::Mode;
use larder_sqlite::{Sqlite, rusqlite};
use larder_tenants::faults::{Fault, Operation, Rule, before_local_changes};
use larder_tenants::{
    Durability, FolderStore, Holder, Remote, RemoteOptions, TenantError, TenantKey, Tenants,
};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

/// An edit of a file's bytes.
type Edit<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// A host with one row in object storage and one that is only local. The folder `left` has what it
/// leaves when it is killed.
async fn killed_with_unsent(world: &World) -> Tenants {
    let a = world.host("a").await;
    let tenant = a.get(&ann()).await.unwrap();
    put(&tenant, "sent", "1").await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    put(&tenant, "unsent", "2").await.unwrap();
    crash(world, "a", "left").await;
    a
}

async fn generation(tenants: &Tenants) -> u64 {
    tenants.remote().head(&ann()).await.unwrap().unwrap().snapshot.map_or(0, |snapshot| snapshot.generation)
}

#[tokio::test]
async fn what_a_killed_host_never_sent_is_sent_by_the_next_process_at_its_start() {
    let world = World::new();
    let a = killed_with_unsent(&world).await;
    let before = generation(&a).await;
    let next = world.host("left").await;
    // No caller asks for the tenant.
    eventually("the upload", async || generation(&next).await > before).await;
    assert_eq!(next.cache().quarantined().unwrap(), []);
    next.close().await.unwrap();
    let b = world.host("b").await;
    assert_eq!(get_in(&b, &ann(), "unsent").await.as_deref(), Some("2"));
    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 2);
}

#[tokio::test]
async fn what_a_killed_host_never_sent_is_in_quarantine_where_another_had_the_tenant_since() {
    let world = World::new();
    let a = killed_with_unsent(&world).await;
    a.remote().acquire(&ann(), a.cache().holder(), Duration::ZERO).await.unwrap().release().await.unwrap();
    let b = world.host("b").await;
    put_in(&b, &ann(), "of b", "3").await;
    b.close().await.unwrap();
    let events = Events::default();
    let next = world.builder("left").events(Arc::new(events.clone())).open().await.unwrap();
    eventually("the quarantine", async || next.cache().quarantined().unwrap().len() == 1).await;
    let note = next.cache().quarantined().unwrap().remove(0);
    assert_eq!((note.sent_position, note.position), (Some(1 << 32), Some((1 << 32) + 1)));
    eventually("the event", async || events.of("tenant.quarantined").len() == 1).await;
    let tenant = next.get(&ann()).await.unwrap();
    assert_eq!(get(&tenant, "of b").await.unwrap().as_deref(), Some("3"));
    assert_eq!(get(&tenant, "unsent").await.unwrap(), None);
    assert!(note.database.is_file());
    Sqlite::verify(&note.database).await.unwrap();
}

#[tokio::test]
async fn a_killed_host_that_had_sent_everything_leaves_nothing_in_quarantine() {
    let world = World::new();
    let a = world.host("a").await;
    put_in(&a, &ann(), "sent", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    crash(&world, "a", "left").await;
    a.remote().acquire(&ann(), a.cache().holder(), Duration::ZERO).await.unwrap().release().await.unwrap();
    let b = world.host("b").await;
    put_in(&b, &ann(), "of b", "3").await;
    b.close().await.unwrap();
    let next = world.host("left").await;
    assert_eq!(count(&next.get(&ann()).await.unwrap()).await, 2);
    assert_eq!(next.cache().quarantined().unwrap(), []);
}

#[tokio::test]
async fn a_process_that_is_killed_as_soon_as_it_took_the_lease_costs_no_data() {
    let world = World::new();
    let a = killed_with_unsent(&world).await;
    // Twice: each takes the lease for this folder, and gets no further.
    for (left, again) in [("left", "again"), ("again", "once more")] {
        a.remote().acquire(&ann(), a.cache().holder(), Duration::ZERO).await.unwrap();
        let next = world.host(left).await;
        let tenant = next.get(&ann()).await.unwrap();
        assert_eq!(get(&tenant, "unsent").await.unwrap().as_deref(), Some("2"));
        assert_eq!(next.cache().quarantined().unwrap(), []);
        put(&tenant, "unsent", "2").await.unwrap();
        crash(&world, left, again).await;
    }
}

#[tokio::test]
async fn an_opening_that_failed_after_it_took_the_lease_costs_no_data() {
    let world = World::new();
    let _a = killed_with_unsent(&world).await;
    let database = world.cache("left").join("acme/users/ann.db");
    let blocker = rusqlite::Connection::open(&database).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let next = world.host("left").await;
    let error = next.get(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::Database { .. }), "{error}");
    blocker.execute_batch("ROLLBACK").unwrap();
    drop(blocker);
    let tenant = next.get(&ann()).await.unwrap();
    assert_eq!(get(&tenant, "unsent").await.unwrap().as_deref(), Some("2"));
    assert_eq!(next.cache().quarantined().unwrap(), []);
}

#[tokio::test]
async fn what_was_acknowledged_locally_is_sent_before_a_host_acknowledges_by_object_storage() {
    let world = World::new();
    let _a = killed_with_unsent(&world).await;
    let object = async |name: &str| world.builder(name).durability(Durability::Object).open().await.unwrap();
    world.objects.add(Rule::next(Operation::Put, "snapshots", Fault::Fail).times(1_000));
    let next = object("left").await;
    let error = next.get(&ann()).await.unwrap_err();
    assert!(matches!(error, TenantError::Unavailable { .. }), "{error}");
    // A kill at this moment loses nothing either.
    crash(&world, "left", "left again").await;
    world.objects.clear();
    next.close().await.unwrap();
    let again = object("left again").await;
    let tenant = again.get(&ann()).await.unwrap();
    put(&tenant, "shipped", "3").await.unwrap();
    // The disk is lost, and everything that was acknowledged is in object storage.
    again
        .remote()
        .acquire(&ann(), again.cache().holder(), Duration::ZERO)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let b = object("b").await;
    let tenant = b.get(&ann()).await.unwrap();
    for (row, value) in [("sent", "1"), ("unsent", "2"), ("shipped", "3")] {
        assert_eq!(get(&tenant, row).await.unwrap().as_deref(), Some(value), "{row}");
    }
}

#[tokio::test]
async fn logs_of_an_earlier_database_are_gone_once_another_is_in_its_place() {
    let world = World::new();
    let a = killed_with_unsent(&world).await;
    let (users, left) = (world.cache("b").join("acme/users"), world.cache("left").join("acme/users"));
    a.close().await.unwrap();
    std::fs::create_dir_all(&users).unwrap();
    // A log with commits of another file, and garbage.
    assert!(std::fs::metadata(left.join("ann.db-wal")).unwrap().len() > 0);
    for name in ["ann.db-wal", "ann.db-shm"] {
        std::fs::copy(left.join(name), users.join(name)).unwrap();
    }
    std::fs::write(users.join("ann.db-journal"), "rubbish").unwrap();
    let b = world.host("b").await;
    let tenant = b.get(&ann()).await.unwrap();
    assert_eq!(count(&tenant).await, 2);
    assert!(!users.join("ann.db-journal").exists());
    put(&tenant, "more", "1").await.unwrap();
    drop(tenant);
    b.evict(&ann()).await.unwrap();
    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 3);
}

#[tokio::test]
async fn a_database_of_which_nothing_is_known_is_put_into_quarantine() {
    let torn = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let of_another =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("users/ann", "users/bob").into_bytes();
    let newer =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("\"format\":1", "\"format\":2").into_bytes();
    let edits: [Edit<'_>; 4] = [&torn, &of_another, &newer, &|_| Vec::new()];
    for edit in edits {
        let world = World::new();
        let a = killed_with_unsent(&world).await;
        let state = world.cache("left").join("acme/users/ann.db.state.json");
        let bytes = std::fs::read(&state).unwrap();
        assert_ne!(edit(&bytes), bytes);
        std::fs::write(&state, edit(&bytes)).unwrap();
        a.remote()
            .acquire(&ann(), a.cache().holder(), Duration::ZERO)
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        let next = world.host("left").await;
        let tenant = next.get(&ann()).await.unwrap();
        assert_eq!(get(&tenant, "sent").await.unwrap().as_deref(), Some("1"));
        assert_eq!(get(&tenant, "unsent").await.unwrap(), None);
        let notes = next.cache().quarantined().unwrap();
        assert_eq!((notes.len(), notes[0].sent_position), (1, None));
        Sqlite::verify(&notes[0].database).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_database_is_put_into_quarantine_and_that_of_object_storage_is_used() {
    let world = World::new();
    let _a = killed_with_unsent(&world).await;
    let users = world.cache("left").join("acme/users");
    std::fs::write(users.join("ann.db"), "SQLite format 3\0 and nothing more").unwrap();
    let next = world.host("left").await;
    let tenant = next.get(&ann()).await.unwrap();
    assert_eq!(count(&tenant).await, 1);
    let notes = next.cache().quarantined().unwrap();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].reason.contains("damaged"), "{}", notes[0].reason);
}

#[tokio::test]
async fn the_longest_names_can_be_put_into_quarantine() {
    let world = World::new();
    let slug = "x".repeat(128);
    let longest = key(&format!("{slug}/apps/{slug}/projects/{slug}"));
    let a = world.host("a").await;
    put_in(&a, &longest, "unsent", "1").await;
    crash(&world, "a", "left").await;
    a.remote().acquire(&longest, a.cache().holder(), Duration::ZERO).await.unwrap().release().await.unwrap();
    let b = world.host("b").await;
    put_in(&b, &longest, "of b", "1").await;
    b.close().await.unwrap();
    let next = world.host("left").await;
    assert_eq!(get_in(&next, &longest, "of b").await.as_deref(), Some("1"));
    let notes = next.cache().quarantined().unwrap();
    assert_eq!((notes.len(), notes[0].tenant.as_str()), (1, longest.to_string().as_str()));
    next.cache().remove_from_quarantine(&notes[0].name).unwrap();
}

#[tokio::test]
async fn what_was_sent_is_not_put_into_quarantine_where_its_file_can_not_be_removed() {
    let world = World::new();
    let events = Events::default();
    let a = world.builder("a").events(Arc::new(events.clone())).open().await.unwrap();
    put_in(&a, &ann(), "a", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    let state = world.cache("a").join("acme/users/ann.db.state.json");
    std::fs::remove_file(&state).unwrap();
    std::fs::create_dir(&state).unwrap();
    assert!(a.evict(&ann()).await.unwrap());
    assert_eq!(events.of("remove").len(), 1);
    std::fs::remove_dir(&state).unwrap();
    assert_eq!(get_in(&a, &ann(), "a").await.as_deref(), Some("1"));
    assert_eq!(a.cache().quarantined().unwrap(), []);
}

// Killed processes.

const FOLDER: &str = "LARDER_TENANTS_CRASH_FOLDER";
const NAME: &str = "LARDER_TENANTS_CRASH_NAME";
const KILL_AT: &str = "LARDER_TENANTS_CRASH_AT";
const IS_OBJECT: &str = "LARDER_TENANTS_CRASH_OBJECT";
const LEAVES: &str = "LARDER_TENANTS_CRASH_LEAVES";

async fn open(folder: &Path, cache: &str, store: Arc<dyn ObjectStore>, durability: Durability) -> Tenants {
    Tenants::builder(store)
        .cache_folder(folder.join(cache))
        .lease_wait(Duration::ZERO)
        .durability(durability)
        .checkpoint_interval(Duration::from_secs(3_600))
        .sweep_interval(None)
        .open()
        .await
        .unwrap()
}

fn folder_store(folder: &Path) -> FolderStore {
    FolderStore::open(folder.join("objects")).unwrap()
}

/// The process that is killed. It only runs as the child of the tests below.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
    let name = std::env::var(NAME).unwrap();
    let at = std::env::var(KILL_AT).unwrap().parse().unwrap();
    let durability =
        if std::env::var_os(IS_OBJECT).is_some() { Durability::Object } else { Durability::Local };
    let passed = Arc::new(AtomicUsize::new(0));
    let store = KillingStore { store: folder_store(&folder), passed: passed.clone(), at };
    before_local_changes(&folder, move |_| {
        pass(&passed, at);
        Ok(())
    });
    println!();
    let tenants = open(&folder, "cache", Arc::new(store), durability).await;
    let mut next = 0;
    let mut commit = async |count| {
        for _ in 0..count {
            let row = format!("{name}-{next}");
            next += 1;
            let tenant = tenants.get(&ann()).await.unwrap();
            let handle = handle(&tenant);
            let mut update = handle.begin(Mode::Update).unwrap();
            update.put("n".into(), row.as_str().into(), b"1".to_vec()).unwrap();
            update.increment("n".into(), "count".into(), 1).unwrap();
            update.commit().await.unwrap();
            println!("kept {row}");
            std::io::stdout().flush().unwrap();
        }
    };
    commit(2).await;
    leave_after("commit");
    tenants.checkpoint(&ann()).await.unwrap();
    leave_after("checkpoint");
    commit(2).await;
    assert!(tenants.evict(&ann()).await.unwrap());
    commit(2).await;
    leave_after("all");
}

/// Ends as after a crash.
fn leave_after(what: &str) {
    if std::env::var(LEAVES).unwrap() == what {
        println!("at its end");
        std::process::exit(0);
    }
}

struct Child<'a> {
    folder: &'a Path,
    durability: Durability,
}

impl Child<'_> {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(FOLDER, self.folder)
            .env(NAME, name)
            .env(KILL_AT, "0")
            .env(LEAVES, "all")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if self.durability == Durability::Object {
            command.env(IS_OBJECT, "1");
        }
        command
    }

    /// Runs the child, and kills it after `kill_after` if set. Returns the acknowledged rows, the
    /// exit status, and whether it reached its end.
    fn run(
        &self,
        mut command: Command,
        kill_after: Option<Duration>,
    ) -> (BTreeSet<String>, ExitStatus, bool) {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reading = std::thread::spawn(move || lines.map_while(|line| line.ok()).collect::<Vec<_>>());
        if let Some(kill_after) = kill_after {
            std::thread::sleep(kill_after);
            // It may have ended already.
            child.kill().ok();
        }
        let status = child.wait().unwrap();
        let lines = reading.join().unwrap();
        let kept = lines.iter().filter_map(|line| line.strip_prefix("kept ").map(str::to_string)).collect();
        (kept, status, lines.iter().any(|line| line == "at its end"))
    }
}

/// Checks that every acknowledged row exists, and none twice.
async fn check(tenants: &Tenants, kept: &BTreeSet<String>, what: &str) {
    let tenant = tenants.get(&ann()).await.unwrap();
    let mut view = handle(&tenant).begin(Mode::View).unwrap();
    for row in kept {
        assert!(view.get("n".into(), row.as_str().into()).await.unwrap().is_some(), "{what}: {row} is lost");
    }
    let counted = view.get("n".into(), "count".into()).await.unwrap();
    let counted = counted.map_or(0, |counted| String::from_utf8(counted).unwrap().parse::<usize>().unwrap());
    drop(view);
    assert_eq!(count(&tenant).await, if counted == 0 { 0 } else { counted + 1 }, "{what}");
    assert_eq!(tenants.cache().quarantined().unwrap(), [], "{what}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn check_folder(
    folder: &Path,
    durability: Durability,
    kept: &BTreeSet<String>,
    what: &str,
    lost: bool,
) {
    if lost && durability == Durability::Object {
        // The disk is lost with the host, and its lease has expired. A host that was killed before
        // it had a name had no lease.
        let name = std::fs::read_to_string(folder.join("cache/.holder")).unwrap_or_default();
        if let Ok(holder) = Holder::new(name.lines().next().unwrap_or_default()) {
            let objects = Arc::new(folder_store(folder));
            let remote = Remote::new(objects, ObjectPath::default(), RemoteOptions::default()).unwrap();
            let lease = remote.acquire(&ann(), &holder, Duration::ZERO).await.unwrap();
            lease.release().await.unwrap();
        }
        let elsewhere = open(folder, "elsewhere", Arc::new(folder_store(folder)), durability).await;
        check(&elsewhere, kept, what).await;
        elsewhere.close().await.unwrap();
    }
    let next = open(folder, "cache", Arc::new(folder_store(folder)), durability).await;
    check(&next, kept, what).await;
    next.close().await.unwrap();
    assert_eq!(next.cache().tenants().unwrap(), [], "{what}");
    if lost {
        let last = open(folder, "last", Arc::new(folder_store(folder)), durability).await;
        check(&last, kept, what).await;
        last.close().await.unwrap();
    }
}

/// Kills a process that works on `begun` at each of its steps in turn.
fn kill_at_every_step(durability: Durability, begun: Option<(&Path, &BTreeSet<String>)>) {
    let (runtime, mut kills) = (runtime(), 0);
    for at in 1.. {
        assert!(at < 1_000, "the test never ends");
        let folder = tempfile::tempdir().unwrap();
        let mut kept = BTreeSet::new();
        if let Some((begun, begun_kept)) = begun {
            copy(begun, folder.path());
            kept.extend(begun_kept.iter().cloned());
        }
        let child = Child { folder: folder.path(), durability };
        let mut command = child.command("killed");
        command.env(KILL_AT, at.to_string());
        if begun.is_some() {
            // From here on, it does the same work as the others.
            command.env(LEAVES, "checkpoint");
        }
        let (told, status, is_at_end) = child.run(command, None);
        kept.extend(told);
        let what = format!("killed at step {at}");
        runtime.block_on(check_folder(folder.path(), durability, &kept, &what, at % 4 == 0));
        if is_at_end {
            assert!(status.success());
            assert_eq!(kept.len(), if begun.is_some() { 4 } else { 6 });
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{what}: {status}");
        kills += 1;
    }
    assert!(kills > 10, "{kills}");
    println!(
        "{durability:?}, {}: {kills} kills",
        if begun.is_some() { "recovering" } else { "from the start" }
    );
}

fn kill_a_recovering_process_at_every_step(durability: Durability) {
    let begun = tempfile::tempdir().unwrap();
    let child = Child { folder: begun.path(), durability };
    let mut command = child.command("left");
    command.env(LEAVES, "commit");
    let (kept, status, _) = child.run(command, None);
    assert!(status.success() && kept.len() == 2);
    kill_at_every_step(durability, Some((begun.path(), &kept)));
}

#[test]
fn a_host_that_is_killed_at_any_step_loses_nothing_that_it_acknowledged() {
    kill_at_every_step(Durability::Local, None);
}

#[test]
fn a_host_that_is_killed_at_any_step_loses_nothing_that_object_storage_acknowledged() {
    kill_at_every_step(Durability::Object, None);
}

#[test]
fn a_host_that_is_killed_while_it_recovers_loses_nothing_that_was_acknowledged() {
    kill_a_recovering_process_at_every_step(Durability::Local);
    kill_a_recovering_process_at_every_step(Durability::Object);
}

#[test]
fn hosts_that_are_killed_at_random_one_after_the_other_lose_nothing() {
    let runtime = runtime();
    let mut random = fastrand::Rng::with_seed(5);
    for durability in [Durability::Local, Durability::Object] {
        let folder = tempfile::tempdir().unwrap();
        let child = Child { folder: folder.path(), durability };
        let (mut kept, mut killed) = (BTreeSet::new(), 0);
        // How long one process takes to its end.
        let start = Instant::now();
        kept.extend(child.run(child.command("first"), None).0);
        let whole = start.elapsed();
        let mut started = 0;
        while killed < 25 {
            started += 1;
            assert!(started < 1_000, "no process is killed in time");
            let kill_after = whole.mul_f64(random.f64());
            let (told, status, _) = child.run(child.command(&format!("{started}")), Some(kill_after));
            killed += usize::from(!status.success());
            kept.extend(told);
            if started % 5 == 0 {
                runtime.block_on(check_folder(folder.path(), durability, &kept, "killed at random", false));
            }
        }
        runtime.block_on(check_folder(folder.path(), durability, &kept, "killed at random", true));
        println!(
            "{durability:?}: {killed} of {started} killed at random, {} acknowledged, 0 lost",
            kept.len()
        );
    }
}
