//! Concurrent commits on Postgres: locks, versions, conflicts, and independence of settings.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder_core::{Error, Handle, Mode, PutOptions, Version};
use support::counting::{count_up, handle};
use support::harness;
use support::postgres_server::{connect, new_schema, open, server_or_url};
use tokio::task::JoinSet;
use tokio_postgres::Client;

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let server = match arguments.list {
        true => Err("only listed".to_string()),
        false => server_or_url().map_err(|error| format!("{error:#}")),
    };
    let dsn = server.as_ref().map(|(_, dsn)| dsn.clone()).map_err(Clone::clone);
    let mut trials = Vec::new();
    macro_rules! tests {
        ($($test:ident),* $(,)?) => {
            $({
                let dsn = dsn.clone();
                trials.push(harness::trial(&runtime, stringify!($test), || async move {
                    $test(dsn?).await;
                    Ok(())
                }));
            })*
        };
    }
    tests!(
        a_sequence_that_is_behind_the_rows_gives_no_version_again,
        a_sequence_that_begins_anew_gives_no_version_of_a_deleted_row_again,
        a_connection_waits_while_another_one_moves_the_sequence,
        a_role_that_may_not_move_the_sequence_commits_all_the_same,
        a_commit_that_waits_draws_its_version_after_those_that_it_waited_for,
        blind_commits_that_cross_do_not_deadlock,
        workers_on_rows_of_their_own_do_not_conflict,
        who_writes_a_row_that_all_others_read_gets_a_turn,
        no_update_is_lost_whatever_isolation_level_sessions_are_set_to,
        a_role_whose_transactions_are_read_only_or_deferrable_writes_all_the_same,
        a_range_and_a_blind_put_into_it_are_not_both_overlooked,
        commits_that_rest_on_ranges_of_each_other_do_not_both_succeed,
        a_row_that_another_session_has_locked_delays_no_other_row,
        a_commit_leaves_no_row_of_its_locks_behind,
    );
    harness::run(&arguments, trials, || drop(server));
}

/// A data-source name with a new schema.
async fn schema(dsn: &str) -> String {
    format!("{dsn} schema={}", new_schema(dsn).await)
}

/// A client that uses the tables of a store directly.
async fn client(dsn: &str) -> Client {
    let (server, schema) = dsn.split_once(" schema=").unwrap();
    let client = connect(server).await;
    let schema = schema.split(' ').next().unwrap();
    client.batch_execute(&format!("SET search_path = {schema}")).await.unwrap();
    client
}

async fn put(handle: &Handle, keys: &[&str], value: &str) -> Result<Version, Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    for key in keys {
        transaction.put("n".into(), (*key).into(), value.into())?;
    }
    transaction.commit().await
}

async fn delete(handle: &Handle, key: &str) -> Result<Version, Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    transaction.delete("n".into(), key.into())?;
    transaction.commit().await
}

