//! Snapshots: published atomically, retained, and restored.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_core::clock::{Clock, MovableClock};
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{Remote, RemoteOptions, RestorePoint, SnapshotRef, TenantError};
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;
use support::*;

fn faulty() -> (FaultyStore, Remote) {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let remote = remote(Arc::new(store.clone()));
    (store, remote)
}

fn object(snapshot: &SnapshotRef) -> object_store::path::Path {
    path(&format!("pre/fix/acme/users/ann.db/snapshots/{}", snapshot.name))
}

fn reason(error: TenantError) -> String {
    match error {
        TenantError::Corrupt { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_read_back_as_it_was() {
    let (_, remote) = faulty();
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    for content in [vec![7], vec![0; 3 << 20], random_bytes(20 << 20, 1)] {
        let published = publish(&lease, &files, &content).await;
        assert_eq!(published.bytes, database(&content).len() as u64);
        assert!(current(&remote).await == content);
    }
    assert_eq!(files.names(), ["database"], "the compressed file was not removed");
    assert_eq!(remote.history(&key()).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_are_not_uploaded_again() {
    let (store, remote) = faulty();
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let first = publish(&lease, &files, "content").await;
    lease.append(Bytes::from("x")).await.unwrap();
    let second = publish(&lease, &files, "content").await;
    assert_eq!(second, SnapshotRef { covers: 2, ..first });
    assert_eq!(objects_in(&store, "snapshots").await, [second.name]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_publication_leaves_the_snapshot_before_and_works_again() {
    let files = Files::new();
    let big = random_bytes(9 << 20, 3);
    for (operation, part) in
        [(Operation::Put, "snapshots"), (Operation::Put, "head.json"), (Operation::Multipart, "snapshots")]
    {
        for fault in [Fault::Fail, Fault::Hang] {
            let (store, remote) = faulty();
            let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
            publish(&lease, &files, "before").await;
            store.add(Rule::next(operation, part, fault).times(4));
            let content = if operation == Operation::Multipart { big.as_slice() } else { b"after" };
            let file = files.write("database", database(content));
            let error = lease.publish(&file, 0).await.unwrap_err();
            assert!(matches!(error, TenantError::Unavailable { .. }), "{error}");
            assert_eq!(current(&remote).await, b"before");
            lease.renew().await.unwrap();
            lease.publish(&file, 0).await.unwrap();
            assert!(current(&remote).await == content);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn files_and_positions_that_make_no_sense_are_refused() {
    let (_, remote) = faulty();
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let empty = lease.publish(&files.write("empty", ""), 0).await.unwrap_err();
    assert_eq!(empty.to_string(), "invalid argument: an empty file is not a database");
    let beyond = lease.publish(&files.write("x", "x"), 1).await.unwrap_err();
    assert_eq!(
        beyond.to_string(),
        "invalid argument: a snapshot must cover a position from 0 to 0, and not 1"
    );
    assert!(matches!(lease.publish(&files.path("missing"), 0).await, Err(TenantError::File { .. })));
    assert_eq!(remote.history(&key()).await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_missing_altered_or_a_bomb_is_corrupt_and_leaves_no_file() {
    let (store, remote) = faulty();
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let content = random_bytes(100_000, 2);
    let snapshot = publish(&lease, &files, &content).await;
    let original = store.get(&object(&snapshot)).await.unwrap().bytes().await.unwrap();
    let compressed = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let replaced = |bytes: Vec<u8>| {
        let snapshot = SnapshotRef { compressed_bytes: bytes.len() as u64, ..snapshot.clone() };
        let (store, remote) = (&store, &remote);
        async move {
            store.put(&object(&snapshot), bytes.into()).await.unwrap();
            reason(fetch(remote, &snapshot).await.unwrap_err())
        }
    };
    let file = database(&content);
    let mut flipped = file.clone();
    flipped[5000] ^= 1;
    assert_eq!(
        replaced(compressed(&flipped)).await,
        "the hash of the snapshot differs from that in the head"
    );
    let bomb = compressed(&[file.clone(), vec![0; 50 << 20]].concat());
    assert_eq!(replaced(bomb).await, "the snapshot is longer than the head says");
    let short = compressed(&file[..file.len() - 1]);
    assert_eq!(replaced(short).await, "the snapshot is 1 bytes shorter than the head says");
    assert_eq!(replaced(b"no zstd at all".to_vec()).await, "the snapshot can't be decompressed");
    let sizes = [compressed(&[0; 50_000]), compressed(&[7; 99]), compressed(&random_bytes(100_352, 4))];
    for no_database in sizes {
        assert_eq!(replaced(no_database).await, "the snapshot is not a SQLite database");
    }
    let larger = compressed(&database(vec![0; 1 << 20]));
    assert_eq!(
        replaced(larger).await,
        "the database has 1049088 bytes according to its header, but 100352 according to the head"
    );
    let cut = original.slice(..original.len() / 2).to_vec();
    assert!(replaced(cut).await.contains("shorter than the head says"));
    store.put(&object(&snapshot), vec![1].into()).await.unwrap();
    assert!(
        reason(fetch(&remote, &snapshot).await.unwrap_err()).starts_with("the snapshot's object has 1 bytes")
    );
    store.delete(&object(&snapshot)).await.unwrap();
    let missing = reason(fetch(&remote, &snapshot).await.unwrap_err());
    assert_eq!(missing, "the snapshot that the head names is missing");
    let into = files.path("limited");
    let limited = remote.fetch(&key(), &snapshot, &into, 100_351).await.unwrap_err();
    assert_eq!(reason(limited), "the snapshot has 100352 bytes, and max_database allows 100351");
    store.put(&object(&snapshot), original.into()).await.unwrap();
    assert!(fetch(&remote, &snapshot).await.unwrap() == content);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_hangs_or_fails_is_unavailable_or_tried_again() {
    let (store, remote) = faulty();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let snapshot = publish(&lease, &Files::new(), "content").await;
    for fault in [Fault::Fail, Fault::Hang] {
        store.add(Rule::next(Operation::Get, "snapshots", fault).times(4));
        assert!(matches!(fetch(&remote, &snapshot).await, Err(TenantError::Unavailable { .. })));
        store.add(Rule::next(Operation::Get, "snapshots", fault).times(3));
        assert_eq!(fetch(&remote, &snapshot).await.unwrap(), b"content");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restored_snapshot_is_the_current_one_and_that_can_be_undone() {
    let (remote, clock) = remote_with_clock(Arc::new(InMemory::new()));
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    let before_all = clock.unix_millis() - 1;
    let mut taken = Vec::new();
    for content in ["one", "two", "three"] {
        lease.append(Bytes::from(content)).await.unwrap();
        taken.push(publish(&lease, &files, content).await);
        clock.advance(DAY);
    }
    lease.append(Bytes::from("after the last snapshot")).await.unwrap();
    let none = lease.restore(RestorePoint::At(before_all)).await.unwrap_err();
    let oldest = Some(taken[0].taken_at);
    assert!(matches!(none, TenantError::NoSnapshot { oldest: found, .. } if found == oldest), "{none}");
    assert_eq!(current(&remote).await, b"three");
    let restored = lease.restore(RestorePoint::At(taken[2].taken_at - 1)).await.unwrap();
    assert_eq!(
        (restored.name.as_str(), restored.generation > taken[2].generation),
        (taken[1].name.as_str(), true)
    );
    assert_eq!(current(&remote).await, b"two");
    // The restore ended this lease, because it is based on a superseded state.
    assert!(matches!(lease.check(), Err(TenantError::Closed { .. })));
    let lease = remote.acquire(&key(), &holder("two"), NO_WAIT).await.unwrap();
    assert_eq!(lease.epoch(), 3);
    assert!(payloads(&lease).await.is_empty(), "the log was replayed on a snapshot that it does not follow");
    clock.advance(DAY);
    lease.restore(RestorePoint::At(taken[2].taken_at)).await.unwrap();
    assert_eq!(current(&remote).await, b"three");
    let next = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert!(payloads(&next).await.is_empty());
    next.append(Bytes::from("new")).await.unwrap();
    assert_eq!(payloads(&next).await, ["new"]);
    assert_eq!(remote.history(&key()).await.unwrap().len(), 5);
    // Only the first object is no longer named: the snapshot that was just superseded has the bytes
    // of the second. The next collection removes what this one dropped from the head.
    for removed in [0, 1, 0] {
        assert_eq!(next.collect(Duration::from_secs(100)).await.unwrap().snapshots, removed);
    }
    assert_eq!(current(&remote).await, b"three");
}

#[tokio::test(start_paused = true)]
async fn snapshots_are_collected_once_they_were_superseded_for_their_time() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (remote, clock) = remote_with_clock(store.clone());
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.put(&path("pre/fix/acme/users/ann.db/snapshots/orphan"), "x".into()).await.unwrap();
    let first = publish(&lease, &files, "first").await;
    clock.advance(DAY * 10);
    let second = publish(&lease, &files, "second").await;
    // The snapshot that was current until just now stays, whatever its age. The object that no head
    // ever named is removed.
    assert_eq!(lease.collect(DAY).await.unwrap().snapshots, 1);
    let mut both = [first.name, second.name.clone()];
    both.sort();
    assert_eq!(objects_in(&*store, "snapshots").await, both);
    clock.advance(DAY * 2);
    assert_eq!(lease.collect(DAY).await.unwrap().snapshots, 0);
    assert_eq!(objects_in(&*store, "snapshots").await, both);
    assert_eq!(lease.collect(DAY).await.unwrap().snapshots, 1);
    assert_eq!(objects_in(&*store, "snapshots").await, [second.name]);
    assert_eq!(current(&remote).await, b"second");
    assert!(matches!(lease.collect(Duration::ZERO).await, Err(TenantError::InvalidArgument(_))));
}

#[tokio::test(start_paused = true)]
async fn a_host_with_a_wrong_clock_neither_misdates_snapshots_nor_collects_others() {
    for days in [-30, 30] {
        let (clock, wrong_clock) = (Arc::new(MovableClock::default()), Arc::new(MovableClock::default()));
        let by = DAY * 30;
        if days > 0 {
            wrong_clock.advance(by)
        } else {
            wrong_clock.step_back(by)
        }
        let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new())).with_clock(clock.clone()));
        let host = |clock: &Arc<MovableClock>| {
            let options = RemoteOptions::default().clock(clock.clone());
            Remote::new(store.clone(), path("pre/fix"), options).unwrap()
        };
        let files = Files::new();
        let mut taken = Vec::new();
        for (number, is_wrong) in [false, false, true, true, false].into_iter().enumerate() {
            let remote = host(if is_wrong { &wrong_clock } else { &clock });
            let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
            taken.push(publish(&lease, &files, number.to_string()).await);
            assert_eq!(lease.collect(DAY * 7).await.unwrap().snapshots, 0);
            clock.advance(DAY);
            wrong_clock.advance(DAY);
        }
        let remote = host(&clock);
        assert_eq!(remote.history(&key()).await.unwrap(), taken);
        for pair in taken.windows(2) {
            let apart = pair[1].taken_at - pair[0].taken_at;
            assert!((DAY.as_millis() as u64).abs_diff(apart) < 10_000, "{apart}");
        }
        for point in [RestorePoint::At(taken[1].taken_at), RestorePoint::Generation(taken[1].generation)] {
            let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
            lease.restore(point).await.unwrap();
            assert_eq!(current(&remote).await, b"1");
        }
        let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
        let none = lease.restore(RestorePoint::Generation(u64::MAX)).await;
        assert!(matches!(none, Err(TenantError::NoGeneration { .. })), "{none:?}");
    }
}

/// The head names few snapshots of a long history. The others are removed after an hour, although
/// the retention is a week.
#[tokio::test(start_paused = true)]
async fn snapshots_that_a_long_history_leaves_out_are_collected_within_hours() {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (remote, clock) = remote_with_clock(store.clone());
    let files = Files::new();
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    for number in 0..600 {
        publish(&lease, &files, number.to_string()).await;
    }
    assert_eq!(lease.collect(DAY * 7).await.unwrap().snapshots, 0);
    clock.advance(HOUR * 2);
    assert_eq!(lease.collect(DAY * 7).await.unwrap().snapshots, 600 - 257);
    assert_eq!(objects_in(&*store, "snapshots").await.len(), 257);
    assert_eq!(remote.history(&key()).await.unwrap().len(), 257);
}

#[tokio::test(start_paused = true)]
async fn a_collection_by_who_lost_the_lease_deletes_nothing() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (remote, clock) = remote_with_clock(store.clone());
    let old = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.put(&path("pre/fix/acme/users/ann.db/snapshots/orphan"), "x".into()).await.unwrap();
    clock.advance(DAY * 30);
    let new = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    assert!(matches!(old.collect(DAY).await, Err(TenantError::Fenced { .. })));
    assert_eq!(objects_in(&*store, "snapshots").await, ["orphan"]);
    assert_eq!(new.collect(DAY).await.unwrap().snapshots, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    Append,
    Restore(u8),
    Collect,
    Wait(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..4).prop_map(Step::Publish),
        Just(Step::Append),
        any::<u8>().prop_map(Step::Restore),
        Just(Step::Collect),
        any::<u8>().prop_map(Step::Wait),
        Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_collection_never_removes_what_the_head_names(steps in prop::collection::vec(step(), 1..40), seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(steps, seed));
    }
}

async fn run(steps: Vec<Step>, seed: u64) {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let (remote, clock) = remote_with_clock(Arc::new(store.clone()));
    let files = Files::new();
    let start = clock.unix_millis();
    let acquire = async || remote.acquire(&key(), &holder("one"), NO_WAIT).await;
    let mut lease = acquire().await.unwrap();
    store.fail_at_random(seed, 0.1, &[Fault::Fail, Fault::LoseAnswer, Fault::DenyOwnSuccess]);
    for step in steps {
        // Each step may fail. What counts is the final state.
        match step {
            Step::Publish(content) => {
                let file = files.write("database", database([content]));
                if let Ok(end) = lease.log_end().await {
                    drop(lease.publish(&file, end).await);
                }
            }
            Step::Append => drop(lease.append(Bytes::from("x")).await),
            Step::Restore(part) => {
                let moment = start + (clock.unix_millis() - start) * u64::from(part) / 255;
                // A restore that succeeds ends the lease.
                drop(lease.restore(RestorePoint::At(moment)).await);
                if let Ok(next) = acquire().await {
                    lease = next;
                }
            }
            Step::Collect => drop(lease.collect(Duration::from_secs(100)).await),
            Step::Wait(minutes) => clock.advance(Duration::from_secs(60 * u64::from(minutes))),
            Step::Reopen => {
                if let Ok(next) = acquire().await {
                    lease = next;
                }
            }
        }
    }
    store.clear();
    for snapshot in remote.history(&key()).await.unwrap() {
        fetch(&remote, &snapshot).await.unwrap();
    }
    let lease = acquire().await.unwrap();
    payloads(&lease).await;
}
