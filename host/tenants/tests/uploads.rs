//! Multipart uploads: parallel, with retries of single parts, and without leftovers of failed ones.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{FolderStore, Lease, Remote, RemoteOptions, TenantError};
use object_store::memory::InMemory;
use support::*;

/// The size of a part is 8 MiB.
const PARTS: u64 = 6;

/// A file of six parts, whose bytes are incompressible.
fn six_parts(files: &Files) -> std::path::PathBuf {
    files.write("database", database(random_bytes(41 << 20, 5)))
}

fn remote_over(store: &FaultyStore, with_parts: bool) -> Remote {
    let mut options = RemoteOptions::default();
    if with_parts {
        options.multipart = Some(Arc::new(store.clone()));
    }
    Remote::new(Arc::new(store.clone()), path("pre/fix"), options).unwrap()
}

/// A host over a store with or without numbered parts.
async fn host(with_parts: bool) -> (FaultyStore, Remote, Lease) {
    let store = FaultyStore::with_parts(Arc::new(InMemory::new()));
    let remote = remote_over(&store, with_parts);
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    (store, remote, lease)
}

fn counts(store: &FaultyStore) -> [u64; 4] {
    [Operation::Multipart, Operation::Part, Operation::Complete, Operation::Abort]
        .map(|operation| store.calls(operation))
}

#[tokio::test(start_paused = true)]
async fn parts_go_side_by_side_and_no_more_than_four_at_once() {
    let files = Files::new();
    let file = six_parts(&files);
    for with_parts in [true, false] {
        let (store, remote, lease) = host(with_parts).await;
        store.add(Rule::next(Operation::Part, "", Fault::Delay(Duration::from_secs(1))).times(100));
        lease.publish(&file, 0).await.unwrap();
        assert_eq!(counts(&store), [1, PARTS, 1, 0], "{with_parts}");
        assert_eq!((store.parts_at_once(), store.unfinished_uploads()), (4, 0), "{with_parts}");
        assert!(current(&remote).await == random_bytes(41 << 20, 5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_fails_or_gives_no_answer_is_sent_again_alone() {
    let files = Files::new();
    let file = six_parts(&files);
    for fault in [Fault::Fail, Fault::Hang, Fault::LoseAnswer, Fault::HangAfter] {
        let (store, remote, lease) = host(true).await;
        // Three of four attempts fail.
        store.add(Rule::next(Operation::Part, "", fault).after(1).times(3));
        lease.publish(&file, 0).await.unwrap();
        assert_eq!(counts(&store), [1, PARTS + 3, 1, 0], "{fault:?}");
        assert!(current(&remote).await == random_bytes(41 << 20, 5), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_whose_store_has_no_numbers_for_parts_begins_again() {
    let files = Files::new();
    let file = six_parts(&files);
    for fault in [Fault::Fail, Fault::Hang] {
        let (store, remote, lease) = host(false).await;
        store.add(Rule::next(Operation::Part, "", fault).after(1));
        lease.publish(&file, 0).await.unwrap();
        let [begun, parts, completed, aborted] = counts(&store);
        assert_eq!((begun, completed, aborted), (2, 1, 1), "{fault:?}");
        assert!(parts > PARTS, "{fault:?}: {parts}");
        assert_eq!(store.unfinished_uploads(), 0, "{fault:?}");
        assert!(current(&remote).await == random_bytes(41 << 20, 5), "{fault:?}");
    }
}

/// On a slow connection, parallel parts may all time out.
#[tokio::test(start_paused = true)]
async fn after_a_part_that_took_too_long_parts_go_one_after_another() {
    let files = Files::new();
    let file = six_parts(&files);
    for with_parts in [true, false] {
        let (store, remote, lease) = host(with_parts).await;
        store.add(Rule::next(Operation::Part, "", Fault::Hang).times(4));
        let second = Duration::from_secs(1);
        store.add(Rule::next(Operation::Part, "", Fault::Delay(second)).times(100));
        let start = tokio::time::Instant::now();
        lease.publish(&file, 0).await.unwrap();
        // The timeout of a call, and one second for each part.
        let took = start.elapsed().as_secs();
        assert!((66..72).contains(&took), "{with_parts}: {took}");
        assert_eq!(store.calls(Operation::Part), PARTS + 4, "{with_parts}");
        assert!(current(&remote).await == random_bytes(41 << 20, 5));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_fails_leaves_no_parts_and_the_next_one_succeeds() {
    let files = Files::new();
    let file = six_parts(&files);
    for with_parts in [true, false] {
        for (operation, fault) in [
            (Operation::Part, Fault::Fail),
            (Operation::Part, Fault::Hang),
            (Operation::Complete, Fault::Fail),
            (Operation::Complete, Fault::Hang),
        ] {
            let (store, remote, lease) = host(with_parts).await;
            store.add(Rule::next(operation, "", fault).times(16));
            let failed = lease.publish(&file, 0).await.unwrap_err();
            assert!(matches!(failed, TenantError::Unavailable { .. }), "{operation:?} {fault:?}: {failed}");
            assert_eq!(store.unfinished_uploads(), 0, "{with_parts} {operation:?} {fault:?}");
            assert_eq!(objects_in(&store, "snapshots").await, [] as [&str; 0]);
            store.clear();
            lease.renew().await.unwrap();
            lease.publish(&file, 0).await.unwrap();
            assert!(current(&remote).await == random_bytes(41 << 20, 5));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_dropped_halfway_leaves_no_parts() {
    let files = Files::new();
    let file = six_parts(&files);
    for with_parts in [true, false] {
        let (store, _, lease) = host(with_parts).await;
        store.add(Rule::next(Operation::Part, "", Fault::Hang).times(100));
        let dropped = tokio::time::timeout(Duration::from_secs(5), lease.publish(&file, 0)).await;
        assert!(dropped.is_err() && store.calls(Operation::Part) > 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.unfinished_uploads(), 0, "{with_parts}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_completion_may_be_lost() {
    let files = Files::new();
    let file = six_parts(&files);
    for with_parts in [true, false] {
        for fault in [Fault::LoseAnswer, Fault::HangAfter] {
            let (store, remote, lease) = host(with_parts).await;
            store.add(Rule::next(Operation::Complete, "", fault));
            lease.publish(&file, 0).await.unwrap();
            assert_eq!(store.calls(Operation::Part), PARTS, "{with_parts} {fault:?}");
            assert!(current(&remote).await == random_bytes(41 << 20, 5));
        }
    }
}

#[tokio::test]
async fn a_folder_sends_a_failed_part_again_too_and_keeps_no_file_of_it() {
    let (files, folder) = (Files::new(), tempfile::tempdir().unwrap());
    let file = six_parts(&files);
    let store = FaultyStore::with_parts(Arc::new(FolderStore::open(folder.path()).unwrap()));
    let remote = remote_over(&store, true);
    let lease = remote.acquire(&key(), &holder("one"), NO_WAIT).await.unwrap();
    store.add(Rule::next(Operation::Part, "", Fault::LoseAnswer).after(2));
    lease.publish(&file, 0).await.unwrap();
    assert_eq!(counts(&store), [1, PARTS + 1, 1, 0]);
    assert!(current(&remote).await == random_bytes(41 << 20, 5));
    assert_eq!(std::fs::read_dir(folder.path().join(".larder/temporary")).unwrap().count(), 0);
}
