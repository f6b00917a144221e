//! The work of the host during which the power cuts happen.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_core::Mode;
use larder_tenants::{Tenant, TenantError, TenantKey, Tenants, TenantsBuilder};
use object_store::ObjectStore;

use crate::history::{Acknowledged, History, NEWEST, own_row};
use crate::host::{handle, key};
use crate::objects::{Put, RecordedStore};
use crate::{Moment, now};

pub(crate) fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// The folder of Ann's database below a cache folder, and its name there.
pub(crate) const FOLDER: &str = "acme/users";
pub(crate) const DATABASE: &str = "ann.db";

/// A host without background work.
pub(crate) fn builder(store: Arc<dyn ObjectStore>, cache: &Path) -> TenantsBuilder {
    Tenants::builder(store)
        .cache_folder(cache)
        .lease_wait(Duration::ZERO)
        .idle(None)
        .checkpoint_writes(1_000_000)
        .checkpoint_interval(Duration::from_secs(3_600))
        .sweep_interval(None)
}

/// Commits the number. Returns the version.
pub(crate) async fn commit(tenant: &Tenant, number: u64) -> u64 {
    let mut update = handle(tenant).begin(Mode::Update).unwrap();
    for row in [NEWEST.into(), own_row(number)] {
        update.put("n".into(), row, number.to_string().into()).unwrap();
    }
    update.commit().await.unwrap().0
}

/// The recordings other than the disk.
pub(crate) struct Worked {
    pub(crate) history: History,
    pub(crate) puts: Vec<Put>,
    /// When all of the database's log was on the disk.
    synced: Vec<Moment>,
    start: Moment,
    end: Moment,
}

/// Commits while the tenant is checkpointed, evicted and opened again, and while the log is synced
/// at random times.
pub(crate) async fn work(store: RecordedStore, cache: PathBuf, steps: usize) -> Worked {
    let tenants = Arc::new(builder(Arc::new(store.clone()), &cache).open().await.unwrap());
    let is_done = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (tenants, is_done) = (tenants.clone(), is_done.clone());
        async move {
            let mut history = History::default();
            while !is_done.load(Ordering::Acquire) {
                let tenant = tenants.get(&ann()).await.unwrap();
                let version = commit(&tenant, history.commits.len() as u64 + 1).await;
                history.commits.push(Acknowledged { at: now(), version });
                drop(tenant);
                pause(3).await;
            }
            history
        }
    });
    let syncing = tokio::spawn({
        let is_done = is_done.clone();
        async move {
            let mut synced = Vec::new();
            while !is_done.load(Ordering::Acquire) {
                // SQLite takes no POSIX locks on the log. Closing a file of the database would
                // release its locks.
                if let Ok(log) = File::open(cache.join(FOLDER).join(format!("{DATABASE}-wal"))) {
                    log.sync_all().unwrap();
                    synced.push(now());
                }
                pause(if fastrand::bool() { 10 } else { 120 }).await;
            }
            synced
        }
    });
    for step in 1..=steps {
        pause(60).await;
        match step % 5 {
            0 => evict(&tenants).await,
            _ => drop(tenants.checkpoint(&ann()).await.unwrap()),
        }
    }
    is_done.store(true, Ordering::Release);
    let (history, synced, end) = (writer.await.unwrap(), syncing.await.unwrap(), now());
    tenants.close().await.unwrap();
    // A new host sets up its folder when it has its first tenant.
    let start = history.commits[0].at;
    Worked { history, puts: store.puts(), synced, start, end }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(0..milliseconds * 1_000))).await;
}

/// Retries, because the writer has the tenant most of the time.
async fn evict(tenants: &Tenants) {
    for _ in 0..1_000 {
        match tenants.evict(&ann()).await {
            Ok(_) => return,
            Err(TenantError::InUse { .. }) => pause(2).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the writer never let go of the tenant");
}

impl Worked {
    /// When the host started and ended its work.
    pub(crate) fn times(&self) -> (Moment, Moment) {
        (self.start, self.end)
    }

    /// A random time for a power cut: during or soon after a put, soon after a sync of the log or
    /// the start, or at any time.
    pub(crate) fn moment(&self, random: &mut fastrand::Rng) -> Moment {
        let (first, last) = self.times();
        let soon = random.u64(0..4_000_000);
        let moment = match random.u8(0..5) {
            0 => {
                let put = random.choice(&self.puts).unwrap();
                random.u64(put.began..=put.done)
            }
            1 => random.choice(&self.puts).unwrap().done + soon,
            2 => random.choice(&self.synced).unwrap() + soon,
            3 => first + 8 * soon,
            _ => random.u64(first..=last),
        };
        moment.clamp(first, last)
    }
}
