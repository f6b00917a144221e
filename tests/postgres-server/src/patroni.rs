//! A cluster of three nodes under Patroni, configured as in production.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::node::{Node, Ports};
use crate::programs::{installed, make_folder, owner};
use crate::supervisor::Supervised;

const NODES: u16 = 3;

/// Time limit for the nodes to elect a leader, and for a node to become a replica again.
const AGREE_MAX: Duration = Duration::from_secs(120);

const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Time limit for all nodes to shut down cleanly.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Below the ephemeral ports of Linux, so that no client connection takes the port while its server
/// is down.
const FIRST_PORT: u32 = 20_000;

/// A leader, a synchronous standby and a further replica under Patroni, with etcd.
///
/// Patroni runs in strict synchronous mode.
///
/// ```no_run
/// use larder_postgres_server::{Failure, PatroniCluster, supervise_if_asked};
///
/// supervise_if_asked();
/// let mut cluster = PatroniCluster::start()?;
/// cluster.fail(Failure::Killed)?;
/// cluster.recover()?;
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct PatroniCluster {
    nodes: Vec<Node>,
    leader: usize,
    failed: Option<(usize, Failure)>,
    _etcd: Supervised,
    /// Dropped last, because the other fields use it.
    _folder: TempDir,
}

/// How the leader's node fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// All its processes are killed.
    Killed,
    /// All its processes are paused, like those of a paused virtual machine.
    Paused,
    /// Its packets to and from clients, other nodes and etcd are dropped.
    Partitioned,
    /// Its packets to and from other nodes and etcd are dropped. Clients still reach it.
    Isolated,
}

impl PatroniCluster {
    /// Starts etcd and the nodes, and waits until the leader has both replicas.
    ///
    /// The program has to call [`supervise_if_asked`](crate::supervise_if_asked) before anything
    /// else.
    ///
    /// # Errors
    /// If Patroni or etcd is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let owner = owner()?;
        let folder = tempfile::Builder::new().prefix("larder-patroni-").tempdir()?;
        make_folder(folder.path(), owner)?;
        let mut ports = free_ports();
        let mut port = || ports.next().context("no free port was found");
        let etcd_port = port()?;
        let etcd = start_etcd(&folder.path().join("etcd"), owner, etcd_port, port()?)?;
        let mut nodes = Vec::new();
        for number in 1..=NODES {
            let folder = folder.path().join(format!("node{number}"));
            let ports = Ports { postgres: port()?, api: port()? };
            nodes.push(Node::start(folder, owner, ports, etcd_port)?);
        }
        let mut cluster = Self { nodes, leader: 0, failed: None, _etcd: etcd, _folder: folder };
        cluster.wait_for_leader()?;
        cluster.wait_for_replicas()?;
        Ok(cluster)
    }

    /// Returns the data-source name that finds the current leader. It never changes.
    pub fn dsn(&self) -> String {
        let ports: Vec<_> = self.nodes.iter().map(|node| node.port().to_string()).collect();
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let options = "user=larder dbname=postgres sslmode=disable target_session_attrs=read-write";
        format!("host={hosts} port={} {options}", ports.join(","))
    }

    /// Makes the leader's node fail, and waits until another node has taken over.
    ///
    /// That node is the leader and acknowledges a commit that its synchronous standby has.
    ///
    /// # Errors
    /// If a node has failed already, or no other node takes over in time.
    pub fn fail(&mut self, failure: Failure) -> Result<()> {
        ensure!(self.failed.is_none(), "a node has failed already");
        self.failed = Some((self.leader, failure));
        let node = self.nodes.get_mut(self.leader).context("no such node")?;
        match failure {
            Failure::Killed => node.kill(),
            Failure::Paused => node.hold(),
            Failure::Partitioned => node.cut_off(),
            Failure::Isolated => node.isolate(),
        }
        self.wait_for_leader()
    }

    /// Ends the failure, and waits until the former leader is a replica of the new one.
    ///
    /// # Errors
    /// If no node has failed, or the node does not become a replica in time.
    pub fn recover(&mut self) -> Result<()> {
        let (failed, failure) = self.failed.take().context("no node has failed")?;
        let node = self.nodes.get_mut(failed).context("no such node")?;
        match failure {
            Failure::Killed => node.restart()?,
            Failure::Paused => node.resume(),
            Failure::Partitioned | Failure::Isolated => node.heal(),
        }
        self.wait_for_replicas()
    }

    fn wait_for_leader(&mut self) -> Result<()> {
        self.leader = self.wait("no node became the leader", |cluster| {
            let failed = cluster.failed.map(|(node, _)| node);
            let nodes = cluster.nodes.iter().enumerate().filter(|(number, _)| Some(*number) != failed);
            nodes.filter(|(_, node)| is_leader(node)).map(|(number, _)| number).next()
        })?;
        Ok(())
    }

    /// Patroni promotes only a node that it has chosen as a synchronous standby, so the next
    /// failure needs one.
    fn wait_for_replicas(&self) -> Result<()> {
        self.wait("the leader did not get both replicas", |cluster| {
            let replicas = cluster.nodes.iter().filter(|node| node.affirms("/replica"));
            let synchronous = cluster.nodes.iter().filter(|node| node.affirms("/sync"));
            let are_there = replicas.count() == 2 && synchronous.count() == 1;
            let leader =
                cluster.nodes.get(cluster.leader).filter(|leader| are_there && leader.affirms("/primary"));
            leader?.query(STREAMING).is_ok_and(|streaming| streaming == "2").then_some(())
        })
    }

    fn wait<T>(&self, error: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let until = Instant::now() + AGREE_MAX;
        while Instant::now() < until {
            if let Some(found) = condition(self) {
                return Ok(found);
            }
            std::thread::sleep(ASK_AGAIN);
        }
        let logs: Vec<_> = self.nodes.iter().map(Node::end_of_log).collect();
        bail!("{error} within {AGREE_MAX:?}:\n{}", logs.join("\n"))
    }
}

