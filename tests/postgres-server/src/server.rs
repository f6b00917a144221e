//! Starting and ending a server.

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

/// A running server.
#[derive(Debug)]
pub struct PostgresServer {
    folder: TempDir,
    binaries: PathBuf,
    owner: Option<(u32, u32)>,
    child: Option<Child>,
    settings: Vec<String>,
    /// On 127.0.0.1, if it listens there too.
    port: Option<u16>,
}

/// What every server is set to: for clients of this machine that come and go.
const SETTINGS: [&str; 3] = ["listen_addresses=", "max_connections=400", "shared_buffers=64MB"];

impl PostgresServer {
    /// Makes a database cluster in a temporary folder and starts a server on it. To be called on the program's main
    /// thread: the server ends with the thread that started it.
    ///
    /// It does not wait for the disk: for tests, whose data nobody needs after a power cut.
    ///
    /// # Errors
    /// Where there are no programs of a server, or they fail.
    pub fn start() -> Result<Self> {
        Self::start_with(&["fsync=off"])
    }

    /// As [`PostgresServer::start`], with settings of the caller's own, which are stronger than the others.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
    pub fn start_with(settings: &[&str]) -> Result<Self> {
        let mut server = Self::make(settings)?;
        server.launch()?;
        Ok(server)
    }

    /// As [`PostgresServer::start_with`], as a standby of another server.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
    pub fn start_as_standby(primary: &Self, settings: &[&str]) -> Result<Self> {
        let mut server = Self::without_cluster(settings)?;
        server.follow(primary)?;
        Ok(server)
    }

    /// As [`PostgresServer::start_with`], on a port of 127.0.0.1 too, with files in its data folder that only its user can
    /// read, such as `pg_hba.conf` and certificates.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
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
        // Another program can take a port that was free before the server does.
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

    /// The data-source name of its database.
    pub fn dsn(&self) -> String {
        let port = self.port.map(|port| format!(" port={port}")).unwrap_or_default();
        format!("host={}{port} user=larder dbname=postgres", self.folder.path().display())
    }

    /// Its port of 127.0.0.1, if it was started with one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Where its socket is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs SQL in its database.
    ///
    /// # Errors
    /// Where `psql` fails.
    pub fn execute(&self, sql: &str) -> Result<()> {
        let mut command = self.command("psql");
        command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--command", sql, &self.dsn()]);
        run(command, "psql").map(drop)
    }

    /// What makes one of its databases anew, as statements that any client can send.
    ///
    /// # Errors
    /// Where `pg_dump` fails.
    pub fn dump(&self, database: &str) -> Result<String> {
        let mut command = self.command("pg_dump");
        command.arg("--host").arg(self.folder.path()).args(["--username=larder", "--inserts", "--no-owner"]);
        command.args(["--no-privileges", database]);
        let dump = String::from_utf8(run(command, "pg_dump")?)?;
        // Lines with a backslash are for `psql`.
        let is_sql = |line: &&str| !line.is_empty() && !line.starts_with("--") && !line.starts_with('\\');
        Ok(dump.lines().filter(is_sql).flat_map(|line| [line, "\n"]).collect())
    }

    /// Starts it again after [`PostgresServer::crash`] or [`PostgresServer::stop`].
    ///
    /// # Errors
    /// Where it ends at once, or does not answer in time.
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
        self.child = Some(command.spawn().context("could not start postgres")?);
        self.wait_until_ready()
    }

    /// Ends it in good order, cutting off its clients.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Kills its postmaster; what it had not written is lost to it.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Kills all its processes.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.end(Signal::SIGKILL);
    }

    /// Holds all its processes: connections stay open and nothing answers, until [`PostgresServer::resume`] or
    /// [`PostgresServer::kill`].
    pub fn hold(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets its processes go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        signal_all(&self.processes(), signal);
    }

    /// The process that was started, and its children.
    fn processes(&self) -> Vec<Pid> {
        let Some(child) = &self.child else { return Vec::new() };
        let server = Pid::from_raw(child.id() as i32);
        std::iter::once(server).chain(descendants(server)).collect()
    }

    /// Takes a copy of another server's data in place of its own, and follows that server. It must not run.
    ///
    /// # Errors
    /// As [`PostgresServer::start`].
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

    /// Makes a standby a primary.
    ///
    /// # Errors
    /// If it is not a standby, or does not become a primary in time.
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
        bail!("postgres was not ready within 30 s: {}", self.log())
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

/// What a program says, once it has ended well.
pub(crate) fn run(mut command: Command, name: &str) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("could not start {name}"))?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// A port that no program listens on.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // Processes that are held would stay.
        self.resume();
        self.stop();
    }
}
