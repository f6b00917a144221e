//! A tenant in object storage can be read without its lease.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt;
use host::*;
use larder_core::{Error, HandleOptions, Mode, Range, Store};
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{Durability, Remote, RemoteOptions, TenantError, TenantKey, TenantView, Tenants};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

fn ann() -> TenantKey {
    key("acme/users/ann")
}

async fn host_of(world: &World, durability: Durability) -> Tenants {
    world.builder("a").durability(durability).open().await.unwrap()
}

/// Object storage for a client with read access only.
fn reading(world: &World) -> (Remote, FaultyStore) {
    let objects = world.objects.another();
    for operation in [Operation::Put, Operation::Multipart, Operation::Delete, Operation::Copy] {
        objects.add(Rule::next(operation, "", Fault::Fail).times(usize::MAX));
    }
    let options = RemoteOptions::default().attempts(1);
    (Remote::new(Arc::new(objects.clone()), ObjectPath::default(), options).unwrap(), objects)
}

fn folder(world: &World) -> std::path::PathBuf {
    let folder = world.cache("views");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// The keys that a view shows.
async fn rows(view: &TenantView) -> Vec<String> {
    let store = Store::builder_shared(view.backend.clone()).sweep_interval(None).build().unwrap();
    let mut reading = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    let page = reading.scan_page("n".into(), Range { keys_only: true, ..Range::default() }, None);
    page.await.unwrap().entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test]
async fn a_tenant_that_another_host_has_open_is_read_without_its_lease_and_nothing_is_written() {
    let world = World::new();
    let a = host_of(&world, Durability::Object).await;
    put_in(&a, &ann(), "one", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "two", "2").await;
    put_in(&a, &ann(), "three", "3").await;
    let (remote, objects) = reading(&world);
    let before = a.remote().head(&ann()).await.unwrap().unwrap();
    let view = remote.view(&ann(), &folder(&world)).await.unwrap().unwrap();
    assert_eq!(rows(&view).await, ["one", "three", "two"]);
    assert_eq!(view.snapshot, before.snapshot);
    assert_eq!((objects.calls(Operation::Put), objects.calls(Operation::Delete)), (0, 0));
    assert_eq!(a.remote().head(&ann()).await.unwrap().unwrap(), before);
    // The view does not change while the host continues.
    put_in(&a, &ann(), "four", "4").await;
    assert_eq!(rows(&view).await.len(), 3);
    let later = a.view(&ann()).await.unwrap().unwrap();
    assert_eq!(rows(&later).await.len(), 4);
    assert!(later.version > view.version);
}

#[tokio::test]
async fn a_view_shows_the_last_checkpoint_of_a_tenant_that_acknowledges_locally() {
    let world = World::new();
    let a = host_of(&world, Durability::Local).await;
    put_in(&a, &ann(), "sent", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "unsent", "2").await;
    let (remote, _) = reading(&world);
    let view = remote.view(&ann(), &folder(&world)).await.unwrap().unwrap();
    assert_eq!(rows(&view).await, ["sent"]);
}

#[tokio::test]
async fn a_view_refuses_writes_and_leaves_no_file() {
    let world = World::new();
    let a = host_of(&world, Durability::Local).await;
    put_in(&a, &ann(), "one", "1").await;
    a.close().await.unwrap();
    let (remote, _) = reading(&world);
    for is_closed in [true, false] {
        let view = remote.view(&ann(), &folder(&world)).await.unwrap().unwrap();
        let store = Store::builder_shared(view.backend.clone()).sweep_interval(None).build().unwrap();
        let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        update.put("n".into(), "two".into(), b"2".to_vec()).unwrap();
        assert!(matches!(update.commit().await, Err(Error::AccessDenied(_))));
        assert!(!is_empty(&folder(&world)));
        match is_closed {
            true => store.close().await,
            false => drop((store, view)),
        }
        eventually("an empty folder", async || is_empty(&folder(&world))).await;
    }
}

#[tokio::test]
async fn a_tenant_that_does_not_exist_has_no_view_and_one_that_was_never_written_is_empty() {
    let world = World::new();
    let a = host_of(&world, Durability::Local).await;
    let (remote, _) = reading(&world);
    assert!(remote.view(&ann(), &folder(&world)).await.unwrap().is_none());
    a.get(&ann()).await.unwrap();
    let view = remote.view(&ann(), &folder(&world)).await.unwrap().unwrap();
    assert!(rows(&view).await.is_empty() && view.snapshot.is_none());
}

#[tokio::test]
async fn a_view_of_a_tenant_whose_objects_are_missing_is_corrupt_and_leaves_no_file() {
    for (durability, part) in [(Durability::Local, "/snapshots/"), (Durability::Object, "/segments/")] {
        let world = World::new();
        let a = host_of(&world, durability).await;
        for row in ["one", "two", "three"] {
            put_in(&a, &ann(), row, row).await;
        }
        if durability == Durability::Local {
            a.checkpoint(&ann()).await.unwrap();
        }
        let metas: Vec<_> = world.objects.list(None).try_collect().await.unwrap();
        let mut paths: Vec<_> = metas.into_iter().map(|meta| meta.location).collect();
        paths.retain(|path| path.as_ref().contains(part));
        paths.sort();
        world.objects.delete(&paths[0]).await.unwrap();
        let (remote, _) = reading(&world);
        let view = remote.view(&ann(), &folder(&world)).await;
        assert!(matches!(view, Err(TenantError::Corrupt { .. })), "{view:?}");
        assert!(is_empty(&folder(&world)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_follows_the_head_if_what_it_named_is_collected_meanwhile() {
    let world = World::new();
    let a = host_of(&world, Durability::Local).await;
    put_in(&a, &ann(), "one", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    let first = a.remote().head(&ann()).await.unwrap().unwrap().snapshot.unwrap();
    let (remote, objects) = reading(&world);
    objects.add(Rule::next(Operation::Get, "/snapshots/", Fault::Delay(Duration::from_millis(300))));
    let viewing = tokio::spawn({
        let folder = folder(&world);
        async move { remote.view(&ann(), &folder).await.unwrap().unwrap() }
    });
    // It has read the head.
    eventually("a download", async || objects.calls(Operation::Get) > 1).await;
    put_in(&a, &ann(), "two", "2").await;
    a.checkpoint(&ann()).await.unwrap();
    let path = ObjectPath::from(format!("{}/snapshots/{}", ann().object_path(), first.name));
    world.objects.delete(&path).await.unwrap();
    assert_eq!(rows(&viewing.await.unwrap()).await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_while_a_host_commits_and_checkpoints_show_every_commit_that_was_acknowledged_before() {
    let world = World::new();
    let a = host_of(&world, Durability::Object).await;
    let (remote, _) = reading(&world);
    let is_over = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writing = tokio::spawn({
        let (a, is_over, acknowledged) = (a.clone(), is_over.clone(), acknowledged.clone());
        async move {
            let tenant = a.get(&ann()).await.unwrap();
            while !is_over.load(Ordering::SeqCst) {
                let number = acknowledged.load(Ordering::SeqCst);
                put(&tenant, &format!("{number:06}"), "value").await.unwrap();
                acknowledged.store(number + 1, Ordering::SeqCst);
                if number.is_multiple_of(7) {
                    a.checkpoint(&ann()).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    eventually("a commit", async || acknowledged.load(Ordering::SeqCst) > 0).await;
    for _ in 0..20 {
        let before = acknowledged.load(Ordering::SeqCst);
        let view = remote.view(&ann(), &folder(&world)).await.unwrap().unwrap();
        let after = acknowledged.load(Ordering::SeqCst);
        let found = rows(&view).await;
        let expected: Vec<_> = (0..found.len()).map(|number| format!("{number:06}")).collect();
        assert_eq!(found, expected, "a commit is missing between two others");
        assert!((before..=after + 1).contains(&found.len()), "{before} {after} {}", found.len());
    }
    is_over.store(true, Ordering::SeqCst);
    writing.await.unwrap();
}
