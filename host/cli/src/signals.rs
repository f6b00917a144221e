//! Ending a command early, by a signal or a timeout. The first one ends the command's work and then
//! its stores are closed. A second signal ends the process at once.
//!
//! Once the stores are closed, a signal ends the process at once.
//!
//! A command that has nothing to close does not catch signals. The signal kills it, and the
//! database rolls back.

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

/// Why a command was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A signal arrived.
    Signal { name: &'static str, number: u8 },
    /// The component exceeded its timeout.
    Timeout(Duration),
}

const SIGNALS: [(&str, u8); 3] = [("SIGHUP", 1), ("SIGINT", 2), ("SIGTERM", 15)];

/// The time after a signal until the command reports that it is closing its stores.
const QUIET: Duration = Duration::from_millis(300);

/// The time that ended work has to stop before its stores are closed.
const GRACE: Duration = Duration::from_millis(100);

/// Whether all stores are closed.
static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Why the command was ended; `None` if it was not.
static ENDED: OnceLock<watch::Sender<Option<Ended>>> = OnceLock::new();

impl Ended {
    /// The exit code that a shell gives a command that the signal killed, or that `timeout` gives a
    /// command that takes too long.
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
                    "the component was stopped after its time limit of {limit}; raise the limit with --timeout"
                )
            }
        }
    }
}

impl std::error::Error for Ended {}

/// Starts to catch signals. Signals that the process was started to ignore, for example by `nohup`,
/// stay ignored.
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
        // The order matters: `closed` sets and checks these two in the opposite order, so at least
        // one of the two tasks sees the other.
        if !end(ended) || IS_CLOSED.load(Ordering::SeqCst) {
            std::process::exit(ended.exit_code().into());
        }
        tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            complain(format_args!("{ended}; closing its stores; send a second signal to end it at once"));
        });
    }
}

/// Ends the command that called [`catch`]. Returns whether this call was the first to end it.
fn end(ended: Ended) -> bool {
    let Some(sender) = ENDED.get() else { return false };
    sender.send_if_modified(|first| {
        let is_first = first.is_none();
        first.get_or_insert(ended);
        is_first
    })
}

/// Ends the command that called [`catch`] after this time, unless the returned task is aborted.
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

/// The signals that this process ignores, one bit each; 0 on systems without `/proc`.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status).unwrap_or_default()
}

fn parse_ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Waits until the command is ended. Never returns if no signal is caught.
pub(crate) async fn ended() -> Ended {
    if let Some(mut ended) = ENDED.get().map(watch::Sender::subscribe)
        && let Ok(first) = ended.wait_for(Option::is_some).await
        && let Some(ended) = *first
    {
        return ended;
    }
    std::future::pending().await
}

/// Runs work until it is done or the command is ended. In the latter case, the work is dropped.
///
/// # Errors
/// - [`Ended`] if the command was ended.
/// - The error of the work.
pub(crate) async fn until_ended<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        ended = ended() => Err(ended.into()),
        outcome = work => outcome,
    }
}

/// Runs work on a separate thread until it is done or the command is ended.
///
/// So a component that loops, or a blocked pipe, cannot delay the handling of signals. When the
/// command is ended, work that waits is dropped. Other work continues until the process exits.
///
/// # Errors
/// - [`Ended`] if the command was ended.
/// - The error of the work.
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

/// Records that all stores are closed, and returns the outcome of the command. After this, a signal
/// ends the process at once.
///
/// # Errors
/// - [`Ended`] if a signal arrived before the stores were closed.
/// - The error of the command.
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

/// Exits the process if its command was ended. This also ends a component that computes on another
/// thread.
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
