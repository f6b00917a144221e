//! Two hosts and one tenant: hand-over, takeover and loss of the lease.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use host::*;
use larder_core::clock::MovableClock;
use larder_core::{Error, HandleOptions, Mode, Store};
use larder_sqlite::Sqlite;
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{Durability, FolderStore, RemoteOptions, TenantError, Tenants, TenantsBuilder};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;

const TTL: Duration = Duration::from_millis(600);

/// Leases that expire during a test.
fn short_leases(builder: TenantsBuilder) -> TenantsBuilder {
    leases_of(TTL, builder)
}

fn leases_of(ttl: Duration, builder: TenantsBuilder) -> TenantsBuilder {
    let options = RemoteOptions::default()
        .lease_ttl(ttl)
        .lease_margin(ttl / 8)
        // A slow server is not one that hangs. If a call takes longer than a lease, the lease is
        // lost, but no data is.
        .call_timeout(if ttl > TTL { Duration::from_secs(5) } else { ttl / 3 })
        .transfer_timeout(Duration::from_secs(5))
        .attempts(2);
    builder.remote_options(options).lease_wait(Duration::from_secs(60))
}

/// A host whose connection to object storage can be cut.
struct Host {
    tenants: Tenants,
    objects: FaultyStore,
    events: Events,
}

async fn host(world: &World, name: &str) -> Host {
    host_with(world, name, |builder| builder).await
}

async fn host_with(world: &World, name: &str, with: impl FnOnce(TenantsBuilder) -> TenantsBuilder) -> Host {
    let (objects, events) = (world.objects.another(), Events::default());
    let builder = short_leases(world.builder_over(&objects, name)).events(Arc::new(events.clone()));
    Host { tenants: with(builder).open().await.unwrap(), objects, events }
}

impl Host {
    fn hang(&self) {
        for operation in [Operation::Put, Operation::Get, Operation::List] {
            self.objects.add(Rule::next(operation, "", Fault::Hang).times(usize::MAX));
        }
    }
}

async fn row_of_file(database: &Path, row: &str) -> Option<Vec<u8>> {
    let store = Store::builder(Sqlite::open(database, Default::default()).await.unwrap()).build().unwrap();
    let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    let value = view.get("n".into(), row.into()).await.unwrap();
    drop(view);
    store.close().await;
    value
}

#[tokio::test]
async fn the_second_host_is_told_who_holds_the_lease_and_sees_everything_after_a_hand_over() {
    let world = World::new();
    let (a, b) = (world.host("a").await, world.host("b").await);
    let ann = key("acme/users/ann");
    for number in 0..5 {
        put_in(&a, &ann, &format!("row {number}"), "1").await;
    }
    let error = b.get(&ann).await.unwrap_err();
    let TenantError::LeaseHeld { holder, key, .. } = &error else { panic!("{error}") };
    assert_eq!((holder.as_str(), key.as_str()), (a.cache().holder().as_str(), "acme/users/ann"));
    assert!(a.evict(&ann).await.unwrap());
    let tenant = b.get(&ann).await.unwrap();
    assert_eq!((count(&tenant).await, tenant.epoch()), (5, 2));
    assert!(is_lease_held(&a.get(&ann).await.unwrap_err()));
}

/// A clone of a volume, or a folder in an image. If both copies wrote, acknowledged commits of one
/// would be lost.
#[tokio::test]
async fn a_copy_of_a_cache_folder_waits_for_the_lease_like_any_other_host() {
    let world = World::new();
    let a = host(&world, "a").await;
    let ann = key("acme/users/ann");
    let tenant = a.tenants.get(&ann).await.unwrap();
    put(&tenant, "first", "1").await.unwrap();
    let copied =
        std::process::Command::new("cp").arg("-a").args([world.cache("a"), world.cache("copy")]).status();
    assert!(copied.unwrap().success());
    let copy = host_with(&world, "copy", |builder| builder.lease_wait(Duration::ZERO)).await;
    assert_ne!(copy.tenants.cache().holder(), a.tenants.cache().holder());
    for number in 0..10 {
        let held = copy.tenants.get(&ann).await.unwrap_err();
        let TenantError::LeaseHeld { holder, .. } = &held else { panic!("{held}") };
        assert_eq!(holder, a.tenants.cache().holder().as_str());
        put(&tenant, &format!("row {number}"), "1").await.unwrap();
        tokio::time::sleep(TTL / 5).await;
    }
    drop(tenant);
    a.tenants.close().await.unwrap();
    let tenant = copy.tenants.get(&ann).await.unwrap();
    assert_eq!(count(&tenant).await, 11);
}

