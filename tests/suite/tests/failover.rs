//! Stores on Postgres servers that fail over to a standby, and behind a network that fails.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::{
    Error, IdentityParts, IdentityScope, Memory, MemoryOptions, MemoryStore, Mode, Store, Strategy, Turn,
};
use larder_postgres_server::{Cluster, Fall, PgBouncer, PoolMode, PostgresServer};
use support::accountable::Load;
use support::counting::handle;
use support::proxy::{Network, Proxy};
use support::{harness, postgres_server};
use tokio::task::JoinHandle;

/// The number of failovers. `LARDER_FAILOVERS` overrides it.
const FAILOVERS: usize = 20;

const WRITERS_PER_STORE: u64 = 6;

/// The longest outage of a store. It is longer than the bound in `docs/hosts.md`, as other tests
/// run at the same time.
const OUTAGE_MAX: Duration = Duration::from_secs(20);

const FALLS: [Fall; 4] = [Fall::Crashed, Fall::Held, Fall::Killed, Fall::Stopped];

type Outcome = Result<(), String>;

fn in_full(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn in_debug(error: Error) -> String {
    format!("{error:?}")
}

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
        a_commit_is_not_made_again_after_its_caller_gave_up,
        a_turn_is_acknowledged_once_the_standby_has_it,
        sweeps_and_reads_of_conversations_use_another_server_if_theirs_hangs,
        sweeps_and_reads_of_conversations_give_up_if_the_only_server_hangs,
    );
    for network in [Network::Slow, Network::Cuts, Network::Swallows, Network::SwallowsAnswers] {
        let name = format!("a_store_goes_on_if_the_network_to_a_server_{}", name(network));
        trials.push(harness::trial(&runtime, name, move || a_store_goes_on_if_the_network_fails(network)));
    }
    harness::run(&arguments, trials, || ());
}

async fn no_acknowledged_commit_is_lost_when_a_standby_takes_over() -> Outcome {
    let failovers = std::env::var("LARDER_FAILOVERS").ok().and_then(|count| count.parse().ok());
    let mut cluster = Cluster::start().map_err(in_full)?;
    let stores = [postgres_server::open(&cluster.dsn()).await, postgres_server::open(&cluster.dsn()).await];
    let mut load = Load::start(&stores, WRITERS_PER_STORE);
    load.progress(OUTAGE_MAX).await?;
    let mut outages = Vec::new();
    for fall in FALLS.iter().cycle().take(failovers.unwrap_or(FAILOVERS)) {
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..200))).await;
        cluster.fail_over(*fall).map_err(in_full)?;
        let since = Instant::now();
        load.progress(OUTAGE_MAX).await.map_err(|error| format!("{fall:?}: {error}"))?;
        outages.push((*fall, since.elapsed()));
    }
    let tally = load.end(&stores[0]).await?;
    for fall in FALLS {
        let mut outages: Vec<_> =
            outages.iter().filter(|(of, _)| *of == fall).map(|(_, outage)| outage).collect();
        outages.sort();
        println!(
            "{fall:?}: every writer committed again after {:?} to {:?}",
            outages.first(),
            outages.last()
        );
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

/// The store has two network paths to one server, and the first one fails. It has more writers than
/// connections.
async fn a_store_goes_on_if_the_network_fails(network: Network) -> Outcome {
    let server = PostgresServer::start().map_err(in_full)?;
    let proxy = Proxy::start(server.folder()).map_err(|error| error.to_string())?;
    let store = postgres_server::open(&two_ways(&proxy, &server)).await;
    let mut load = Load::start(std::slice::from_ref(&store), WRITERS_PER_STORE);
    load.progress(OUTAGE_MAX).await?;
    proxy.network(network);
    // The server first answers the requests that it already has.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let since = Instant::now();
    load.progress(OUTAGE_MAX).await?;
    println!("{network:?}: every writer committed again after {:?}", since.elapsed());
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.network(Network::Works);
    load.progress(OUTAGE_MAX).await?;
    let direct = postgres_server::open(&server.dsn()).await;
    println!("{network:?}: {:?}", load.end(&direct).await?);
    direct.close().await;
    store.close().await;
    Ok(())
}

/// Commits by one statement, in one pass, and in steps.
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

/// Begins a commit, and waits until its session waits for a standby. Evaluates `expression` for
/// this session, for example `pid`.
async fn begin_commit(
    store: &Store,
    kind: Kind,
    server: &PostgresServer,
    expression: &str,
) -> Result<JoinHandle<Result<(), Error>>, String> {
    let committing = tokio::spawn(commit(store.clone(), kind));
    wait_for_commit(server, expression).await.map_err(|error| format!("{kind:?}: {error}"))?;
    Ok(committing)
}

/// Waits until a session waits for a standby, and evaluates `expression` for it.
async fn wait_for_commit(server: &PostgresServer, expression: &str) -> Outcome {
    let client = postgres_server::connect(&server.dsn()).await;
    let sql = format!("SELECT {expression} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        match client.query(&sql, &[]).await.unwrap().len() {
            0 => tokio::time::sleep(Duration::from_millis(10)).await,
            1 => return Ok(()),
            sessions => return Err(format!("{sessions} sessions wait for a standby")),
        }
    }
    Err("no session waits for a standby".to_string())
}

