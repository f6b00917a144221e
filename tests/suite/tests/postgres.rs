//! Failures and races of a networked backend: stopped servers, broken connections, and concurrent
//! transactions.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_core::error::Cause;
use larder_core::{
    Clock, Error, Event, EventChannel, Handle, HandleOptions, LimitKind, Limits, Mode, OpenTransactions,
    PutOptions, Store, SystemClock, TracingEvents, Transaction,
};
use larder_postgres::{Postgres, SNAPSHOTS_MAX};
use larder_schema::SchemaError;
use libtest_mimic::Trial;
use support::harness;
use support::postgres_server::{PostgresServer, connect, new_schema, open};
use support::proxy::{Cut, Proxy};
use tokio_postgres::Client;

type Outcome = Result<(), String>;

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let server = if arguments.list { Err("only listed".to_string()) } else { start() };
    let shared = server.as_ref().map(PostgresServer::dsn).map_err(Clone::clone);
    // A server ends with the thread that started it, so the server that a test restarts is started
    // here too.
    let restarted = if arguments.list { Err("only listed".to_string()) } else { start() };
    let restarted = Arc::new(Mutex::new(restarted));

    let mut trials = Vec::new();
    macro_rules! tests {
        ($($test:ident),* $(,)?) => {
            $(
                let dsn = shared.clone();
                trials.push(harness::trial(&runtime, stringify!($test), move || async move { $test(&dsn?).await }));
            )*
        };
    }
    tests!(
        a_connection_cut_after_the_commit_leaves_its_outcome_unknown,
        a_connection_cut_before_the_commit_leaves_nothing,
        a_connection_cut_in_a_read_is_unavailable,
        a_session_that_the_server_ends_is_unavailable_and_the_next_one_works,
        an_update_that_read_one_row_outlives_its_session,
        an_update_whose_first_row_was_changed_conflicts,
        an_update_that_only_reads_has_the_server_write_nothing,
        updates_of_one_row_by_many_tasks_lose_nothing,
        blind_increments_by_many_tasks_never_fail,
        sixteen_hosts_that_open_one_fresh_schema_migrate_it_once,
        transactions_that_are_not_ended_leave_no_session_behind,
        a_read_that_waits_for_a_lock_ends_at_its_deadline,
        snapshots_that_stay_idle_give_way_to_reads_and_never_keep_a_commit_waiting,
        an_update_that_read_one_row_gives_its_connection_back_and_goes_on,
        an_event_tells_that_a_call_waited_for_a_connection,
        a_schema_that_does_not_fit_is_refused,
        a_schema_that_is_not_there_is_said,
        both_engines_have_the_same_tables,
        a_quota_is_never_passed_by_commits_at_once,
        a_lease_that_ends_while_its_update_waits_for_a_row_is_a_conflict,
        a_time_to_live_counts_from_when_the_row_was_got,
        a_time_to_live_does_not_count_a_wait,
        the_servers_clock_counts_for_times_to_live_and_not_that_of_a_host,
    );
    let server_of_its_own = restarted.clone();
    trials.push(Trial::test("a_server_that_stops_and_starts_again_is_found_again", {
        let runtime = runtime.clone();
        move || {
            let mut server = server_of_its_own.lock().unwrap();
            let server = server.as_mut().map_err(|error| error.clone())?;
            Ok(a_server_that_stops_and_starts_again_is_found_again(&runtime, server)?)
        }
    }));
    harness::run(&arguments, trials, || {
        drop(server);
        drop(restarted);
    });
}

fn start() -> Result<PostgresServer, String> {
    PostgresServer::start().map_err(|error| format!("{error:#}"))
}

// Shared helpers.

/// Creates a schema for a test on the server of `dsn`, and returns its data-source name.
async fn schema(dsn: &str) -> String {
    let name = new_schema(dsn).await;
    format!("{dsn} options='-csearch_path={name}' application_name={name}")
}

fn handle(store: &Store) -> Handle {
    handle_with(store, Duration::from_secs(30))
}

fn handle_with(store: &Store, timeout: Duration) -> Handle {
    store.handle(
        HandleOptions::default()
            .limits(Limits::default().transaction_timeout(timeout))
            .open_transactions(OpenTransactions::at_most(1_000)),
    )
}

async fn put(handle: &Handle, key: &str, value: &str) -> Result<(), Error> {
    let mut update = handle.begin(Mode::Update)?;
    update.put("n".into(), key.into(), value.into())?;
    update.commit().await.map(drop)
}

async fn get(handle: &Handle, key: &str) -> Result<Option<String>, Error> {
    let value = handle.begin(Mode::View)?.get("n".into(), key.into()).await?;
    Ok(value.map(|value| String::from_utf8(value).unwrap()))
}

