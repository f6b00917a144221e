//! Stores that are reached through PgBouncer, which gives a client another session for each transaction.
#![allow(clippy::expect_used, reason = "tests")]

mod support;

use std::sync::Arc;

use larder_core::Store;
use larder_host::drivers;
use larder_postgres_server::{PgBouncer, PoolMode, PostgresServer};
use larder_suite::{Bench, PostgresBench, Suite};
use support::{counting, harness};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// Has every case run in session mode too, where a session is a client's own: it differs little from a direct connection.
const ALL_VARIABLE: &str = "LARDER_TEST_POOLERS_ALL";

/// Otherwise every so many-th runs there.
const SESSION_CASES: usize = 8;

/// What a client tells PgBouncer as it connects, and PgBouncer the server.
const OF_THE_CLIENT: &str = "('application_name', 'client_encoding', 'DateStyle', 'IntervalStyle', 'standard_conforming_strings', 'TimeZone')";

/// Of the last transaction: the server sets it anew as each transaction begins, from its default.
const OF_TRANSACTIONS: &str = "'transaction_read_only'";

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let suite = runtime.block_on(Suite::load()).expect("the suite can't be loaded");
    let mut poolers = Vec::new();
    let server = if arguments.list { None } else { Some(PostgresServer::start().expect("no server")) };
    let mut trials = Vec::new();
    for (program, mode) in PgBouncer::programs_and_modes().expect("no PgBouncer") {
        let name = format!("{}_in_{mode:?}_mode", program.display());
        let dsn = match &server {
            None => String::new(),
            Some(server) => {
                let pooler = PgBouncer::start(&program, server, mode).expect("no PgBouncer");
                let dsn = pooler.dsn();
                poolers.push(pooler);
                dsn
            }
        };
        let (suite, through) = (suite.clone(), dsn.clone());
        trials.push(harness::trial(
            &runtime,
            format!("the_suite_passes_through_{name}"),
            move || async move { the_suite_passes(suite, mode, through).await },
        ));
        trials.push(harness::trial(
            &runtime,
            format!("no_update_is_lost_and_no_setting_left_through_{name}"),
            move || async move { no_update_is_lost_and_no_setting_left(&dsn).await },
        ));
    }
    harness::run(&arguments, trials, || {
        drop(poolers);
        drop(server);
    });
}

async fn the_suite_passes(suite: Suite, mode: PoolMode, dsn: String) -> Result<(), String> {
    let bench = Arc::new(PostgresBench { dsn, drivers: drivers() });
    let is_whole = mode == PoolMode::Transaction || std::env::var_os(ALL_VARIABLE).is_some();
    let step = if is_whole { 1 } else { SESSION_CASES };
    let cases = Arc::new(Mutex::new(suite.cases().iter().step_by(step).cloned().collect::<Vec<_>>()));
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let (suite, bench, cases) = (suite.clone(), bench.clone(), cases.clone());
        workers.spawn(async move {
            let mut failures = Vec::new();
            while let Some(case) = { cases.lock().await.pop() } {
                if let Err(failure) = suite.run(&case, bench.as_ref()).await {
                    failures.push(format!("{case}: {failure}"));
                }
            }
            failures
        });
    }
    let failures = workers.join_all().await.concat();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

async fn no_update_is_lost_and_no_setting_left(dsn: &str) -> Result<(), String> {
    let bench = PostgresBench { dsn: dsn.to_string(), drivers: drivers() };
    let scratch = bench.scratch().await.map_err(|error| format!("{error:#}"))?;
    let backend = scratch.open().await.map_err(|error| format!("{error:#}"))?;
    let store = Store::builder_shared(backend).build().map_err(|error| error.to_string())?;
    counting::count_up(&store, 8, 50).await?;
    store.close().await;
    drop(scratch);
    nothing_is_left(dsn).await
}

/// No session of the server has a setting, a lock or a statement of larder's.
async fn nothing_is_left(dsn: &str) -> Result<(), String> {
    let (client, connection) =
        tokio_postgres::connect(dsn, NoTls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let sql = format!(
        "SELECT concat(
             (SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session'
                 AND name NOT IN {OF_THE_CLIENT} AND name <> {OF_TRANSACTIONS}),
             (SELECT string_agg(statement, ' ') FROM pg_prepared_statements WHERE statement LIKE '%larder%'),
             (SELECT string_agg(locktype, ' ') FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'))"
    );
    for _ in 0..60 {
        let rows = client.simple_query(&sql).await.map_err(|error| error.to_string())?;
        let left = rows.iter().find_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        if left != Some("") {
            return Err(format!("a session has {left:?}"));
        }
    }
    Ok(())
}
