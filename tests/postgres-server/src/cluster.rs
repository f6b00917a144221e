//! A cluster of servers for failover tests.

use anyhow::{Context, Result};

use crate::PostgresServer;

/// A primary, a synchronous standby, and a spare server that becomes the next standby.
///
/// A commit is acknowledged once the standby has it, so a failover loses no acknowledged commit.
///
/// ```no_run
/// use larder_postgres_server::{Cluster, Fall};
///
/// let mut cluster = Cluster::start()?;
/// println!("{}", cluster.dsn());
/// cluster.fail_over(Fall::Killed)?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct Cluster {
    primary: PostgresServer,
    standby: PostgresServer,
    spare: PostgresServer,
}

/// How a primary ends before the standby is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// It shuts down and disconnects its clients (fast shutdown).
    Stopped,
    /// It shuts down without a checkpoint (immediate shutdown).
    Crashed,
    /// All its processes are killed.
    Killed,
    /// All its processes are stopped by `SIGSTOP`. Connections stay open without a response, until
    /// the next failover.
    Held,
}

const SETTINGS: [&str; 2] = ["fsync=off", "synchronous_standby_names=*"];

impl Cluster {
    /// Starts a primary and a standby.
    ///
    /// Call this on a thread that outlives the servers, because they end with it.
    ///
    /// # Errors
    /// If a program of the server is missing or fails.
    pub fn start() -> Result<Self> {
        let primary = PostgresServer::start_with(&SETTINGS)?;
        let standby = PostgresServer::start_as_standby(&primary, &SETTINGS)?;
        let spare = PostgresServer::without_cluster(&SETTINGS)?;
        Ok(Self { primary, standby, spare })
    }

    /// Returns the data-source name that finds the current primary. It never changes.
    pub fn dsn(&self) -> String {
        let mut folders = [&self.primary, &self.standby, &self.spare].map(PostgresServer::folder);
        folders.sort();
        let [first, second, third] = folders.map(|folder| folder.display());
        format!("host={first},{second},{third} user=larder dbname=postgres target_session_attrs=read-write")
    }

    /// Returns the server that accepts writes.
    pub fn primary(&self) -> &PostgresServer {
        &self.primary
    }

    /// Returns the standby of the primary.
    pub fn standby(&self) -> &PostgresServer {
        &self.standby
    }

    /// Ends the primary, promotes the standby, and makes the spare server its standby.
    ///
    /// The former primary becomes the spare server.
    ///
    /// # Errors
    /// If a program of the server fails.
    pub fn fail_over(&mut self, fall: Fall) -> Result<()> {
        match fall {
            Fall::Stopped => self.primary.stop(),
            Fall::Crashed => self.primary.crash(),
            Fall::Killed => self.primary.kill(),
            Fall::Held => self.primary.hold(),
        }
        self.standby.promote().context("cannot promote the standby")?;
        std::mem::swap(&mut self.primary, &mut self.standby);
        std::mem::swap(&mut self.standby, &mut self.spare);
        self.standby.kill();
        self.standby.follow(&self.primary).context("cannot start a standby of the new primary")
    }
}