/// Begins an update, reads a row and puts it.
async fn read_and_put(handle: &Handle, key: &str, value: &str) -> Transaction {
    let mut update = handle.begin(Mode::Update).unwrap();
    update.get("n".into(), key.into()).await.unwrap();
    update.put("n".into(), key.into(), value.into()).unwrap();
    update
}

/// The same, with a second read, so that a transaction is open at the server.
async fn read_two_and_put(handle: &Handle, key: &str, value: &str) -> Transaction {
    let mut update = read_and_put(handle, key, value).await;
    update.get("n".into(), "another".into()).await.unwrap();
    update
}

/// Repeats a call until the pool has replaced its broken connections.
async fn soon<T, F: Future<Output = Result<T, Error>>>(mut ask: impl FnMut() -> F) -> T {
    for _ in 0..100 {
        match ask().await {
            Ok(answer) => return answer,
            Err(Error::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("still unavailable after 5 s");
}

fn expect(holds: bool, what: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{what:?}")) }
}

/// Counts the sessions of the test's stores that match a condition.
async fn sessions(dsn: &str, condition: &str) -> i64 {
    let name = dsn.rsplit('=').next().unwrap();
    // SQL evaluates conditions in any order, and some have side effects, so `CASE` restricts them
    // to the test's own sessions.
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE CASE WHEN application_name = '{name}' THEN {condition} END"
    );
    let observer = dsn.split(" options=").next().unwrap();
    connect(observer).await.query_one(&sql, &[]).await.unwrap().get(0)
}

// Time. The server's clock counts, which no test can move, so these tests wait, as briefly as they
// can.

const LEASE: Duration = Duration::from_millis(300);

fn for_(ttl: Duration) -> PutOptions {
    PutOptions::default().ttl_ms(ttl.as_millis() as u64)
}

async fn put_for(handle: &Handle, key: &str, ttl: Duration) {
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put_with("n".into(), key.into(), b"1".to_vec(), for_(ttl)).unwrap();
    update.commit().await.unwrap();
}

/// Locks a row in a session of its own.
async fn lock_row(dsn: &str, key: &str) -> Client {
    let locker = connect(dsn).await;
    locker.batch_execute("BEGIN").await.unwrap();
    let sql = "SELECT 1 FROM larder_entries WHERE key = $1 FOR UPDATE";
    assert_eq!(locker.query(sql, &[&key.as_bytes()]).await.unwrap().len(), 1);
    locker
}

async fn a_lease_that_ends_while_its_update_waits_for_a_row_is_a_conflict(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    let handle = handle(&store);
    for (reads, writes) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        for row in ["row 1", "row 2"] {
            put(&handle, row, "old").await.unwrap();
        }
        put_for(&handle, "lease", LEASE).await;
        let mut update = handle.begin(Mode::Update).unwrap();
        for key in ["lease", "row 1"].iter().take(reads) {
            expect(update.get("n".into(), (*key).into()).await.unwrap().is_some(), key)?;
        }
        for key in ["row 1", "row 2"].iter().take(writes) {
            update.put("n".into(), (*key).into(), b"new".to_vec()).unwrap();
        }
        let locker = lock_row(&dsn, "row 1").await;
        let commit = tokio::spawn(update.commit());
        tokio::time::sleep(LEASE + Duration::from_millis(50)).await;
        expect(!commit.is_finished(), "the commit did not wait")?;
        let mut view = handle.begin(Mode::View).unwrap();
        expect(view.get("n".into(), "lease".into()).await.unwrap().is_none(), "the lease has not expired")?;
        expect(
            view.get("n".into(), "row 1".into()).await.unwrap() == Some(b"old".to_vec()),
            "the row was changed before the commit",
        )?;
        drop(view);
        locker.batch_execute("ROLLBACK").await.unwrap();
        let outcome = commit.await.unwrap();
        expect(matches!(outcome, Err(Error::Conflict)), (reads, writes, outcome))?;
        expect(get(&handle, "row 1").await.unwrap().as_deref() == Some("old"), "the row was written")?;
    }
    Ok(())
}

async fn a_time_to_live_counts_from_when_the_row_was_got(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    let handle = handle(&store);
    for (read, more) in [(false, false), (true, false), (false, true), (true, true)] {
        put(&handle, "row", "old").await.unwrap();
        let mut update = handle.begin(Mode::Update).unwrap();
        if read {
            update.get("n".into(), "row".into()).await.unwrap();
        }
        if more {
            update.put("n".into(), "more".into(), b"1".to_vec()).unwrap();
        }
        update.put_with("n".into(), "row".into(), b"new".to_vec(), for_(LEASE)).unwrap();
        let locker = lock_row(&dsn, "row").await;
        let commit = tokio::spawn(update.commit());
        tokio::time::sleep(LEASE + Duration::from_millis(50)).await;
        locker.batch_execute("ROLLBACK").await.unwrap();
        let outcome = commit.await.unwrap();
        let value = get(&handle, "row").await.unwrap();
        // If a statement takes its time before the wait, it is refused, and the commit runs again
        // in a transaction.
        expect(outcome.is_ok(), (read, more, outcome))?;
        expect(value.as_deref() == Some("new"), (read, more, value))?;
    }
    Ok(())
}

/// The clock of a machine that is 58 days ahead.
struct Ahead(SystemClock);

impl Clock for Ahead {
    fn unix_millis(&self) -> u64 {
        self.0.unix_millis() + 58 * 24 * 3_600_000
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn moved_millis(&self) -> i64 {
        0
    }
}

/// A commit waits for an insert that is rolled back or for a locked row, with or without its first
/// row written.
async fn a_time_to_live_does_not_count_a_wait(dsn: &str) -> Outcome {
    const TTL: Duration = Duration::from_millis(3_000);
    const WAIT: Duration = Duration::from_millis(250);
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    let handle = handle(&store);
    let reader = connect(&dsn).await;
    // The keys put with a time to live, put without one, and deleted, and the key for which the
    // commit waits.
    type Keys = &'static [&'static str];
    let cases: [(Keys, Keys, Keys, &str); 6] = [
        (&["a"], &[], &[], "a"),
        (&["a", "b"], &[], &[], "b"),
        (&["b", "a"], &[], &[], "a"),
        (&["a"], &["z"], &[], "z"),
        (&["b"], &["a"], &[], "a"),
        (&["a"], &[], &["z"], "z"),
    ];
    for (lapsing, kept, deleted, waits_for) in cases {
        for is_there in [false, true] {
            if is_there {
                for key in ["a", "b", "z"] {
                    put(&handle, key, "old").await.unwrap();
                }
            } else if !deleted.is_empty() {
                continue;
            }
            let holder = connect(&dsn).await;
            let lock = match is_there {
                true => format!("SELECT FROM larder_entries WHERE key = '{waits_for}' FOR UPDATE"),
                false => format!(
                    "INSERT INTO larder_entries (namespace, key, value, version) VALUES ('n', '{waits_for}', '', 1)"
                ),
            };
            holder.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
            let mut update = handle.begin(Mode::Update).unwrap();
            for key in lapsing {
                update.put_with("n".into(), (*key).into(), b"1".to_vec(), for_(TTL)).unwrap();
            }
            for key in kept {
                update.put("n".into(), (*key).into(), b"1".to_vec()).unwrap();
            }
            update.delete_many("n".into(), deleted.iter().map(|key| (*key).into()).collect()).await.unwrap();
            let commit = tokio::spawn(update.commit());
            tokio::time::sleep(WAIT).await;
            expect(!commit.is_finished(), "the commit did not wait")?;
            holder.batch_execute("ROLLBACK").await.unwrap();
            commit.await.unwrap().unwrap();
            let left = "SELECT min(expires_at) - (extract(epoch FROM clock_timestamp()) * 1000)::bigint
                        FROM larder_entries WHERE expires_at IS NOT NULL";
            let left: i64 = reader.query_one(left, &[]).await.unwrap().get(0);
            expect(left > 2_800, (lapsing, kept, deleted, is_there, left))?;
            reader.batch_execute("DELETE FROM larder_entries").await.unwrap();
        }
    }
    Ok(())
}

async fn the_servers_clock_counts_for_times_to_live_and_not_that_of_a_host(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let right = open(&dsn).await;
    let ahead = Store::builder(Postgres::open(&dsn).await.unwrap()).sweep_interval(None);
    let ahead = ahead.clock(Arc::new(Ahead(SystemClock::default()))).build().unwrap();
    put_for(&handle(&right), "a", Duration::from_secs(60)).await;
    put_for(&handle(&ahead), "b", Duration::from_secs(60)).await;
    expect(get(&handle(&ahead), "a").await.unwrap().is_some(), "a row of another host counts as expired")?;
    expect(ahead.sweep().await.unwrap() == 0, "an unexpired row was swept")?;
    let sql =
        "SELECT max(expires_at) - (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM larder_entries";
    let left: i64 = connect(&dsn).await.query_one(sql, &[]).await.unwrap().get(0);
    expect((1..=60_000).contains(&left), left)
}

// Broken connections.

/// A store whose connections pass a proxy, and one that reads the actual state.
async fn through_a_proxy(dsn: &str) -> (Proxy, Store, Store) {
    let dsn = schema(dsn).await;
    let folder = dsn.split_whitespace().next().unwrap().strip_prefix("host=").unwrap().to_string();
    let proxy = Proxy::start(folder.as_ref()).unwrap();
    let proxied = dsn.replacen(&folder, proxy.folder().to_str().unwrap(), 1);
    (proxy, open(&proxied).await, open(&dsn).await)
}

async fn a_connection_cut_after_the_commit_leaves_its_outcome_unknown(dsn: &str) -> Outcome {
    let (proxy, store, direct) = through_a_proxy(dsn).await;
    let (store, direct) = (handle(&store), handle(&direct));
    // Prepares the statements for a new row and for a row that was read, so that the cut hits the
    // commit itself.
    read_and_put(&store, "read", "new").await.commit().await.unwrap();
    read_and_put(&store, "read", "before").await.commit().await.unwrap();
    put(&store, "blind", "before").await.unwrap();

    let update = read_and_put(&store, "read", "after").await;
    proxy.cut_next(Cut::Answer);
    let outcome = update.commit().await;
    expect(matches!(outcome, Err(Error::CommitUnknown { .. })), outcome)?;
    expect(get(&direct, "read").await.unwrap().as_deref() == Some("after"), "the commit was not made")?;

    soon(|| get(&store, "read")).await;
    read_two_and_put(&store, "read", "before").await.commit().await.unwrap();
    let update = read_two_and_put(&store, "read", "after two").await;
    proxy.cut_next(Cut::Answer);
    let outcome = update.commit().await;
    expect(matches!(outcome, Err(Error::CommitUnknown { .. })), outcome)?;
    expect(get(&direct, "read").await.unwrap().as_deref() == Some("after two"), "the commit was not made")?;
    soon(|| get(&store, "read")).await;

    put(&store, "blind", "again").await.unwrap();
    proxy.cut_next(Cut::Answer);
    let outcome = put(&store, "blind", "after").await;
    expect(matches!(outcome, Err(Error::CommitUnknown { .. })), outcome)?;
    expect(get(&direct, "blind").await.unwrap().as_deref() == Some("after"), "the commit was not made")
}

async fn a_connection_cut_before_the_commit_leaves_nothing(dsn: &str) -> Outcome {
    let (proxy, store, direct) = through_a_proxy(dsn).await;
    let (store, direct) = (handle(&store), handle(&direct));
    // Prepares the statements, so that the cut hits the commit itself.
    for value in ["new", "before"] {
        soon(|| get(&store, "read")).await;
        read_and_put(&store, "read", value).await.commit().await.unwrap();
        read_two_and_put(&store, "read", value).await.commit().await.unwrap();
    }
    for reads in [2, 1] {
        soon(|| get(&store, "read")).await;
        let update = match reads {
            1 => read_and_put(&store, "read", "after").await,
            _ => read_two_and_put(&store, "read", "after").await,
        };
        proxy.cut_next(Cut::Request);
        let outcome = update.commit().await;
        let found = get(&direct, "read").await.unwrap();
        // The client cannot know that the server did not get the request. If the cut hit a
        // statement before the commit and no transaction was open at the server, the store commits
        // on another connection.
        let is_honest = match &outcome {
            Err(Error::CommitUnknown { .. } | Error::Unavailable { .. }) => {
                found.as_deref() == Some("before")
            }
            Ok(_) => reads == 1 && found.as_deref() == Some("after"),
            Err(_) => false,
        };
        expect(is_honest, (outcome, found))?;
    }
    soon(|| put(&store, "read", "later")).await;
    expect(get(&direct, "read").await.unwrap().as_deref() == Some("later"), "the store did not recover")
}

async fn a_connection_cut_in_a_read_is_unavailable(dsn: &str) -> Outcome {
    let (proxy, store, _direct) = through_a_proxy(dsn).await;
    let store = handle(&store);
    put(&store, "key", "value").await.unwrap();
    let mut view = store.begin(Mode::View).unwrap();
    view.get("n".into(), "key".into()).await.unwrap();
    proxy.cut_next(Cut::Answer);
    let outcome = view.get("n".into(), "key".into()).await;
    expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
    let again = view.get("n".into(), "key".into()).await;
    expect(matches!(again, Err(Error::Unavailable { .. })), again)?;
    expect(soon(|| get(&store, "key")).await.as_deref() == Some("value"), "the store did not recover")
}

async fn a_session_that_the_server_ends_is_unavailable_and_the_next_one_works(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = handle(&open(&dsn).await);
    let update = read_two_and_put(&store, "key", "lost").await;
    let mut view = store.begin(Mode::View).unwrap();
    view.get("n".into(), "key".into()).await.unwrap();
    let ended = sessions(&dsn, "pg_terminate_backend(pid)").await;
    expect(ended == 2, ended)?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let outcome = view.get("n".into(), "key".into()).await;
    expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
    let outcome = update.commit().await;
    expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
    soon(|| put(&store, "key", "kept")).await;
    expect(get(&store, "key").await.unwrap().as_deref() == Some("kept"), "the store did not recover")
}

async fn an_update_that_read_one_row_outlives_its_session(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = handle(&open(&dsn).await);
    for (value, before) in [("first", None), ("second", Some("first"))] {
        let mut update = store.begin(Mode::Update).unwrap();
        let read = update.get("n".into(), "key".into()).await.unwrap();
        expect(read.as_deref() == before.map(str::as_bytes), read)?;
        update.put("n".into(), "key".into(), value.into()).unwrap();
        sessions(&dsn, "pg_terminate_backend(pid)").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        update.commit().await.unwrap();
        expect(get(&store, "key").await.unwrap().as_deref() == Some(value), value)?;
    }
    Ok(())
}

/// Drawing a version writes to the database, and a read would have to wait for the disk.
async fn an_update_that_only_reads_has_the_server_write_nothing(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    let handle = handle(&store);
    put(&handle, "a", "1").await.unwrap();
    let client = connect(&dsn).await;
    let drawn = async || {
        let row = client.query_one("SELECT last_value FROM larder_commit_sequence", &[]).await.unwrap();
        row.get::<_, i64>(0)
    };
    let before = drawn().await;
    for _ in 0..3 {
        let mut update = handle.begin(Mode::Update).unwrap();
        expect(
            update.get("n".into(), "a".into()).await.unwrap() == Some(b"1".to_vec()),
            "the update did not read the row",
        )?;
        update.commit().await.unwrap();
    }
    expect(drawn().await == before, "a read drew a version")?;
    put(&handle, "a", "2").await.unwrap();
    expect(drawn().await > before, "a write drew no version")
}

/// Any change of the row between the read and the commit is a conflict, at the next read as well as
/// at the commit.
async fn an_update_whose_first_row_was_changed_conflicts(dsn: &str) -> Outcome {
    let store = handle(&open(&schema(dsn).await).await);
    let deleted = async || {
        let mut delete = store.begin(Mode::Update).unwrap();
        delete.delete("n".into(), "key".into()).unwrap();
        delete.commit().await.unwrap();
    };
    let cases = ["key", "another"]
        .into_iter()
        .flat_map(|written| (0..8).map(move |bits| (written, bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)));
    for (written, reads_on, counts, was_there) in cases {
        deleted().await;
        if was_there {
            put(&store, "key", "before").await.unwrap();
        }
        let mut update = store.begin(Mode::Update).unwrap();
        update.get("n".into(), "key".into()).await.unwrap();
        update.put("n".into(), written.into(), "wrong".into()).unwrap();
        if counts {
            update.increment("n".into(), "counter".into(), 1).unwrap();
        }
        if was_there {
            deleted().await
        } else {
            put(&store, "key", "meanwhile").await.unwrap()
        };
        let outcome = match reads_on {
            true => update.get("n".into(), "third".into()).await.map(drop),
            false => update.commit().await.map(drop),
        };
        expect(matches!(outcome, Err(Error::Conflict)), outcome)?;
        let left = (get(&store, written).await.unwrap(), get(&store, "counter").await.unwrap());
        expect(left.0.as_deref() != Some("wrong") && left.1.is_none(), left)?;
    }
    let mut update = store.begin(Mode::Update).unwrap();
    update.get("n".into(), "key".into()).await.unwrap();
    update.increment("n".into(), "counter".into(), 1).unwrap();
    update.commit().await.unwrap();
    expect(get(&store, "counter").await.unwrap().as_deref() == Some("1"), "the increment was lost")
}

fn a_server_that_stops_and_starts_again_is_found_again(
    runtime: &tokio::runtime::Runtime,
    server: &mut PostgresServer,
) -> Outcome {
    let dsn = runtime.block_on(schema(&server.dsn()));
    let store = runtime.block_on(open(&dsn));
    let store = handle(&store);
    for (round, crash) in [false, true].into_iter().enumerate() {
        let round = round.to_string();
        runtime.block_on(put(&store, "kept", &round)).map_err(|error| format!("before: {error:?}"))?;
        let open_view = runtime.block_on(read_two_and_put(&store, "never", "written"));
        if crash {
            server.crash()
        } else {
            server.stop()
        }
        let outcome = runtime.block_on(put(&store, "down", "never written"));
        expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
        let outcome = runtime.block_on(get(&store, "kept"));
        expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
        server.launch().map_err(|error| format!("{error:#}"))?;
        let outcome = runtime.block_on(open_view.commit());
        expect(matches!(outcome, Err(Error::Unavailable { .. })), outcome)?;
        let kept = runtime.block_on(soon(|| get(&store, "kept")));
        expect(kept.as_deref() == Some(round.as_str()), kept)?;
        for key in ["never", "down"] {
            let lost = runtime.block_on(get(&store, key));
            expect(matches!(lost, Ok(None)), lost)?;
        }
    }
    Ok(())
}

// Concurrent transactions.

async fn updates_of_one_row_by_many_tasks_lose_nothing(dsn: &str) -> Outcome {
    let store = open(&schema(dsn).await).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..128 {
        let handle = handle(&store);
        tasks.spawn(async move {
            loop {
                match add_one(&handle).await {
                    Err(Error::Conflict) => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..40))).await
                    }
                    outcome => return outcome,
                }
            }
        });
    }
    for outcome in tasks.join_all().await {
        outcome.map_err(|error| format!("{error:?}"))?;
    }
    expect(get(&handle(&store), "count").await.unwrap().as_deref() == Some("128"), "an update was lost")
}

