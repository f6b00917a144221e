//! Benches on a private Postgres server, and what tests do with one.
#![allow(clippy::expect_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use larder_core::Store;
use larder_host::drivers;
use larder_postgres::Postgres;
pub(crate) use larder_postgres_server::{PostgresServer, server_or_url};
use larder_suite::{Bench, PostgresBench};
use libtest_mimic::Arguments;
use tokio_postgres::{Client, NoTls};

/// A bench on the server that the environment names, or on a private one, which is to be dropped last. Where tests are only
/// listed, none is started.
pub(crate) fn bench(arguments: &Arguments) -> (Option<PostgresServer>, Result<Arc<dyn Bench>, String>) {
    if arguments.list {
        return (None, Err("only listed".to_string()));
    }
    match server_or_url() {
        Ok((server, dsn)) => (server, Ok(Arc::new(PostgresBench { dsn, drivers: drivers() }))),
        Err(error) => (None, Err(format!("{error:#}"))),
    }
}

/// A client of the server, without larder.
pub(crate) async fn connect(dsn: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await.expect("no connection");
    tokio::spawn(connection);
    client
}

/// The name of a new schema for a test.
pub(crate) async fn new_schema(dsn: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let name = format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let created = connect(dsn).await.batch_execute(&format!("CREATE SCHEMA {name}")).await;
    created.expect("no schema");
    name
}

/// Opens a store that does not sweep by itself.
pub(crate) async fn open(dsn: &str) -> Store {
    let backend = Postgres::open(dsn).await.expect("no store");
    Store::builder(backend).sweep_interval(None).build().expect("no store")
}