#[tokio::test]
async fn of_two_hosts_that_make_a_tenant_at_once_one_gets_it() {
    let world = World::new();
    let (a, b) = (world.host("a").await, world.host("b").await);
    for number in 0..20 {
        let user = key(&format!("acme/users/u{number}"));
        let (from_a, from_b) = tokio::join!(a.get(&user), b.get(&user));
        let (winner, lost) = match (from_a, from_b) {
            (Ok(_), Err(error)) => (&a, error),
            (Err(error), Ok(_)) => (&b, error),
            other => panic!("{other:?}"),
        };
        let TenantError::LeaseHeld { holder, .. } = &lost else { panic!("{lost}") };
        assert_eq!(holder, winner.cache().holder().as_str());
        assert_eq!(a.remote().head(&user).await.unwrap().unwrap().epoch, 1);
    }
}

#[tokio::test]
async fn a_host_that_lost_its_lease_is_fenced_and_its_unsent_data_is_in_quarantine() {
    for hangs in [false, true] {
        let world = World::new();
        let (a, b) = (host(&world, "a").await, host(&world, "b").await);
        let ann = key("acme/users/ann");
        let tenant = a.tenants.get(&ann).await.unwrap();
        put(&tenant, "sent", "1").await.unwrap();
        a.tenants.checkpoint(&ann).await.unwrap();
        put(&tenant, "unsent", "2").await.unwrap();
        match hangs {
            true => a.hang(),
            false => a.objects.set_down(true),
        }
        let taken = b.tenants.get(&ann).await.unwrap();
        assert_eq!(get(&taken, "sent").await.unwrap().as_deref(), Some("1"));
        assert_eq!(get(&taken, "unsent").await.unwrap(), None);
        // The operator learns where the rest is.
        let folder = a.tenants.cache().folder().display().to_string();
        let told = b.events.of("tenant.taken_over");
        assert!(told.len() == 1 && told[0].contains(&folder), "{told:?}");
        let takeovers = b.tenants.remote().head(&ann).await.unwrap().unwrap().takeovers;
        let noted = (takeovers[0].holder.as_str(), takeovers[0].folder.as_deref(), takeovers[0].epoch);
        assert_eq!(noted, (a.tenants.cache().holder().as_str(), Some(folder.as_str()), 1));
        put(&taken, "of b", "3").await.unwrap();
        b.tenants.checkpoint(&ann).await.unwrap();
        let before = b.tenants.remote().head(&ann).await.unwrap().unwrap().snapshot;
        // The host cannot know which host has the tenant, but knows that it has lost it.
        for error in [put(&tenant, "late", "4").await.unwrap_err(), get(&tenant, "sent").await.unwrap_err()] {
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        }
        a.objects.set_down(false);
        a.objects.clear();
        eventually("the quarantine", async || a.tenants.cache().quarantined().unwrap().len() == 1).await;
        let note = a.tenants.cache().quarantined().unwrap().remove(0);
        assert_eq!(
            (note.tenant.as_str(), note.sent_position, note.position),
            ("acme/users/ann", Some(1 << 32), Some((1 << 32) + 1))
        );
        assert!(note.reason.contains("another host"), "{}", note.reason);
        assert_eq!(row_of_file(&note.database, "unsent").await.as_deref(), Some(b"2".as_slice()));
        eventually("the event", async || a.events.of("tenant.quarantined").len() == 1).await;
        let error = put(&tenant, "late", "4").await.unwrap_err();
        assert!(matches!(error, Error::Closed | Error::Unavailable { .. }), "{error}");
        // Data of the other host is unchanged, and nothing of this host is left.
        assert_eq!(b.tenants.remote().head(&ann).await.unwrap().unwrap().snapshot, before);
        assert_eq!(a.tenants.cache().tenants().unwrap(), []);
        put(&taken, "of b", "5").await.unwrap();
        drop((tenant, taken));
        b.tenants.evict(&ann).await.unwrap();
        let again = a.tenants.get(&ann).await.unwrap();
        assert!(a.events.of("tenant.taken_over").is_empty(), "a released lease was reported as taken over");
        assert_eq!(get(&again, "of b").await.unwrap().as_deref(), Some("5"));
        assert_eq!(count(&again).await, 2);
        put(&again, "of a", "6").await.unwrap();
        a.tenants.cache().remove_from_quarantine(&note.name).unwrap();
        assert_eq!(a.tenants.cache().quarantined().unwrap(), []);
    }
}

