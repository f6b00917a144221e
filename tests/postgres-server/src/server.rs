//! Starts, stops and controls a Postgres server.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tempfile::TempDir;

use crate::processes::{descendants, signal_all};
use crate::programs::{binaries, owner, program};

/// A Postgres server with a data directory of its own, which ends with the thread that started it.
///
/// ```no_run
/// use larder_postgres_server::PostgresServer;
///
/// let server = PostgresServer::start_on_tcp(&["fsync=off"], &[])?;
/// println!("{:?}", server.port());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct PostgresServer {
    folder: TempDir,
    binaries: PathBuf,
    owner: Option<(u32, u32)>,
    child: Option<Child>,
    settings: Vec<String>,
    /// The TCP port on 127.0.0.1, if the server has one.
    port: Option<u16>,
}

/// Settings of every server. Tests open many connections.
const SETTINGS: [&str; 3] = ["listen_addresses=", "max_connections=400", "shared_buffers=64MB"];

impl PostgresServer {
    /// Creates a database cluster in a temporary directory, and starts a server on it.
    ///
    /// Call this on a thread that outlives the server, such as the main thread, because the server
    /// ends with it. The server runs with `fsync=off`, because tests need no data after a power
    /// failure.
    ///
    /// # Errors
    /// If a program of the server is missing or fails.
    pub fn start() -> Result<Self> {
        Self::start_with(&["fsync=off"])
    }

