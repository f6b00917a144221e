//! Test beds on a private Postgres server, and helpers for tests that use it directly.
#![allow(clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use larder_core::Store;
use larder_host::drivers;
use larder_postgres::Postgres;
pub(crate) use larder_postgres_server::{PostgresServer, server_or_url};
use larder_suite::{PostgresTestBed, TestBed};
use libtest_mimic::Arguments;
use tokio_postgres::{Client, NoTls};

/// A test bed on the server that the environment names, or on a private server, which the caller
/// must drop last. Starts no server if tests are only listed.
pub(crate) fn test_bed(arguments: &Arguments) -> (Option<PostgresServer>, Result<Arc<dyn TestBed>, String>) {
    if arguments.list {
        return (None, Err("only listed".to_string()));
    }
    match server_or_url() {
        Ok((server, dsn)) => (server, Ok(Arc::new(PostgresTestBed { dsn, drivers: drivers() }))),
        Err(error) => (None, Err(format!("{error:#}"))),
    }
}

/// Connects to the server without larder.
pub(crate) async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("cannot connect");
    tokio::spawn(connection);
    client
}

/// Creates a schema for a test, and returns its name.
pub(crate) async fn new_schema(dsn: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let created = connect(dsn).await.batch_execute(&format!("CREATE SCHEMA {name}")).await;
    created.expect("cannot create a schema");
    name
}

/// Opens a store without periodic sweeps.
pub(crate) async fn open(dsn: &str) -> Store {
    let backend = Postgres::open(dsn).await.expect("cannot open the store");
    Store::builder(backend).sweep_interval(None).build().expect("cannot build the store")
}
