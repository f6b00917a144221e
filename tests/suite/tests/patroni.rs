//! A store on three nodes under Patroni whose leader is killed, paused and cut off from the
//! network. The test is long, so it runs only if `LARDER_PATRONI` is set.
#![allow(clippy::expect_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use larder_postgres_server::{Failure, PatroniCluster, supervise_if_asked};
use support::accountable::Load;
use support::{harness, postgres_server};

/// How often each failure is repeated. If it is not set, there are no tests.
const VARIABLE: &str = "LARDER_PATRONI";

const WRITERS_PER_STORE: u64 = 6;

/// The longest outage of a store, as stated in `docs/hosts.md`.
const OUTAGE_MAX: Duration = Duration::from_secs(15);

const FAILURES: [Failure; 4] = [Failure::Killed, Failure::Paused, Failure::Partitioned, Failure::Isolated];

type Outcome = Result<(), String>;

/// The duration of the parts of an outage.
struct Outage {
    failure: Failure,
    /// From the failure until another leader acknowledged a commit.
    election: Duration,
    /// From then until every writer made a commit.
    writers: Duration,
    /// From the end of the failure until the former leader was a replica.
    rejoin: Duration,
}

fn in_full(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn main() {
    supervise_if_asked();
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let mut trials = Vec::new();
    if let Some(times) = std::env::var_os(VARIABLE) {
        let name = "no_acknowledged_commit_is_lost_when_patroni_elects_another_leader";
        trials.push(harness::trial(&runtime, name, async move || {
            let times = times.to_str().and_then(|times| times.parse().ok());
            let times = times.ok_or_else(|| format!("{VARIABLE} is not a number"))?;
            no_acknowledged_commit_is_lost_when_patroni_elects_another_leader(times).await
        }));
    }
    harness::run(&arguments, trials, || ());
}

async fn no_acknowledged_commit_is_lost_when_patroni_elects_another_leader(times: usize) -> Outcome {
    let mut cluster = PatroniCluster::start().map_err(in_full)?;
    let stores = [postgres_server::open(&cluster.dsn()).await, postgres_server::open(&cluster.dsn()).await];
    let mut load = Load::start(&stores, WRITERS_PER_STORE);
    load.progress(OUTAGE_MAX).await?;
    let mut outages = Vec::new();
    for failure in FAILURES.into_iter().cycle().take(FAILURES.len() * times) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..2_000))).await;
        let outage = fail(&mut cluster, &mut load, failure).await;
        let outage = outage.map_err(|error| format!("{failure:?}, number {}: {error}", outages.len() + 1))?;
        outages.push(outage);
    }
    let tally = load.end(&stores[0]).await?;
    for failure in FAILURES {
        report(failure, &outages);
    }
    println!("{tally:?}");
    for store in stores {
        store.close().await;
    }
    Ok(())
}

/// Makes the leader fail, and then lets it rejoin as a replica. Every writer must make a commit
/// after each.
async fn fail(cluster: &mut PatroniCluster, load: &mut Load, failure: Failure) -> Result<Outage, String> {
    let failed = Instant::now();
    cluster.fail(failure).map_err(in_full)?;
    let elected = Instant::now();
    load.progress(OUTAGE_MAX).await?;
    let went_on = Instant::now();
    cluster.recover().map_err(in_full)?;
    let rejoin = went_on.elapsed();
    load.progress(OUTAGE_MAX).await.map_err(|error| format!("after the former leader rejoined: {error}"))?;
    Ok(Outage { failure, election: elected - failed, writers: went_on - elected, rejoin })
}

fn report(failure: Failure, outages: &[Outage]) {
    let outages: Vec<_> = outages.iter().filter(|outage| outage.failure == failure).collect();
    let range = |part: fn(&Outage) -> Duration| {
        let parts = outages.iter().map(|outage| part(outage).as_secs_f64());
        let (least, most) = parts
            .fold((f64::INFINITY, 0.0), |(least, most), part| (f64::min(least, part), f64::max(most, part)));
        format!("{least:.1} to {most:.1} s")
    };
    println!(
        "{failure:?}, {} times: a new leader after {}, every writer committed again {} later, the former leader rejoined within {}",
        outages.len(),
        range(|outage| outage.election),
        range(|outage| outage.writers),
        range(|outage| outage.rejoin),
    );
}
