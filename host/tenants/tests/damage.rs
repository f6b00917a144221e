//! Lost or damaged objects. Intact data can be restored, and nothing silently replaces lost data.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::path::{Path, PathBuf};
use std::time::Duration;

use host::*;
use larder_core::Version;
use larder_tenants::{Durability, SnapshotRef, TenantError, TenantKey, Tenants};

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// A tenant with three snapshots, each with one more row: `one`, `two`, `three`. With durability
/// `object`, `four` and `five` are in the log, one segment each.
struct Stored {
    world: World,
    snapshots: Vec<SnapshotRef>,
    newest: Version,
}

async fn stored(durability: Durability) -> Stored {
    let world = World::in_folder();
    let a = world.builder("a").durability(durability).open().await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    for row in ["one", "two", "three"] {
        put(&tenant, row, row).await.unwrap();
        a.checkpoint(&ann()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if durability == Durability::Object {
        for row in ["four", "five"] {
            put(&tenant, row, row).await.unwrap();
        }
        std::mem::forget((a.clone(), tenant.clone()));
        let name = a.cache().holder().clone();
        a.remote().acquire(&ann(), &name, Duration::ZERO).await.unwrap().release().await.unwrap();
    }
    let newest = version_of(&tenant, "three").await;
    drop(tenant);
    if durability == Durability::Local {
        a.close().await.unwrap();
    }
    let snapshots = a.remote().history(&ann()).await.unwrap();
    Stored { world, snapshots, newest }
}

impl Stored {
    fn object(&self, name: impl AsRef<Path>) -> PathBuf {
        self.world.folder.path().join("objects/acme/users/ann.db").join(name)
    }

    fn snapshot(&self, number: usize) -> PathBuf {
        self.object("snapshots").join(&self.snapshots[number].name)
    }

    async fn host(&self) -> Tenants {
        self.world.host("b").await
    }
}

const DAMAGES: [fn(&Path); 4] = [
    |path| std::fs::remove_file(path).unwrap(),
    |path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 10]).unwrap();
    },
    |path| {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    },
    |path| std::fs::write(path, "").unwrap(),
];

fn is_corrupt<T>(outcome: Result<T, TenantError>) -> bool {
    matches!(outcome, Err(TenantError::Corrupt { .. }))
}

#[tokio::test]
async fn a_tenant_whose_current_snapshot_is_damaged_goes_back_to_a_whole_one() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        let stored = stored(Durability::Local).await;
        damage(&stored.snapshot(2));
        let b = stored.host().await;
        assert!(is_corrupt(b.get(&ann()).await), "damage {number}");
        let restored = b.restore_at(&ann(), stored.snapshots[1].taken_at).await.unwrap();
        assert!(matches!(restored.damage, Some(TenantError::Corrupt { .. })), "damage {number}");
        let tenant = b.get(&ann()).await.unwrap();
        assert_eq!(count(&tenant).await, 2, "damage {number}");
        put(&tenant, "next", "next").await.unwrap();
        assert!(version_of(&tenant, "next").await > stored.newest);
    }
}

#[tokio::test]
async fn a_tenant_whose_log_is_damaged_goes_back_to_a_whole_snapshot() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        let stored = stored(Durability::Object).await;
        let first = stored.snapshots[2].covers + 1;
        damage(&stored.object(format!("segments/{first:020}")));
        let b = stored.world.builder("b").durability(Durability::Object).open().await.unwrap();
        assert!(is_corrupt(b.get(&ann()).await), "damage {number}");
        b.restore_at(&ann(), stored.snapshots[2].taken_at).await.unwrap();
        let tenant = b.get(&ann()).await.unwrap();
        assert_eq!(count(&tenant).await, 3, "damage {number}");
        put(&tenant, "next", "next").await.unwrap();
        drop(tenant);
        b.close().await.unwrap();
        let c = stored.world.host("c").await;
        assert_eq!(get_in(&c, &ann(), "next").await.as_deref(), Some("next"), "damage {number}");
    }
}

#[tokio::test]
async fn a_damaged_snapshot_does_not_become_the_current_one() {
    for damage in DAMAGES {
        let stored = stored(Durability::Local).await;
        damage(&stored.snapshot(0));
        let b = stored.host().await;
        assert!(is_corrupt(b.restore_at(&ann(), stored.snapshots[0].taken_at).await));
        assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 3);
    }
}

#[tokio::test]
async fn a_tenant_whose_head_is_lost_or_damaged_is_not_empty_and_can_be_repaired() {
    for (number, damage) in DAMAGES.into_iter().enumerate() {
        let stored = stored(Durability::Local).await;
        damage(&stored.object("head.json"));
        let b = stored.host().await;
        assert!(is_corrupt(b.get(&ann()).await), "damage {number}");
        assert!(is_corrupt(b.remote().head(&ann()).await), "damage {number}");
        let plan = b.remote().plan_repair(&ann(), b.cache()).await.unwrap();
        assert_eq!((plan.head.snapshots().count(), plan.damaged.len()), (3, 0));
        b.remote().repair(&ann(), &plan).await.unwrap();
        let again = b.remote().repair(&ann(), &plan).await;
        assert!(matches!(again, Err(TenantError::InvalidArgument(_))), "{again:?}");
        let tenant = b.get(&ann()).await.unwrap();
        assert_eq!(count(&tenant).await, 3, "damage {number}");
        put(&tenant, "next", "next").await.unwrap();
        assert!(version_of(&tenant, "next").await > stored.newest);
    }
}

#[tokio::test]
async fn a_repair_replays_the_log_and_leaves_damaged_snapshots_out() {
    let stored = stored(Durability::Object).await;
    DAMAGES[2](&stored.snapshot(0));
    DAMAGES[0](&stored.object("head.json"));
    let b = stored.world.builder("b").durability(Durability::Object).open().await.unwrap();
    let plan = b.remote().plan_repair(&ann(), b.cache()).await.unwrap();
    assert_eq!(plan.head.snapshots().count(), 2);
    assert_eq!(plan.damaged.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&stored.snapshots[0].name]);
    b.remote().repair(&ann(), &plan).await.unwrap();
    assert_eq!(count(&b.get(&ann()).await.unwrap()).await, 5);
}

#[tokio::test]
async fn an_intact_tenant_is_not_repaired() {
    let stored = stored(Durability::Local).await;
    let b = stored.host().await;
    let plan = b.remote().plan_repair(&ann(), b.cache()).await;
    assert!(matches!(plan, Err(TenantError::InvalidArgument(_))), "{plan:?}");
    let none = b.remote().plan_repair(&key("acme/org"), b.cache()).await;
    assert!(is_corrupt(none), "a tenant without objects cannot be repaired");
}
