//! Restores to an earlier snapshot. Whenever the process ends, the tenant has either the old or the
//! restored state, never a mix, and no acknowledged commit is lost.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use host::kill::{KillingStore, pass};
use host::*;
use larder_core::{HandleOptions, Mode, PutOptions, Range, Store};
use larder_sqlite::{Sqlite, SqliteOptions};
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule, before_local_changes};
use larder_tenants::{Durability, FolderStore, RestorePoint, SnapshotRef, TenantError, TenantKey, Tenants};
use object_store::ObjectStore;

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// The leftovers of a killed host: the snapshot at `moment`, a later one, and a commit after the
/// last snapshot. With durability `object` that commit is in the log, otherwise only in the folder
/// `left`.
struct Left {
    world: World,
    moment: u64,
}

async fn left(durability: Durability) -> Left {
    let world = World::in_folder();
    let a = world.builder("a").durability(durability).open().await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    put(&tenant, "first", "1").await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    let moment = current(&a).await.taken_at;
    tokio::time::sleep(Duration::from_millis(5)).await;
    put(&tenant, "second", "2").await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    put(&tenant, "last", "3").await.unwrap();
    crash(&world, "a", "left").await;
    // The process continues as if it were dead: it sends nothing from here on.
    std::mem::forget(a);
    std::mem::forget(tenant);
    Left { world, moment }
}

async fn current(tenants: &Tenants) -> SnapshotRef {
    tenants.remote().head(&ann()).await.unwrap().unwrap().snapshot.unwrap()
}

const BEFORE: [&str; 3] = ["first", "last", "second"];
const UNSENT: [&str; 2] = ["first", "second"];
const RESTORED: [&str; 1] = ["first"];

async fn rows_of(store: &Store) -> BTreeSet<String> {
    let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    let page = view.scan_page("n".into(), Range { keys_only: true, ..Range::default() }, None);
    page.await.unwrap().entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

async fn rows(tenants: &Tenants) -> BTreeSet<String> {
    rows_of(&tenants.get(&ann()).await.unwrap().store()).await
}

async fn rows_in(database: &Path) -> BTreeSet<String> {
    let database = Sqlite::open(database, SqliteOptions::default()).await.unwrap();
    let store = Store::builder(database).sweep_interval(None).build().unwrap();
    let rows = rows_of(&store).await;
    store.close().await;
    rows
}

fn is(found: &BTreeSet<String>, expected: &[&str]) -> bool {
    found.iter().map(String::as_str).eq(expected.iter().copied())
}

/// Whether all three rows are in a snapshot that can be restored, or in quarantine.
async fn is_kept(tenants: &Tenants) -> bool {
    let folder = tempfile::tempdir().unwrap();
    for (number, snapshot) in tenants.remote().history(&ann()).await.unwrap().iter().enumerate() {
        let file = folder.path().join(format!("{number}.db"));
        tenants.remote().fetch(&ann(), snapshot, &file, 1 << 30).await.unwrap();
        if is(&rows_in(&file).await, &BEFORE) {
            return true;
        }
    }
    for quarantined in tenants.cache().quarantined().unwrap() {
        if is(&rows_in(&quarantined.database).await, &BEFORE) {
            return true;
        }
    }
    false
}

// Failures.

/// Restores on a copy of the leftovers. Whatever the outcome, checks the state that this host and
/// the next host see.
async fn restore_and_check(
    begun: &Left,
    what: &str,
    arm: impl FnOnce(&World),
    disarm: impl FnOnce(),
) -> (bool, World) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["objects", "left"] {
        copy(&begun.world.cache(name), &folder.path().join(name));
    }
    let store = Arc::new(FolderStore::open(folder.path().join("objects")).unwrap());
    let world = World { objects: FaultyStore::new(store), folder };
    let host = world.host("left").await;
    arm(&world);
    let outcome = host.restore_at(&ann(), begun.moment).await;
    world.objects.clear();
    disarm();
    let found = rows(&host).await;
    match &outcome {
        Ok(_) => assert!(is(&found, &RESTORED), "{what}: {found:?}"),
        Err(error) => {
            assert!(is(&found, &BEFORE) || is(&found, &RESTORED), "{what}: {error}: {found:?}");
            let is_told = matches!(error, TenantError::Unavailable { .. } | TenantError::File { .. });
            assert!(is_told || matches!(error, TenantError::LeaseHeld { .. }), "{what}: {error:?}");
        }
    }
    assert!(is(&found, &BEFORE) || is_kept(&host).await, "{what}: {found:?}, but the other rows are lost");
    host.close().await.unwrap();
    let next = world.host("next").await;
    assert_eq!(rows(&next).await, found, "{what}");
    next.restore_at(&ann(), begun.moment).await.unwrap();
    assert!(is(&rows(&next).await, &RESTORED), "{what}");
    next.close().await.unwrap();
    (outcome.is_ok(), world)
}

