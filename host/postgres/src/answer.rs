//! Timeouts for responses of the server.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Failure, Result};
use crate::session::Session;
use crate::silence::SILENT_AFTER;

/// How often to probe a server that has not responded yet.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Runs work in a session for up to `max`. Returns `None` if it did not complete.
///
/// If the server has not responded after [`SILENT_AFTER`], this probes it, and again after each
/// [`PROBE_INTERVAL`]. Otherwise the work would wait for a silent server until `max`.
pub(crate) async fn answered<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> T,
) -> Option<T> {
    let prober = session.prober();
    let mut work = pin!(work(session));
    let (mut pause, mut left) = (SILENT_AFTER, max);
    loop {
        if let Ok(outcome) = timeout(pause.min(left), work.as_mut()).await {
            return Some(outcome);
        }
        left = left.saturating_sub(pause);
        if left.is_zero() {
            return None;
        }
        if let Some(prober) = &prober {
            prober.probe();
        }
        pause = PROBE_INTERVAL;
    }
}

/// Like [`answered`], but returns [`Failure::Stalled`] if the work did not complete.
pub(crate) async fn answered_or_stalled<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let stalled = || Err(Failure::Stalled("timed out while waiting for a response of the database"));
    answered(session, max, work).await.unwrap_or_else(stalled)
}
