//! One writer at a time, through lost responses, outages and takeovers.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{Remote, TenantError};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use support::*;
use tokio::time::{Instant, advance, sleep};

fn faulty() -> (FaultyStore, Remote) {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let remote = remote(Arc::new(store.clone()));
    (store, remote)
}

fn two_hosts() -> (Remote, Remote) {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    (remote(store.clone()), remote(store))
}

#[tokio::test(start_paused = true)]
async fn a_held_lease_names_its_holder_and_a_released_one_is_taken_at_once() {
    let (one, two) = two_hosts();
    let lease = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let held = two.acquire(&key(), &holder("two"), NO_WAIT).await.unwrap_err();
    let TenantError::LeaseHeld { key: of, holder: by, ttl } = held else { panic!("{held}") };
    assert_eq!((of.as_str(), by.as_str(), ttl), ("acme/users/ann", "one", TTL));
    lease.release().await.unwrap();
    lease.release().await.unwrap();
    assert!(matches!(lease.check(), Err(TenantError::Closed { .. })));
    assert!(matches!(lease.renew().await, Err(TenantError::Closed { .. })));
    let start = Instant::now();
    let next = two.acquire(&key(), &holder("two"), NO_WAIT).await.unwrap();
    assert_eq!((next.epoch(), start.elapsed()), (2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_dead_holders_lease_is_taken_after_its_time_and_the_margin_and_not_before() {
    let (one, two) = two_hosts();
    let old = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let start = Instant::now();
    let next = two.acquire(&key(), &holder("two"), DAY).await.unwrap();
    assert!(start.elapsed() >= TTL + MARGIN && start.elapsed() < TTL + MARGIN + Duration::from_secs(2));
    assert!(matches!(old.check(), Err(TenantError::LeaseLapsed { .. })));
    let fenced = old.renew().await.unwrap_err();
    let TenantError::Fenced { epoch, by, .. } = fenced else { panic!("{fenced}") };
    assert_eq!((epoch, by.as_str()), (2, "two"));
    next.check().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_watched_counts_for_later_tries_that_do_not_wait() {
    let (one, two) = two_hosts();
    one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let start = Instant::now();
    while let Err(error) = two.acquire(&key(), &holder("two"), NO_WAIT).await {
        assert!(matches!(error, TenantError::LeaseHeld { .. }));
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(start.elapsed(), TTL + MARGIN);
}

/// A clone has a copy of the memory, so it has the same lease and writes heads of its own.
#[tokio::test(start_paused = true)]
async fn of_a_machine_and_its_clone_one_loses_the_lease_at_the_next_renewal() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    lease.renew().await.unwrap();
    let head = path("pre/fix/acme/users/ann.db/head.json");
    let stored = store.get(&head).await.unwrap().bytes().await.unwrap();
    let mut of_clone: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    of_clone["write_id"] = format!("{:032x}", 7).into();
    store.put(&head, of_clone.to_string().into()).await.unwrap();
    let lost = lease.renew().await.unwrap_err();
    assert!(matches!(lost, TenantError::Fenced { epoch: 1, .. }), "{lost}");
    assert!(matches!(lease.check(), Err(TenantError::Fenced { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lease_is_never_taken() {
    let (one, two) = two_hosts();
    let lease = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let renewing = {
        let lease = lease.clone();
        tokio::spawn(async move {
            loop {
                sleep(lease.renewal_interval()).await;
                lease.renew().await.unwrap();
                lease.check().unwrap();
            }
        })
    };
    let held = two.acquire(&key(), &holder("two"), Duration::from_secs(600)).await.unwrap_err();
    assert!(matches!(held, TenantError::LeaseHeld { .. }));
    lease.check().unwrap();
    renewing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_holder_stops_before_any_other_may_begin() {
    let (one, two) = two_hosts();
    let old = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let next = tokio::spawn(async move { two.acquire(&key(), &holder("two"), DAY).await.unwrap() });
    let start = Instant::now();
    while old.check().is_ok() {
        assert!(!next.is_finished());
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(start.elapsed(), TTL - MARGIN);
    assert_eq!(old.valid_until(), start + TTL - MARGIN);
    assert!(!next.is_finished());
    next.await.unwrap().check().unwrap();
    assert!(start.elapsed() >= TTL + MARGIN);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_lapsed_in_an_outage_is_valid_again_if_no_host_took_it() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.set_down(true);
    assert!(matches!(lease.renew().await, Err(TenantError::Unavailable { .. })));
    sleep(TTL).await;
    assert!(matches!(lease.check(), Err(TenantError::LeaseLapsed { .. })));
    assert!(matches!(lease.append(Bytes::new()).await, Err(TenantError::LeaseLapsed { .. })));
    assert!(!lease.is_fenced());
    store.set_down(false);
    lease.renew().await.unwrap();
    lease.check().unwrap();
    assert_eq!(lease.epoch(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_swap_whose_answer_is_lost_late_or_wrong_is_recognised_as_done() {
    for fault in [Fault::LoseAnswer, Fault::DenyOwnSuccess, Fault::HangAfter] {
        let (store, remote) = faulty();
        let files = Files::new();
        store.add(Rule::next(Operation::Put, "head.json", fault));
        let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
        assert_eq!((lease.epoch(), lease.head().generation), (1, 1), "{fault:?}");
        store.add(Rule::next(Operation::Put, "head.json", fault));
        lease.renew().await.unwrap();
        assert_eq!(lease.head().generation, 2, "{fault:?}");
        store.add(Rule::next(Operation::Put, "segments", fault).times(2));
        assert_eq!(lease.append(Bytes::from("a")).await.unwrap(), 2, "{fault:?}");
        assert_eq!(payloads(&lease).await, ["a"], "{fault:?}");
        store.add(Rule::next(Operation::Put, "head.json", fault));
        store.add(Rule::next(Operation::Put, "snapshots", fault));
        publish(&lease, &files, "content").await;
        assert_eq!(current(&remote).await, b"content", "{fault:?}");
        store.add(Rule::next(Operation::Put, "head.json", fault));
        lease.release().await.unwrap();
        assert_eq!(remote.head(&key()).await.unwrap().unwrap().lease, None, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_swap_that_failed_for_the_caller_and_is_done_late_is_adopted() {
    let (store, remote) = faulty();
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let late = Fault::DoneLate(Duration::from_millis(400));
    store.add(Rule::next(Operation::Put, "head.json", late).times(4));
    let file = files.write("database", database("content"));
    assert!(matches!(lease.publish(&file, 0).await, Err(TenantError::Unavailable { .. })));
    sleep(Duration::from_secs(1)).await;
    lease.renew().await.unwrap();
    assert_eq!(current(&remote).await, b"content");
    let again = lease.publish(&file, 0).await.unwrap();
    assert_eq!(remote.history(&key()).await.unwrap(), [again]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_release_got_no_answer_counts_as_lapsed() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.set_down(true);
    assert!(matches!(lease.release().await, Err(TenantError::Unavailable { .. })));
    assert!(matches!(lease.check(), Err(TenantError::LeaseLapsed { .. })));
    store.set_down(false);
    lease.release().await.unwrap();
    assert_eq!(remote.head(&key()).await.unwrap().unwrap().lease, None);
}

#[tokio::test(start_paused = true)]
async fn the_same_holder_takes_its_own_lease_over_at_once() {
    let (one, _) = two_hosts();
    let old = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let start = Instant::now();
    let new = one.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert_eq!((new.epoch(), start.elapsed()), (2, Duration::ZERO));
    assert!(matches!(old.renew().await, Err(TenantError::Fenced { epoch: 2, .. })));
    old.check().unwrap_err();
    new.renew().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_one_lease_does_at_the_same_time_is_all_done() {
    let (_, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let files = Files::new();
    lease.append(Bytes::from("0")).await.unwrap();
    let file = files.write("database", database("content"));
    let appends = futures_util::future::join_all((0..20).map(|_| lease.append(Bytes::from("x"))));
    let renewals = futures_util::future::join_all((0..20).map(|_| lease.renew()));
    let (appended, renewed, published, collected) =
        tokio::join!(appends, renewals, lease.publish(&file, 1), lease.collect(DAY));
    let mut positions: Vec<_> = appended.into_iter().map(Result::unwrap).collect();
    positions.sort_unstable();
    assert_eq!(positions, (3..23).collect::<Vec<_>>());
    assert!(renewed.iter().all(Result::is_ok));
    published.unwrap();
    collected.unwrap();
    assert_eq!(payloads(&lease).await.len(), 21);
    let (renewed, released) = tokio::join!(lease.renew(), lease.release());
    renewed.unwrap();
    released.unwrap();
    let (released, renewed) = tokio::join!(lease.release(), lease.renew());
    released.unwrap();
    assert!(matches!(renewed, Err(TenantError::Closed { .. })));
    assert_eq!(remote.head(&key()).await.unwrap().unwrap().lease, None);
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_none_is_left_as_it_is() {
    let (store, remote) = faulty();
    let head = path("pre/fix/acme/users/ann.db/head.json");
    let large = vec![b' '; (1 << 20) + 1];
    for (bytes, is_newer) in [(b"no json".as_slice(), false), (b"{\"format\":9}", true), (&large, false)] {
        store.put(&head, bytes.to_vec().into()).await.unwrap();
        for error in [
            remote.head(&key()).await.map(drop).unwrap_err(),
            remote.acquire(&key(), &holder("one"), NO_WAIT).await.map(drop).unwrap_err(),
        ] {
            match error {
                TenantError::NewerFormat { format, .. } => assert_eq!((format, is_newer), (9, true)),
                TenantError::Corrupt { .. } => assert!(!is_newer),
                other => panic!("{other}"),
            }
        }
        assert_eq!(store.get(&head).await.unwrap().bytes().await.unwrap(), bytes);
    }
    store.delete(&head).await.unwrap();
    remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_unavailable_within_bounds_whether_it_fails_or_hangs() {
    for fault in [Fault::Fail, Fault::Hang] {
        let (store, remote) = faulty();
        for operation in [Operation::Put, Operation::Get] {
            store.add(Rule::next(operation, "", fault).times(1000));
        }
        let start = Instant::now();
        let error = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap_err();
        assert!(matches!(error, TenantError::Unavailable { .. }));
        assert!(start.elapsed() < Duration::from_secs(60));
        store.clear();
        remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    }
}

#[test]
fn a_holders_name_is_visible_text() {
    for wrong in ["", "a b", "a\n", "ä", &"x".repeat(201)] {
        assert!(larder_tenants::Holder::new(wrong).is_err(), "{wrong}");
    }
}
