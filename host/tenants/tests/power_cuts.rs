//! A power cut loses the last commits of the local database, and perhaps its last recorded state.
//! It must never undo commits that were sent, and no version may be assigned twice.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::path::PathBuf;

use host::*;
use larder_core::{Mode, Version};
use larder_tenants::{Tenant, TenantKey, Tenants};

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// Puts a number. Returns the version of the row.
async fn put_number(tenant: &Tenant, number: u32) -> Version {
    put(tenant, "v", &number.to_string()).await.unwrap();
    version(tenant).await
}

async fn version(tenant: &Tenant) -> Version {
    let mut view = handle(tenant).begin(Mode::View).unwrap();
    view.get_versioned("n".into(), "v".into()).await.unwrap().unwrap().1
}

/// The disk of a host at different times.
struct Disk {
    world: World,
    /// Copies of the cache folder: when 3 was sent but 4 was not, and when 5 was sent.
    early: PathBuf,
    late: PathBuf,
    /// The version of the row when it was 5.
    newest: Version,
}

async fn disk() -> Disk {
    let world = World::new();
    let a = world.host("a").await;
    let tenant = a.get(&ann()).await.unwrap();
    put_number(&tenant, 3).await;
    a.checkpoint(&ann()).await.unwrap();
    crash(&world, "a", "sent").await;
    put_number(&tenant, 4).await;
    crash(&world, "a", "early").await;
    let newest = put_number(&tenant, 5).await;
    a.checkpoint(&ann()).await.unwrap();
    crash(&world, "a", "late").await;
    // The process continues as if it were dead.
    std::mem::forget((a, tenant));
    let (early, late) = (world.cache("early"), world.cache("late"));
    Disk { world, early, late, newest }
}

const DATABASE: [&str; 3] = ["ann.db", "ann.db-wal", "ann.db-shm"];

impl Disk {
    /// The folder after the power cut: the recorded state is the latest possible one, and the
    /// database is older.
    fn cut_database(&self) {
        for file in DATABASE {
            let place = |folder: &PathBuf| folder.join("acme/users").join(file);
            let _ = std::fs::remove_file(place(&self.late));
            if place(&self.early).exists() {
                std::fs::copy(place(&self.early), place(&self.late)).unwrap();
            }
        }
    }

    async fn restart(&self, name: &str) -> Tenants {
        self.world.host(name).await
    }
}

#[tokio::test]
async fn a_database_that_lost_what_was_sent_is_replaced_by_the_snapshot() {
    let disk = disk().await;
    disk.cut_database();
    let a = disk.restart("late").await;
    let tenant = a.get(&ann()).await.unwrap();
    assert_eq!(get(&tenant, "v").await.unwrap().as_deref(), Some("5"));
    assert!(put_number(&tenant, 6).await > disk.newest);
    drop(tenant);
    a.close().await.unwrap();
    let b = disk.restart("b").await;
    assert_eq!(get_in(&b, &ann(), "v").await.as_deref(), Some("6"));
    assert!(
        a.cache().quarantined().unwrap().is_empty(),
        "everything was sent, so nothing belongs in quarantine"
    );
}

#[tokio::test]
async fn as_many_commits_after_the_power_cut_as_were_lost_are_sent() {
    let disk = disk().await;
    disk.cut_database();
    let a = disk.restart("late").await;
    let tenant = a.get(&ann()).await.unwrap();
    put_number(&tenant, 50).await;
    drop(tenant);
    a.close().await.unwrap();
    let b = disk.restart("b").await;
    assert_eq!(get_in(&b, &ann(), "v").await.as_deref(), Some("50"));
}

/// The recorded state of the last snapshot is lost too. Commits that were unsent in the older
/// recorded state are kept for an operator.
#[tokio::test]
async fn a_folder_of_before_the_snapshot_does_not_undo_it() {
    for (folder, is_unsent) in [("sent", false), ("early", true)] {
        let disk = disk().await;
        let a = disk.restart(folder).await;
        let tenant = a.get(&ann()).await.unwrap();
        assert_eq!(get(&tenant, "v").await.unwrap().as_deref(), Some("5"), "{folder}");
        let quarantined = a.cache().quarantined().unwrap();
        assert_eq!(quarantined.len(), usize::from(is_unsent), "{folder}");
        if let [note] = quarantined.as_slice() {
            assert_eq!(note.reason, "the current snapshot was not made from this database");
        }
    }
}

#[tokio::test]
async fn commits_that_were_not_sent_and_survived_are_sent_after_the_power_cut() {
    let world = World::new();
    let a = world.host("a").await;
    let tenant = a.get(&ann()).await.unwrap();
    put_number(&tenant, 3).await;
    a.checkpoint(&ann()).await.unwrap();
    let unsent = put_number(&tenant, 4).await;
    crash(&world, "a", "left").await;
    std::mem::forget((a, tenant));
    let a = world.host("left").await;
    let tenant = a.get(&ann()).await.unwrap();
    assert_eq!((get(&tenant, "v").await.unwrap().as_deref(), version(&tenant).await), (Some("4"), unsent));
    assert!(a.checkpoint(&ann()).await.unwrap());
}
