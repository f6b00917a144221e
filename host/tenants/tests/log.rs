//! The log keeps every acknowledged commit, even if requests are delayed.
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
use tokio::time::sleep;

fn faulty() -> (FaultyStore, Remote) {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let remote = remote(Arc::new(store.clone()));
    (store, remote)
}

fn segment(position: u64) -> object_store::path::Path {
    path(&format!("pre/fix/acme/users/ann.db/segments/{position:020}"))
}

#[tokio::test(start_paused = true)]
async fn a_tenant_without_a_log_has_no_segments() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    publish(&lease, &Files::new(), "content").await;
    assert_eq!(lease.log_end().await.unwrap(), 0);
    assert!(payloads(&lease).await.is_empty());
    assert!(objects_in(&store, "segments").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_append_of_unknown_outcome_stays_the_first_in_line() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    lease.append(Bytes::from("a")).await.unwrap();
    store.add(Rule::next(Operation::Put, "segments", Fault::Fail).times(8));
    let unknown = lease.append(Bytes::from("b")).await.unwrap_err();
    assert!(matches!(unknown, TenantError::OutcomeUnknown { position: 3, .. }), "{unknown}");
    let refused = lease.append(Bytes::from("c")).await.unwrap_err();
    assert!(matches!(refused, TenantError::Unavailable { .. }), "{refused}");
    assert_eq!(lease.append(Bytes::from("d")).await.unwrap(), 4);
    assert_eq!(lease.settle().await.unwrap(), None);
    assert_eq!(payloads(&lease).await, ["a", "b", "d"]);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_is_dropped_halfway_is_made_before_the_next() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    lease.append(Bytes::from("a")).await.unwrap();
    store.add(Rule::next(Operation::Put, "segments", Fault::Hang));
    tokio::time::timeout(Duration::from_millis(10), lease.append(Bytes::from("b"))).await.unwrap_err();
    assert_eq!(lease.settle().await.unwrap(), Some(3));
    lease.append(Bytes::from("c")).await.unwrap();
    assert_eq!(payloads(&lease).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_put_of_the_old_holder_that_is_stuck_until_after_the_seal_is_refused() {
    let (old_store, old_host) = faulty();
    let new_host = remote(Arc::new(old_store.another()));
    let old = old_host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    old.append(Bytes::from("a")).await.unwrap();
    let stuck = Fault::DoneLate(Duration::from_secs(120));
    old_store.add(Rule::next(Operation::Put, "segments", stuck).times(4));
    let unknown = old.append(Bytes::from("stuck")).await.unwrap_err();
    assert!(matches!(unknown, TenantError::OutcomeUnknown { .. }), "{unknown}");
    let new = new_host.acquire(&key(), &holder("two"), DAY).await.unwrap();
    assert_eq!(payloads(&new).await, ["a"]);
    new.append(Bytes::from("b")).await.unwrap();
    sleep(Duration::from_secs(200)).await;
    assert_eq!(payloads(&new).await, ["a", "b"]);
    let fenced = old.append(Bytes::from("c")).await.unwrap_err();
    assert!(matches!(fenced, TenantError::LeaseLapsed { .. }), "{fenced}");
    assert!(matches!(old.settle().await.unwrap_err(), TenantError::Fenced { epoch: 2, .. }));
    assert!(matches!(old.append(Bytes::new()).await.unwrap_err(), TenantError::Fenced { epoch: 2, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_put_of_the_old_holder_that_lands_before_the_seal_is_read() {
    let (old_store, old_host) = faulty();
    let new_store = old_store.another();
    let new_host = remote(Arc::new(new_store.clone()));
    let old = old_host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    old.append(Bytes::from("a")).await.unwrap();
    let stuck = Fault::DoneLate(Duration::from_secs(20));
    old_store.add(Rule::next(Operation::Put, "segments", stuck).times(4));
    old.append(Bytes::from("late")).await.unwrap_err();
    let new = new_host.acquire(&key(), &holder("two"), DAY).await.unwrap();
    // The list is read before the put takes effect, and the seal is sent after it.
    new_store.add(Rule::next(Operation::Put, "segments", Fault::Delay(Duration::from_secs(4))));
    assert_eq!(payloads(&new).await, ["a", "late"]);
}

#[tokio::test(start_paused = true)]
async fn an_append_is_not_acknowledged_once_another_may_have_taken_over() {
    let (old_store, old_host) = faulty();
    let old = old_host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    old.append(Bytes::from("a")).await.unwrap();
    // The lease lapses while the put is in flight. No other host has taken over, so the renewal
    // proves that the append counts.
    sleep(TTL - MARGIN - Duration::from_secs(1)).await;
    old_store.add(Rule::next(Operation::Put, "segments", Fault::Delay(Duration::from_secs(4))));
    assert_eq!(old.append(Bytes::from("b")).await.unwrap(), 3);
    old.check().unwrap();
    // This time, another host takes over meanwhile.
    sleep(TTL - MARGIN - Duration::from_secs(1)).await;
    old_store.add(Rule::next(Operation::Put, "segments", Fault::Delay(Duration::from_secs(4))));
    let new_host = remote(Arc::new(old_store.another()));
    let taken = async { new_host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap() };
    let (appended, new) = tokio::join!(old.append(Bytes::from("c")), taken);
    let unknown = appended.unwrap_err();
    assert!(matches!(unknown, TenantError::OutcomeUnknown { position: 4, .. }), "{unknown}");
    assert!(old.is_fenced());
    assert_eq!(payloads(&new).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_or_altered_segment_is_corrupt_and_stays() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    for payload in ["a", "b", "c"] {
        lease.append(Bytes::from(payload)).await.unwrap();
    }
    let original = store.get(&segment(3)).await.unwrap().bytes().await.unwrap();
    let reason = |error: TenantError| match error {
        TenantError::Corrupt { reason, .. } => reason,
        other => panic!("{other}"),
    };
    store.delete(&segment(3)).await.unwrap();
    let next = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert_eq!(reason(next.replay().await.unwrap_err()), "segment 3 is missing");
    store.put(&segment(3), vec![1; 100].into()).await.unwrap();
    let mut replay = next.replay().await.unwrap();
    assert_eq!(replay.next().await.unwrap(), Some((2, Bytes::from("a"))));
    assert_eq!(reason(replay.next().await.unwrap_err()), "segment 3 does not match its checksum");
    store.put(&segment(3), original.into()).await.unwrap();
    assert_eq!(payloads(&next).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_holder_that_knows_nothing_of_it_does_not_seal_the_new_ones_log() {
    let (store, remote) = faulty();
    let first = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    first.append(Bytes::from("a")).await.unwrap();
    let old = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let new = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    new.append(Bytes::from("b")).await.unwrap();
    let before = objects_in(&store, "segments").await;
    assert!(matches!(old.replay().await, Err(TenantError::Fenced { epoch: 3, .. })));
    assert_eq!(objects_in(&store, "segments").await, before);
    new.append(Bytes::from("c")).await.unwrap();
    assert_eq!(payloads(&new).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn what_lands_where_a_segment_was_collected_is_never_read() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (remote, clock) = remote_with_clock(store.clone());
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    for payload in ["a", "b"] {
        lease.append(Bytes::from(payload)).await.unwrap();
    }
    let stuck = store.get(&segment(2)).await.unwrap().bytes().await.unwrap();
    publish(&lease, &files, "ab").await;
    assert_eq!(lease.collect(DAY).await.unwrap().segments, 0);
    clock.advance(DAY);
    assert_eq!(lease.collect(DAY).await.unwrap().segments, 3);
    store.put(&segment(2), stuck.into()).await.unwrap();
    assert_eq!(lease.append(Bytes::from("c")).await.unwrap(), 4);
    let next = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert_eq!(payloads(&next).await, ["c"]);
    assert_eq!(next.collect(DAY).await.unwrap().segments, 1);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_lands_where_a_segment_was_collected_is_not_acknowledged() {
    let (old_store, old_host) = faulty();
    let (new_host, clock) = remote_with_clock(Arc::new(old_store.another()));
    let old = old_host.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    old.append(Bytes::from("a")).await.unwrap();
    old_store.add(Rule::next(Operation::Put, "segments", Fault::Fail).times(4));
    let unknown = old.append(Bytes::from("b")).await.unwrap_err();
    assert!(matches!(unknown, TenantError::OutcomeUnknown { position: 3, .. }), "{unknown}");
    let new = new_host.acquire(&key(), &holder("two"), DAY).await.unwrap();
    assert_eq!(new.log_end().await.unwrap(), 3);
    publish(&new, &Files::new(), "a").await;
    clock.advance(DAY);
    assert_eq!(new.collect(DAY).await.unwrap().segments, 3);
    // Its position is free again, so the put succeeds. But the head shows that it came too late.
    let unknown = old.settle().await.unwrap_err();
    assert!(matches!(unknown, TenantError::OutcomeUnknown { position: 3, .. }), "{unknown}");
    assert!(old.is_fenced());
    new.append(Bytes::from("c")).await.unwrap();
    assert_eq!(payloads(&new).await, ["c"]);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_too_large_is_refused_before_anything_is_written() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let puts = store.calls(Operation::Put);
    let large = Bytes::from(vec![0; (64 << 20) + 1]);
    assert!(matches!(lease.append(large).await, Err(TenantError::InvalidArgument(_))));
    assert_eq!(store.calls(Operation::Put), puts);
    lease.append(Bytes::from(random_bytes(3 << 20, 1))).await.unwrap();
    assert_eq!(payloads(&lease).await, [random_bytes(3 << 20, 1)]);
}
