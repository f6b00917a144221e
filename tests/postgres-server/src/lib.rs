//! Private Postgres servers for tests and the benchmark.
//!
//! A server has its own data directory and Unix-domain socket, by default no TCP port, and ends
//! with the program that started it. The crate can also start a PgBouncer in front of a server, and
//! several servers under Patroni.
//!
//! ```no_run
//! use larder_postgres_server::PostgresServer;
//!
//! let server = PostgresServer::start()?;
//! server.execute("CREATE SCHEMA plugins")?;
//! println!("{}", server.dsn());
//! # Ok::<(), anyhow::Error>(())
//! ```

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

/// Environment variable with the URL of a server to use instead of a private one.
pub const URL_VARIABLE: &str = "LARDER_TEST_POSTGRES_URL";

/// Returns the data-source name of a server, and the server if this started it.
///
/// If [`URL_VARIABLE`] is set, that server is used. Otherwise this starts a private one.
///
/// # Errors
/// If a server cannot be started.
pub fn server_or_url() -> Result<(Option<PostgresServer>, String)> {
    if let Ok(url) = std::env::var(URL_VARIABLE) {
        return Ok((None, url));
    }
    let server = PostgresServer::start()?;
    let dsn = server.dsn();
    Ok((Some(server), dsn))
}
