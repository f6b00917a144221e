//! Benches on a private Postgres server.

use std::sync::Arc;

use anyhow::Result;
use larder_host::drivers;
pub(crate) use larder_postgres_server::{PostgresServer, server_or_url};
use larder_suite::{Bench, PostgresBench};
use libtest_mimic::Arguments;

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
