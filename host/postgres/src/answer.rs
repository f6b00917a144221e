//! How long to wait for a server's answer.

use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use crate::session::Session;
use crate::silence::ANSWER_MAX;

/// How often to find out whether a server is silent that is slow to answer.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Waits for work in a session for up to `max`. `None` means that it did not end.
///
/// If there is no answer after [`ANSWER_MAX`], this finds out whether the server is silent, and again from time to time. Otherwise the work would wait for a
/// silent server until `max`.
pub(crate) async fn answered<T>(
    session: &mut Session,
    max: Duration,
    work: impl AsyncFnOnce(&mut Session) -> T,
) -> Option<T> {
    let prober = session.prober();
    let mut work = pin!(work(session));
    let mut waited = Duration::ZERO;
    for pause in std::iter::once(ANSWER_MAX).chain(std::iter::repeat(PROBE_INTERVAL)) {
        let pause = pause.min(max.saturating_sub(waited));
        if let Ok(outcome) = timeout(pause, work.as_mut()).await {
            return Some(outcome);
        }
        waited += pause;
        if waited >= max {
            break;
        }
        if let Some(prober) = &prober {
            prober.probe();
        }
    }
    None
}
