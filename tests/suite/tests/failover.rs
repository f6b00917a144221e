//! Stores on servers of which one takes over from another, and behind a network that fails.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use larder_core::{Error, Mode, Store};
use larder_postgres_server::{Cluster, Fall, PgBouncer, PoolMode, PostgresServer};
use support::accountable::Load;
use support::counting::handle;
use support::proxy::{Network, Proxy};
use support::{harness, postgres_server};

/// How often a standby takes over. `LARDER_FAILOVERS` changes it.
const FAILOVERS: usize = 20;

const WRITERS_PER_STORE: u64 = 6;

/// The longest time until a store works again: longer than `docs/hosts.md` says, as other tests run at the same time.
const OUTAGE_MAX: Duration = Duration::from_secs(20);

const FALLS: [Fall; 4] = [Fall::Crashed, Fall::Held, Fall::Killed, Fall::Stopped];

type Outcome = Result<(), String>;

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(harness::trial(&runtime, stringify!($test), $test)),*]
        };
    }
    let mut trials = trials!(
        no_acknowledged_commit_is_lost_when_a_standby_takes_over,
        a_commit_that_stops_waiting_for_the_standby_is_unknown,
        a_commit_is_unknown_if_its_server_is_killed,
        a_commit_is_unknown_if_its_server_is_killed_behind_a_pooler,
        a_commit_without_a_caller_is_not_shown_before_the_standby_has_it,
        views_go_on_if_no_commit_is_answered,
    );
    for network in [Network::Slow, Network::Cuts, Network::Swallows, Network::SwallowsAnswers] {
        let name = format!("a_store_goes_on_if_the_network_to_a_server_{}", name(network));
        trials.push(harness::trial(&runtime, name, move || a_store_goes_on_if_the_network_fails(network)));
    }
    harness::run(&arguments, trials, || ());
}

async fn no_acknowledged_commit_is_lost_when_a_standby_takes_over() -> Outcome {
    let failovers = std::env::var("LARDER_FAILOVERS").ok().and_then(|count| count.parse().ok());
    let mut cluster = Cluster::start().map_err(|error| format!("{error:#}"))?;
    let stores = [postgres_server::open(&cluster.dsn()).await, postgres_server::open(&cluster.dsn()).await];
    let mut load = Load::start(&stores, WRITERS_PER_STORE);
    load.progress(OUTAGE_MAX).await?;
    let mut outages = Vec::new();
    for fall in FALLS.iter().cycle().take(failovers.unwrap_or(FAILOVERS)) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..200))).await;
        cluster.fail_over(*fall).map_err(|error| format!("{error:#}"))?;
        let since = Instant::now();
        load.progress(OUTAGE_MAX).await.map_err(|error| format!("{fall:?}: {error}"))?;
        outages.push((*fall, since.elapsed()));
    }
    let tally = load.end(&stores[0]).await?;
    for fall in FALLS {
        let mut outages: Vec<_> =
            outages.iter().filter(|(of, _)| *of == fall).map(|(_, outage)| outage).collect();
        outages.sort();
        println!("{fall:?}: every writer went on after {:?} to {:?}", outages.first(), outages.last());
    }
    println!("{tally:?}");
    for store in stores {
        store.close().await;
    }
    Ok(())
}

fn name(network: Network) -> &'static str {
    match network {
        Network::Works => "works",
        Network::Slow => "is_slow",
        Network::Cuts => "cuts_connections",
        Network::Swallows => "swallows_everything",
        Network::SwallowsAnswers => "swallows_answers",
    }
}

