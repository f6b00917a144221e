//! The victim: a well-behaved guest whose requests are timed.
//!
//! Requests come from a thread that runs no guests, as they do from a platform's clients. A request counts from the moment
//! when it is there until it is done, and so includes the wait for a thread.

use std::time::{Duration, Instant};

use anyhow::Result;
use larder_bench_workload::Shape;
use larder_host::Store;
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Program, Workload};
use crate::row::Work;

/// More rows than the victim reads in one cell, so that most of its reads are of rows that no cache has.
const SHAPE: Shape = Shape { rows: 20_000, namespaces: 1, value_bytes: 100 };

/// How long the victim's requests took, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// A view with one get.
    pub(super) reads: Vec<f64>,
    /// An update with a get and a put.
    pub(super) updates: Vec<f64>,
}

/// One kind of request, as percentiles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) requests: u64,
    /// From the 0th to the 100th.
    pub(super) percentiles: Vec<f64>,
}

impl Latency {
    pub(super) fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let at = |percent: usize| times.get((last * percent).div_ceil(100)).copied();
        Self { requests: times.len() as u64, percentiles: (0..=100).filter_map(at).collect() }
    }

    pub(super) fn at(&self, percent: usize) -> f64 {
        self.percentiles.get(percent).copied().unwrap_or(f64::NAN)
    }
}

/// The victim, and what failed of it.
pub(super) struct Victim {
    guest: Guest,
    requests: u64,
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
}

impl Victim {
    /// Puts its rows into the store.
    pub(super) async fn fill(program: &Program, store: &Store) -> Result<()> {
        let mut guest = program.instance(store).await?;
        guest.open(SHAPE).await?;
        guest.fill(0, SHAPE.rows).await
    }

    /// Starts it.
    pub(super) async fn start(program: &Program, store: &Store) -> Result<Self> {
        let mut guest = program.instance(store).await?;
        guest.open(SHAPE).await?;
        Ok(Self { guest, requests: 0, failures: 0, first_failure: None })
    }

    /// Makes a read and an update.
    pub(super) async fn request(mut self, times: &mut Times) -> Result<Self> {
        for (workload, times) in
            [(Workload::ViewOfOneGet, &mut times.reads), (Workload::UpdateGetPut, &mut times.updates)]
        {
            std::thread::sleep(PAUSE);
            let since = Instant::now();
            let (victim, until) = tokio::spawn(self.served(workload)).await?;
            times.push(until.duration_since(since).as_nanos() as f64);
            self = victim;
        }
        Ok(self)
    }

    /// Serves one request; gives the moment when it was done.
    async fn served(mut self, workload: Workload) -> (Self, Instant) {
        self.requests += 1;
        let work = Work { count: 1, seed: self.requests, salt: self.requests };
        if let Err(error) = self.guest.run(workload, work).await {
            self.failures += 1;
            self.first_failure.get_or_insert_with(|| format!("{error:#}"));
        }
        (self, Instant::now())
    }
}

/// The pause before each request. The threads find other work meanwhile, as they do for guests that are not asked all the
/// time.
const PAUSE: Duration = Duration::from_micros(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let latency = Latency::of((0..=1_000).rev().map(f64::from).collect());
        assert_eq!((latency.requests, latency.at(0), latency.at(50)), (1_001, 0.0, 500.0));
        assert_eq!((latency.at(99), latency.at(100)), (990.0, 1_000.0));
        let one = Latency::of(vec![7.0]);
        assert_eq!((one.at(50), one.at(99)), (7.0, 7.0));
        assert!(Latency::of(Vec::new()).at(50).is_nan());
    }

    #[test]
    fn few_times_have_their_longest_as_the_tail() {
        assert_eq!(Latency::of(vec![3.0, 1.0, 2.0]).at(99), 3.0);
    }
}
