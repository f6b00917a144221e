//! Random schedules of overlapping transactions answer as a model says that shares no code with core.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use larder_core::{InMemory, Store};
use larder_model::{Schedule, StandingClock, run};

const SCHEDULES: u64 = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_of_two_hosts_answer_as_the_model_does() {
    for seed in 0..SCHEDULES {
        let clock = Arc::<StandingClock>::default();
        let rows = InMemory::new();
        let store = |rows| Store::builder(rows).clock(clock.clone()).sweep_interval(None).build().unwrap();
        let stores = [store(rows.attach()), store(rows)];
        let transactions = 1 + seed as usize % 5;
        let schedule = Schedule { seed, calls: 150, transactions, reads_may_conflict: false };
        if let Err(difference) = run(schedule, &stores, &clock).await {
            panic!("{difference}");
        }
    }
}