/// The store has two ways to one server, of which the first one fails. There are more writers than connections.
async fn a_store_goes_on_if_the_network_fails(network: Network) -> Outcome {
    let server = PostgresServer::start().map_err(|error| format!("{error:#}"))?;
    let proxy = Proxy::start(server.folder()).map_err(|error| error.to_string())?;
    let (first, second) = (proxy.folder().display(), server.folder().display());
    let options = "user=larder dbname=postgres target_session_attrs=read-write pool_size=4";
    let store = postgres_server::open(&format!("host={first},{second} {options}")).await;
    let mut load = Load::start(std::slice::from_ref(&store), WRITERS_PER_STORE);
    load.progress(OUTAGE_MAX).await?;
    proxy.network(network);
    // What the server was asked before is answered first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let since = Instant::now();
    load.progress(OUTAGE_MAX).await?;
    println!("{network:?}: every writer went on after {:?}", since.elapsed());
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.network(Network::Works);
    load.progress(OUTAGE_MAX).await?;
    let direct = postgres_server::open(&server.dsn()).await;
    println!("{network:?}: {:?}", load.end(&direct).await?);
    direct.close().await;
    store.close().await;
    Ok(())
}

/// Commits of one statement, of one pass, and in steps.
const KINDS: [Kind; 3] = [Kind::Put, Kind::Puts, Kind::Range];

#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Puts,
    Range,
}

async fn commit(store: Store, kind: Kind) -> Result<(), Error> {
    let mut transaction = handle(&store).begin(Mode::Update)?;
    if matches!(kind, Kind::Range) {
        transaction.scan("n".into(), "row".into()).await?;
    }
    let rows = if matches!(kind, Kind::Put) { 1 } else { 10 };
    for row in 0..rows {
        transaction.put("n".into(), format!("row/{row}"), b"value".to_vec())?;
    }
    transaction.commit().await.map(drop)
}