async fn add_one(handle: &Handle) -> Result<(), Error> {
    let mut update = handle.begin(Mode::Update)?;
    let count = update.get("n".into(), "count".into()).await?;
    let count: u32 = count.map_or(0, |count| String::from_utf8(count).unwrap().parse().unwrap());
    update.put("n".into(), "count".into(), (count + 1).to_string().into_bytes())?;
    update.commit().await.map(drop)
}

async fn blind_increments_by_many_tasks_never_fail(dsn: &str) -> Outcome {
    let store = open(&schema(dsn).await).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let handle = handle(&store);
        tasks.spawn(async move {
            let mut update = handle.begin(Mode::Update)?;
            update.increment("n".into(), "count".into(), 1)?;
            update.commit().await
        });
    }
    let mut versions = Vec::new();
    for outcome in tasks.join_all().await {
        versions.push(outcome.map_err(|error| format!("{error:?}"))?);
    }
    versions.sort();
    versions.dedup();
    expect(versions.len() == 64, "a version was used twice")?;
    expect(get(&handle(&store), "count").await.unwrap().as_deref() == Some("64"), "an increment was lost")
}

async fn an_event_tells_that_a_call_waited_for_a_connection(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let events = Arc::new(EventChannel::new(100, Arc::new(TracingEvents)));
    let mut told = events.subscribe();
    let backend = Postgres::open(&format!("{dsn} pool_size=2")).await.unwrap();
    let store = Store::builder(backend).name("notes").events(events).sweep_interval(None).build().unwrap();
    put(&handle(&store), "key", "value").await.unwrap();
    let client = connect(&dsn).await;
    client.batch_execute("BEGIN; SELECT FROM larder_entries FOR UPDATE").await.unwrap();
    let commits: Vec<_> = (0..3)
        .map(|_| {
            let handle = handle(&store);
            tokio::spawn(async move { put(&handle, "key", "again").await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    for commit in commits {
        commit.await.unwrap().map_err(|error| format!("{error:?}"))?;
    }
    let event = tokio::time::timeout(Duration::from_secs(10), told.next())
        .await
        .map_err(|_| "no event was emitted")?;
    match event.unwrap().unwrap() {
        Event::ConnectionAwaited { store, waited } => {
            let is_its_wait = (Duration::from_secs(1)..Duration::from_secs(5)).contains(&waited);
            expect(store == "notes" && is_its_wait, (store, waited))
        }
        event => Err(format!("{event:?}")),
    }
}

async fn a_quota_is_never_passed_by_commits_at_once(dsn: &str) -> Outcome {
    const ROW: u64 = 1_000;
    const ROWS: u64 = 20;
    let backend = Postgres::open(&schema(dsn).await).await.unwrap();
    let store = Store::builder(backend).quota_bytes(ROW * ROWS).sweep_interval(None).build().unwrap();
    let row = |number: u64| (format!("{number:03}"), vec![b'x'; ROW as usize - 4]);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (handle, (key, value)) = (handle(&store), row(number));
        tasks.spawn(async move {
            let mut update = handle.begin(Mode::Update)?;
            update.put("n".into(), key, value)?;
            update.commit().await
        });
    }
    let fitted = tasks.join_all().await.into_iter().filter(Result::is_ok).count() as u64;
    expect((1..=ROWS).contains(&fitted), fitted)?;
    // One after the other, commits can use the quota completely.
    let handle = handle(&store);
    for number in 100..100 + ROWS - fitted {
        let (key, value) = row(number);
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), key, value).unwrap();
        update.commit().await.map_err(|error| format!("{error:?}"))?;
    }
    let outcome = put(&handle, "one more", "").await;
    let is_full = matches!(&outcome, Err(Error::LimitExceeded(exceeded))
        if exceeded.kind == LimitKind::StoreBytes && exceeded.requested == ROW * ROWS + 9);
    expect(is_full, outcome)
}

// Abandoned transactions.

async fn transactions_that_are_not_ended_leave_no_session_behind(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    let short = handle_with(&store, Duration::from_millis(300));
    let mut forgotten = Vec::new();
    for round in 0..100 {
        let update = read_two_and_put(&short, "key", "never").await;
        if round < 10 { forgotten.push(update) } else { drop(update) }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = sessions(&dsn, "state <> 'idle'").await;
    expect(left == 0, format!("{left} sessions are not idle"))?;
    let outcome = forgotten.pop().unwrap().commit().await;
    expect(matches!(outcome, Err(Error::TimedOut)), outcome)?;
    expect(get(&handle(&store), "key").await.unwrap().is_none(), "an abandoned update was written")
}

async fn a_read_that_waits_for_a_lock_ends_at_its_deadline(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let store = open(&dsn).await;
    put(&handle(&store), "key", "value").await.unwrap();
    let locker = connect(&dsn).await;
    locker.batch_execute("BEGIN; LOCK TABLE larder_entries IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let short = handle_with(&store, Duration::from_millis(200));
    for _ in 0..2 * SNAPSHOTS_MAX {
        let mut view = short.begin(Mode::View).unwrap();
        let reading = view.get("n".into(), "key".into());
        // The caller cancels about half of them; the others reach their deadline.
        if fastrand::bool() {
            let _ = tokio::time::timeout(Duration::from_millis(20), reading).await;
        } else {
            let outcome = reading.await;
            expect(matches!(outcome, Err(Error::TimedOut)), outcome)?;
        }
    }
    let mut waiting = i64::MAX;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        waiting = sessions(&dsn, "wait_event_type = 'Lock'").await;
        if waiting == 0 {
            break;
        }
    }
    locker.batch_execute("ROLLBACK").await.unwrap();
    expect(waiting == 0, format!("{waiting} sessions still wait for the lock"))?;
    expect(
        get(&handle(&store), "key").await.unwrap().as_deref() == Some("value"),
        "the store did not recover",
    )
}

async fn snapshots_that_stay_idle_give_way_to_reads_and_never_keep_a_commit_waiting(dsn: &str) -> Outcome {
    let store = open(&schema(dsn).await).await;
    let (idle, active) = (handle(&store), handle(&store));
    put(&active, "key", "value").await.unwrap();
    let mut open = Vec::new();
    for number in 0..SNAPSHOTS_MAX {
        open.push(read_two_and_put(&idle, &format!("key {number}"), "held").await);
    }
    put(&active, "other", "at once").await.map_err(|error| format!("{error:?}"))?;
    for _ in 0..50 {
        let found = get(&active, "key").await.map_err(|error| format!("{error:?}"))?;
        expect(found.as_deref() == Some("value"), found)?;
    }
    let mut conflicts = 0;
    for update in &mut open {
        match update.get("n".into(), "third".into()).await {
            Ok(None) => {}
            Err(Error::Conflict) => conflicts += 1,
            outcome => return Err(format!("{outcome:?}")),
        }
    }
    expect((1..SNAPSHOTS_MAX).contains(&conflicts), conflicts)
}

async fn an_update_that_read_one_row_gives_its_connection_back_and_goes_on(dsn: &str) -> Outcome {
    let store = open(&schema(dsn).await).await;
    let (idle, active) = (handle(&store), handle(&store));
    let mut updates = Vec::new();
    for number in 0..3 * SNAPSHOTS_MAX {
        updates.push(read_and_put(&idle, &format!("key {number}"), "value").await);
    }
    expect(get(&active, "other").await.unwrap().is_none(), "a row of an open update is visible")?;
    for (number, mut update) in updates.into_iter().enumerate() {
        if number % 2 == 0 {
            let second = update.get("n".into(), "second".into()).await;
            expect(matches!(second, Ok(None)), &second)?;
        }
        update.commit().await.map_err(|error| format!("{error:?}"))?;
    }
    expect(get(&active, "key 59").await.unwrap().as_deref() == Some("value"), "the last update is missing")
}

// The schema.

async fn sixteen_hosts_that_open_one_fresh_schema_migrate_it_once(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let dsn = dsn.clone();
        tasks.spawn(async move { Postgres::open(&dsn).await.map(drop) });
    }
    for outcome in tasks.join_all().await {
        outcome.map_err(|error| format!("{error:?}"))?;
    }
    let numbers =
        connect(&dsn).await.query("SELECT number FROM larder_migrations ORDER BY number", &[]).await;
    let numbers: Vec<i32> = numbers.unwrap().iter().map(|row| row.get(0)).collect();
    expect(numbers == [1, 2, 3], numbers)?;
    let held =
        "EXISTS (SELECT FROM pg_locks WHERE pg_locks.pid = pg_stat_activity.pid AND locktype = 'advisory')";
    let held = sessions(&dsn, held).await;
    expect(held == 0, format!("{held} sessions still hold an advisory lock"))
}

async fn a_schema_that_does_not_fit_is_refused(dsn: &str) -> Outcome {
    let dsn = schema(dsn).await;
    drop(open(&dsn).await);
    let client = connect(&dsn).await;
    for (damage, expected) in [
        ("UPDATE larder_migrations SET checksum = '\\x00' WHERE number = 1", SchemaError::Edited(1)),
        (
            "UPDATE larder_migrations SET number = 99 WHERE number = 3",
            SchemaError::Newer { applied: 99, known: 3 },
        ),
    ] {
        client.batch_execute(damage).await.unwrap();
        let error = Postgres::open(&dsn).await.expect_err("the store was opened");
        let cause = error.source().and_then(|cause| cause.downcast_ref::<Cause>());
        let found = cause.and_then(|cause| cause.downcast_ref::<SchemaError>());
        expect(found == Some(&expected), &error)?;
    }
    Ok(())
}

async fn a_schema_that_is_not_there_is_said(dsn: &str) -> Outcome {
    let outcome = Postgres::open(&format!("{dsn} options='-csearch_path=missing'")).await;
    expect(matches!(outcome, Err(Error::InvalidArgument(_))), outcome)
}

/// For every column of larder's tables: name, type, whether it may be null, and its position in the
/// primary key.
type Tables = BTreeMap<String, Vec<(String, String, bool, i64)>>;

async fn both_engines_have_the_same_tables(dsn: &str) -> Outcome {
    let folder = |engine: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(engine);
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        names
    };
    // Steps for Postgres alone come after the steps that both engines have.
    let (sqlite, postgres) = (folder("sqlite"), folder("postgres"));
    expect(postgres.starts_with(&sqlite), "the migrations differ in numbers or names")?;

    let mut sqlite = sqlite_tables().await;
    let postgres = postgres_tables(&schema(dsn).await).await;
    // Postgres uses a sequence instead, so that updates do not contend for one row.
    expect(sqlite.remove("larder_commit_sequence").is_some(), &sqlite)?;
    expect(!postgres.contains_key("larder_commit_sequence"), &postgres)?;
    expect(sqlite.len() == 3 && sqlite == postgres, (sqlite, postgres))
}

