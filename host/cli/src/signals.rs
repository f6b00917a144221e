//! What ends a command before it is done: a signal, or its time. The first one ends its work and lets its stores close, a
//! second signal ends it at once.
//!
//! Once the stores are closed, a signal ends the process at once: nothing is left that has to be done.
//!
//! A command that has nothing to close leaves signals to the system. It is killed, and the database rolls back.

use std::fmt;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::output::{complain, is_closed_pipe};

/// What ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A signal.
    Signal { name: &'static str, number: u8 },
    /// It took longer than it may.
    Timeout(Duration),
}

const SIGNALS: [(&str, u8); 3] = [("SIGHUP", 1), ("SIGINT", 2), ("SIGTERM", 15)];

/// How long a command may take to close before it says that it does.
const QUIET: Duration = Duration::from_millis(300);

/// How long work that is ended may take to give way before its stores close under it.
const GRACE: Duration = Duration::from_millis(100);

/// Whether all stores are closed.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// What has ended the command; `None` as long as nothing has.
static ENDED: OnceLock<watch::Sender<Option<Ended>>> = OnceLock::new();

impl Ended {
    /// The exit code of a shell for a command that the signal killed, and that of `timeout` for one that took too long.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Signal { number, .. } => 128 + number,
            Self::Timeout(_) => 124,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal { name, .. } => write!(formatter, "{name} ended the command"),
            Self::Timeout(limit) => {
                let limit = humantime::format_duration(*limit);
                write!(
                    formatter,
                    "the component ran for {limit} and was ended; `--timeout` lets it run longer"
                )
            }
        }
    }
}

impl std::error::Error for Ended {}

/// Catches signals from now on. Signals that the process was started to ignore, as by `nohup`, stay ignored.
pub(crate) fn catch() -> Result<()> {
    if ENDED.set(watch::channel(None).0).is_err() {
        return Ok(());
    }
    let ignored = ignored();
    for (name, number) in SIGNALS.into_iter().filter(|(_, number)| ignored & (1 << (number - 1)) == 0) {
        let signals = signal(SignalKind::from_raw(number.into()));
        let signals = signals.with_context(|| format!("cannot catch {name}"))?;
        tokio::spawn(watch_for(signals, Ended::Signal { name, number }));
    }
    Ok(())
}

async fn watch_for(mut signals: Signal, ended: Ended) {
    while signals.recv().await.is_some() {
        // In this order: whoever closes the stores does the opposite, so one of the two sees the other.
        if !end(ended) || IS_CLOSED.load(Ordering::SeqCst) {
            std::process::exit(ended.exit_code().into());
        }
        tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            complain(format_args!("{ended}; closing its stores, a second signal ends it at once"));
        });
    }
}

/// Ends the command that [`catch`] was called for, and says whether this is what ended it.
fn end(ended: Ended) -> bool {
    let Some(sender) = ENDED.get() else { return false };
    sender.send_if_modified(|first| {
        let is_first = first.is_none();
        first.get_or_insert(ended);
        is_first
    })
}

/// Ends the command that [`catch`] was called for after this time, unless that is aborted.
pub(crate) fn end_after(limit: Duration) -> AbortHandle {
    let waiting = tokio::spawn(async move {
        tokio::time::sleep(limit).await;
        let ended = Ended::Timeout(limit);
        if end(ended) {
            complain(ended);
        }
    });
    waiting.abort_handle()
}

/// The signals that this process ignores, a bit each. Systems that don't tell have none.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status).unwrap_or_default()
}

fn parse_ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Waits until the command is ended; for ever if nothing can end it.
pub(crate) async fn ended() -> Ended {
    if let Some(mut ended) = ENDED.get().map(watch::Sender::subscribe)
        && let Ok(first) = ended.wait_for(Option::is_some).await
        && let Some(ended) = *first
    {
        return ended;
    }
    std::future::pending().await
}

/// Works until the command is ended. The work is dropped then.
///
/// # Errors
/// The work's, and [`Ended`].
pub(crate) async fn until_ended<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        ended = ended() => Err(ended.into()),
        outcome = work => outcome,
    }
}

/// Works on a thread of its own until the command is ended: a component that loops, and a pipe at the other end of which
/// nobody reads or writes, keep no signal from being noticed. Work that waits is dropped when the command is ended. Other
/// work is left behind, and ends with the process.
///
/// # Errors
/// The work's, and [`Ended`].
pub(crate) async fn on_own_thread<T, W>(work: impl FnOnce() -> W + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    W: Future<Output = Result<T>>,
{
    let runtime = Handle::current();
    let mut working = tokio::task::spawn_blocking(move || runtime.block_on(until_ended(work())));
    tokio::select! {
        biased;
        ended = ended() => {
            drop(tokio::time::timeout(GRACE, working).await);
            Err(ended.into())
        }
        outcome = &mut working => outcome?,
    }
}

/// What became of a command whose stores are closed by now. From here on a signal ends the process at once.
///
/// # Errors
/// The command's, and [`Ended`] if a signal came while the stores closed.
pub(crate) fn closed<T>(outcome: Result<T>) -> Result<T> {
    IS_CLOSED.store(true, Ordering::SeqCst);
    let Some(signal) = signalled() else { return outcome };
    if let Err(error) = outcome
        && !error.is::<Ended>()
        && !is_closed_pipe(&error)
    {
        complain(format_args!("{error:#}"));
    }
    Err(signal.into())
}

fn signalled() -> Option<Ended> {
    let ended = *ENDED.get()?.borrow();
    ended.filter(|ended| matches!(ended, Ended::Signal { .. }))
}

/// Ends the process, if its command was ended. A component that computes on another thread ends with it.
pub(crate) fn exit_if_ended(outcome: &Result<ExitCode>) {
    if let Err(error) = outcome
        && let Some(ended) = error.downcast_ref::<Ended>()
    {
        std::process::exit(ended.exit_code().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_while_the_stores_close_is_what_ended_the_command() {
        ENDED.set(watch::channel(None).0).unwrap();
        assert_eq!(closed(Ok(7)).unwrap(), 7);
        assert!(end(Ended::Signal { name: "SIGTERM", number: 15 }));
        for outcome in [Ok(7), Err(anyhow::anyhow!("the component trapped"))] {
            let ended = closed(outcome).unwrap_err();
            assert_eq!(ended.downcast_ref::<Ended>().unwrap().exit_code(), 143);
        }
    }

    #[test]
    fn the_ignored_signals_are_those_of_the_kernels_mask() {
        let status = "Name:\tlarder\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t1\n";
        assert_eq!(parse_ignored(status), Some(0x1001));
        assert_eq!(parse_ignored("Name:\tlarder\n"), None);
        assert_eq!(parse_ignored("SigIgn:\tnone\n"), None);
    }
}