async fn versioned(handle: &Handle, key: &str) -> Option<(String, Version)> {
    let mut view = handle.begin(Mode::View).unwrap();
    let found = view.get_versioned("n".into(), key.into()).await.unwrap();
    found.map(|(value, version)| (String::from_utf8(value).unwrap(), version))
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

// Versions.

async fn a_sequence_that_is_behind_the_rows_gives_no_version_again(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let handle = handle(&store);
    let behind = |by: u64| format!("SELECT setval('larder_commit_sequence', {by})");
    client.batch_execute(&behind(100)).await.unwrap();
    let held = put(&handle, &["key"], "first").await.unwrap();
    put(&handle, &["other"], "1").await.unwrap();
    for keys in [&["key"][..], &["key", "more"]] {
        client.batch_execute(&behind(held.0 - 2)).await.unwrap();
        let before = versioned(&handle, "key").await.unwrap().1;
        let written = put(&handle, keys, "second").await.unwrap();
        assert!(written > before, "{written:?} after {before:?}");
        let if_version = PutOptions::default().if_version(held);
        let mut stale = handle.begin(Mode::Update).unwrap();
        stale.put_with("n".into(), "key".into(), b"stale".to_vec(), if_version).unwrap();
        assert!(matches!(stale.commit().await, Err(Error::Conflict)));
        assert_eq!(versioned(&handle, "key").await, Some(("second".to_string(), written)));
        // All rows are older than the next version.
        let next = put(&handle, &["next"], "1").await.unwrap();
        let newest = count(&client, "SELECT max(version) FROM larder_entries WHERE key <> 'next'").await;
        assert!(next.0 > u64::try_from(newest).unwrap());
    }
    // A row that is read and written, and a row that is deleted.
    client.batch_execute(&behind(held.0 - 2)).await.unwrap();
    let mut read = handle.begin(Mode::Update).unwrap();
    let (_, before) = read.get_versioned("n".into(), "key".into()).await.unwrap().unwrap();
    read.put("n".into(), "key".into(), b"third".to_vec()).unwrap();
    assert!(read.commit().await.unwrap() > before);
    client.batch_execute(&behind(held.0 - 2)).await.unwrap();
    let before = versioned(&handle, "key").await.unwrap().1;
    let deleted = delete(&handle, "key").await.unwrap();
    assert!(deleted > before && put(&handle, &["key"], "again").await.unwrap() > deleted);
}

/// A logical replica has the rows but its own sequence. No row keeps the version of a deleted row.
async fn a_sequence_that_begins_anew_gives_no_version_of_a_deleted_row_again(dsn: String) {
    let dsn = format!("{} application_name=begins_anew", schema(&dsn).await);
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let first = handle(&store);
    let held = put(&first, &["key"], "first").await.unwrap();
    let deleted = delete(&first, "key").await.unwrap();
    let begin_anew = "SELECT setval('larder_commit_sequence', 1)";
    client.batch_execute(begin_anew).await.unwrap();
    let next = open(&dsn).await;
    let put_again = put(&handle(&next), &["key"], "second").await.unwrap();
    assert!(held < deleted && deleted < put_again, "{held:?}, {deleted:?}, {put_again:?}");
    // The open store reconnects, as after a failover.
    let deleted = delete(&first, "key").await.unwrap();
    client.batch_execute(begin_anew).await.unwrap();
    let ended =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'begins_anew'";
    client.batch_execute(ended).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let put_again = put(&first, &["key"], "third").await.unwrap();
    assert!(deleted < put_again, "{deleted:?}, {put_again:?}");
    let if_version = PutOptions::default().if_version(held);
    let mut stale = first.begin(Mode::Update).unwrap();
    stale.put_with("n".into(), "key".into(), b"stale".to_vec(), if_version).unwrap();
    assert!(matches!(stale.commit().await, Err(Error::Conflict)));
}

/// After a failover, many connections are opened at once.
async fn a_connection_waits_while_another_one_moves_the_sequence(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    put(&handle(&store), &["key"], "first").await.unwrap();
    let deleted = delete(&handle(&store), "key").await.unwrap();
    client.batch_execute("SELECT setval('larder_commit_sequence', 1)").await.unwrap();
    let moving = "BEGIN; LOCK TABLE larder_namespace_lock_0 IN SHARE UPDATE EXCLUSIVE MODE";
    client.batch_execute(moving).await.unwrap();
    let putting = tokio::spawn(async move { put(&handle(&open(&dsn).await), &["key"], "second").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.batch_execute("ROLLBACK").await.unwrap();
    assert!(putting.await.unwrap().unwrap() > deleted);
}

/// Commits need only `USAGE` on the sequence. Only moving it needs `UPDATE`.
async fn a_role_that_may_not_move_the_sequence_commits_all_the_same(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    store.close().await;
    let role = "may_not_move";
    let schema = dsn.split_once(" schema=").unwrap().1.split(' ').next().unwrap();
    let sql = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role};
         GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role};
         SELECT setval('larder_commit_sequence', 1)"
    );
    client.batch_execute(&sql).await.unwrap();
    let store = open(&dsn.replace("user=larder", &format!("user={role}"))).await;
    let version = put(&handle(&store), &["key"], "value").await.unwrap();
    assert_eq!(version, Version(2));
    store.close().await;
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

async fn a_commit_that_waits_draws_its_version_after_those_that_it_waited_for(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let handle = handle(&store);
    put(&handle, &["a"], "old").await.unwrap();
    for is_there in [false, true] {
        if is_there {
            put(&handle, &["z"], "old").await.unwrap();
        }
        client.batch_execute("BEGIN; SELECT FROM larder_entries WHERE key = 'a' FOR UPDATE").await.unwrap();
        let waiting = tokio::spawn({
            let handle = support::counting::handle(&store);
            async move { put(&handle, &["a", "z"], "waited").await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let first = put(&handle, &["z"], "first").await.unwrap();
        let deleted = delete(&handle, "z").await.unwrap();
        client.batch_execute("ROLLBACK").await.unwrap();
        let waited = waiting.await.unwrap().unwrap();
        assert!(first < deleted && deleted < waited, "{first:?}, {deleted:?}, {waited:?}");
        assert_eq!(versioned(&handle, "z").await, Some(("waited".to_string(), waited)));
    }
}

// Commits that touch the same rows.

async fn deadlocks(client: &Client) -> i64 {
    // A session reports its counters to the server with a delay.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    count(client, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await
}

async fn blind_commits_that_cross_do_not_deadlock(dsn: String) {
    const TASKS: usize = 8;
    const COMMITS: usize = 40;
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let before = deadlocks(&client).await;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let handle = handle(&store);
        tasks.spawn(async move {
            for commit in 0..COMMITS {
                let mut transaction = handle.begin(Mode::Update).unwrap();
                let (first, last) = if commit % 3 == 0 { ("z", "a") } else { ("a", "z") };
                transaction.put("n".into(), first.into(), b"1".to_vec()).unwrap();
                match task % 3 {
                    0 => transaction.increment("count".into(), last.into(), 1).unwrap(),
                    1 => transaction.put("n".into(), last.into(), b"1".to_vec()).unwrap(),
                    _ => transaction.delete("n".into(), last.into()).unwrap(),
                }
                transaction.commit().await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(deadlocks(&client).await, before);
}

/// A former version had 1,512 conflicts in 320 updates here, with 16 workers and three rows each.
async fn workers_on_rows_of_their_own_do_not_conflict(dsn: String) {
    const WORKERS: u64 = 16;
    const UPDATES: u64 = 20;
    let dsn = schema(&dsn).await;
    let store = open(&dsn).await;
    for rows in [3, 10, 100] {
        let key = move |worker: u64, row: u64| format!("{rows:03}-{:05}", row * WORKERS + worker);
        let filler = handle(&store);
        let mut fill = filler.begin(Mode::Update).unwrap();
        for (worker, row) in (0..WORKERS).flat_map(|worker| (0..rows).map(move |row| (worker, row))) {
            fill.put("n".into(), key(worker, row), b"0".to_vec()).unwrap();
        }
        fill.commit().await.unwrap();
        let conflicts = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for worker in 0..WORKERS {
            let (handle, conflicts) = (handle(&store), conflicts.clone());
            tasks.spawn(async move {
                let mut made = 0;
                while made < UPDATES {
                    let mut transaction = handle.begin(Mode::Update).unwrap();
                    for row in 0..rows {
                        transaction.get("n".into(), key(worker, row)).await.unwrap();
                    }
                    transaction.put("n".into(), key(worker, made % rows), made.to_string().into()).unwrap();
                    match transaction.commit().await {
                        Ok(_) => made += 1,
                        Err(Error::Conflict) => drop(conflicts.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        tasks.join_all().await;
        let conflicts = conflicts.load(Ordering::Relaxed);
        assert!(
            conflicts * 100 <= WORKERS * UPDATES,
            "{conflicts} conflicts with {rows} rows for each worker"
        );
    }
}

async fn who_writes_a_row_that_all_others_read_gets_a_turn(dsn: String) {
    let dsn = schema(&dsn).await;
    let store = open(&dsn).await;
    put(&handle(&store), &["settings"], "0").await.unwrap();
    let ends = Instant::now() + Duration::from_secs(4);
    let mut readers = JoinSet::new();
    for reader in 0..12 {
        let handle = handle(&store);
        readers.spawn(async move {
            let mut made = 0_u64;
            while Instant::now() < ends {
                let mut transaction = handle.begin(Mode::Update).unwrap();
                transaction.get("n".into(), "settings".into()).await.unwrap();
                transaction.put("n".into(), format!("reader-{reader}"), b"1".to_vec()).unwrap();
                match transaction.commit().await {
                    Ok(_) => made += 1,
                    Err(Error::Conflict) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            made
        });
    }
    let mut written = 0;
    while Instant::now() < ends {
        put(&handle(&store), &["settings"], "1").await.unwrap();
        written += 1;
    }
    let read: u64 = readers.join_all().await.into_iter().sum();
    assert!(written >= 3 && read >= 12, "{written} writes, {read} updates of readers");
}

async fn a_range_and_a_blind_put_into_it_are_not_both_overlooked(dsn: String) {
    let dsn = schema(&dsn).await;
    let store = open(&dsn).await;
    let handle = handle(&store);
    for there in [0, 1, 5] {
        for key in 0..there {
            put(&handle, &[&format!("range-{key}")], "1").await.unwrap();
        }
        let changes: [(&str, Option<&str>); 3] =
            [("range-0", Some("2")), ("range-9", Some("1")), ("range-0", None)];
        for (key, value) in changes {
            let mut reader = handle.begin(Mode::Update).unwrap();
            let found = reader.scan("n".into(), "range-".into()).await.unwrap().len();
            reader.put("n".into(), "count".into(), found.to_string().into()).unwrap();
            let is_there = versioned(&handle, key).await.is_some();
            match value {
                Some(value) => put(&handle, &[key], value).await.unwrap(),
                None => delete(&handle, key).await.unwrap(),
            };
            let changed = value.is_some() || is_there;
            let outcome = reader.commit().await;
            assert_eq!(
                matches!(outcome, Err(Error::Conflict)),
                changed,
                "{there}, {key}, {value:?}: {outcome:?}"
            );
        }
    }
    // A row that is absent, read and not written.
    let mut reader = handle.begin(Mode::Update).unwrap();
    assert_eq!(reader.get("n".into(), "flag".into()).await.unwrap(), None);
    reader.put("n".into(), "result".into(), b"1".to_vec()).unwrap();
    put(&handle, &["flag"], "1").await.unwrap();
    assert!(matches!(reader.commit().await, Err(Error::Conflict)));
}

async fn commits_that_rest_on_ranges_of_each_other_do_not_both_succeed(dsn: String) {
    const ROUNDS: u64 = 60;
    let dsn = schema(&dsn).await;
    let store = open(&dsn).await;
    let mut both = 0;
    for round in 0..ROUNDS {
        let mut tasks = JoinSet::new();
        // Each side reads a range or an absent row of the other, in all combinations.
        for side in 0..2 {
            let handle = handle(&store);
            tasks.spawn(async move {
                let name = |side: u64| format!("{round}-side-{side}");
                let mut transaction = handle.begin(Mode::Update).unwrap();
                let is_empty = match (round + side * (round % 2)) % 2 {
                    0 => transaction.scan("n".into(), name(1 - side)).await.unwrap().is_empty(),
                    _ => transaction.get("n".into(), name(1 - side)).await.unwrap().is_none(),
                };
                if is_empty {
                    transaction.put("n".into(), name(side), b"1".to_vec()).unwrap();
                }
                transaction.commit().await.is_ok() && is_empty
            });
        }
        both += u64::from(tasks.join_all().await == [true, true]);
    }
    assert_eq!(both, 0);
}

async fn a_row_that_another_session_has_locked_delays_no_other_row(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let handle = handle(&store);
    put(&handle, &["locked", "free"], "old").await.unwrap();
    client.batch_execute("BEGIN; SELECT FROM larder_entries WHERE key = 'locked' FOR UPDATE").await.unwrap();
    let waiting = tokio::spawn({
        let handle = support::counting::handle(&store);
        async move { put(&handle, &["locked", "more"], "new").await }
    });
    let since = Instant::now();
    let mut longest = Duration::ZERO;
    while since.elapsed() < Duration::from_secs(3) {
        let began = Instant::now();
        put(&handle, &["free"], "new").await.unwrap();
        longest = longest.max(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!waiting.is_finished() && longest < Duration::from_secs(2), "{longest:?}");
    client.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(versioned(&handle, "locked").await.map(|(value, _)| value).as_deref(), Some("new"));
}

async fn a_commit_leaves_no_row_of_its_locks_behind(dsn: String) {
    let dsn = schema(&dsn).await;
    let (store, client) = (open(&dsn).await, client(&dsn).await);
    let handle = handle(&store);
    put(&handle, &["there"], "1").await.unwrap();
    delete(&handle, "absent").await.unwrap();
    let mut several = handle.begin(Mode::Update).unwrap();
    for key in ["there", "absent"] {
        several.delete("n".into(), key.into()).unwrap();
    }
    several.commit().await.unwrap();
    // A commit that fails after its rows are locked.
    put(&handle, &["counter"], "no number").await.unwrap();
    let mut failing = handle.begin(Mode::Update).unwrap();
    failing.put("n".into(), "another".into(), b"1".to_vec()).unwrap();
    failing.increment("n".into(), "counter".into(), 1).unwrap();
    assert!(matches!(failing.commit().await, Err(Error::InvalidArgument(_))));
    put(&handle, &["last"], "1").await.unwrap();
    let keys =
        client.query("SELECT convert_from(key, 'UTF8') FROM larder_entries ORDER BY 1", &[]).await.unwrap();
    let keys: Vec<String> = keys.iter().map(|row| row.get(0)).collect();
    assert_eq!(keys, ["counter", "last"]);
}

// Settings.

async fn no_update_is_lost_whatever_isolation_level_sessions_are_set_to(dsn: String) {
    for level in ["read\\ uncommitted", "read\\ committed", "repeatable\\ read", "serializable"] {
        let setting = format!("options='-c default_transaction_isolation={}'", level.replace('\\', "\\\\"));
        let store = open(&format!("{} {setting}", schema(&dsn).await)).await;
        count_up(&store, 8, 25).await.unwrap_or_else(|lost| panic!("{level}: {lost}"));
    }
}

async fn a_role_whose_transactions_are_read_only_or_deferrable_writes_all_the_same(dsn: String) {
    let settings = [
        "default_transaction_read_only=on",
        "default_transaction_deferrable=on",
        "statement_timeout=200",
        "lock_timeout=1",
        "idle_in_transaction_session_timeout=50",
        "enable_indexscan=off",
    ];
    for setting in settings {
        let dsn = format!("{} options='-c {setting}'", schema(&dsn).await);
        // The store creates its tables without the setting, which is not the subject here.
        let plain = dsn.split(" options=").next().unwrap();
        drop(open(plain).await);
        let store = open(&dsn).await;
        let handle = handle(&store);
        for round in 0..20 {
            put(&handle, &["one"], &round.to_string())
                .await
                .unwrap_or_else(|error| panic!("{setting}: {error}"));
            put(&handle, &["one", "two"], &round.to_string()).await.unwrap();
            let mut transaction = handle.begin(Mode::Update).unwrap();
            transaction.scan("n".into(), "t".into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(if round == 0 { 250 } else { 1 })).await;
            transaction.increment("n".into(), "count".into(), 1).unwrap();
            transaction.commit().await.unwrap_or_else(|error| panic!("{setting}: {error}"));
        }
        assert_eq!(versioned(&handle, "count").await.map(|(value, _)| value).as_deref(), Some("20"));
    }
}
