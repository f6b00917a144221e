//! The victim: a well-behaved guest whose requests are timed.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Instant;

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
    pub(super) async fn request(&mut self, times: &mut Times) {
        let read = self.timed(Workload::ViewOfOneGet).await;
        let update = self.timed(Workload::UpdateGetPut).await;
        times.reads.push(read);
        times.updates.push(update);
    }

    /// Makes one request. It counts from the moment when the request is there, and so includes the wait for a thread.
    async fn timed(&mut self, workload: Workload) -> f64 {
        self.requests += 1;
        let since = Instant::now();
        give_way().await;
        let work = Work { count: 1, seed: self.requests, salt: self.requests };
        if let Err(error) = self.guest.run(workload, work).await {
            self.failures += 1;
            self.first_failure.get_or_insert_with(|| format!("{error:#}"));
        }
        since.elapsed().as_nanos() as f64
    }
}

/// Lets every task that waits for the thread go first. Tokio's own `yield_now` waits longer: on a busy runtime, until the
/// thread looks for input again.
async fn give_way() {
    let mut has_waited = false;
    poll_fn(|context| {
        if has_waited {
            return Poll::Ready(());
        }
        has_waited = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

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