#[tokio::test]
async fn a_tenant_goes_back_to_the_last_snapshot_up_to_a_version_that_a_client_saw() {
    let world = World::new();
    let a = world.host("a").await;
    let mut seen = Vec::new();
    for row in ["one", "two", "three"] {
        let tenant = a.get(&ann()).await.unwrap();
        put(&tenant, row, row).await.unwrap();
        seen.push(version_of(&tenant, row).await);
        drop(tenant);
        a.checkpoint(&ann()).await.unwrap();
    }
    let restored = a.restore(&ann(), RestorePoint::Version(seen[1].0)).await.unwrap();
    assert_eq!(restored.found.version, seen[1].0);
    assert!(is(&rows(&a).await, &["one", "two"]));
    // Later commits follow the restored state, not the one that was left behind.
    for row in ["four", "five"] {
        let tenant = a.get(&ann()).await.unwrap();
        put(&tenant, row, row).await.unwrap();
        seen.push(version_of(&tenant, row).await);
        drop(tenant);
    }
    a.checkpoint(&ann()).await.unwrap();
    a.restore(&ann(), RestorePoint::Version(seen[3].0)).await.unwrap();
    assert!(is(&rows(&a).await, &["one", "two"]));
    a.restore(&ann(), RestorePoint::Version(seen[0].0)).await.unwrap();
    assert!(is(&rows(&a).await, &["one"]));
    let none = a.restore(&ann(), RestorePoint::Version(seen[0].0 - 1)).await;
    assert!(
        matches!(none, Err(TenantError::NoVersion { oldest: Some(oldest), .. }) if oldest == seen[0].0),
        "{none:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_which_any_call_fails_is_done_or_not_and_costs_nothing() {
    let begun = left(Durability::Local).await;
    let (mut failed, mut done) = (0, 0);
    // A fault that no retry survives, or a single one.
    for times in [10, 1] {
        for operation in [Operation::Put, Operation::Get] {
            for fault in [Fault::Fail, Fault::LoseAnswer, Fault::DenyOwnSuccess] {
                for skip in 0.. {
                    assert!(skip < 100, "the test never ends");
                    let what = format!("{times} times {operation:?} {fault:?} after {skip}");
                    let arm = |world: &World| {
                        world.objects.add(Rule::next(operation, "ann.db", fault).after(skip).times(times));
                    };
                    let (is_done, world) = restore_and_check(&begun, &what, arm, || {}).await;
                    if world.objects.faults() == 0 {
                        assert!(is_done, "{what}");
                        break;
                    }
                    if is_done { done += 1 } else { failed += 1 }
                }
            }
        }
    }
    println!("of the failing calls, {failed} made the restore fail, and {done} did not");
    assert!(failed > 2 && done > 2, "{failed}, {done}");
}

/// Lets each local step of a restore fail in turn, and counts the restores that failed and those
/// that were done all the same.
async fn fail_each_local_step(begun: &Left) -> (usize, usize) {
    let (mut failed, mut done) = (0, 0);
    for skip in 0.. {
        assert!(skip < 100, "the test never ends");
        let steps = Arc::new(AtomicUsize::new(0));
        let arm = |world: &World| {
            let steps = steps.clone();
            before_local_changes(world.cache("left"), move |_| {
                let is_it = steps.fetch_add(1, Ordering::AcqRel) == skip;
                if is_it { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
            });
        };
        let taken = AtomicUsize::new(0);
        // No step comes so late.
        let disarm = || taken.store(steps.swap(usize::MAX / 2, Ordering::AcqRel), Ordering::Release);
        let (is_done, _) = restore_and_check(begun, &format!("local step {skip}"), arm, disarm).await;
        if taken.into_inner() <= skip {
            assert!(is_done);
            break;
        }
        if is_done { done += 1 } else { failed += 1 }
    }
    (failed, done)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_which_any_local_step_fails_is_done_or_not_and_costs_nothing() {
    let begun = left(Durability::Local).await;
    let (mut failed, mut done) = (0, 0);
    // On a busy machine, work of the host beside the restore meets more of the failures.
    for _ in 0..5 {
        let (failed_now, done_now) = fail_each_local_step(&begun).await;
        (failed, done) = (failed + failed_now, done + done_now);
        if failed > 2 && done > 2 {
            break;
        }
    }
    println!("of the failing local steps, {failed} made the restore fail, and {done} did not");
    assert!(failed > 2 && done > 2, "{failed}, {done}");
}

#[tokio::test]
async fn what_can_not_be_restored_stays_as_it_is_and_says_why() {
    let begun = left(Durability::Local).await;
    let host = begun.world.host("left").await;
    let tenant = host.get(&ann()).await.unwrap();
    let in_use = host.restore_at(&ann(), begun.moment).await.unwrap_err();
    assert!(matches!(in_use, TenantError::InUse { .. }), "{in_use}");
    drop(tenant);
    let early = host.restore_at(&ann(), begun.moment - 1).await.unwrap_err();
    assert!(
        matches!(early, TenantError::NoSnapshot { oldest: Some(oldest), .. } if oldest == begun.moment),
        "{early}"
    );
    let never = host.restore_at(&key("acme/org"), u64::MAX).await.unwrap_err();
    assert!(matches!(never, TenantError::NotFound { .. }), "{never}");
    assert!(host.remote().head(&key("acme/org")).await.unwrap().is_none(), "it was created");
    assert!(is(&rows(&host).await, &BEFORE));
    // The newest snapshot is restored, so nothing changes.
    let now = host.restore_at(&ann(), u64::MAX).await.unwrap();
    assert_eq!(now.before, now.found);
    assert!(is(&rows(&host).await, &BEFORE));
    let restored = host.restore_at(&ann(), begun.moment).await.unwrap();
    assert_eq!(restored.found.taken_at, begun.moment);
    assert!(is(&rows(&host).await, &RESTORED));
    host.restore_at(&ann(), restored.before.taken_at).await.unwrap();
    assert!(is(&rows(&host).await, &BEFORE));
    host.close().await.unwrap();
    assert!(matches!(host.restore_at(&ann(), begun.moment).await, Err(TenantError::ShutDown)));
}

#[tokio::test]
async fn what_another_host_was_faster_than_is_in_quarantine_before_a_tenant_goes_back() {
    let begun = left(Durability::Local).await;
    let host = begun.world.host("b").await;
    let holder = holder_of(&begun.world.cache("left"));
    host.remote().acquire(&ann(), &holder, Duration::ZERO).await.unwrap().release().await.unwrap();
    put_in(&host, &ann(), "of b", "4").await;
    host.close().await.unwrap();
    let next = begun.world.host("left").await;
    next.restore_at(&ann(), begun.moment).await.unwrap();
    assert!(is(&rows(&next).await, &RESTORED));
    assert!(is_kept(&next).await);
    assert_eq!(next.cache().quarantined().unwrap().len(), 1);
}

/// Restores on the lease, without [`Tenants::restore_at`]. The database in the folder must not
/// count as the restored state.
#[tokio::test]
async fn what_lies_in_a_cache_folder_does_not_follow_on_a_lease_that_went_back() {
    let begun = left(Durability::Local).await;
    let holder = holder_of(&begun.world.cache("left"));
    let b = begun.world.host("b").await;
    let lease = b.remote().acquire(&ann(), &holder, Duration::ZERO).await.unwrap();
    lease.restore(RestorePoint::At(begun.moment)).await.unwrap();
    let next = begun.world.host("left").await;
    assert!(is(&rows(&next).await, &RESTORED));
    assert!(is_kept(&next).await);
    assert_eq!(next.cache().quarantined().unwrap().len(), 1);
}

// Killed processes.

const FOLDER: &str = "LARDER_TENANTS_RESTORE_FOLDER";
const MOMENT: &str = "LARDER_TENANTS_RESTORE_MOMENT";
const KILL_AT: &str = "LARDER_TENANTS_RESTORE_AT";
const KEEPS_COPY: &str = "LARDER_TENANTS_RESTORE_KEEPS_COPY";
const IS_OBJECT: &str = "LARDER_TENANTS_RESTORE_OBJECT";

/// The process that is killed. It only runs as the child of the tests below.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(std::path::PathBuf::from) else { return };
    let moment = std::env::var(MOMENT).unwrap().parse().unwrap();
    let at = std::env::var(KILL_AT).unwrap().parse().unwrap();
    let durability =
        if std::env::var_os(IS_OBJECT).is_some() { Durability::Object } else { Durability::Local };
    let passed = Arc::new(AtomicUsize::new(0));
    let store = FolderStore::open(folder.join("objects")).unwrap();
    let store = KillingStore { store, passed: passed.clone(), at };
    let keeps_copy = std::env::var_os(KEEPS_COPY).is_some();
    before_local_changes(&folder, move |path| {
        pass(&passed, at);
        // Only the removal of the database file changes that path, because the file exists.
        let is_refused = keeps_copy && path.ends_with("left/acme/users/ann.db");
        if is_refused { Err(std::io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    });
    println!();
    let tenants = open(&folder, "left", Arc::new(store), durability).await;
    tenants.restore_at(&ann(), moment).await.unwrap();
    println!("restored");
    tenants.close().await.unwrap();
    println!("at its end");
}

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

/// Checks what a killed restore left, as a host with the same cache folder sees it, or another host
/// first.
async fn check(folder: &Path, durability: Durability, was_restored: bool, lost: bool, what: &str) -> bool {
    let store = || Arc::new(FolderStore::open(folder.join("objects")).unwrap());
    let mut seen = None;
    if lost {
        let elsewhere = open(folder, "elsewhere", store(), durability).await;
        // Its lease has expired.
        let holder = holder_of(&folder.join("left"));
        let lease = elsewhere.remote().acquire(&ann(), &holder, Duration::ZERO).await.unwrap();
        lease.release().await.unwrap();
        seen = Some(rows(&elsewhere).await);
        elsewhere.close().await.unwrap();
    }
    let next = open(folder, "left", store(), durability).await;
    let found = rows(&next).await;
    let is_restored = is(&found, &RESTORED);
    assert!(
        is_restored
            || (is(&found, &BEFORE) && !was_restored)
            || (lost && is(&found, &UNSENT) && !was_restored),
        "{what}: {found:?}"
    );
    if let Some(seen) = seen {
        assert_eq!(found, seen, "{what}");
    }
    assert!(is(&found, &BEFORE) || is_kept(&next).await, "{what}: {found:?}, but the other rows are lost");
    next.close().await.unwrap();
    let last = open(folder, "last", store(), durability).await;
    assert_eq!(rows(&last).await, found, "{what}");
    last.close().await.unwrap();
    is_restored
}

fn kill_a_restore_at_every_step(durability: Durability, keeps_copy: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let begun = runtime.block_on(left(durability));
    let (mut kills, mut restored) = (0, 0);
    for at in 1.. {
        assert!(at < 1_000, "the test never ends");
        let folder = tempfile::tempdir().unwrap();
        for name in ["objects", "left"] {
            copy(&begun.world.cache(name), &folder.path().join(name));
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .env(MOMENT, begun.moment.to_string())
            .env(KILL_AT, at.to_string())
            .stderr(Stdio::inherit());
        if durability == Durability::Object {
            command.env(IS_OBJECT, "1");
        }
        if keeps_copy {
            command.env(KEEPS_COPY, "1");
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let said = |line: &str| said.lines().any(|said| said == line);
        let what = format!("{durability:?}, killed at step {at}");
        restored += usize::from(runtime.block_on(check(
            folder.path(),
            durability,
            said("restored"),
            at % 2 == 0,
            &what,
        )));
        if said("at its end") {
            assert!(output.status.success());
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(9), "{what}");
        kills += 1;
    }
    println!("{durability:?}: a restore was killed at {kills} steps, and was done after {restored} of them");
    assert!(kills > 20 && restored > 1 && restored < kills, "{restored} of {kills}");
}

#[test]
fn a_restore_that_is_killed_at_any_step_is_done_or_not_and_costs_nothing() {
    kill_a_restore_at_every_step(Durability::Local, false);
}

#[test]
fn a_restore_that_is_killed_at_any_step_costs_nothing_that_is_only_in_the_log() {
    kill_a_restore_at_every_step(Durability::Object, false);
}

#[test]
fn a_restore_that_is_killed_at_any_step_is_not_undone_by_a_copy_that_can_not_be_removed() {
    kill_a_restore_at_every_step(Durability::Local, true);
}

#[tokio::test]
async fn no_version_is_given_again_after_going_back() {
    let world = World::new();
    let a = world.host("a").await;
    let tenant = a.get(&ann()).await.unwrap();
    put(&tenant, "row", "first").await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    let moment = current(&a).await.taken_at;
    tokio::time::sleep(Duration::from_millis(5)).await;
    put(&tenant, "row", "second").await.unwrap();
    let held = version_of(&tenant, "row").await;
    drop(tenant);
    a.restore_at(&ann(), moment).await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    assert_eq!(get(&tenant, "row").await.unwrap().as_deref(), Some("first"));
    put(&tenant, "row", "another").await.unwrap();
    assert!(version_of(&tenant, "row").await > held);
    let mut stale = handle(&tenant).begin(Mode::Update).unwrap();
    let if_version = PutOptions::default().if_version(held);
    stale.put_with("n".into(), "row".into(), b"stale".to_vec(), if_version).unwrap();
    assert!(matches!(stale.commit().await, Err(larder_core::Error::Conflict)));
}
