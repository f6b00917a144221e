//! Servers of which one takes over from another.

use anyhow::{Context, Result};

use crate::PostgresServer;

/// A primary, a synchronous standby, and a server that takes the standby's place at the next failover. A commit is acknowledged
/// once the standby has it, so a failover loses none that was acknowledged.
#[derive(Debug)]
pub struct Cluster {
    primary: PostgresServer,
    standby: PostgresServer,
    spare: PostgresServer,
}

/// How a primary ends before the standby takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fall {
    /// It is told to stop and cuts off its clients.
    Stopped,
    /// It ends at once, without writing what it has in memory.
    Crashed,
    /// All its processes are killed.
    Killed,
    /// All its processes are held: connections to it stay open and get no answer, until the next failover.
    Held,
}

const SETTINGS: [&str; 2] = ["fsync=off", "synchronous_standby_names=*"];

impl Cluster {
    /// Starts a primary and a standby. To be called on a thread that lives as long, as [`PostgresServer::start`].
    ///
    /// # Errors
    /// Where a program of the server fails.
    pub fn start() -> Result<Self> {
        let primary = PostgresServer::start_with(&SETTINGS)?;
        let standby = PostgresServer::start_as_standby(&primary, &SETTINGS)?;
        let spare = PostgresServer::without_cluster(&SETTINGS)?;
        Ok(Self { primary, standby, spare })
    }

    /// The data-source name that finds whichever is primary. It stays the same.
    pub fn dsn(&self) -> String {
        let mut folders = [&self.primary, &self.standby, &self.spare].map(PostgresServer::folder);
        folders.sort();
        let [first, second, third] = folders.map(|folder| folder.display());
        format!("host={first},{second},{third} user=larder dbname=postgres target_session_attrs=read-write")
    }

    /// The server that accepts writes.
    pub fn primary(&self) -> &PostgresServer {
        &self.primary
    }

    /// The server that follows it.
    pub fn standby(&self) -> &PostgresServer {
        &self.standby
    }

    /// Ends the primary, promotes the standby, and has the spare server follow it. The former primary is the next spare.
    ///
    /// # Errors
    /// Where a program of the server fails.
    pub fn fail_over(&mut self, fall: Fall) -> Result<()> {
        match fall {
            Fall::Stopped => self.primary.stop(),
            Fall::Crashed => self.primary.crash(),
            Fall::Killed => self.primary.kill(),
            Fall::Held => self.primary.hold(),
        }
        self.standby.promote().context("the standby was not promoted")?;
        std::mem::swap(&mut self.primary, &mut self.standby);
        std::mem::swap(&mut self.standby, &mut self.spare);
        self.standby.kill();
        self.standby.follow(&self.primary).context("the new primary got no standby")
    }
}
