//! How long to wait for a server's answer.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::error::{Failure, Result};
use crate::session::Session;
use crate::silence::ANSWER_MAX;

/// How often to find out whether a slow server is silent.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Waits for work in a session for up to `max`. `None` means that it did not end.
///
/// If there is no answer after [`ANSWER_MAX`], this finds out whether the server is silent, and
/// again after each [`PROBE_INTERVAL`]. Otherwise the work would wait for a silent server until
/// `max`.
pub(crate) async fn answered<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> T,
) -> Option<T> {
    let prober = session.prober();
    let mut work = pin!(work(session));
    let (mut pause, mut left) = (ANSWER_MAX, max);
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

/// The same, with [`Failure::Stalled`] if the work did not end.
pub(crate) async fn answered_or_stalled<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    let stalled = || Err(Failure::Stalled("the database did not answer in time"));
    answered(session, max, work).await.unwrap_or_else(stalled)
}
