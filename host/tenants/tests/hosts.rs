//! Tenants on whole hosts: opened, shared, written back, evicted and closed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "tests"
)]

mod host;

use std::sync::Arc;
use std::time::{Duration, Instant};

use host::*;
use larder_core::backend::Backend;
use larder_core::{Error, HandleOptions, Mode, MovableClock, PutOptions, Store, StoreSource};
use larder_tenants::faults::{Fault, Operation, Rule};
use larder_tenants::{Durability, RemoteOptions, Scope, TenantError, TenantIdentity, Tenants};

// Opening.

#[tokio::test]
async fn a_new_tenant_is_created_with_a_file_at_its_path() {
    let world = World::new();
    let tenants = world.host("a").await;
    let tenant = tenants.get(&key("acme/users/ann")).await.unwrap();
    assert_eq!(count(&tenant).await, 0);
    assert_eq!((tenant.key().to_string().as_str(), tenant.epoch()), ("acme/users/ann", 1));
    assert!(world.cache("a").join("acme/users/ann.db").is_file());
    assert_eq!(tenants.resident(), [key("acme/users/ann")]);
}

#[tokio::test]
async fn a_tenant_that_is_open_is_given_again_also_to_many_at_once() {
    let world = World::new();
    let tenants = world.host("a").await;
    let ann = key("acme/users/ann");
    let opened = futures_util::future::join_all((0..16).map(|_| tenants.get(&ann))).await;
    let epochs: Vec<_> = opened.iter().map(|tenant| tenant.as_ref().unwrap().epoch()).collect();
    // All of them share one lease and one download.
    assert_eq!(epochs, [1; 16]);
    put(opened[0].as_ref().unwrap(), "a", "1").await.unwrap();
    assert_eq!(get(opened[15].as_ref().unwrap(), "a").await.unwrap().as_deref(), Some("1"));
}

#[tokio::test]
async fn tenants_and_scopes_see_nothing_of_each_other() {
    let world = World::new();
    let tenants = world.host("a").await;
    let keys = [
        "acme/users/ann",
        "acme/users/bob",
        "acme/org",
        "acme/apps/shop",
        "acme/apps/shop/projects/x",
        "b/users/ann",
    ];
    for name in keys {
        put_in(&tenants, &key(name), "whose", name).await;
    }
    for name in keys {
        assert_eq!(get_in(&tenants, &key(name), "whose").await.as_deref(), Some(name));
    }
}

#[tokio::test]
async fn a_component_gets_the_store_of_the_identity_that_its_host_bound() {
    let world = World::new();
    let events = Events::default();
    let tenants = world.builder("a").events(Arc::new(events.clone())).open().await.unwrap();
    let identity = TenantIdentity {
        org: "acme".parse().unwrap(),
        user: Some("ann".parse().unwrap()),
        app: Some("shop".parse().unwrap()),
        project: None,
    };
    let open = async |source: Arc<dyn StoreSource>| source.open().await;
    let store = open(tenants.store_of(Some(identity.clone()), Scope::User)).await.unwrap();
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    update.put("n".into(), "a".into(), b"of ann".to_vec()).unwrap();
    update.commit().await.unwrap();
    drop(store);
    assert_eq!(get_in(&tenants, &key("acme/users/ann"), "a").await.as_deref(), Some("of ann"));
    for scope in [Scope::Org, Scope::App] {
        open(tenants.store_of(Some(identity.clone()), scope)).await.unwrap();
    }
    let own = open(tenants.store_at(Some(identity.clone()), key("acme/users/ann"))).await;
    own.unwrap();
    assert!(events.of("store.access_denied").is_empty());

    let missing = open(tenants.store_of(Some(identity.clone()), Scope::Project)).await.err().unwrap();
    assert!(matches!(&missing, Error::IdentityRequired(reason) if reason.contains("project")), "{missing}");
    let none = open(tenants.store_of(None, Scope::User)).await.err().unwrap();
    assert!(matches!(none, Error::IdentityRequired(_)));
    for other in ["acme/users/bob", "other/users/ann", "other/org", "acme/apps/mail"] {
        let denied = open(tenants.store_at(Some(identity.clone()), key(other))).await.err().unwrap();
        assert!(matches!(denied, Error::AccessDenied(_)), "{other}: {denied}");
    }
    assert_eq!(events.of("store.access_denied").len(), 6);
    assert_eq!(tenants.resident().len(), 3);
}

