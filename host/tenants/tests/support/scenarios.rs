//! Scenarios that every object store must pass. No test waits for a lease, because a takeover by
//! the same holder needs no wait.

use std::sync::Arc;

use futures_util::future::join_all;
use larder_tenants::TenantError;
use object_store::ObjectStore;

use super::*;

/// Runs all scenarios in turn.
pub(crate) async fn all(new_store: impl Fn() -> Arc<dyn ObjectStore>, prefixes: &str) {
    remote_at(new_store(), prefixes, "probe").probe().await.unwrap();
    of_many_hosts_one_takes_the_lease(&new_store, prefixes).await;
    a_hand_over_loses_nothing(&new_store, prefixes).await;
    a_fenced_holder_changes_nothing(&new_store, prefixes).await;
    a_counter_of_many_hosts_counts_each_acknowledged_step(&new_store, prefixes).await;
    pages_hold_every_tenant(&new_store, prefixes).await;
}

fn remote_at(store: Arc<dyn ObjectStore>, prefixes: &str, name: &str) -> Remote {
    Remote::new(store, path(&format!("{prefixes}/{name}")), RemoteOptions::default()).unwrap()
}

async fn of_many_hosts_one_takes_the_lease(new_store: &impl Fn() -> Arc<dyn ObjectStore>, prefixes: &str) {
    for round in 0..5 {
        let hosts: Vec<_> =
            (0..8).map(|_| remote_at(new_store(), prefixes, &format!("race-{round}"))).collect();
        let taken = hosts.iter().enumerate().map(|(number, host)| async move {
            host.acquire(&key(), &holder(&format!("host-{number}")), NO_WAIT).await
        });
        let taken = join_all(taken).await;
        let winners: Vec<_> = taken.iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(winners[0].epoch(), 1);
        for lost in taken.iter().filter_map(|taken| taken.as_ref().err()) {
            let TenantError::LeaseHeld { holder, .. } = lost else { panic!("{lost}") };
            assert_eq!(holder, winners[0].holder().as_str());
        }
    }
}

async fn a_hand_over_loses_nothing(new_store: &impl Fn() -> Arc<dyn ObjectStore>, prefixes: &str) {
    let (one, two) =
        (remote_at(new_store(), prefixes, "hand-over"), remote_at(new_store(), prefixes, "hand-over"));
    let files = Files::new();
    let lease = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let position = lease.append(Bytes::from("in the snapshot")).await.unwrap();
    let big = database(random_bytes(20 << 20, 7));
    let published = lease.publish(&files.write("big", &big), position).await.unwrap();
    assert_eq!(published.bytes, big.len() as u64);
    lease.append(Bytes::from("first")).await.unwrap();
    lease.append(Bytes::from("second")).await.unwrap();
    lease.release().await.unwrap();
    let next = two.acquire(&key(), &holder("two"), NO_WAIT).await.unwrap();
    assert_eq!(next.epoch(), 2);
    assert_eq!(next.head().snapshot.unwrap(), published);
    assert_eq!(payloads(&next).await, ["first", "second"]);
    let into = files.path("fetched");
    two.fetch(&key(), &published, &into, 1 << 30).await.unwrap();
    assert!(std::fs::read(&into).unwrap() == big);
    next.release().await.unwrap();
}

async fn a_fenced_holder_changes_nothing(new_store: &impl Fn() -> Arc<dyn ObjectStore>, prefixes: &str) {
    let host = remote_at(new_store(), prefixes, "fenced");
    let files = Files::new();
    let old = host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    old.append(Bytes::from("kept")).await.unwrap();
    let new = host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert_eq!(payloads(&new).await, ["kept"]);
    let before = host.head(&key()).await.unwrap();
    let fenced = |error: &TenantError| matches!(error, TenantError::Fenced { epoch: 2, .. });
    let error = old.append(Bytes::from("lost")).await.unwrap_err();
    assert!(fenced(&error), "{error}");
    let error = old.publish(&files.write("x", "lost"), 0).await.unwrap_err();
    assert!(fenced(&error), "{error}");
    for error in [old.renew().await, old.release().await, old.check()].map(Result::unwrap_err) {
        assert!(fenced(&error), "{error}");
    }
    assert!(old.is_fenced());
    assert_eq!(host.head(&key()).await.unwrap(), before);
    assert_eq!(payloads(&new).await, ["kept"]);
    new.release().await.unwrap();
}

async fn a_counter_of_many_hosts_counts_each_acknowledged_step(
    new_store: &impl Fn() -> Arc<dyn ObjectStore>,
    prefixes: &str,
) {
    let hosts: Vec<_> = (0..4).map(|_| remote_at(new_store(), prefixes, "counter")).collect();
    let counting = hosts.iter().enumerate().map(|(number, host)| async move {
        for _ in 0..5 {
            let lease = host.acquire(&key(), &holder(&format!("host-{number}")), DAY).await.unwrap();
            for _ in 0..3 {
                lease.append(Bytes::from("step")).await.unwrap();
            }
            lease.release().await.unwrap();
        }
    });
    join_all(counting).await;
    let lease = hosts[0].acquire(&key(), &holder("last"), NO_WAIT).await.unwrap();
    assert_eq!(lease.epoch(), 21);
    assert_eq!(payloads(&lease).await.len(), 60);
}

async fn pages_hold_every_tenant(new_store: &impl Fn() -> Arc<dyn ObjectStore>, prefixes: &str) {
    let host = remote_at(new_store(), prefixes, "pages");
    let names = ["a/apps/shop", "a/apps/shop/projects/x", "a/org", "a/users/ann", "a/users/bob"];
    for name in names {
        host.acquire(&name.parse().unwrap(), &holder("one"), NO_WAIT).await.unwrap();
    }
    let mut paged = Vec::new();
    loop {
        let page = host.list(paged.last(), 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, names.map(|name| name.parse().unwrap()));
}