async fn sqlite_tables() -> Tables {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let database = larder_sqlite::Sqlite::open(&path, Default::default()).await.unwrap();
    let connection = rusqlite::Connection::open(&path).unwrap();
    let sql = "SELECT tables.name, columns.name, columns.type, columns.\"notnull\", columns.pk
               FROM sqlite_schema AS tables, pragma_table_info(tables.name) AS columns
               WHERE tables.type = 'table' AND tables.name LIKE 'larder%'";
    let mut statement = connection.prepare(sql).unwrap();
    let mut tables = Tables::new();
    let mut rows = statement.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let (kind, not_null, place): (String, bool, i64) =
            (row.get(2).unwrap(), row.get(3).unwrap(), row.get(4).unwrap());
        let column = (row.get(1).unwrap(), kind, !not_null && place == 0, place);
        tables.entry(row.get(0).unwrap()).or_default().push(column);
    }
    drop(database);
    tables
}

async fn postgres_tables(dsn: &str) -> Tables {
    drop(open(dsn).await);
    let sql = "SELECT columns.table_name::text, columns.column_name::text, columns.data_type::text,
                   columns.is_nullable = 'YES', coalesce(keys.ordinal_position, 0)::bigint
               FROM information_schema.columns AS columns
               LEFT JOIN information_schema.key_column_usage AS keys
                   USING (table_schema, table_name, column_name)
               WHERE columns.table_schema = current_schema()
               ORDER BY columns.table_name, columns.ordinal_position";
    let mut tables = Tables::new();
    for row in connect(dsn).await.query(sql, &[]).await.unwrap() {
        let kind = match row.get::<_, String>(2).as_str() {
            "bytea" => "BLOB",
            "bigint" | "integer" => "INTEGER",
            "text" => "TEXT",
            other => panic!("unexpected column type {other}"),
        };
        let column = (row.get(1), kind.to_string(), row.get(3), row.get(4));
        tables.entry(row.get(0)).or_default().push(column);
    }
    tables
}