// Writing back.

#[tokio::test]
async fn a_checkpoint_is_what_the_next_host_reads() {
    let world = World::new();
    let (a, ann) = (world.host("a").await, key("acme/users/ann"));
    put_in(&a, &ann, "a", "1").await;
    assert!(a.checkpoint(&ann).await.unwrap());
    let snapshot = a.remote().head(&ann).await.unwrap().unwrap().snapshot.unwrap();
    assert!(!a.checkpoint(&ann).await.unwrap());
    assert_eq!(a.remote().head(&ann).await.unwrap().unwrap().snapshot.unwrap(), snapshot);
    a.close().await.unwrap();
    let b = world.host("b").await;
    assert_eq!(get_in(&b, &ann, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn expired_rows_are_not_written_back() {
    let world = World::new();
    let clock = Arc::new(MovableClock::default());
    let a = world.builder("a").clock(clock.clone()).open().await.unwrap();
    let ann = key("acme/users/ann");
    let tenant = a.get(&ann).await.unwrap();
    let mut update = handle(&tenant).begin(Mode::Update).unwrap();
    let minute = PutOptions::default().ttl_ms(60_000);
    update.put_with("n".into(), "expires".into(), b"value".to_vec(), minute).unwrap();
    update.put("n".into(), "a".into(), b"1".to_vec()).unwrap();
    update.commit().await.unwrap();
    clock.advance(Duration::from_secs(120));
    assert!(a.checkpoint(&ann).await.unwrap());
    // The namespace, key and value of the row that stays.
    assert_eq!(tenant.backend().stored_bytes().await.unwrap(), 3);
    drop(tenant);
    a.close().await.unwrap();
}

#[tokio::test]
async fn a_tenant_that_did_not_change_is_never_uploaded() {
    let world = World::new();
    let (a, ann) = (world.host("a").await, key("acme/users/ann"));
    put_in(&a, &ann, "a", "1").await;
    a.evict(&ann).await.unwrap();
    let before = a.remote().head(&ann).await.unwrap().unwrap().snapshot.unwrap();
    for _ in 0..3 {
        assert_eq!(get_in(&a, &ann, "a").await.as_deref(), Some("1"));
        assert!(a.evict(&ann).await.unwrap());
    }
    let head = a.remote().head(&ann).await.unwrap().unwrap();
    assert_eq!((head.snapshot.unwrap(), head.history.len()), (before, 0));
}

#[tokio::test]
async fn tenants_past_the_capacity_are_written_back_and_come_again() {
    let world = World::new();
    let tenants = world.builder("a").capacity(4).open().await.unwrap();
    let keys: Vec<_> = (0..9).map(|number| key(&format!("acme/users/u{number}"))).collect();
    for (number, user) in keys.iter().enumerate() {
        put_in(&tenants, user, "a", &number.to_string()).await;
        assert!(tenants.resident().len() <= 4);
    }
    for (number, user) in keys.iter().enumerate() {
        assert_eq!(get_in(&tenants, user, "a").await, Some(number.to_string()));
    }
    // Only open tenants are on this host's disk.
    assert_eq!(tenants.cache().tenants().unwrap(), tenants.resident());
}

#[tokio::test]
async fn the_least_recently_used_tenant_goes_first() {
    let world = World::new();
    let tenants = world.builder("a").capacity(3).open().await.unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| key(&format!("acme/users/{name}")));
    for user in [&a, &b, &c, &a] {
        tenants.get(user).await.unwrap();
    }
    tenants.get(&d).await.unwrap();
    assert_eq!(tenants.resident(), [a, c, d]);
}

#[tokio::test]
async fn a_tenant_in_use_is_not_evicted() {
    let world = World::new();
    let tenants = world.builder("a").capacity(1).room_wait(Duration::from_secs(1)).open().await.unwrap();
    let (ann, bob) = (key("acme/users/ann"), key("acme/users/bob"));
    let tenant = tenants.get(&ann).await.unwrap();
    let store = tenant.store();
    drop(tenant);
    let handle = store.handle(HandleOptions::default());
    drop(store);
    let mut update = handle.begin(Mode::Update).unwrap();
    drop(handle);
    // Only a transaction is left, which is enough.
    assert!(matches!(tenants.evict(&ann).await, Err(TenantError::InUse { .. })));
    assert!(matches!(tenants.get(&bob).await, Err(TenantError::Full { capacity: 1 })));
    update.put("n".into(), "a".into(), b"1".to_vec()).unwrap();
    update.commit().await.unwrap();
    tenants.get(&bob).await.unwrap();
    assert_eq!(tenants.resident(), std::slice::from_ref(&bob));
    assert_eq!(get_in(&tenants, &ann, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_caller_that_waits_for_room_gets_it_once_a_tenant_leaves() {
    let world = World::new();
    let tenants = world.builder("a").capacity(1).room_wait(Duration::from_secs(20)).open().await.unwrap();
    let ann = tenants.get(&key("acme/users/ann")).await.unwrap();
    let leaving = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        put(&ann, "a", "1").await.unwrap();
    });
    // No permit is released while it waits: the first user only drops its tenant, which can then be
    // evicted.
    let bob = tenants.get(&key("acme/users/bob")).await;
    leaving.await.unwrap();
    bob.unwrap();
}

#[tokio::test]
async fn a_write_is_sent_after_so_many_and_after_so_long() {
    let world = World::new();
    let ann = key("acme/users/ann");
    let sent = async |tenants: &Tenants| {
        tenants.remote().head(&ann).await.unwrap().is_some_and(|head| head.snapshot.is_some())
    };
    let after_writes = world.builder("a").checkpoint_writes(3).open().await.unwrap();
    let tenant = after_writes.get(&ann).await.unwrap();
    put(&tenant, "a", "1").await.unwrap();
    put(&tenant, "b", "1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!sent(&after_writes).await);
    put(&tenant, "c", "1").await.unwrap();
    eventually("the third write's checkpoint", async || sent(&after_writes).await).await;
    drop(tenant);
    after_writes.close().await.unwrap();

    let after_time = world.builder("b").checkpoint_interval(Duration::from_millis(100)).open().await.unwrap();
    let tenant = after_time.get(&ann).await.unwrap();
    let generation =
        async || after_time.remote().head(&ann).await.unwrap().unwrap().snapshot.unwrap().generation;
    let before = generation().await;
    put(&tenant, "d", "1").await.unwrap();
    // It is always in use, and never idle.
    eventually("the interval's checkpoint", async || generation().await > before).await;
}

#[tokio::test]
async fn idle_tenants_are_written_back_and_closed_unless_told_otherwise() {
    let world = World::new();
    let (ann, bob) = (key("acme/users/ann"), key("acme/users/bob"));
    let tenants = world.builder("a").idle(Some(Duration::from_millis(100))).open().await.unwrap();
    put_in(&tenants, &ann, "a", "1").await;
    let bob_in_use = tenants.get(&bob).await.unwrap();
    eventually("idleness", async || tenants.resident() == [bob.clone()]).await;
    assert!(tenants.remote().head(&ann).await.unwrap().unwrap().lease.is_none());
    assert_eq!(get_in(&tenants, &ann, "a").await.as_deref(), Some("1"));
    drop(bob_in_use);
    tenants.close().await.unwrap();

    let never = world.host("b").await;
    put_in(&never, &ann, "a", "2").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(never.resident(), [ann]);
}

#[tokio::test]
async fn a_checkpoint_beside_readers_and_writers_is_one_committed_state() {
    let world = World::new();
    let (a, ann) = (world.host("a").await, key("acme/users/ann"));
    let tenant = a.get(&ann).await.unwrap();
    // A reader that holds a snapshot all the time, which would block a checkpoint of SQLite's
    // write-ahead log.
    let mut reader = handle(&tenant).begin(Mode::View).unwrap();
    assert_eq!(reader.get("n".into(), "left".into()).await.unwrap(), None);
    let writing = tokio::spawn({
        let tenant = tenant.clone();
        async move {
            for number in 0..200 {
                let mut update = handle(&tenant).begin(Mode::Update).unwrap();
                for side in ["left", "right"] {
                    update.put("n".into(), side.into(), number.to_string().into_bytes()).unwrap();
                }
                update.commit().await.unwrap();
            }
        }
    });
    let mut states = Vec::new();
    while !writing.is_finished() {
        a.checkpoint(&ann).await.unwrap();
        states.push(a.remote().head(&ann).await.unwrap().unwrap().snapshot);
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
    drop(reader);
    a.checkpoint(&ann).await.unwrap();
    for snapshot in states.into_iter().flatten() {
        let file = world.cache("copy.db");
        a.remote().fetch(&ann, &snapshot, &file, 1 << 30).await.unwrap();
        let database = larder_sqlite::Sqlite::open(&file, Default::default()).await.unwrap();
        let store = Store::builder(database).sweep_interval(None).build().unwrap();
        let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
        let left = view.get("n".into(), "left".into()).await.unwrap();
        assert_eq!(left, view.get("n".into(), "right".into()).await.unwrap());
        drop(view);
        store.close().await;
        std::fs::remove_file(&file).unwrap();
    }
    drop(tenant);
    a.evict(&ann).await.unwrap();
    assert_eq!(get_in(&a, &ann, "right").await.as_deref(), Some("199"));
}

// Failures.

#[tokio::test]
async fn an_upload_that_fails_keeps_the_tenant_and_the_next_one_sends_it() {
    let world = World::new();
    let events = Events::default();
    let tenants = world.builder("a").events(Arc::new(events.clone())).open().await.unwrap();
    let ann = key("acme/users/ann");
    put_in(&tenants, &ann, "a", "1").await;
    world.objects.add(Rule::next(Operation::Put, "snapshots", Fault::Fail).times(10));
    assert!(matches!(tenants.evict(&ann).await, Err(TenantError::Unavailable { .. })));
    assert!(matches!(tenants.checkpoint(&ann).await, Err(TenantError::Unavailable { .. })));
    // It stays usable meanwhile.
    assert_eq!(tenants.resident(), std::slice::from_ref(&ann));
    put_in(&tenants, &ann, "b", "2").await;
    world.objects.clear();
    assert!(tenants.evict(&ann).await.unwrap());
    assert_eq!(get_in(&tenants, &ann, "a").await.as_deref(), Some("1"));
    assert_eq!(get_in(&tenants, &ann, "b").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_failed_write_back_without_a_waiting_caller_is_reported_and_retried() {
    let world = World::new();
    let events = Events::default();
    let tenants =
        world.builder("a").checkpoint_writes(1).events(Arc::new(events.clone())).open().await.unwrap();
    let ann = key("acme/users/ann");
    world.objects.add(Rule::next(Operation::Put, "snapshots", Fault::Fail).times(2));
    put_in(&tenants, &ann, "a", "1").await;
    eventually("the report", async || !events.of("checkpoint").is_empty()).await;
    assert!(events.of("checkpoint")[0].contains("tenant acme/users/ann"));
    eventually("the second attempt", async || {
        tenants.remote().head(&ann).await.unwrap().unwrap().snapshot.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_tenant_whose_upload_fails_stays_and_fails_no_other_opening() {
    let world = World::new();
    let tenants = world.builder("a").capacity(2).open().await.unwrap();
    let stuck = key("acme/users/stuck");
    put_in(&tenants, &stuck, "a", "1").await;
    world.objects.add(Rule::next(Operation::Put, "stuck.db/snapshots", Fault::Fail).times(1_000));
    for number in 0..6 {
        put_in(&tenants, &key(&format!("acme/users/u{number}")), "a", "1").await;
    }
    assert!(tenants.resident().contains(&stuck));
    assert_eq!(tenants.resident().len(), 3);
    assert_eq!(get_in(&tenants, &stuck, "a").await.as_deref(), Some("1"));
    let error = tenants.close().await.unwrap_err();
    let TenantError::NotWrittenBack { failed } = &error else { panic!("{error}") };
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0, stuck);
    world.objects.clear();
    tenants.close().await.unwrap();
    tenants.close().await.unwrap();
    assert!(matches!(tenants.get(&stuck).await, Err(TenantError::ShutDown)));
    let b = world.host("b").await;
    assert_eq!(get_in(&b, &stuck, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_tenant_whose_uploads_work_again_counts_among_those_that_are_open() {
    let world = World::new();
    let tenants = world.builder("a").capacity(2).open().await.unwrap();
    let stuck = key("acme/users/stuck");
    put_in(&tenants, &stuck, "a", "1").await;
    world.objects.add(Rule::next(Operation::Put, "stuck.db/snapshots", Fault::Fail).times(1_000));
    let users: Vec<_> = (0..4).map(|number| key(&format!("acme/users/u{number}"))).collect();
    for user in &users {
        put_in(&tenants, user, "a", "1").await;
    }
    assert_eq!(tenants.resident(), [stuck.clone(), users[2].clone(), users[3].clone()]);
    world.objects.clear();
    let in_use = tenants.get(&stuck).await.unwrap();
    assert!(tenants.checkpoint(&stuck).await.unwrap());
    // One of the others is evicted for it. From then on, there is room for one tenant beside it.
    eventually("the permit", async || tenants.resident() == [stuck.clone(), users[3].clone()]).await;
    put_in(&tenants, &users[0], "a", "2").await;
    assert_eq!(tenants.resident(), [stuck.clone(), users[0].clone()]);
    drop(in_use);
    for user in [&users[1], &users[2]] {
        put_in(&tenants, user, "a", "2").await;
    }
    assert_eq!(tenants.resident(), users[1..3]);
    assert_eq!(get_in(&tenants, &stuck, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn closing_writes_every_tenant_back_and_names_all_that_it_could_not() {
    let world = World::new();
    let tenants = world.host("a").await;
    let keys = ["acme/users/a", "acme/users/b", "acme/users/c"].map(key);
    for user in &keys {
        put_in(&tenants, user, "a", "1").await;
    }
    world.objects.set_down(true);
    let error = tenants.close().await.unwrap_err();
    let TenantError::NotWrittenBack { failed } = &error else { panic!("{error}") };
    assert_eq!(failed.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), keys);
    world.objects.set_down(false);
    tenants.close().await.unwrap();
    let b = world.host("b").await;
    for user in &keys {
        assert_eq!(get_in(&b, user, "a").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn closing_ends_what_is_in_use() {
    let world = World::new();
    let tenants = world.host("a").await;
    let ann = key("acme/users/ann");
    let tenant = tenants.get(&ann).await.unwrap();
    put(&tenant, "a", "1").await.unwrap();
    let mut open = handle(&tenant).begin(Mode::Update).unwrap();
    open.get("n".into(), "a".into()).await.unwrap();
    tenants.close().await.unwrap();
    assert!(matches!(open.commit().await, Err(Error::Closed)));
    assert!(matches!(put(&tenant, "b", "1").await, Err(Error::Closed)));
    let b = world.host("b").await;
    assert_eq!(count(&b.get(&ann).await.unwrap()).await, 1);
}

#[tokio::test]
async fn what_is_dropped_without_being_closed_lets_the_cache_folder_go_with_all_that_is_in_it() {
    let world = World::new();
    let ann = key("acme/users/ann");
    let first = world.host("a").await;
    put_in(&first, &ann, "a", "1").await;
    drop(first);
    let again = async || world.builder("a").open().await.ok();
    let mut second = None;
    eventually("the folder", async || {
        second = again().await;
        second.is_some()
    })
    .await;
    let second = second.unwrap();
    assert_eq!(get_in(&second, &ann, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn an_upload_or_a_download_that_hangs_delays_no_other_tenant() {
    let world = World::new();
    let tenants = world.builder("a").capacity(50).open().await.unwrap();
    let (slow, cold) = (key("acme/users/slow"), key("acme/users/cold"));
    put_in(&tenants, &cold, "a", "1").await;
    tenants.evict(&cold).await.unwrap();
    put_in(&tenants, &slow, "a", "1").await;
    world.objects.add(Rule::next(Operation::Put, "slow.db/snapshots", Fault::Hang).times(100));
    world.objects.add(Rule::next(Operation::Get, "cold.db/snapshots", Fault::Hang).times(100));
    let hanging = [
        tokio::spawn({
            let (tenants, slow) = (tenants.clone(), slow.clone());
            async move { tenants.evict(&slow).await.map(drop) }
        }),
        tokio::spawn({
            let (tenants, cold) = (tenants.clone(), cold.clone());
            async move { tenants.get(&cold).await.map(drop) }
        }),
    ];
    tokio::time::sleep(Duration::from_millis(50)).await;
    // While both hang, other tenants are opened, written, written back and evicted to the end.
    for number in 0..5 {
        let user = key(&format!("acme/users/u{number}"));
        put_in(&tenants, &user, "a", "1").await;
        assert!(tenants.evict(&user).await.unwrap());
    }
    assert!(!hanging[0].is_finished() && !hanging[1].is_finished());
    hanging.into_iter().for_each(|task| task.abort());
    world.objects.clear();
    assert_eq!(get_in(&tenants, &slow, "a").await.as_deref(), Some("1"));
    assert_eq!(get_in(&tenants, &cold, "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_store_that_can_not_be_used_is_refused_at_start() {
    let world = World::new();
    let builder = |capacity: usize| world.builder("a").capacity(capacity);
    let too_many = builder(100_000_000).open().await.unwrap_err();
    assert!(
        matches!(&too_many, TenantError::InvalidArgument(reason) if reason.contains("open files")),
        "{too_many}"
    );
    assert!(matches!(builder(0).open().await, Err(TenantError::InvalidArgument(_))));
    world.objects.set_down(true);
    assert!(matches!(builder(1).open().await, Err(TenantError::Unavailable { .. })));
    world.objects.set_down(false);
    let first = builder(1).open().await.unwrap();
    let second = builder(1).open().await.unwrap_err();
    assert!(matches!(second, TenantError::CacheInUse { .. }), "{second}");
    drop(first);
}

// Acknowledged by object storage.

#[tokio::test]
async fn with_durability_object_a_lost_host_loses_nothing_acknowledged() {
    let world = World::new();
    let ann = key("acme/users/ann");
    let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
    let tenant = a.get(&ann).await.unwrap();
    put(&tenant, "before", "1").await.unwrap();
    a.checkpoint(&ann).await.unwrap();
    for number in 0..20 {
        put(&tenant, &format!("row {number:02}"), "1").await.unwrap();
    }
    let mut counting = handle(&tenant).begin(Mode::Update).unwrap();
    counting.increment("n".into(), "count".into(), 7).unwrap();
    counting.commit().await.unwrap();
    // The host and its disk are lost, and its lease expires.
    let b = world
        .builder("b")
        .durability(Durability::Object)
        .lease_ttl(Duration::from_secs(15))
        .lease_wait(Duration::from_secs(40))
        .open();
    let b = b.await.unwrap();
    a.remote().acquire(&ann, a.cache().holder(), Duration::ZERO).await.unwrap().release().await.unwrap();
    let taken_over = b.get(&ann).await.unwrap();
    assert_eq!(count(&taken_over).await, 22);
    assert_eq!(get(&taken_over, "count").await.unwrap().as_deref(), Some("7"));
    // The first host learns of it at its next write, which is not stored anywhere.
    let error = put(&tenant, "late", "1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. } | Error::CommitUnknown { .. }), "{error}");
    put(&taken_over, "after", "1").await.unwrap();
    assert_eq!(get(&taken_over, "late").await.unwrap(), None);
}

#[tokio::test]
async fn with_durability_object_what_could_not_be_shipped_is_nowhere() {
    let world = World::new();
    let ann = key("acme/users/ann");
    let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
    let tenant = a.get(&ann).await.unwrap();
    put(&tenant, "a", "1").await.unwrap();
    world.objects.set_down(true);
    let error = put(&tenant, "b", "1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. } | Error::CommitUnknown { .. }), "{error}");
    world.objects.set_down(false);
    drop(tenant);
    let again = async || a.get(&ann).await.ok();
    eventually("the tenant", async || again().await.is_some()).await;
    let tenant = again().await.unwrap();
    assert_eq!(get(&tenant, "a").await.unwrap().as_deref(), Some("1"));
    assert_eq!(get(&tenant, "b").await.unwrap(), None);
    put(&tenant, "c", "1").await.unwrap();
    drop(tenant);
    a.close().await.unwrap();
    let b = world.builder("b").durability(Durability::Object).open().await.unwrap();
    assert_eq!(count(&b.get(&ann).await.unwrap()).await, 2);
}

#[tokio::test]
async fn many_waiting_commits_go_in_one_put() {
    let world = World::new();
    let ann = key("acme/users/ann");
    let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
    let tenant = a.get(&ann).await.unwrap();
    put(&tenant, "first", "1").await.unwrap();
    let before = world.objects.calls(Operation::Put);
    world.objects.add(Rule::next(Operation::Put, "segments", Fault::Delay(Duration::from_millis(200))));
    let rows: Vec<_> = (0..50).map(|number| format!("row {number:02}")).collect();
    let written = futures_util::future::join_all(rows.iter().map(|row| put(&tenant, row, "1"))).await;
    assert!(written.iter().all(Result::is_ok));
    let puts = world.objects.calls(Operation::Put) - before;
    assert!(puts <= 5, "{puts} puts for 50 commits");
}

// Time.

#[tokio::test]
async fn a_lease_is_renewed_as_long_as_its_tenant_is_open() {
    let world = World::new();
    let options = RemoteOptions::default()
        .lease_ttl(Duration::from_millis(600))
        .lease_margin(Duration::from_millis(100));
    let a = world.builder("a").remote_options(options.clone()).open().await.unwrap();
    let b =
        world.builder("b").remote_options(options).lease_wait(Duration::from_secs(2)).open().await.unwrap();
    let ann = key("acme/users/ann");
    let tenant = a.get(&ann).await.unwrap();
    let start = Instant::now();
    let refused = b.get(&ann).await.unwrap_err();
    // It has waited for several lease times.
    assert!(is_lease_held(&refused), "{refused}");
    assert!(start.elapsed() >= Duration::from_secs(2));
    put(&tenant, "a", "1").await.unwrap();
    drop(tenant);
    a.close().await.unwrap();
    assert_eq!(get_in(&b, &ann, "a").await.as_deref(), Some("1"));
}
