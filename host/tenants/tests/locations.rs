//! A cache folder belongs to one location, and is never sent to another.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::join_all;
use host::*;
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use larder_tenants::{TenantError, TenantKey};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

const NOTE: &str = "larder.json";

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// All objects of a store.
async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for meta in store.list(None).try_collect::<Vec<_>>().await.unwrap() {
        let bytes = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        found.insert(meta.location.to_string(), bytes.to_vec());
    }
    found
}

fn location(note: &[u8]) -> String {
    let note: serde_json::Value = serde_json::from_slice(note).unwrap();
    note["place"].as_str().unwrap().to_string()
}

fn recorded(world: &World, cache: &str) -> Option<String> {
    std::fs::read(world.cache(cache).join(".place.json")).ok().map(|note| location(&note))
}

async fn location_of(world: &World) -> String {
    location(&world.objects.get(&NOTE.into()).await.unwrap().bytes().await.unwrap())
}

/// A world with the cache folder `left` of a killed host that had not sent everything.
async fn with_leftover() -> World {
    let world = World::new();
    let a = world.host("a").await;
    put_in(&a, &ann(), "sent", "1").await;
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "unsent", "2").await;
    crash(&world, "a", "left").await;
    world
}

#[tokio::test]
async fn a_cache_folder_of_another_location_is_refused_and_neither_side_is_touched() {
    let world = with_leftover().await;
    let own = location_of(&world).await;
    let left = files(&world.cache("left"));
    // A location without tenants, and one with a tenant of the same name.
    let other = World::new();
    let b = other.host("b").await;
    put_in(&b, &ann(), "of b", "1").await;
    b.close().await.unwrap();
    let others = [
        (FaultyStore::new(Arc::new(InMemory::new())), None),
        (other.objects.clone(), Some(location_of(&other).await)),
    ];
    for (store, expected) in others {
        let before = objects(&store).await;
        let refused = world.builder_over(&store, "left").open().await.unwrap_err();
        let TenantError::OtherLocation { folder, recorded, found } = &refused else { panic!("{refused}") };
        assert_eq!(Path::new(folder), world.cache("left").canonicalize().unwrap());
        assert_eq!((recorded, found), (&own, &expected));
        let sentence = refused.to_string();
        assert!(
            sentence.contains("belongs to other tenants")
                && sentence.contains("a separate cache folder for each location"),
            "{sentence}"
        );
        assert_eq!(objects(&store).await, before);
        assert!(files(&world.cache("left")) == left, "the cache folder was changed");
    }
    let elsewhere = world.builder("left").prefix(ObjectPath::from("else/where")).open().await.unwrap_err();
    assert!(matches!(elsewhere, TenantError::OtherLocation { found: None, .. }), "{elsewhere}");
    // At its own location, its commits are sent.
    let next = world.host("left").await;
    assert_eq!(get_in(&next, &ann(), "unsent").await.as_deref(), Some("2"));
    next.close().await.unwrap();
    assert_eq!(count(&world.host("c").await.get(&ann()).await.unwrap()).await, 2);
}

#[tokio::test]
async fn hosts_that_come_first_and_at_once_agree_on_the_location() {
    let world = World::new();
    // By then, all of them have seen that there is no id.
    let slowly = Fault::Delay(Duration::from_millis(100));
    world.objects.add(Rule::next(Operation::Put, NOTE, slowly).times(8));
    let names: Vec<_> = (0..8).map(|number| format!("host-{number}")).collect();
    let opened = join_all(names.iter().map(|name| world.builder(name).open())).await;
    assert!(opened.iter().all(Result::is_ok));
    let location = location_of(&world).await;
    for name in &names {
        assert_eq!(recorded(&world, name).as_deref(), Some(location.as_str()), "{name}");
    }
}

#[tokio::test]
async fn the_location_is_known_also_where_the_answer_to_its_making_is_lost_late_or_wrong() {
    let late = Fault::DoneLate(Duration::from_millis(10));
    for fault in [Fault::Fail, Fault::LoseAnswer, Fault::DenyOwnSuccess, Fault::Hang, Fault::HangAfter, late]
    {
        let world = World::new();
        world.objects.add(Rule::next(Operation::Put, NOTE, fault));
        world.host("a").await.close().await.unwrap();
        assert_eq!(recorded(&world, "a"), Some(location_of(&world).await), "{fault:?}");
        world.host("a").await.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_location_that_can_not_be_learned_is_unavailable_and_nothing_is_recorded() {
    let faults = [
        (Operation::Get, Fault::Hang),
        (Operation::Get, Fault::Fail),
        (Operation::Put, Fault::Hang),
        (Operation::Put, Fault::HangAfter),
    ];
    for (operation, fault) in faults {
        let world = World::new();
        world.objects.add(Rule::next(operation, NOTE, fault).times(100));
        if fault == Fault::HangAfter {
            // The id is created, but cannot be read afterwards.
            world.objects.add(Rule::next(Operation::Get, NOTE, Fault::Hang).after(1).times(100));
        }
        let error = world.builder("a").open().await.unwrap_err();
        assert!(matches!(error, TenantError::Unavailable { .. }), "{operation:?} {fault:?}: {error}");
        assert_eq!(recorded(&world, "a"), None, "{operation:?} {fault:?}");
        world.objects.clear();
        world.host("a").await.close().await.unwrap();
        assert_eq!(recorded(&world, "a"), Some(location_of(&world).await), "{operation:?} {fault:?}");
    }
}

#[tokio::test]
async fn a_location_and_a_cache_folder_from_before_locations_were_noted_get_one() {
    for is_known in [false, true] {
        let world = with_leftover().await;
        std::fs::remove_file(world.cache("left").join(".place.json")).unwrap();
        if !is_known {
            world.objects.delete(&NOTE.into()).await.unwrap();
        }
        let next = world.host("left").await;
        assert_eq!(recorded(&world, "left"), Some(location_of(&world).await));
        assert_eq!(get_in(&next, &ann(), "unsent").await.as_deref(), Some("2"));
    }
}

#[tokio::test]
async fn a_note_that_can_not_be_read_is_left_as_it_is() {
    let world = with_leftover().await;
    let store = &world.objects;
    let (path, own) = (ObjectPath::from(NOTE), store.get(&NOTE.into()).await.unwrap().bytes().await.unwrap());
    let is_corrupt = |error: &TenantError| matches!(error, TenantError::Corrupt { key, .. } if key == NOTE);
    let large = format!("{}{}", String::from_utf8_lossy(&own), " ".repeat(2_000));
    for wrong in ["", "no note", "{\"format\":1}", large.as_str()] {
        store.put(&path, wrong.to_string().into()).await.unwrap();
        let error = world.builder("left").open().await.unwrap_err();
        assert!(is_corrupt(&error), "{wrong:?}: {error}");
        assert_eq!(objects(store).await[NOTE], wrong.as_bytes());
    }
    store.put(&path, "{\"format\":2}".into()).await.unwrap();
    let newer = world.builder("left").open().await.unwrap_err();
    assert!(matches!(newer, TenantError::NewerFormat { format: 2, supported: 1, .. }), "{newer}");
    store.put(&path, own.into()).await.unwrap();
    let note = world.cache("left").join(".place.json");
    std::fs::write(&note, "torn").unwrap();
    let error = world.builder("left").open().await.unwrap_err();
    assert!(matches!(&error, TenantError::Corrupt { key, .. } if key.ends_with(".place.json")), "{error}");
    assert_eq!(std::fs::read(&note).unwrap(), b"torn");
}
