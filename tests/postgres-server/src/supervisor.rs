//! Runs a program with all its descendants as if on one machine, which can be killed or paused as a
//! whole.
//!
//! Under Patroni, Postgres is not a child process of Patroni, so it would keep running if Patroni
//! or the test ended. A supervisor adopts it. The supervisor is a process between the test and the
//! program, and runs the test's own executable. It reaps ended processes like the init process of a
//! machine, because Postgres does not start while the process in its old lock file is a zombie.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::processes::{descendants, signal_all};

/// Marks a process as a supervisor, and names the user and group to run its program as.
const VARIABLE: &str = "LARDER_TEST_SUPERVISOR";

const PAUSE: Duration = Duration::from_millis(10);

/// A program and its descendants. They are killed when this is dropped, or when this process ends.
#[derive(Debug)]
pub(crate) struct Supervised {
    /// Its standard input closes when this process ends. Then it kills the program.
    supervisor: Child,
}

impl Supervised {
    /// Starts a program as `owner`, with `folder` as its working directory.
    pub(crate) fn start(
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        folder: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<Self> {
        let log = File::options().create(true).append(true).open(folder.join("log"))?;
        let owner = owner.map(|(user, group)| format!("{user}:{group}")).unwrap_or_default();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(program).args(arguments).current_dir(folder).env(VARIABLE, owner).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // Otherwise Ctrl-C in a terminal would end the supervisor before it can kill the program.
        command.process_group(0);
        let supervisor =
            command.spawn().with_context(|| format!("cannot start a supervisor of {}", program.display()))?;
        Ok(Self { supervisor })
    }

    /// Whether any of its processes is running.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.supervisor.try_wait(), Ok(None))
    }

    /// Kills all its processes.
    pub(crate) fn kill(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }

    /// Pauses all its processes with `SIGSTOP`, until [`Supervised::resume`] or
    /// [`Supervised::kill`].
    pub(crate) fn hold(&self) {
        // A process that is not paused yet can start others.
        let mut held = Vec::new();
        loop {
            let mut processes = self.processes();
            processes.retain(|process| !held.contains(process));
            if processes.is_empty() {
                return;
            }
            signal_all(&processes, Signal::SIGSTOP);
            held.append(&mut processes);
        }
    }

    /// Resumes all its processes.
    pub(crate) fn resume(&self) {
        signal_all(&self.processes(), Signal::SIGCONT);
    }

    /// Sends `SIGTERM` to the program, and does not wait for it.
    pub(crate) fn terminate(&self) {
        let program: Vec<_> = self.processes().into_iter().take(1).collect();
        signal_all(&program, Signal::SIGTERM);
    }

    /// Waits until the program and all its descendants have ended, at most until `end`.
    pub(crate) fn wait_until(&mut self, end: Instant) {
        while self.runs() && Instant::now() < end {
            std::thread::sleep(PAUSE);
        }
    }

    fn processes(&self) -> Vec<Pid> {
        descendants(Pid::from_raw(self.supervisor.id() as i32))
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs as a supervisor and exits, if this process was started as one.
///
/// A test that uses a [`PatroniCluster`](crate::PatroniCluster) calls this before anything else.
pub fn supervise_if_asked() {
    let Ok(owner) = std::env::var(VARIABLE) else { return };
    if let Err(error) = supervise(&owner) {
        eprintln!("cannot supervise the program: {error:#}");
        std::process::exit(1);
    }
    std::process::exit(0);
}

/// Runs the program in the command-line arguments until it and its descendants have ended, or
/// standard input closes.
fn supervise(owner: &str) -> Result<()> {
    prctl::set_child_subreaper(true)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut command =
        Command::new(arguments.next().context("the command line of the supervisor names no program")?);
    command.args(arguments).stdin(Stdio::null()).env_remove(VARIABLE).env_remove("PGOPTIONS");
    if let Some((user, group)) = owner.split_once(':') {
        command.uid(user.parse()?).gid(group.parse()?);
    }
    drop(command.spawn().context("cannot start the program")?);
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        loop {
            signal_all(&descendants(Pid::this()), Signal::SIGKILL);
            std::thread::sleep(PAUSE);
        }
    });
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => bail!(error),
        }
    }
}
