//! Transactions answer and conflict as a model does that shares no code with larder.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use larder_core::Store;
use larder_model::{Conflicts, Schedule, StandingClock, check_conflicts, run};
use larder_sqlite::{Sqlite, SqliteOptions};

const SCHEDULES: u64 = 100;

/// Room for all rows, for a few, and for none.
const CACHE_BYTES: [u64; 3] = [1 << 20, 4_000, 0];

async fn store(path: &Path, cache_bytes: u64, clock: &Arc<StandingClock>) -> Store {
    let sqlite = Sqlite::open(path, SqliteOptions::default().cache_bytes(cache_bytes)).await.unwrap();
    Store::builder(sqlite).clock(clock.clone()).sweep_interval(None).build().unwrap()
}

async fn compare(hosts: usize) {
    for seed in 0..SCHEDULES {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::<StandingClock>::default();
        let mut stores = Vec::new();
        for _ in 0..hosts {
            let cache_bytes = CACHE_BYTES[seed as usize % CACHE_BYTES.len()];
            stores.push(store(&folder.path().join("store.db"), cache_bytes, &clock).await);
        }
        let transactions = 1 + seed as usize % 5;
        // A read that the row cache answers takes no snapshot of SQLite. Once another host has
        // committed, a further read of the transaction may conflict.
        let schedule = Schedule { seed, calls: 150, transactions, reads_may_conflict: hosts > 1 };
        let outcome = run(schedule, &stores, &clock).await;
        for store in stores {
            store.close().await;
        }
        if let Err(difference) = outcome {
            panic!("{difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_on_one_host_answer_as_the_model_does() {
    compare(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_of_two_hosts_answer_as_the_model_does() {
    compare(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_conflicts_exactly_if_what_it_read_was_changed() {
    for cache_bytes in CACHE_BYTES {
        for (is_other_host, flood) in [(false, 0), (false, 20_000), (true, 0)] {
            let folder = tempfile::tempdir().unwrap();
            let clock = Arc::<StandingClock>::default();
            let path = folder.path().join("store.db");
            let store = store(&path, cache_bytes, &clock).await;
            let other =
                if is_other_host { self::store(&path, cache_bytes, &clock).await } else { store.clone() };
            // Each may hold a connection, of which there are 64.
            let conflicts = Conflicts { at_once: 32, flood };
            let checked = check_conflicts(conflicts, &store, &other, &clock).await;
            store.close().await;
            other.close().await;
            if let Err(wrong) = checked {
                panic!("cache of {cache_bytes} bytes, other host: {is_other_host}\n{wrong}");
            }
        }
    }
}
