//! Starts a PgBouncer in front of a server.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid};
use tempfile::TempDir;

use crate::PostgresServer;
use crate::programs::owner;
use crate::server::free_port;

/// Environment variable with paths of further PgBouncer programs to test, separated by colons.
const PROGRAMS_VARIABLE: &str = "LARDER_TEST_PGBOUNCER";

/// Paths at which packages install PgBouncer.
const INSTALLED: [&str; 3] = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];

/// How long PgBouncer assigns a server session to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Until the client disconnects.
    Session,
    /// For one transaction.
    Transaction,
}

/// A running PgBouncer, which ends with the thread that started it.
///
/// ```no_run
/// use larder_postgres_server::{PgBouncer, PoolMode, PostgresServer};
///
/// let server = PostgresServer::start()?;
/// for program in PgBouncer::programs()? {
///     let bouncer = PgBouncer::start(&program, &server, PoolMode::Transaction)?;
///     println!("{}", bouncer.dsn());
/// }
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Debug)]
pub struct PgBouncer {
    folder: TempDir,
    child: Child,
    port: u16,
}

impl PgBouncer {
    /// Returns the programs to test: the installed one, and those in `LARDER_TEST_PGBOUNCER`.
    ///
    /// # Errors
    /// If there are none.
    pub fn programs() -> Result<Vec<PathBuf>> {
        let installed = INSTALLED.iter().map(PathBuf::from).find(|program| program.is_file());
        let named = std::env::var_os(PROGRAMS_VARIABLE).unwrap_or_default();
        let named = std::env::split_paths(&named).filter(|program| !program.as_os_str().is_empty());
        let programs: Vec<_> = installed.into_iter().chain(named).collect();
        if programs.is_empty() {
            bail!("no PgBouncer was found; run `tests/run`, which installs one, or set {PROGRAMS_VARIABLE}");
        }
        Ok(programs)
    }

    /// Returns each program with each pool mode.
    ///
    /// # Errors
    /// If there is no program.
    pub fn programs_and_modes() -> Result<Vec<(PathBuf, PoolMode)>> {
        let modes = [PoolMode::Session, PoolMode::Transaction];
        Ok(Self::programs()?
            .into_iter()
            .flat_map(|program| modes.map(|mode| (program.clone(), mode)))
            .collect())
    }

    /// Starts a program in front of a server.
    ///
    /// Call this on a thread that outlives the PgBouncer, such as the main thread. In transaction
    /// mode it opens few server sessions, so that clients share them.
    ///
    /// # Errors
    /// If the program does not start within 10 s.
    pub fn start(program: &Path, server: &PostgresServer, mode: PoolMode) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-pgbouncer-").tempdir()?;
        let port = free_port()?;
        let (mode, sessions) = match mode {
            PoolMode::Session => ("session", 300),
            PoolMode::Transaction => ("transaction", 20),
        };
        // Every client is logged in as the user in `[databases]`.
        let settings = format!(
            "[databases]\n* = user=larder host={}{}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {mode}\ndefault_pool_size = {sessions}\nmax_client_conn = 2000\n\
             server_round_robin = 1\n",
            server.folder().display(),
            server.port().map(|port| format!(" port={port}")).unwrap_or_default(),
        );
        let path = folder.path().join("pgbouncer.ini");
        fs::write(&path, settings)?;
        let mut command = Command::new(program);
        if let Some((user, group)) = owner()? {
            for owned in [folder.path(), &path] {
                nix::unistd::chown(owned, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
            }
            command.uid(user).gid(group);
        }
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        let log = fs::File::create(folder.path().join("log"))?;
        command
            .arg(&path)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: the call is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut bouncer = Self { folder, child, port };
        bouncer.wait_until_ready()?;
        Ok(bouncer)
    }

    /// Returns the data-source name of the server's database, through PgBouncer.
    pub fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=larder dbname=postgres", self.port)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                bail!("pgbouncer ended with {status}: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("pgbouncer did not accept connections within 10 s")
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
