//! A private Postgres server: own data, own socket, no port, gone with the test program.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use larder_host::drivers;
use larder_suite::{Bench, PostgresBench};
use libtest_mimic::Arguments;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User};
use tempfile::TempDir;

/// A running server.
pub(crate) struct PostgresServer {
    folder: TempDir,
    binaries: PathBuf,
    owner: Option<(u32, u32)>,
    child: Option<Child>,
}

/// Names a server that is used instead of a private one.
const URL_VARIABLE: &str = "LARDER_TEST_POSTGRES_URL";

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

/// The server that the environment names, or a private one.
pub(crate) fn server_or_url() -> Result<(Option<PostgresServer>, String)> {
    if let Ok(url) = std::env::var(URL_VARIABLE) {
        return Ok((None, url));
    }
    let server = PostgresServer::start()?;
    let dsn = server.dsn();
    Ok((Some(server), dsn))
}

impl PostgresServer {
    /// Makes a database cluster in a temporary folder and starts a server on it. To be called on the program's main
    /// thread: the server ends with the thread that started it.
    pub(crate) fn start() -> Result<Self> {
        let binaries = binaries()?;
        let owner = owner()?;
        let folder = tempfile::Builder::new().prefix("larder-pg-").tempdir()?;
        if let Some((user, group)) = owner {
            nix::unistd::chown(folder.path(), Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700))?;
        let mut server = Self { folder, binaries, owner, child: None };
        server.make_cluster()?;
        server.launch()?;
        Ok(server)
    }

    /// The data-source name of its database.
    pub(crate) fn dsn(&self) -> String {
        format!("host={} user=larder dbname=postgres", self.folder.path().display())
    }

    /// Where its socket is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What makes one of its databases anew, as statements that any client can send.
    pub(crate) fn dump(&self, database: &str) -> Result<String> {
        let mut command = self.command("pg_dump");
        command.arg("--host").arg(self.folder.path()).args(["--username=larder", "--inserts", "--no-owner"]);
        let output =
            command.args(["--no-privileges", database]).output().context("could not start pg_dump")?;
        if !output.status.success() {
            bail!("pg_dump failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let dump = String::from_utf8(output.stdout)?;
        // Lines with a backslash are for `psql`.
        let is_sql = |line: &&str| !line.is_empty() && !line.starts_with("--") && !line.starts_with('\\');
        Ok(dump.lines().filter(is_sql).flat_map(|line| [line, "\n"]).collect())
    }

    /// Starts it again after [`PostgresServer::crash`] or [`PostgresServer::stop`].
    pub(crate) fn launch(&mut self) -> Result<()> {
        let data = self.data();
        let mut command = self.command("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(self.folder.path());
        for setting in ["listen_addresses=", "max_connections=400", "shared_buffers=64MB", "fsync=off"] {
            command.args(["-c", setting]);
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
    pub(crate) fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Kills its postmaster; what it had not written is lost to it.
    pub(crate) fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
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
        let output = command.output().context("could not start initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            let mut probe = self.command("pg_isready");
            probe.arg("-q").arg("-h").arg(self.folder.path());
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

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(self.folder.path()).env_remove("PGOPTIONS").env("LC_ALL", "C");
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the server's programs are: the newest of those that Debian and its kin install, or of the folder that the
/// test command has filled.
fn binaries() -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LARDER_TEST_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|version| version.path()).collect();
        versions.sort_by_key(|path| {
            path.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<u32>().ok())
        });
        folders.extend(versions.into_iter().rev().map(|version| version.join("bin")));
    }
    folders.into_iter().find(|folder| folder.join("initdb").is_file()).context(
        "no Postgres was found: run `tests/run`, which installs one, or set LARDER_TEST_POSTGRES_BIN",
    )
}

/// Postgres refuses root: then the server belongs to somebody else.
fn owner() -> Result<Option<(u32, u32)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    bail!("Postgres refuses to run as root, and there is neither a user `postgres` nor `nobody`")
}