/// Does something to all sessions of a server that wait for a standby, once there is one. Gives their number.
async fn to_waiting_sessions(server: &PostgresServer, what: &str) -> u64 {
    let client = postgres_server::connect(&server.dsn()).await;
    let sql = format!("SELECT {what} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let until = Instant::now() + Duration::from_secs(4);
    loop {
        let sessions = client.query(&sql, &[]).await.unwrap().len();
        if sessions > 0 || Instant::now() > until {
            return sessions as u64;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn a_commit_that_stops_waiting_for_the_standby_is_unknown() -> Outcome {
    let cluster = Cluster::start().map_err(|error| format!("{error:#}"))?;
    let store = postgres_server::open(&cluster.dsn()).await;
    for kind in KINDS {
        cluster.standby().hold();
        let committing = tokio::spawn(commit(store.clone(), kind));
        if to_waiting_sessions(cluster.primary(), "pg_cancel_backend(pid)").await != 1 {
            return Err(format!("{kind:?}: no commit waits for the standby"));
        }
        let outcome = committing.await.unwrap();
        if !matches!(outcome, Err(Error::CommitUnknown { .. })) {
            return Err(format!("{kind:?}: {outcome:?}"));
        }
        // The session is used on, and the next commit is not blamed.
        cluster.standby().resume();
        commit(store.clone(), kind).await.map_err(|error| format!("{kind:?}: {error:?}"))?;
    }
    store.close().await;
    Ok(())
}

async fn a_commit_is_unknown_if_its_server_is_killed() -> Outcome {
    for kind in KINDS {
        let server = PostgresServer::start().map_err(|error| format!("{error:#}"))?;
        let dsn = server.dsn();
        the_server_is_killed_during_a_commit(server, &dsn, kind).await?;
    }
    Ok(())
}

/// The pooler says that it lost the server, as an error of the database.
async fn a_commit_is_unknown_if_its_server_is_killed_behind_a_pooler() -> Outcome {
    for program in PgBouncer::programs().map_err(|error| format!("{error:#}"))? {
        for kind in KINDS {
            let server = PostgresServer::start().map_err(|error| format!("{error:#}"))?;
            let pooler = PgBouncer::start(&program, &server, PoolMode::Transaction);
            let pooler = pooler.map_err(|error| format!("{error:#}"))?;
            the_server_is_killed_during_a_commit(server, &pooler.dsn(), kind).await?;
        }
    }
    Ok(())
}

async fn the_server_is_killed_during_a_commit(mut server: PostgresServer, dsn: &str, kind: Kind) -> Outcome {
    let store = postgres_server::open(dsn).await;
    commit(store.clone(), kind).await.map_err(|error| format!("{kind:?}: {error:?}"))?;
    acknowledge_commits(&server, false).await?;
    let committing = tokio::spawn(commit(store.clone(), kind));
    if to_waiting_sessions(&server, "pid").await != 1 {
        return Err(format!("{kind:?}: no commit waits"));
    }
    server.kill();
    let outcome = committing.await.unwrap();
    store.close().await;
    match outcome {
        Err(Error::CommitUnknown { .. }) => Ok(()),
        outcome => Err(format!("{kind:?}: {outcome:?}")),
    }
}

/// A guest that saw it could rely on it, and a failover could lose it.
async fn a_commit_without_a_caller_is_not_shown_before_the_standby_has_it() -> Outcome {
    let cluster = Cluster::start().map_err(|error| format!("{error:#}"))?;
    let store = postgres_server::open(&cluster.dsn()).await;
    commit(store.clone(), Kind::Put).await.map_err(|error| format!("{error:?}"))?;
    cluster.standby().hold();
    let committing = tokio::spawn(commit(store.clone(), Kind::Puts));
    if to_waiting_sessions(cluster.primary(), "pid").await != 1 {
        return Err("no commit waits for the standby".to_string());
    }
    let outcome = committing.await.unwrap();
    if !matches!(outcome, Err(Error::CommitUnknown { .. })) {
        return Err(format!("{outcome:?}"));
    }
    tokio::time::sleep(GIVEN_UP).await;
    let mut view = handle(&store).begin(Mode::View).unwrap();
    let rows = view.scan("n".into(), "row".into()).await.map_err(|error| format!("{error:?}"))?;
    cluster.standby().resume();
    store.close().await;
    if rows.len() == 1 { Ok(()) } else { Err(format!("{} rows are shown", rows.len())) }
}

/// By then, the host no longer waits for a commit itself.
const GIVEN_UP: Duration = Duration::from_secs(32);

/// If not, the server waits for a standby that does not exist.
async fn acknowledge_commits(server: &PostgresServer, acknowledges: bool) -> Outcome {
    let standbys = if acknowledges { "" } else { "missing" };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
    for sql in [&set, "SELECT pg_reload_conf()"] {
        server.execute(sql).map_err(|error| format!("{error:#}"))?;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Abandoned commits keep no permit of the pool, and there is a bound to how many there are.
async fn views_go_on_if_no_commit_is_answered() -> Outcome {
    let server = PostgresServer::start().map_err(|error| format!("{error:#}"))?;
    let store = postgres_server::open(&format!("{} pool_size=4", server.dsn())).await;
    put(&store, "first").await.map_err(|error| format!("{error:?}"))?;
    acknowledge_commits(&server, false).await?;
    let committing = ["a", "b", "c", "d"].map(|key| {
        let store = store.clone();
        tokio::spawn(async move { put(&store, key).await })
    });
    for commit in committing {
        let outcome = commit.await.unwrap();
        if !matches!(outcome, Err(Error::CommitUnknown { .. })) {
            return Err(format!("{outcome:?}"));
        }
    }
    tokio::time::sleep(GIVEN_UP).await;
    let mut view = handle(&store).begin(Mode::View).unwrap();
    let found = view.get("n".into(), "first".into()).await.map_err(|error| format!("{error:?}"))?;
    let refused = put(&store, "e").await;
    if found.is_none() || !matches!(refused, Err(Error::Unavailable { .. })) {
        return Err(format!("{found:?}, {refused:?}"));
    }
    acknowledge_commits(&server, true).await?;
    let until = Instant::now() + OUTAGE_MAX;
    while let Err(error) = put(&store, "e").await {
        if Instant::now() > until {
            return Err(format!("{error:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store.close().await;
    Ok(())
}

async fn put(store: &Store, key: &str) -> Result<(), Error> {
    let mut transaction = handle(store).begin(Mode::Update)?;
    transaction.put("n".into(), key.into(), b"value".to_vec())?;
    transaction.commit().await.map(drop)
}
