//! Deletion: no host opens a deleted tenant, nothing is removed early, and nothing is left in the
//! end.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use host::*;
use larder_core::clock::{Clock, MovableClock};
use larder_core::{
    Error, HandleOptions, IdentityParts, IdentityScope, MemoryOptions, MemoryStore, Mode, PutOptions, Store,
    Strategy, Turn,
};
use larder_tenants::faults::{Fault, Operation, Rule};
use larder_tenants::{
    DeletionStage, Durability, RemoteOptions, Scope, TenantError, TenantIdentity, TenantKey, Tenants,
};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// A world whose object storage has a clock that the test can move.
fn world() -> (World, Arc<MovableClock>) {
    let mut world = World::new();
    let clock = Arc::new(MovableClock::default());
    world.objects = world.objects.with_clock(clock.clone());
    (world, clock)
}

/// The names of the tenant's objects, without its folder.
async fn objects(world: &World) -> Vec<String> {
    let folder = format!("{}/", ann().object_path());
    let metas: Vec<_> = world.objects.list(None).try_collect().await.unwrap();
    let names = metas.iter().filter_map(|meta| meta.location.as_ref().strip_prefix(&folder));
    let mut names: Vec<_> = names.map(str::to_string).collect();
    names.sort();
    names
}

fn is_deleted<T>(outcome: &Result<T, TenantError>, expected: DeletionStage) -> bool {
    matches!(outcome, Err(TenantError::Deleted { stage, .. }) if *stage == expected)
}

#[tokio::test]
async fn no_host_opens_a_deleted_tenant_and_undeleting_brings_back_every_commit() {
    for durability in [Durability::Local, Durability::Object] {
        let (world, clock) = world();
        let a = world.builder("a").durability(durability).open().await.unwrap();
        put_in(&a, &ann(), "sent", "1").await;
        a.checkpoint(&ann()).await.unwrap();
        put_in(&a, &ann(), "since", "2").await;
        let deletion = a.delete(&ann(), WEEK).await.unwrap();
        assert_eq!(deletion.stage, DeletionStage::Marked);
        let week = u64::try_from(WEEK.as_millis()).unwrap();
        assert!(deletion.at <= clock.unix_millis() && deletion.purge_at == deletion.at + week);
        assert!(!a.cache().database(&ann()).exists());
        let b = world.builder("b").durability(durability).open().await.unwrap();
        for host in [&a, &b] {
            assert!(is_deleted(&host.get(&ann()).await, DeletionStage::Marked));
            assert!(is_deleted(&host.view(&ann()).await, DeletionStage::Marked));
            assert!(is_deleted(&host.purge(&ann()).await, DeletionStage::Marked));
        }
        let identity = TenantIdentity {
            user: Some("ann".parse().unwrap()),
            ..TenantIdentity::org("acme".parse().unwrap())
        };
        let guest = b.store_of(Some(identity), Scope::User).open().await;
        assert!(matches!(guest, Err(Error::NotFound { .. })));
        b.undelete(&ann()).await.unwrap();
        b.undelete(&ann()).await.unwrap();
        let tenant = b.get(&ann()).await.unwrap();
        assert_eq!(get(&tenant, "sent").await.unwrap().as_deref(), Some("1"));
        assert_eq!(get(&tenant, "since").await.unwrap().as_deref(), Some("2"));
        put(&tenant, "next", "3").await.unwrap();
    }
}

#[tokio::test]
async fn after_the_grace_period_a_purge_leaves_nothing_but_the_head() {
    let (world, clock) = world();
    let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
    for row in ["one", "two"] {
        put_in(&a, &ann(), row, row).await;
        a.checkpoint(&ann()).await.unwrap();
        put_in(&a, &ann(), "log", row).await;
    }
    a.delete(&ann(), WEEK).await.unwrap();
    let before = objects(&world).await;
    assert!(before.len() > 5, "{before:?}");
    clock.advance(WEEK - Duration::from_secs(60));
    assert!(is_deleted(&a.purge(&ann()).await, DeletionStage::Marked));
    assert_eq!(objects(&world).await, before);
    clock.advance(Duration::from_secs(120));
    for _ in 0..2 {
        assert_eq!(a.purge(&ann()).await.unwrap().stage, DeletionStage::Purged);
        assert_eq!(objects(&world).await, ["head.json"]);
    }
    assert!(matches!(a.undelete(&ann()).await, Err(TenantError::Deleted { .. })));
    assert!(a.remote().head(&ann()).await.unwrap().is_none());
    assert!(a.view(&ann()).await.unwrap().is_none());
    // A purge that is done can be repeated.
    assert_eq!(a.delete(&ann(), WEEK).await.unwrap().stage, DeletionStage::Purged);
    assert!(matches!(a.get_existing(&ann()).await, Err(TenantError::NotFound { .. })));
    assert!(a.remote().head(&ann()).await.unwrap().is_none(), "the tenant was created again");
}

