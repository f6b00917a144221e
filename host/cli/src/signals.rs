//! Signals that end a command: the first one ends its work and lets its stores close, a second one ends at once.
//!
//! A command that has nothing to close leaves signals to the system. It is killed, and the database rolls back.

use std::fmt;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::output::complain;

/// A signal that ends a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    name: &'static str,
    number: u8,
}

const SIGNALS: [Ended; 3] = [
    Ended { name: "SIGHUP", number: 1 },
    Ended { name: "SIGINT", number: 2 },
    Ended { name: "SIGTERM", number: 15 },
];

/// How long a command may take to close before it says that it does.
const QUIET: Duration = Duration::from_millis(300);

/// The first signal; `None` as long as there was none.
static CAUGHT: OnceLock<watch::Receiver<Option<Ended>>> = OnceLock::new();

impl Ended {
    /// The exit code of a shell for a command that the signal killed.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.number
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ended the command", self.name)
    }
}

impl std::error::Error for Ended {}

/// Catches signals from now on. Signals that the process was started to ignore, as by `nohup`, stay ignored.
pub(crate) fn catch() -> Result<()> {
    let (sender, receiver) = watch::channel(None);
    if CAUGHT.set(receiver).is_err() {
        return Ok(());
    }
    let ignored = ignored();
    for ended in SIGNALS.into_iter().filter(|ended| ignored & (1 << (ended.number - 1)) == 0) {
        let kind = SignalKind::from_raw(ended.number.into());
        let signals = signal(kind).with_context(|| format!("cannot catch {}", ended.name))?;
        tokio::spawn(watch_for(signals, ended, sender.clone()));
    }
    Ok(())
}

async fn watch_for(mut signals: Signal, ended: Ended, first: watch::Sender<Option<Ended>>) {
    while signals.recv().await.is_some() {
        let is_first = first.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(ended);
            is_first
        });
        if !is_first {
            std::process::exit(ended.exit_code().into());
        }
        tokio::spawn(async move {
            tokio::time::sleep(QUIET).await;
            complain(format_args!("{ended}; closing its stores, a second signal ends it at once"));
        });
    }
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

/// Waits for the first signal; for ever if none are caught.
pub(crate) async fn caught() -> Ended {
    if let Some(mut caught) = CAUGHT.get().cloned()
        && let Ok(first) = caught.wait_for(Option::is_some).await
        && let Some(ended) = *first
    {
        return ended;
    }
    std::future::pending().await
}

/// Works until a signal comes. The work is dropped then.
///
/// # Errors
/// The work's, and [`Ended`].
pub(crate) async fn until_signal<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        ended = caught() => Err(ended.into()),
        outcome = work => outcome,
    }
}

/// Ends the process, if a signal ended its command. A component that computes on another thread ends with it.
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
    fn the_ignored_signals_are_those_of_the_kernels_mask() {
        let status = "Name:\tlarder\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t1\n";
        assert_eq!(parse_ignored(status), Some(0x1001));
        assert_eq!(parse_ignored("Name:\tlarder\n"), None);
        assert_eq!(parse_ignored("SigIgn:\tnone\n"), None);
    }
}
