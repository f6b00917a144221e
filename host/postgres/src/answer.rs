//! How long to wait for a server's answer.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::session::Session;
use crate::silence::ANSWER_MAX;

/// Waits for work in a session for up to `max`. `None` means that it did not end.
///
/// If there is no answer after [`ANSWER_MAX`], this finds out whether the server is silent. Otherwise the work would wait for a
/// silent server until `max`.
pub(crate) async fn answered<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> T,
) -> Option<T> {
    let prober = session.prober();
    let mut work = pin!(work(session));
    if let Ok(outcome) = timeout(ANSWER_MAX, work.as_mut()).await {
        return Some(outcome);
    }
    if let Some(prober) = prober {
        prober.probe();
    }
    timeout(max.saturating_sub(ANSWER_MAX), work).await.ok()
}