/// Expects the outcome of a commit to be unknown.
async fn expect_unknown(committing: JoinHandle<Result<(), Error>>) -> Outcome {
    match committing.await.unwrap() {
        Err(Error::CommitUnknown { .. }) => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    }
}

async fn a_commit_that_stops_waiting_for_the_standby_is_unknown() -> Outcome {
    let cluster = Cluster::start().map_err(in_full)?;
    let store = postgres_server::open(&cluster.dsn()).await;
    for kind in KINDS {
        cluster.standby().hold();
        let committing = begin_commit(&store, kind, cluster.primary(), "pg_cancel_backend(pid)").await?;
        expect_unknown(committing).await.map_err(|error| format!("{kind:?}: {error}"))?;
        // The session stays in use, and the next commit succeeds.
        cluster.standby().resume();
        commit(store.clone(), kind).await.map_err(|error| format!("{kind:?}: {error:?}"))?;
    }
    store.close().await;
    Ok(())
}

async fn a_commit_is_unknown_if_its_server_is_killed() -> Outcome {
    for kind in KINDS {
        let server = PostgresServer::start().map_err(in_full)?;
        let dsn = server.dsn();
        the_server_is_killed_during_a_commit(server, &dsn, kind).await?;
    }
    Ok(())
}

/// The pooler reports the lost server as a database error.
async fn a_commit_is_unknown_if_its_server_is_killed_behind_a_pooler() -> Outcome {
    for program in PgBouncer::programs().map_err(in_full)? {
        for kind in KINDS {
            let server = PostgresServer::start().map_err(in_full)?;
            let pooler = PgBouncer::start(&program, &server, PoolMode::Transaction);
            let pooler = pooler.map_err(in_full)?;
            the_server_is_killed_during_a_commit(server, &pooler.dsn(), kind).await?;
        }
    }
    Ok(())
}

async fn the_server_is_killed_during_a_commit(mut server: PostgresServer, dsn: &str, kind: Kind) -> Outcome {
    let store = postgres_server::open(dsn).await;
    commit(store.clone(), kind).await.map_err(|error| format!("{kind:?}: {error:?}"))?;
    acknowledge_commits(&server, false).await?;
    let committing = begin_commit(&store, kind, &server, "pid").await?;
    server.kill();
    let outcome = expect_unknown(committing).await;
    store.close().await;
    outcome.map_err(|error| format!("{kind:?}: {error}"))
}

