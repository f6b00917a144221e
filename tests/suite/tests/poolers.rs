//! Stores behind PgBouncer, which may give a client another session for each transaction.
#![allow(clippy::expect_used, reason = "tests")]

mod support;

use std::sync::Arc;

use larder_core::Store;
use larder_host::drivers;
use larder_postgres_server::{PgBouncer, PoolMode, PostgresServer};
use larder_suite::{PostgresTestBed, Suite, TestBed};
use support::{counting, harness};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

/// If set, all cases also run in session mode, where a client keeps its session and little differs
/// from a direct connection.
const ALL_VARIABLE: &str = "LARDER_TEST_POOLERS_ALL";

/// Otherwise one case in this many runs in session mode.
const SESSION_CASES: usize = 8;

/// Settings that a client passes to PgBouncer when it connects, and PgBouncer to the server.
const OF_THE_CLIENT: &str = "('application_name', 'client_encoding', 'DateStyle', 'IntervalStyle', 'standard_conforming_strings', 'TimeZone')";

/// The setting of the last transaction. The server resets it to its default when a transaction
/// begins.
const OF_TRANSACTIONS: &str = "'transaction_read_only'";

fn main() {
    let arguments = harness::arguments();
    let runtime = harness::runtime();
    let suite = runtime.block_on(Suite::load()).expect("cannot load the suite");
    let mut poolers = Vec::new();
    let server =
        if arguments.list { None } else { Some(PostgresServer::start().expect("cannot start a server")) };
    let mut trials = Vec::new();
    for (program, mode) in PgBouncer::programs_and_modes().expect("cannot find PgBouncer") {
        let name = format!("{}_in_{mode:?}_mode", program.display());
        let dsn = match &server {
            None => String::new(),
            Some(server) => {
                let pooler = PgBouncer::start(&program, server, mode).expect("cannot start PgBouncer");
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
    let test_bed = Arc::new(PostgresTestBed { dsn, drivers: drivers() });
    let is_whole = mode == PoolMode::Transaction || std::env::var_os(ALL_VARIABLE).is_some();
    let step = if is_whole { 1 } else { SESSION_CASES };
    let cases = Arc::new(Mutex::new(suite.cases().iter().step_by(step).cloned().collect::<Vec<_>>()));
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let (suite, test_bed, cases) = (suite.clone(), test_bed.clone(), cases.clone());
        workers.spawn(async move {
            let mut failures = Vec::new();
            while let Some(case) = { cases.lock().await.pop() } {
                if let Err(failure) = suite.run(&case, test_bed.as_ref()).await {
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
    let test_bed = PostgresTestBed { dsn: dsn.to_string(), drivers: drivers() };
    let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
    let backend = scratch.open().await.map_err(|error| format!("{error:#}"))?;
    let store = Store::builder_shared(backend).build().map_err(|error| error.to_string())?;
    counting::count_up(&store, 8, 50).await?;
    store.close().await;
    drop(scratch);
    nothing_is_left(dsn).await
}

/// Checks that no session of the server keeps a setting, a lock or a statement of larder.
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
            return Err(format!("a session kept {left:?}"));
        }
    }
    Ok(())
}