    /// Starts a server with further settings, which override the default ones.
    ///
    /// # Errors
    /// If a program of the server is missing or fails.
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        let mut server = Self::make(settings)?;
        server.launch()?;
        Ok(server)
    }

    /// Starts a server with further settings as a standby of another server.
    ///
    /// # Errors
    /// If a program of the server is missing or fails.
    pub fn start_as_standby(primary: &Self, settings: &[&str]) -> Result<Self> {
        let mut server = Self::without_cluster(settings)?;
        server.follow(primary)?;
        Ok(server)
    }

    /// Starts a server with further settings that also listens on a port of 127.0.0.1.
    ///
    /// `files` are written to its data directory, readable only for its user: for example
    /// `pg_hba.conf` and certificates.
    ///
    /// # Errors
    /// If a program of the server is missing or fails.
    pub fn start_on_tcp(settings: &[&str], files: &[(&str, &str)]) -> Result<Self> {
        let mut server = Self::make(settings)?;
        for (name, text) in files {
            let path = server.data().join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            if let Some((user, group)) = server.owner {
                nix::unistd::chown(&path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
            }
        }
        // Another program can take a free port before the server does.
        for _ in 0..2 {
            server.port = Some(free_port()?);
            if server.launch().is_ok() {
                return Ok(server);
            }
            server.stop();
        }
        server.port = Some(free_port()?);
        server.launch()?;
        Ok(server)
    }

    fn make(settings: &[&str]) -> Result<Self> {
        let server = Self::without_cluster(settings)?;
        server.make_cluster()?;
        Ok(server)
    }

    pub(crate) fn without_cluster(settings: &[&str]) -> Result<Self> {
        let binaries = binaries()?;
        let owner = owner()?;
        let folder = tempfile::Builder::new().prefix("larder-pg-").tempdir()?;
        if let Some((user, group)) = owner {
            nix::unistd::chown(folder.path(), Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        let settings = SETTINGS.iter().chain(settings).map(|setting| (*setting).to_string()).collect();
        Ok(Self { folder, binaries, owner, child: None, settings, port: None })
    }

    /// Returns the data-source name of its database.
    pub fn dsn(&self) -> String {
        let port = self.port.map(|port| format!(" port={port}")).unwrap_or_default();
        format!("host={}{port} user=larder dbname=postgres", self.folder.path().display())
    }

    /// Returns the TCP port on 127.0.0.1, if the server has one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the directory of its Unix-domain socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs SQL in its database.
    ///
    /// # Errors
    /// If `psql` fails.
    pub fn execute(&self, sql: &str) -> Result<()> {
        let mut command = self.command("psql");
        command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command", sql, &self.dsn()]);
        run(command, "psql").map(drop)
    }

    /// Returns a dump of one of its databases, as SQL statements that any client can run.
    ///
    /// # Errors
    /// If `pg_dump` fails.
    pub fn dump(&self, database: &str) -> Result<String> {
        let mut command = self.command("pg_dump");
        command.arg("--host").arg(self.folder.path()).args(["--username=larder", "--inserts", "--no-owner"]);
        command.args(["--no-privileges", database]);
        let dump = String::from_utf8(run(command, "pg_dump")?)?;
        // Lines with a backslash are `psql` commands.
        let is_sql = |line: &&str| !line.is_empty() && !line.starts_with("--") && !line.starts_with('\\');
        Ok(dump.lines().filter(is_sql).flat_map(|line| [line, "\n"]).collect())
    }

    /// Starts the server again after [`PostgresServer::crash`] or [`PostgresServer::stop`].
    ///
    /// # Errors
    /// If the server ends at once, or does not accept connections within 30 s.
    pub fn launch(&mut self) -> Result<()> {
        let data = self.data();
        let mut command = self.command("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(self.folder.path());
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        if let Some(port) = self.port {
            command.args(["-c", "listen_addresses=127.0.0.1", "-p", &port.to_string()]);
        }
        let log = fs::File::create(self.folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: the call is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGINT)?));
        }
        self.child = Some(command.spawn().context("cannot start postgres")?);
        self.wait_until_ready()
    }

    /// Shuts down cleanly, and disconnects clients (fast shutdown).
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Shuts down without a checkpoint (immediate shutdown), so that the next start runs crash
    /// recovery.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Kills all its processes.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.end(Signal::SIGKILL);
    }

    /// Pauses all its processes with `SIGSTOP`, until [`PostgresServer::resume`] or
    /// [`PostgresServer::kill`].
    ///
    /// Connections stay open, and requests get no response.
    pub fn hold(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Resumes all its processes.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        signal_all(&self.processes(), signal);
    }

    /// Returns the postmaster and its descendants.
    fn processes(&self) -> Vec<Pid> {
        let Some(child) = &self.child else { return Vec::new() };
        let server = Pid::from_raw(child.id() as i32);
        std::iter::once(server).chain(descendants(server)).collect()
    }

    /// Replaces its data with a base backup of another server, and starts it as a standby of that
    /// server.
    ///
    /// The server must not be running.
    ///
    /// # Errors
    /// If its data cannot be removed, or a program of the server fails.
    pub fn follow(&mut self, primary: &Self) -> Result<()> {
        if self.data().exists() {
            fs::remove_dir_all(self.data())?;
        }
        let mut command = self.command("pg_basebackup");
        command.arg("--pgdata").arg(self.data()).arg("--host").arg(primary.folder());
        command.args(["--username=larder", "--checkpoint=fast", "--write-recovery-conf", "--no-sync"]);
        run(command, "pg_basebackup")?;
        self.launch()
    }

    /// Promotes a standby to a primary.
    ///
    /// # Errors
    /// If the server is not a standby, or is not promoted in time.
    pub fn promote(&self) -> Result<()> {
        let mut command = self.command("pg_ctl");
        command.args(["promote", "--pgdata"]).arg(self.data());
        run(command, "pg_ctl").map(drop)
    }

    fn end(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = Pid::from_raw(child.id() as i32);
        let _ = kill(pid, signal);
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    fn make_cluster(&self) -> Result<()> {
        let mut command = self.command("initdb");
        command.arg("-D").arg(self.data());
        command.args(["--username=larder", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        run(command, "initdb").map(drop)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            let mut probe = self.command("pg_isready");
            probe.arg("-q").arg("-h").arg(self.folder.path());
            if let Some(port) = self.port {
                probe.args(["-p", &port.to_string()]);
            }
            if probe.status().is_ok_and(|status| status.success()) {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("postgres ended with {status}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("postgres did not accept connections within 30 s: {}", self.log())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(&self.binaries, name));
        command.current_dir(self.folder.path()).env_remove("PGOPTIONS").env("LC_ALL", "C");
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

/// Runs a program, and returns its standard output.
pub(crate) fn run(mut command: Command, name: &str) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Returns a port without a listener.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // A paused process would ignore the shutdown.
        self.resume();
        self.stop();
    }
}