/// A guest that read the commit could rely on it, and a failover could lose it.
async fn a_commit_without_a_caller_is_not_shown_before_the_standby_has_it() -> Outcome {
    let cluster = Cluster::start().map_err(in_full)?;
    let store = postgres_server::open(&cluster.dsn()).await;
    commit(store.clone(), Kind::Put).await.map_err(in_debug)?;
    cluster.standby().hold();
    let committing = begin_commit(&store, Kind::Puts, cluster.primary(), "pid").await?;
    expect_unknown(committing).await?;
    tokio::time::sleep(GIVEN_UP).await;
    let shown_before = rows(&store).await?;
    cluster.standby().resume();
    // The commit that waited for the standby completes.
    let until = Instant::now() + OUTAGE_MAX;
    while rows(&store).await? != 10 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown_after = rows(&store).await?;
    store.close().await;
    match (shown_before, shown_after) {
        (1, 10) => Ok(()),
        shown => Err(format!("{shown:?} rows are visible before and after the standby resumes, not (1, 10)")),
    }
}

async fn rows(store: &Store) -> Result<usize, String> {
    let mut view = handle(store).begin(Mode::View).map_err(in_debug)?;
    Ok(view.scan("n".into(), "row".into()).await.map_err(in_debug)?.len())
}

/// After this time, the host no longer waits for a commit itself.
const GIVEN_UP: Duration = Duration::from_secs(32);