impl Drop for PatroniCluster {
    fn drop(&mut self) {
        // A killed Postgres would leave its shared memory behind, so the nodes shut down cleanly.
        for node in &mut self.nodes {
            node.resume();
            node.heal();
            node.patroni().terminate();
        }
        let until = Instant::now() + STOP_MAX;
        for node in &mut self.nodes {
            node.patroni().wait_until(until);
        }
    }
}

const STREAMING: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";

/// Commits a message, which is written to the write-ahead log and reaches a standby.
const COMMIT: &str = "SELECT pg_logical_emit_message(true, 'larder', 'commit')";

const SYNCHRONOUS: &str = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";

/// Whether a node acknowledges a commit that its synchronous standby has. Patroni's API reports a
/// new leader later than the node does.
fn is_leader(node: &Node) -> bool {
    node.query("SELECT pg_is_in_recovery()").is_ok_and(|answer| answer == "f")
        && node.query(COMMIT).is_ok()
        && node.query(SYNCHRONOUS).is_ok_and(|standbys| standbys != "0")
}

fn start_etcd(folder: &Path, owner: Option<(u32, u32)>, clients: u16, peers: u16) -> Result<Supervised> {
    let program = installed("etcd")?;
    make_folder(folder, owner)?;
    let (clients, peers) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
    let arguments = [
        "--data-dir=data".to_string(),
        "--unsafe-no-fsync".to_string(),
        "--enable-v2".to_string(),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
    ];
    Supervised::start(&program, &arguments, folder, owner)
}

/// Returns ports without a listener. Concurrent test programs search from different start values.
fn free_ports() -> impl Iterator<Item = u16> {
    let first = FIRST_PORT + std::process::id() % 1_000 * 10;
    let ports = (first..).map_while(|port| u16::try_from(port).ok());
    ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}