#[tokio::test(flavor = "multi_thread")]
async fn purgers_at_once_leave_no_object() {
    for _ in 0..10 {
        let (world, _) = world();
        let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
        for number in 0..10 {
            put_in(&a, &ann(), &number.to_string(), "value").await;
        }
        a.delete(&ann(), Duration::ZERO).await.unwrap();
        let mut purging = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let a = a.clone();
            purging.spawn(async move { a.remote().purge(&ann()).await });
        }
        for purged in purging.join_all().await {
            assert_eq!(purged.unwrap().stage, DeletionStage::Purged);
        }
        assert_eq!(objects(&world).await, ["head.json"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_meets_a_purge_shows_everything_or_nothing() {
    for delayed in ["/snapshots/", "/segments"] {
        let (world, _) = world();
        let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
        put_in(&a, &ann(), "one", "1").await;
        a.checkpoint(&ann()).await.unwrap();
        put_in(&a, &ann(), "two", "2").await;
        std::mem::forget(a.clone());
        a.remote()
            .acquire(&ann(), a.cache().holder(), Duration::ZERO)
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        let b = world.host("b").await;
        let slow = world.objects.another();
        let viewer = world.builder_over(&slow, "viewer").open().await.unwrap();
        let delay = Fault::Delay(Duration::from_millis(400));
        slow.add(Rule::next(Operation::Get, delayed, delay));
        slow.add(Rule::next(Operation::List, delayed, delay));
        let heads = slow.calls(Operation::Get);
        let viewing = tokio::spawn(async move { viewer.view(&ann()).await });
        eventually("the head", async || slow.calls(Operation::Get) > heads).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        b.delete(&ann(), Duration::ZERO).await.unwrap();
        b.purge(&ann()).await.unwrap();
        match viewing.await.unwrap() {
            Ok(None) | Err(TenantError::Deleted { .. }) => {}
            Ok(Some(view)) => {
                let store = Store::builder_shared(view.backend).sweep_interval(None).build().unwrap();
                let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
                assert_eq!(view.scan("n".into(), String::new()).await.unwrap().len(), 2, "{delayed}");
            }
            Err(error) => panic!("{delayed}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_deletion_that_is_repeated_on_a_host_with_unsent_commits_leaves_them_there() {
    let (world, _) = world();
    let a = world.host("a").await;
    put_in(&a, &ann(), "one", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "unsent", "2").await;
    crash(&world, "a", "left").await;
    a.delete(&ann(), WEEK).await.unwrap();
    let left = world.host("left").await;
    left.delete(&ann(), WEEK).await.unwrap();
    assert!(left.cache().database(&ann()).exists());
    left.undelete(&ann()).await.unwrap();
    left.get(&ann()).await.unwrap();
    assert_eq!(left.cache().quarantined().unwrap().len(), 1);
}

#[tokio::test]
async fn many_databases_that_wait_for_their_leases_are_all_recovered() {
    let (world, _) = world();
    let options = RemoteOptions::default()
        .lease_ttl(Duration::from_millis(300))
        .lease_margin(Duration::from_millis(30));
    let builder = |name: &str| world.builder(name).remote_options(options.clone());
    let a = builder("a").capacity(100).open().await.unwrap();
    let key = |number: u32| key(&format!("acme/users/u{number}"));
    for number in 0..60 {
        put_in(&a, &key(number), "row", "value").await;
    }
    crash(&world, "a", "left").await;
    std::mem::forget(a);
    // A file of another program does not stop it.
    std::fs::write(world.cache("left").join(".quarantine/strange"), "").unwrap();
    let events = Events::default();
    let left = builder("left").capacity(100).lease_wait(Duration::from_millis(100));
    let left = left.events(Arc::new(events.clone())).open().await.unwrap();
    eventually("all tenants to be recovered", async || left.resident().len() == 60).await;
    assert!(events.of("recover").is_empty());
}

#[tokio::test]
async fn a_repeated_deletion_ends_its_grace_period_no_later() {
    let (world, _) = world();
    let a = world.host("a").await;
    put_in(&a, &ann(), "one", "1").await;
    let first = a.delete(&ann(), WEEK).await.unwrap();
    assert_eq!(a.delete(&ann(), WEEK * 2).await.unwrap(), first);
    let shorter = a.delete(&ann(), Duration::ZERO).await.unwrap();
    assert_eq!((shorter.at, shorter.purge_at), (first.at, first.at));
    assert_eq!(a.purge(&ann()).await.unwrap().stage, DeletionStage::Purged);
    let missing = a.delete(&key("acme/org"), WEEK).await;
    assert!(matches!(missing, Err(TenantError::NotFound { .. })));
    assert!(matches!(a.purge(&key("acme/org")).await, Err(TenantError::NotFound { .. })));
}

#[tokio::test]
async fn a_tenant_that_is_not_deleted_is_not_purged_and_keeps_its_lease() {
    let (world, _) = world();
    let a = world.host("a").await;
    let tenant = a.get(&ann()).await.unwrap();
    put(&tenant, "one", "1").await.unwrap();
    let b = world.host("b").await;
    assert!(matches!(b.purge(&ann()).await, Err(TenantError::InvalidArgument(_))));
    b.undelete(&ann()).await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    put(&tenant, "two", "2").await.unwrap();
}

#[tokio::test]
async fn a_later_tenant_of_the_name_is_empty_and_gives_no_version_again() {
    for durability in [Durability::Local, Durability::Object] {
        let (world, _) = world();
        let a = world.builder("a").durability(durability).open().await.unwrap();
        for number in 0..5 {
            put_in(&a, &ann(), "row", &number.to_string()).await;
        }
        let before = version_of(&a.get(&ann()).await.unwrap(), "row").await;
        let positions = objects(&world).await;
        a.delete(&ann(), Duration::ZERO).await.unwrap();
        a.purge(&ann()).await.unwrap();
        let tenant = a.get(&ann()).await.unwrap();
        assert_eq!(count(&tenant).await, 0);
        put(&tenant, "row", "new").await.unwrap();
        assert!(version_of(&tenant, "row").await > before);
        drop(tenant);
        let again: Vec<_> = objects(&world)
            .await
            .into_iter()
            .filter(|name| *name != "head.json" && positions.contains(name))
            .collect();
        assert!(again.is_empty(), "names are reused: {again:?}");
        a.close().await.unwrap();
        let b = world.host("b").await;
        assert_eq!(get_in(&b, &ann(), "row").await.as_deref(), Some("new"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_is_late_removes_nothing_of_a_later_tenant() {
    let (world, _) = world();
    let a = world.builder("a").durability(Durability::Object).open().await.unwrap();
    put_in(&a, &ann(), "old", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    a.delete(&ann(), Duration::ZERO).await.unwrap();
    let slow = world.objects.another();
    let late = world.builder_over(&slow, "late").open().await.unwrap();
    slow.add(Rule::next(Operation::List, ann().object_path(), Fault::Delay(Duration::from_millis(300))));
    let before = slow.calls(Operation::List);
    let purging = tokio::spawn(async move { late.purge(&ann()).await });
    eventually("the slow listing", async || slow.calls(Operation::List) > before).await;
    a.purge(&ann()).await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    put(&tenant, "new", "2").await.unwrap();
    a.checkpoint(&ann()).await.unwrap();
    put(&tenant, "newer", "3").await.unwrap();
    // It finds no deleted tenant any more, or one that another host purges.
    drop(purging.await.unwrap());
    drop(tenant);
    a.close().await.unwrap();
    let b = world.builder("b").durability(Durability::Object).open().await.unwrap();
    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_the_tenant_keeps_it_and_one_that_was_away_can_not_write_to_it() {
    let (world, _) = world();
    let options = RemoteOptions::default()
        .lease_ttl(Duration::from_millis(400))
        .lease_margin(Duration::from_millis(50))
        .keep_for(Duration::from_secs(3_600));
    let own = world.objects.another();
    let away = world.builder_over(&own, "away").remote_options(options.clone()).open().await.unwrap();
    let tenant = away.get(&ann()).await.unwrap();
    put(&tenant, "one", "1").await.unwrap();
    assert!(matches!(away.delete(&ann(), WEEK).await, Err(TenantError::InUse { .. })));
    let b = world.builder("b").remote_options(options).open().await.unwrap();
    assert!(matches!(b.delete(&ann(), WEEK).await, Err(error) if is_lease_held(&error)));
    own.set_down(true);
    eventually("the end of the lease", async || b.delete(&ann(), WEEK).await.is_ok()).await;
    own.set_down(false);
    assert!(put(&tenant, "two", "2").await.is_err());
    assert!(is_deleted(&b.get(&ann()).await, DeletionStage::Marked));
}

#[tokio::test]
async fn a_database_that_was_never_sent_stays_until_the_tenant_is_purged() {
    let (world, _) = world();
    let a = world.host("a").await;
    put_in(&a, &ann(), "one", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "unsent", "2").await;
    crash(&world, "a", "left").await;
    a.delete(&ann(), Duration::ZERO).await.unwrap();
    let events = Events::default();
    let left = world.builder("left").events(Arc::new(events.clone())).open().await.unwrap();
    eventually("the report", async || events.of("recover").len() == 1).await;
    assert!(left.cache().database(&ann()).exists());
    drop(left);
    a.purge(&ann()).await.unwrap();
    let mut left = None;
    eventually("the cache folder to be free", async || {
        left = world.builder("left").open().await.ok();
        left.is_some()
    })
    .await;
    let left = left.unwrap();
    eventually("the database to be erased", async || !left.cache().database(&ann()).exists()).await;
    assert!(a.remote().head(&ann()).await.unwrap().is_none(), "the tenant was created again");
}

#[tokio::test]
async fn a_purge_erases_the_quarantine_of_this_host() {
    let (world, _) = world();
    let a = world.host("a").await;
    put_in(&a, &ann(), "one", "1").await;
    crash(&world, "a", "left").await;
    a.close().await.unwrap();
    let left = world.host("left").await;
    eventually("quarantine", async || left.cache().quarantined().unwrap().len() == 1).await;
    left.delete(&ann(), Duration::ZERO).await.unwrap();
    assert_eq!(left.cache().quarantined().unwrap().len(), 1);
    left.purge(&ann()).await.unwrap();
    assert!(left.cache().quarantined().unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_tenant_can_be_deleted() {
    for (durability, part) in [(Durability::Local, "snapshots/"), (Durability::Object, "segments/")] {
        let (world, _) = world();
        let a = world.builder("a").durability(durability).open().await.unwrap();
        for row in ["one", "two", "three"] {
            put_in(&a, &ann(), row, row).await;
        }
        if durability == Durability::Local {
            a.checkpoint(&ann()).await.unwrap();
            a.evict(&ann()).await.unwrap();
        } else {
            std::mem::forget(a.clone());
            a.remote()
                .acquire(&ann(), a.cache().holder(), Duration::ZERO)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
        }
        let damaged = objects(&world).await.into_iter().find(|name| name.starts_with(part)).unwrap();
        world.objects.delete(&ObjectPath::from(format!("{}/{damaged}", ann().object_path()))).await.unwrap();
        let b = world.builder("b").durability(durability).open().await.unwrap();
        assert!(matches!(b.get(&ann()).await, Err(TenantError::Corrupt { .. })));
        b.delete(&ann(), Duration::ZERO).await.unwrap();
        b.purge(&ann()).await.unwrap();
        assert_eq!(objects(&world).await, ["head.json"]);
    }
}

/// Texts that can be found in a file if it has them, in rows and pages of their own or in a shared
/// row.
fn texts(what: &str) -> Vec<String> {
    let lengths = (0..20).map(|number| if number % 2 == 0 { 40 } else { 9_000 });
    let text = |(number, length)| format!("<{what}-{number:04}>{}", "x".repeat(length));
    (0..20).zip(lengths).map(text).collect()
}

/// How many of the texts are in the newest snapshot, and how many in the local database.
async fn found(tenants: &Tenants, texts: &[String]) -> (usize, usize) {
    tenants.checkpoint(&ann()).await.unwrap();
    let snapshot = tenants.remote().head(&ann()).await.unwrap().unwrap().snapshot.unwrap();
    let file = tenants.cache().folder().join("fetched");
    tenants.remote().fetch(&ann(), &snapshot, &file, 1 << 30).await.unwrap();
    let local = tenants.cache().database(&ann());
    let found = [file, local].map(|path| {
        let bytes = std::fs::read(path).unwrap();
        // The beginning of each text is unique.
        let is_in = |text: &&String| bytes.windows(16).any(|window| text.as_bytes().starts_with(window));
        texts.iter().filter(is_in).count()
    });
    (found[0], found[1])
}

#[tokio::test]
async fn what_was_deleted_replaced_expired_or_forgotten_is_in_no_later_snapshot() {
    let (world, clock) = world();
    let options = RemoteOptions::default().clock(clock.clone());
    let a = world.builder("a").remote_options(options).open().await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    let store = tenant.store();
    let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
    let parts = IdentityParts::session("acme", "ann", "session");
    let session = memories.open(parts, &IdentityScope::Any, &Default::default()).unwrap();
    let (deleted, replaced, expired) = (texts("deleted"), texts("replaced"), texts("expired"));
    let forgotten = texts("forgotten");
    for number in 0..20 {
        let mut update = handle(&tenant).begin(Mode::Update).unwrap();
        let name = |kind: &str| format!("{kind}-{number}");
        update.put("n".into(), name("deleted"), deleted[number].clone().into()).unwrap();
        update.put("n".into(), name("replaced"), replaced[number].clone().into()).unwrap();
        let ttl = PutOptions::default().ttl_ms(60_000);
        update.put_with("n".into(), name("expired"), expired[number].clone().into(), ttl).unwrap();
        update.put("n".into(), name("kept"), b"kept".to_vec()).unwrap();
        update.commit().await.unwrap();
        let turn = Turn { user_message: forgotten[number].clone(), ..Turn::default() };
        session.add_turn(turn).await.unwrap();
    }
    let all = [deleted, replaced, expired, forgotten];
    for texts in &all {
        assert_eq!(found(&a, texts).await.0, 20);
    }
    session.flush().await.unwrap();
    clock.advance(Duration::from_secs(120));
    for number in 0..20 {
        let mut update = handle(&tenant).begin(Mode::Update).unwrap();
        update.delete("n".into(), format!("deleted-{number}")).unwrap();
        update.put("n".into(), format!("replaced-{number}"), b"short".to_vec()).unwrap();
        update.commit().await.unwrap();
    }
    memories.close().await;
    drop((session, memories, store, tenant));
    for texts in &all {
        assert_eq!(found(&a, texts).await.0, 0, "{:.12}", texts[0]);
    }
    // The local database and its write-ahead log are removed when it is closed.
    a.evict(&ann()).await.unwrap();
    assert!(!a.cache().database(&ann()).exists());
    assert_eq!(count(&a.get(&ann()).await.unwrap()).await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_which_any_call_fails_is_done_or_not_and_is_done_by_the_next_attempt() {
    let (mut failed, mut done) = (0, 0);
    let host = |world: &World, name: &str| {
        let options = RemoteOptions::default()
            .lease_ttl(Duration::from_millis(400))
            .lease_margin(Duration::from_millis(50))
            .attempts(2);
        let builder = world.builder(name).durability(Durability::Object).remote_options(options);
        builder.lease_wait(Duration::from_secs(60))
    };
    for operation in [Operation::Put, Operation::Get, Operation::List, Operation::Delete] {
        for fault in [Fault::Fail, Fault::LoseAnswer] {
            for skip in 0.. {
                let (world, _) = world();
                let a = host(&world, "a").open().await.unwrap();
                put_in(&a, &ann(), "one", "1").await;
                a.checkpoint(&ann()).await.unwrap();
                put_in(&a, &ann(), "two", "2").await;
                let faults = world.objects.faults();
                world.objects.add(Rule::next(operation, ann().object_path(), fault).after(skip).times(10));
                let first = async {
                    a.delete(&ann(), Duration::ZERO).await?;
                    a.purge(&ann()).await
                };
                let first = first.await;
                let is_hit = world.objects.faults() > faults;
                world.objects.clear();
                match &first {
                    Ok(_) => done += 1,
                    Err(TenantError::Unavailable { .. } | TenantError::Fenced { .. }) => failed += 1,
                    Err(error) => panic!("{operation:?} {fault:?} {skip}: {error:?}"),
                }
                // Another host continues the deletion, or finds the tenant intact.
                drop(a.close().await);
                let b = host(&world, "b").open().await.unwrap();
                let head = b.remote().head(&ann()).await.unwrap();
                if head.is_some_and(|head| head.deletion.is_none()) {
                    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 2);
                }
                match b.delete(&ann(), Duration::ZERO).await {
                    Ok(_) | Err(TenantError::NotFound { .. }) => {}
                    Err(error) => panic!("{operation:?} {fault:?} {skip}: {error:?}"),
                }
                assert_eq!(b.purge(&ann()).await.unwrap().stage, DeletionStage::Purged);
                assert_eq!(objects(&world).await, ["head.json"], "{operation:?} {fault:?} {skip}");
                if !is_hit {
                    break;
                }
            }
        }
    }
    println!("{failed} attempts failed and {done} were done");
    assert!(failed > 20 && done >= 8, "{failed} {done}");
}
