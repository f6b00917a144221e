//! Tracks whether a server responds.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// Time limit for a server to respond to a login. After it the server counts as silent, if there
/// are other servers.
pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(3);

/// How long a suspected server is tried after the others.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Times at which a server failed to respond.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// Connections that were opened before this time close, even if a call waits for a response on
    /// them.
    silent: watch::Sender<Option<Instant>>,
    /// Connections that were opened before this time are not reused.
    doubted: Mutex<Option<Instant>>,
    /// Since this time, the server is tried after the others.
    suspected: Mutex<Option<Instant>>,
    is_probed: AtomicBool,
}

impl Silence {
    /// Records that the server did not respond to a login that began at `asked_at`.
    ///
    /// All connections that were opened before then close. Otherwise each call on them would wait
    /// until its own deadline.
    pub(crate) fn begin(&self, asked_at: Instant) {
        self.suspect();
        self.silent.send_replace(Some(asked_at));
    }

    /// Records that an idle connection got no response. Other idle connections are likely broken
    /// too, because they use the same network.
    pub(crate) fn doubt(&self) {
        set_now(&self.doubted);
    }

    /// Records that the server responded to a login that began at `asked_at`.
    pub(crate) fn end_doubt(&self, asked_at: Instant) {
        let mut doubted = self.doubted.lock();
        *doubted = doubted.filter(|doubted| *doubted > asked_at);
    }

    /// Records that a connection could not be opened in time.
    pub(crate) fn suspect(&self) {
        set_now(&self.suspected);
    }

    /// Whether an idle connection that was opened at `made_at` must not be reused.
    pub(crate) fn is_doubted(&self, made_at: Instant) -> bool {
        get(&self.doubted).is_some_and(|doubted| made_at <= doubted)
    }

    /// Whether to try the other servers first.
    pub(crate) fn is_suspected(&self) -> bool {
        get(&self.suspected).is_some_and(|suspected| suspected.elapsed() < REMEMBERED)
    }

    /// Completes when a connection that was opened at `made_at` must close.
    pub(crate) fn closes(&self, made_at: Instant) -> impl Future<Output = ()> + use<> {
        let mut silent = self.silent.subscribe();
        async move {
            if silent.wait_for(|since| since.is_some_and(|since| made_at <= since)).await.is_err() {
                pending().await
            }
        }
    }

    /// Returns a guard that allows one caller at a time to probe the server. `None` if another
    /// caller holds it.
    pub(crate) fn begin_probe(self: &Arc<Self>) -> Option<Probing> {
        let is_free = !self.is_probed.swap(true, Ordering::AcqRel);
        is_free.then(|| Probing(self.clone()))
    }
}

/// A guard that holds the right to probe a server.
pub(crate) struct Probing(Arc<Silence>);

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.is_probed.store(false, Ordering::Release);
    }
}

fn set_now(moment: &Mutex<Option<Instant>>) {
    *moment.lock() = Some(Instant::now());
}

fn get(moment: &Mutex<Option<Instant>>) -> Option<Instant> {
    *moment.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_tried_last_for_half_a_minute() {
        let silence = Silence::default();
        assert!(!silence.is_suspected());
        silence.begin(Instant::now());
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(silence.is_suspected());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!silence.is_suspected());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closes_only_if_it_was_made_before_the_server_was_asked() {
        let silence = Silence::default();
        let before = Instant::now();
        let mut closes = Box::pin(silence.closes(before));
        silence.suspect();
        silence.doubt();
        assert_eq!(closes.as_mut().now_or_never(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        let asked_at = Instant::now();
        tokio::time::advance(Duration::from_millis(1)).await;
        let after = Instant::now();
        silence.begin(asked_at);
        assert_eq!(closes.now_or_never(), Some(()));
        assert_eq!(silence.closes(after).now_or_never(), None);
        assert!(silence.is_doubted(before) && !silence.is_doubted(after));
        silence.end_doubt(before);
        silence.doubt();
        assert!(silence.is_doubted(after));
        silence.end_doubt(Instant::now());
        assert!(!silence.is_doubted(after));
    }

    #[test]
    fn one_probe_at_a_time() {
        let silence = Arc::new(Silence::default());
        let probing = silence.begin_probe();
        assert!(probing.is_some() && silence.begin_probe().is_none());
        drop(probing);
        assert!(silence.begin_probe().is_some());
    }

    #[tokio::test]
    async fn a_connection_outlives_what_made_it() {
        let silence = Silence::default();
        let closes = silence.closes(Instant::now());
        drop(silence);
        assert_eq!(closes.now_or_never(), None);
    }
}