#[tokio::test]
async fn who_was_fenced_may_have_it_open_while_it_comes_again_and_takes_no_permit() {
    let world = World::new();
    let a = host_with(&world, "a", |builder| builder.capacity(1)).await;
    let b = host(&world, "b").await;
    let ann = key("acme/users/ann");
    let old = a.tenants.get(&ann).await.unwrap();
    put(&old, "sent", "1").await.unwrap();
    a.tenants.checkpoint(&ann).await.unwrap();
    put(&old, "unsent", "1").await.unwrap();
    // Its user keeps SQLite's files of the old database open all the time.
    let mut view = handle(&old).begin(Mode::View).unwrap();
    assert!(view.get("n".into(), "unsent".into()).await.unwrap().is_some());
    a.objects.set_down(true);
    put_in(&b.tenants, &ann, "of b", "1").await;
    b.tenants.evict(&ann).await.unwrap();
    a.objects.set_down(false);
    eventually("the quarantine", async || a.tenants.cache().quarantined().unwrap().len() == 1).await;
    let new = a.tenants.get(&ann).await.unwrap();
    put(&new, "new 1", "1").await.unwrap();
    let mut new_view = handle(&new).begin(Mode::View).unwrap();
    assert!(new_view.get("n".into(), "new 1".into()).await.unwrap().is_some());
    drop((view, old));
    tokio::time::sleep(Duration::from_millis(50)).await;
    put(&new, "new 2", "1").await.unwrap();
    drop(new_view);
    assert_eq!(count(&new).await, 4);
    // The files that a process would find that starts after this one is killed.
    crash(&world, "a", "copy").await;
    let copy = world.cache("copy").join("acme/users/ann.db");
    assert!(row_of_file(&copy, "new 2").await.is_some());
    let note = a.tenants.cache().quarantined().unwrap().remove(0);
    assert!(row_of_file(&note.database, "unsent").await.is_some());
    drop(new);
    a.tenants.evict(&ann).await.unwrap();
    assert_eq!(count(&b.tenants.get(&ann).await.unwrap()).await, 4);
}