/// Turns acknowledgement of commits on or off. If off, the server waits for a standby that does not
/// exist.
async fn acknowledge_commits(server: &PostgresServer, acknowledges: bool) -> Outcome {
    let standbys = if acknowledges { "" } else { "missing" };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'");
    for sql in [&set, "SELECT pg_reload_conf()"] {
        server.execute(sql).map_err(in_full)?;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok(())
}

/// Abandoned commits hold no permit of the pool, and their number is bounded.
async fn views_go_on_if_no_commit_is_answered() -> Outcome {
    let server = PostgresServer::start().map_err(in_full)?;
    let store = postgres_server::open(&format!("{} pool_size=4", server.dsn())).await;
    put(&store, "first").await.map_err(in_debug)?;
    acknowledge_commits(&server, false).await?;
    let committing = ["a", "b", "c", "d"].map(|key| {
        let store = store.clone();
        tokio::spawn(async move { put(&store, key).await })
    });
    for commit in committing {
        expect_unknown(commit).await?;
    }
    tokio::time::sleep(GIVEN_UP).await;
    let mut view = handle(&store).begin(Mode::View).unwrap();
    let found = view.get("n".into(), "first".into()).await.map_err(in_debug)?;
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

/// The connection is lost after the caller's timeout, before the commit was sent. A store that
/// retries would make it on another connection.
async fn a_commit_is_not_made_again_after_its_caller_gave_up() -> Outcome {
    let server = PostgresServer::start().map_err(in_full)?;
    let proxy = Proxy::start(server.folder()).map_err(|error| error.to_string())?;
    let store = postgres_server::open(&two_ways(&proxy, &server)).await;
    rows(&store).await?;
    proxy.network(Network::SwallowsAnswers);
    let outcome = put(&store, "row/late").await;
    if !matches!(outcome, Err(Error::CommitUnknown { .. } | Error::TimedOut)) {
        return Err(format!("{outcome:?}"));
    }
    // By now the connection is closed, and the store had time to use another one.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let found = rows(&store).await?;
    store.close().await;
    if found == 0 { Ok(()) } else { Err("the commit was made after its caller gave up".to_string()) }
}

/// When its write stops waiting for the standby, the store reads the conversation. A failover could
/// still lose what it finds there.
async fn a_turn_is_acknowledged_once_the_standby_has_it() -> Outcome {
    let cluster = Cluster::start().map_err(in_full)?;
    let store = postgres_server::open(&cluster.dsn()).await;
    let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
    let session = open_session(&memories);
    add_turn(&session).await.map_err(in_debug)?;
    cluster.standby().hold();
    let adding = tokio::spawn({
        let session = open_session(&memories);
        async move { add_turn(&session).await }
    });
    wait_for_commit(cluster.primary(), "pg_cancel_backend(pid)").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    wait_for_commit(cluster.primary(), "pid").await?;
    let is_early = adding.is_finished();
    cluster.standby().resume();
    let outcome = adding.await.unwrap();
    let turns = session.llm_context().await.map_err(in_debug)?.recent_turns.len();
    memories.close().await;
    store.close().await;
    match (is_early, outcome, turns) {
        (false, Ok(()), 2) => Ok(()),
        (is_early, outcome, turns) => {
            Err(format!("acknowledged early: {is_early}, outcome {outcome:?}, {turns} turns"))
        }
    }
}

fn open_session(memories: &MemoryStore) -> Memory {
    let parts = IdentityParts::session("acme", "ann", "session");
    memories.open(parts, &IdentityScope::Any, &Arc::default()).unwrap()
}

async fn add_turn(session: &Memory) -> Result<(), Error> {
    session.add_turn(Turn { user_message: "hello".into(), ..Turn::default() }).await
}

async fn sweeps_and_reads_of_conversations_use_another_server_if_theirs_hangs() -> Outcome {
    let server = PostgresServer::start().map_err(in_full)?;
    let proxy = Proxy::start(server.folder()).map_err(|error| error.to_string())?;
    let outcomes = sweep_and_read(&two_ways(&proxy, &server), &proxy, OUTAGE_MAX).await?;
    match outcomes {
        (Ok(()), Ok(())) => Ok(()),
        outcomes => Err(format!("{outcomes:?}")),
    }
}

async fn sweeps_and_reads_of_conversations_give_up_if_the_only_server_hangs() -> Outcome {
    let server = PostgresServer::start().map_err(in_full)?;
    let proxy = Proxy::start(server.folder()).map_err(|error| error.to_string())?;
    let dsn = format!("host={} user=larder dbname=postgres", proxy.folder().display());
    // The statement timeout is 30 seconds.
    match sweep_and_read(&dsn, &proxy, Duration::from_secs(40)).await? {
        (Err(Error::Unavailable { .. }), Err(Error::Unavailable { .. })) => Ok(()),
        outcomes => Err(format!("{outcomes:?}")),
    }
}

/// Sweeps and reads a conversation while nothing passes the proxy.
async fn sweep_and_read(
    dsn: &str,
    proxy: &Proxy,
    max: Duration,
) -> Result<(Result<(), Error>, Result<(), Error>), String> {
    let store = postgres_server::open(dsn).await;
    let memories = MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
    let session = open_session(&memories);
    // Each uses a connection that was just used, so that the pool does not test it first.
    let both = async || {
        let (swept, read) = tokio::join!(store.sweep(), session.llm_context());
        (swept.map(drop), read.map(drop))
    };
    for _ in 0..2 {
        let (swept, read) = both().await;
        swept.and(read).map_err(in_debug)?;
    }
    proxy.network(Network::Swallows);
    let outcomes = tokio::time::timeout(max, both()).await;
    memories.close().await;
    store.close().await;
    outcomes.map_err(|_| format!("no answer after {max:?}"))
}

/// A data-source name with two paths to one server: through a proxy, and directly.
fn two_ways(proxy: &Proxy, server: &PostgresServer) -> String {
    let (first, second) = (proxy.folder().display(), server.folder().display());
    let options = "user=larder dbname=postgres target_session_attrs=read-write pool_size=4";
    format!("host={first},{second} {options}")
}

async fn put(store: &Store, key: &str) -> Result<(), Error> {
    let mut transaction = handle(store).begin(Mode::Update)?;
    transaction.put("n".into(), key.into(), b"value".to_vec())?;
    transaction.commit().await.map(drop)
}
