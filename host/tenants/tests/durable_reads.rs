//! With durability `object`, no reader sees a commit that object storage may never have.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::time::Duration;

use host::*;
use larder_core::{
    Error, HandleOptions, IdentityParts, IdentityScope, Limits, Memory, MemoryOptions, MemoryStore, Mode,
    Strategy, Turn, Version,
};
use larder_tenants::faults::{Fault, Operation, Rule};
use larder_tenants::{Durability, RemoteOptions, Tenant, TenantKey, Tenants, TenantsBuilder};
use tokio::task::JoinHandle;

/// The delay of object storage, which is shorter than the timeout of a call.
const DELAY: Duration = Duration::from_millis(450);

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// A host with a short lease.
fn host(world: &World, name: &str) -> TenantsBuilder {
    let options = RemoteOptions::default()
        .lease_ttl(Duration::from_secs(2))
        .lease_margin(Duration::from_millis(250))
        .call_timeout(Duration::from_millis(500))
        .attempts(2);
    world.builder(name).remote_options(options).durability(Durability::Object)
}

/// A row with the value `before`, and a commit of `after` whose segment hangs.
struct Hanging {
    world: World,
    a: Tenants,
    tenant: Tenant,
    before: Version,
    committing: JoinHandle<larder_core::Result<()>>,
}

/// Puts the row into the cache or not.
async fn hanging(is_cached: bool) -> Hanging {
    let world = World::new();
    let a = host(&world, "a").open().await.unwrap();
    if !is_cached {
        put(&a.get(&ann()).await.unwrap(), "row", "before").await.unwrap();
        a.evict(&ann()).await.unwrap();
    }
    let tenant = a.get(&ann()).await.unwrap();
    if is_cached {
        put(&tenant, "row", "before").await.unwrap();
    }
    let before = read(&tenant, Duration::from_secs(10)).await.unwrap().1;
    world.objects.add(Rule::next(Operation::Put, "/segments/", Fault::Delay(DELAY)));
    let committing = tokio::spawn({
        let tenant = tenant.clone();
        async move { put(&tenant, "row", "after").await }
    });
    // The commit is in the file by now.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Hanging { world, a, tenant, before, committing }
}

/// Reads the row in a view with this timeout, and commits the view.
async fn read(tenant: &Tenant, timeout: Duration) -> larder_core::Result<(String, Version)> {
    let limits = Limits::default().transaction_timeout(timeout);
    let handle = tenant.store().handle(HandleOptions::default().limits(limits));
    let mut view = handle.begin(Mode::View)?;
    let (value, version) = view.get_versioned("n".into(), "row".into()).await?.unwrap();
    view.commit().await?;
    Ok((String::from_utf8(value).unwrap(), version))
}

#[tokio::test]
async fn a_view_waits_until_object_storage_has_what_it_reads() {
    for is_cached in [false, true] {
        let Hanging { world: _world, a: _a, tenant, before, committing } = hanging(is_cached).await;
        let short = read(&tenant, Duration::from_millis(150)).await;
        assert!(matches!(short, Err(Error::TimedOut)), "{short:?}");
        assert!(!committing.is_finished());
        let (value, version) = read(&tenant, Duration::from_secs(10)).await.unwrap();
        assert!(committing.is_finished(), "the view was answered before the commit");
        assert!(value == "after" && version > before, "{value} at {version:?}");
        committing.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_commit_that_was_never_kept_is_not_seen_and_its_version_is_not_given_again() {
    let Hanging { world, a, tenant, before, committing } = hanging(true).await;
    let seen = read(&tenant, Duration::from_millis(150)).await;
    assert!(seen.is_err(), "{seen:?}");
    // The host is lost. Its lease expires, because it is not renewed.
    world.objects.clear();
    drop((a, tenant));
    committing.abort();
    let b = host(&world, "b").lease_wait(Duration::from_secs(60)).open().await.unwrap();
    let tenant = b.get(&ann()).await.unwrap();
    let (value, version) = read(&tenant, Duration::from_secs(10)).await.unwrap();
    assert!(value == "before" && version == before || value == "after" && version > before);
    put(&tenant, "row", "of b").await.unwrap();
    let (_, given) = read(&tenant, Duration::from_secs(10)).await.unwrap();
    assert!(given.0 > version.0 + 1, "{given:?} may have been assigned by the lost host");
}

#[tokio::test]
async fn a_conversation_is_read_once_object_storage_has_it() {
    let world = World::new();
    let a = host(&world, "a").open().await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    let store = tenant.store();
    let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
    let open = || -> Memory {
        let parts = IdentityParts::session("acme", "ann", "session");
        memories.open(parts, &IdentityScope::Any, &Default::default()).unwrap()
    };
    world.objects.add(Rule::next(Operation::Put, "/segments/", Fault::Delay(DELAY)));
    let adding = tokio::spawn({
        let session = open();
        async move { session.add_turn(Turn { user_message: "hello".into(), ..Turn::default() }).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let turns = open().llm_context().await.unwrap().recent_turns.len();
    assert!(adding.is_finished() && turns == 1, "{turns} turns were read before object storage had them");
    adding.await.unwrap().unwrap();
    memories.close().await;
}