#[tokio::test]
async fn a_host_that_only_read_overwrites_nothing_once_it_was_replaced() {
    let world = World::new();
    let (a, b) = (host(&world, "a").await, host(&world, "b").await);
    let ann = key("acme/users/ann");
    put_in(&a.tenants, &ann, "a", "old").await;
    a.tenants.evict(&ann).await.unwrap();
    assert_eq!(get_in(&a.tenants, &ann, "a").await.as_deref(), Some("old"));
    a.objects.set_down(true);
    put_in(&b.tenants, &ann, "a", "new").await;
    b.tenants.evict(&ann).await.unwrap();
    let before = b.tenants.remote().head(&ann).await.unwrap();
    let sent = a.objects.calls(Operation::Multipart);
    a.objects.set_down(false);
    // The first read may be what reveals the loss.
    drop(a.tenants.evict(&ann).await);
    drop(a.tenants.evict(&ann).await);
    a.tenants.close().await.unwrap();
    assert_eq!(b.tenants.remote().head(&ann).await.unwrap(), before);
    assert_eq!(a.objects.calls(Operation::Multipart), sent);
    assert_eq!(a.tenants.cache().quarantined().unwrap(), []);
    assert_eq!(get_in(&b.tenants, &ann, "a").await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_tenant_goes_back_to_an_earlier_moment_for_every_host() {
    let clock = Arc::new(MovableClock::default());
    let mut world = World::new();
    world.objects = world.objects.with_clock(clock.clone());
    let a = world.host("a").await;
    let ann = key("acme/users/ann");
    let mut moments = Vec::new();
    for value in ["1", "2", "3"] {
        put_in(&a, &ann, "a", value).await;
        a.evict(&ann).await.unwrap();
        moments.push(a.remote().history(&ann).await.unwrap().last().unwrap().taken_at);
        clock.advance(Duration::from_secs(60));
    }
    let restored = a.restore_at(&ann, moments[1] + 1).await.unwrap();
    assert_eq!([restored.found.taken_at, restored.before.taken_at], [moments[1], moments[2]]);
    assert_eq!(get_in(&a, &ann, "a").await.as_deref(), Some("2"));
    a.evict(&ann).await.unwrap();
    let b = world.host("b").await;
    assert_eq!(get_in(&b, &ann, "a").await.as_deref(), Some("2"));
    put_in(&b, &ann, "b", "after").await;
    b.evict(&ann).await.unwrap();
    assert_eq!(count(&a.get(&ann).await.unwrap()).await, 2);
}

// Many lease changes.

/// The results that writers got.
#[derive(Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
    refused: BTreeSet<String>,
    epochs: BTreeSet<u64>,
}

struct Race {
    durability: Durability,
    ttl: Duration,
    lease_changes: usize,
    told: Mutex<Told>,
    taken_over: AtomicU64,
}

/// Puts a row and increments a counter in one transaction.
async fn step(tenants: &Tenants, row: &str) -> larder_core::Result<u64> {
    let tenant = tenants.get(&key("acme/users/ann")).await?;
    let handle = handle(&tenant);
    let mut update = handle.begin(Mode::Update)?;
    update.put("n".into(), row.into(), b"1".to_vec())?;
    update.increment("n".into(), "count".into(), 1)?;
    update.commit().await?;
    Ok(tenant.epoch())
}

impl Race {
    fn has_enough(&self) -> bool {
        self.told.lock().epochs.len() >= self.lease_changes
    }

    async fn host(&self, tenants: Tenants, objects: FaultyStore, name: &str, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let ann = key("acme/users/ann");
        let mut next = 0;
        while !self.has_enough() {
            match tenants.get(&ann).await {
                Ok(tenant) => drop(self.told.lock().epochs.insert(tenant.epoch())),
                Err(error @ TenantError::Corrupt { .. }) => panic!("{error}"),
                Err(_) => continue,
            }
            for _ in 0..random.u32(1..4) {
                self.write(&tenants, &format!("{name}-{next}")).await;
                next += 1;
            }
            match random.u32(0..100) {
                0..90 => drop(tenants.evict(&ann).await),
                90..94 => {
                    // Cuts the connection to object storage until another host has the tenant.
                    objects.set_down(true);
                    self.write(&tenants, &format!("{name}-{next}")).await;
                    tokio::time::sleep(self.ttl * 2).await;
                    objects.set_down(false);
                    self.write(&tenants, &format!("{name}-{}", next + 1)).await;
                    next += 2;
                    self.taken_over.fetch_add(1, Ordering::Relaxed);
                }
                94..97 => drop(tenants.checkpoint(&ann).await),
                _ => {}
            }
            // The other host keeps trying to take the lease.
            tokio::time::sleep(Duration::from_millis(random.u64(1..20))).await;
        }
        objects.clear();
        let mut attempts = 0;
        while let Err(error) = tenants.close().await {
            attempts += 1;
            assert!(attempts < 100, "{error}");
            tokio::time::sleep(self.ttl / 4).await;
        }
    }

    async fn write(&self, tenants: &Tenants, row: &str) {
        let outcome = step(tenants, row).await;
        let mut told = self.told.lock();
        match outcome {
            Ok(epoch) => {
                told.epochs.insert(epoch);
                told.acknowledged.insert(row.to_string());
            }
            Err(Error::CommitUnknown { .. }) => drop(told.unknown.insert(row.to_string())),
            Err(error @ (Error::Corrupt(_) | Error::Other { .. })) => panic!("{error}"),
            Err(_) => drop(told.refused.insert(row.to_string())),
        }
    }

    /// Runs the race on two views of the same object storage.
    async fn run(
        durability: Durability,
        lease_changes: usize,
        ttl: Duration,
        new_store: impl Fn() -> Arc<dyn ObjectStore>,
    ) {
        let world = World::over(new_store());
        let (told, taken_over) = (Mutex::default(), AtomicU64::new(0));
        let race = Arc::new(Self { durability, ttl, lease_changes, told, taken_over });
        let mut hosts = tokio::task::JoinSet::new();
        let mut caches = BTreeMap::new();
        for (name, seed) in [("a", 1), ("b", 2)] {
            let objects = FaultyStore::new(new_store());
            let mut attempts = 0;
            let tenants = loop {
                let builder = leases_of(ttl, world.builder_over(&objects, name))
                    .durability(durability)
                    .lease_wait(Duration::from_secs(5));
                match builder.open().await {
                    Ok(tenants) => break tenants,
                    // A server that has just started is slow.
                    Err(error) => assert!(attempts < 30, "{error}"),
                }
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            };
            let faults =
                [Fault::Fail, Fault::LoseAnswer, Fault::DenyOwnSuccess, Fault::Hang, Fault::HangAfter];
            objects.fail_at_random(seed, 0.02, &faults);
            caches.insert(name, tenants.clone());
            let race = race.clone();
            hosts.spawn(async move { race.host(tenants, objects, name, seed).await });
        }
        while let Some(host) = hosts.join_next().await {
            host.unwrap();
        }
        race.check(&world, caches.into_values().collect()).await;
    }

    async fn check(&self, world: &World, hosts: Vec<Tenants>) {
        let last = leases_of(self.ttl, world.builder("last"))
            .lease_wait(Duration::from_secs(60))
            .durability(self.durability)
            .open()
            .await
            .unwrap();
        let tenant = last.get(&key("acme/users/ann")).await.unwrap();
        let told = std::mem::take(&mut *self.told.lock());
        let mut view = handle(&tenant).begin(Mode::View).unwrap();
        let mut found = BTreeSet::new();
        for row in told.acknowledged.iter().chain(&told.unknown).chain(&told.refused) {
            if view.get("n".into(), row.as_str().into()).await.unwrap().is_some() {
                found.insert(row.clone());
            }
        }
        let counted = view.get("n".into(), "count".into()).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(counted).unwrap(), found.len().to_string(), "a step was applied twice");
        let refused: Vec<_> = told.refused.intersection(&found).collect();
        assert!(refused.is_empty(), "refused, but stored: {refused:?}");
        let mut missing: BTreeSet<_> = told.acknowledged.difference(&found).cloned().collect();
        let in_quarantine = missing.len();
        if self.durability == Durability::Local {
            for note in hosts.iter().flat_map(|host| host.cache().quarantined().unwrap()) {
                for row in missing.clone() {
                    if row_of_file(&note.database, &row).await.is_some() {
                        missing.remove(&row);
                    }
                }
            }
        }
        assert!(missing.is_empty(), "acknowledged, but lost: {missing:?}");
        let epochs = told.epochs.len();
        assert!(epochs >= self.lease_changes && tenant.epoch() > epochs as u64);
        println!(
            "{:?}: {epochs} leases, {} cut off, {} acknowledged and 0 lost ({in_quarantine} of them in quarantine), \
             {} of {} unknown there, {} refused",
            self.durability,
            self.taken_over.load(Ordering::Relaxed),
            told.acknowledged.len(),
            told.unknown.intersection(&found).count(),
            told.unknown.len(),
            told.refused.len()
        );
    }
}

/// The number of lease changes. Set `LARDER_LEASES` to override it.
const LEASE_CHANGES: usize = 150;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_many_lease_changes_of_two_hosts_each_acknowledged_write_is_there_once() {
    let lease_changes = std::env::var("LARDER_LEASES").ok().and_then(|count| count.parse().ok());
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    Race::run(Durability::Object, lease_changes.unwrap_or(LEASE_CHANGES), TTL / 2, || store.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_locally_is_there_once_or_in_quarantine() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    Race::run(Durability::Local, 100, TTL, || store.clone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_folder_each_acknowledged_write_of_two_hosts_is_there_once() {
    let folder = tempfile::tempdir().unwrap();
    let new_store = || -> Arc<dyn ObjectStore> { Arc::new(FolderStore::open(folder.path()).unwrap()) };
    Race::run(Durability::Object, 100, TTL, new_store).await;
}

#[cfg(feature = "s3")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_real_s3_server_each_acknowledged_write_of_two_hosts_is_there_once() {
    let server = support::seaweed::Seaweed::start();
    server.wait_until_ready(&server.store()).await;
    Race::run(Durability::Object, 60, TTL * 5, || server.store()).await;
}
