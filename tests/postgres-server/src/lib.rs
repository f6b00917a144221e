//! A private Postgres server: own data, own socket, no port, gone with the program that started it. And a pooler in front of it,
//! and several servers under Patroni.

mod cluster;
mod link;
mod node;
mod patroni;
mod pgbouncer;
mod processes;
mod programs;
mod server;
mod supervisor;

pub use cluster::{Cluster, Fall};
pub use patroni::{Failure, PatroniCluster};
pub use pgbouncer::{PgBouncer, PoolMode};
pub use server::PostgresServer;
pub use supervisor::supervise_if_asked;

use anyhow::Result;

/// Names a server that is used instead of a private one.
pub const URL_VARIABLE: &str = "LARDER_TEST_POSTGRES_URL";

/// The server that the environment names, or a private one, and its data-source name.
///
/// # Errors
/// Where no server can be started.
pub fn server_or_url() -> Result<(Option<PostgresServer>, String)> {
    if let Ok(url) = std::env::var(URL_VARIABLE) {
        return Ok((None, url));
    }
    let server = PostgresServer::start()?;
    let dsn = server.dsn();
    Ok((Some(server), dsn))
}
