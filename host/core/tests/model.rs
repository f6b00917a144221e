//! Transactions answer and conflict as a model does that shares no code with larder.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use larder_core::{InMemory, Store};
use larder_model::{Conflicts, Schedule, StandingClock, check_conflicts, run};

const SCHEDULES: u64 = 600;

/// More rows than the log of commits holds, so that validation must look at rows.
const FLOOD: usize = 20_000;

fn two_hosts() -> ([Store; 2], Arc<StandingClock>) {
    let clock = Arc::<StandingClock>::default();
    let rows = InMemory::new();
    let store = |rows| Store::builder(rows).clock(clock.clone()).sweep_interval(None).build().unwrap();
    ([store(rows.attach()), store(rows)], clock)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_of_two_hosts_answer_as_the_model_does() {
    for seed in 0..SCHEDULES {
        let (stores, clock) = two_hosts();
        let transactions = 1 + seed as usize % 5;
        let schedule = Schedule { seed, calls: 150, transactions, reads_may_conflict: false };
        if let Err(difference) = run(schedule, &stores, &clock).await {
            panic!("{difference}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_conflicts_exactly_if_what_it_read_was_changed() {
    for flood in [0, FLOOD] {
        let ([store, other], clock) = two_hosts();
        let conflicts = Conflicts { at_once: 1_000, flood };
        if let Err(wrong) = check_conflicts(conflicts, &store, &other, &clock).await {
            panic!("{wrong}");
        }
    }
}
