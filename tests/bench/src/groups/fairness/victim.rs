//! The victim: a well-behaved guest whose requests are timed.
//!
//! A thread that runs no guests sends the requests, like a client of an embedder. The time of a
//! request begins when it is sent, so it includes the wait for a thread.

use std::time::{Duration, Instant};

use anyhow::Result;
use larder_bench_workload::{Random, Shape};
use larder_host::Store;
use serde::{Deserialize, Serialize};

use crate::guest::{Guest, Program, Workload};
use crate::row::Work;

/// More rows than the victim reads in one cell, so most of its reads miss the cache.
const SHAPE: Shape = Shape { rows: 20_000, namespaces: 1, value_bytes: 100 };

/// How long the victim's requests took.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// A view with one get.
    pub(super) reads: Kind,
    /// An update with a get and a put.
    pub(super) updates: Kind,
}

/// How long the requests of one kind took, in nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Kind {
    requests: u64,
    times: Vec<f64>,
}

/// The interval at which a client would send each kind of request.
const EXPECTED: Duration = Duration::from_millis(5);

impl Kind {
    /// Adds a request, and those that a client would have sent while it lasted, because they would
    /// have waited too.
    ///
    /// Without them, a wait of seconds would count as one slow request among many quick ones.
    fn add(&mut self, time: Duration) {
        self.requests += 1;
        let mut left = Some(time);
        while let Some(time) = left {
            self.times.push(time.as_nanos() as f64);
            left = time.checked_sub(EXPECTED).filter(|time| !time.is_zero());
        }
    }
}

/// The latency of one kind of request, as percentiles.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) requests: u64,
    /// The percentiles from the 0th to the 100th.
    pub(super) percentiles: Vec<f64>,
}

impl Latency {
    pub(super) fn of(kind: Kind) -> Self {
        let Kind { requests, mut times } = kind;
        times.sort_by(f64::total_cmp);
        let last = times.len().saturating_sub(1);
        let at = |percent: usize| times.get((last * percent).div_ceil(100)).copied();
        Self { requests, percentiles: (0..=100).filter_map(at).collect() }
    }

    pub(super) fn at(&self, percent: usize) -> f64 {
        self.percentiles.get(percent).copied().unwrap_or(f64::NAN)
    }
}

/// The victim, and its failed calls.
pub(super) struct Victim {
    guest: Guest,
    random: Random,
    requests: u64,
    pub(super) failures: u64,
    pub(super) first_failure: Option<String>,
}

impl Victim {
    /// Puts the victim's rows into the store.
    pub(super) async fn fill(program: &Program, store: &Store) -> Result<()> {
        let mut guest = program.instance(store).await?;
        guest.open(SHAPE).await?;
        guest.fill(0, SHAPE.rows).await
    }

    /// Starts the victim.
    pub(super) async fn start(program: &Program, store: &Store) -> Result<Self> {
        let mut guest = program.instance(store).await?;
        guest.open(SHAPE).await?;
        Ok(Self { guest, random: Random::new(1), requests: 0, failures: 0, first_failure: None })
    }

    /// Makes a read and an update.
    pub(super) async fn request(mut self, times: &mut Times) -> Result<Self> {
        for (workload, times) in
            [(Workload::ViewOfOneGet, &mut times.reads), (Workload::UpdateGetPut, &mut times.updates)]
        {
            std::thread::sleep(Duration::from_micros(self.random.below(PAUSE_MICROS_MAX)));
            let since = Instant::now();
            let (victim, until) = tokio::spawn(self.served(workload)).await?;
            times.add(until.duration_since(since));
            self = victim;
        }
        Ok(self)
    }

    /// Serves one request and returns when it ended.
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

/// The longest pause before a request, during which threads turn to other work.
///
/// Each pause is a random part of it. Requests in step with the epoch's ticks would all wait for
/// whole ticks.
const PAUSE_MICROS_MAX: u64 = 2_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let kind = |times: Vec<f64>| Kind { requests: times.len() as u64, times };
        let latency = Latency::of(kind((0..=1_000).rev().map(f64::from).collect()));
        assert_eq!((latency.requests, latency.at(0), latency.at(50)), (1_001, 0.0, 500.0));
        assert_eq!((latency.at(99), latency.at(100)), (990.0, 1_000.0));
        let one = Latency::of(kind(vec![7.0]));
        assert_eq!((one.at(50), one.at(99)), (7.0, 7.0));
        assert_eq!(Latency::of(kind(vec![3.0, 1.0, 2.0])).at(99), 3.0);
        assert!(Latency::of(Kind::default()).at(50).is_nan());
    }

    #[test]
    fn a_slow_request_counts_for_those_that_would_have_come_meanwhile() {
        let mut kind = Kind::default();
        [3, 5, 12].into_iter().for_each(|time| kind.add(Duration::from_millis(time)));
        assert_eq!((kind.requests, kind.times), (3, vec![3e6, 5e6, 12e6, 7e6, 2e6]));
    }
}
