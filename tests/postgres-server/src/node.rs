//! A node of a cluster under Patroni.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::link::Link;
use crate::programs::{binaries, installed, make_folder, program};
use crate::server::run;
use crate::supervisor::Supervised;

/// Seconds after which a leader's lock expires if it is not renewed. Patroni's default is 30.
const TIME_TO_LIVE: u32 = 10;

/// Time limit for a response of Patroni's API.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Time limit for `psql`, in seconds. A commit waits for its standby without a limit.
const STATEMENT_MAX: &str = "60";

/// The number of log lines that an error message shows.
const LOG_LINES: usize = 30;

/// A machine with Patroni and the Postgres that it starts.
///
/// Clients and other nodes reach it through links, and it reaches etcd through a link.
#[derive(Debug)]
pub(crate) struct Node {
    patroni: Supervised,
    folder: PathBuf,
    owner: Option<(u32, u32)>,
    ports: Ports,
    /// From clients to Postgres.
    clients: Link,
    /// From the other nodes to Postgres.
    replicas: Link,
    /// From the other nodes to Patroni's API.
    api: Link,
    /// From Patroni to etcd.
    etcd: Link,
}

/// The ports on which Postgres and Patroni's API listen, behind the links.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) postgres: u16,
    pub(crate) api: u16,
}

impl Node {
    /// Starts a node in a directory of its own.
    pub(crate) fn start(folder: PathBuf, owner: Option<(u32, u32)>, ports: Ports, etcd: u16) -> Result<Self> {
        make_folder(&folder, owner)?;
        let (clients, replicas) = (Link::start(ports.postgres)?, Link::start(ports.postgres)?);
        let (api, etcd) = (Link::start(ports.api)?, Link::start(etcd)?);
        let settings = settings(&folder, ports, [&replicas, &api, &etcd].map(Link::port))?;
        fs::write(folder.join("patroni.yml"), settings)?;
        let patroni = launch(&folder, owner)?;
        Ok(Self { patroni, folder, owner, ports, clients, replicas, api, etcd })
    }

    /// Returns the port of 127.0.0.1 on which clients reach its Postgres.
    pub(crate) fn port(&self) -> u16 {
        self.clients.port()
    }

    pub(crate) fn kill(&mut self) {
        self.patroni.kill();
    }

    /// Starts the node again after [`Node::kill`].
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.patroni = launch(&self.folder, self.owner)?;
        Ok(())
    }

    pub(crate) fn hold(&self) {
        self.patroni.hold();
    }

    pub(crate) fn resume(&self) {
        self.patroni.resume();
    }

    /// Cuts the node off from the other nodes and from etcd.
    pub(crate) fn isolate(&self) {
        for link in [&self.replicas, &self.api, &self.etcd] {
            link.cut();
        }
    }

    /// Cuts the node off from clients, the other nodes and etcd.
    pub(crate) fn cut_off(&self) {
        self.clients.cut();
        self.isolate();
    }

    pub(crate) fn heal(&self) {
        for link in [&self.clients, &self.replicas, &self.api, &self.etcd] {
            link.heal();
        }
    }

    pub(crate) fn patroni(&mut self) -> &mut Supervised {
        &mut self.patroni
    }

    /// Whether Patroni's API returns status 200 for a path such as `/primary`. The request bypasses
    /// the links.
    pub(crate) fn affirms(&self, path: &str) -> bool {
        self.status_line(path).is_ok_and(|line| line.split_whitespace().nth(1) == Some("200"))
    }

    fn status_line(&self, path: &str) -> Result<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.ports.api));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_string())
    }

    /// Runs SQL on the node's Postgres, and returns the output of `psql`. The connection bypasses
    /// the links.
    pub(crate) fn query(&self, sql: &str) -> Result<String> {
        let mut command = Command::new("timeout");
        command.arg(STATEMENT_MAX).arg(program(&binaries()?, "psql")).current_dir(&self.folder);
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--username=larder", "--command", sql]);
        command.arg("--host").arg(&self.folder).args([
            "--port",
            &self.ports.postgres.to_string(),
            "postgres",
        ]);
        command.env_remove("PGOPTIONS").env("LC_ALL", "C");
        Ok(String::from_utf8(run(command, "psql")?)?.trim().to_string())
    }

    /// Returns the last lines that Patroni and Postgres logged.
    pub(crate) fn end_of_log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
        lines.into_iter().rev().flat_map(|line| [line, "\n"]).collect()
    }
}

fn launch(folder: &Path, owner: Option<(u32, u32)>) -> Result<Supervised> {
    Supervised::start(&installed("patroni")?, &["patroni.yml"], folder, owner)
}

/// Returns Patroni's configuration. In strict synchronous mode, Patroni never empties
/// `synchronous_standby_names`.
fn settings(folder: &Path, ports: Ports, [replicas, api, etcd]: [u16; 3]) -> Result<String> {
    let name = folder.file_name().unwrap_or_default().display();
    let (folder, binaries) = (folder.display(), binaries()?);
    let binaries = binaries.display();
    Ok(format!(
        "scope: larder
name: {name}
restapi:
  listen: 127.0.0.1:{}
  connect_address: 127.0.0.1:{api}
# Not `etcd3`: before Patroni 3.1, a new leader can be left with an outdated copy of etcd's keys, and then never again
# appoints a synchronous standby (patroni/patroni#2779). Debian 12 has release 3.0.2.
etcd:
  hosts: 127.0.0.1:{etcd}
  # Otherwise Patroni asks etcd for its address and bypasses the link.
  use_proxies: true
bootstrap:
  dcs:
    ttl: {TIME_TO_LIVE}
    loop_wait: 2
    retry_timeout: 3
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      parameters: {{max_connections: 400, shared_buffers: 64MB, wal_keep_size: 512MB, fsync: 'off'}}
  initdb: [encoding: UTF8, locale: C, auth: trust, no-sync]
postgresql:
  listen: 127.0.0.1:{}
  connect_address: 127.0.0.1:{replicas}
  data_dir: {folder}/data
  bin_dir: {binaries}
  pgpass: {folder}/pgpass
  use_unix_socket: true
  remove_data_directory_on_rewind_failure: true
  remove_data_directory_on_diverged_timelines: true
  authentication:
    superuser: {{username: larder}}
    replication: {{username: larder}}
  pg_hba:
  - local all all trust
  - host all all 127.0.0.1/32 trust
  - host replication all 127.0.0.1/32 trust
  parameters: {{unix_socket_directories: {folder}}}
watchdog: {{mode: 'off'}}
",
        ports.api, ports.postgres
    ))
}
