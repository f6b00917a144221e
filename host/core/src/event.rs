//! What the platform that embeds larder is told.

use std::time::Duration;

use crate::error::Error;

/// Something that the platform may want to log, count or act on. Guests never see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A guest asked for what it was not granted.
    AccessDenied {
        /// The store's name, as the guest wrote it.
        store: String,
        /// What it called.
        operation: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// A transaction outlived its deadline and was rolled back.
    TransactionTimedOut {
        /// The store's name in the host.
        store: String,
        /// How long it may have been open.
        timeout: Duration,
    },
    /// Work that no caller waits for failed; it is tried again.
    BackgroundFailed {
        /// The store's name in the host.
        store: String,
        /// What was being done.
        work: &'static str,
        /// Why it failed.
        error: Error,
    },
}

impl Event {
    /// Its name, the same in every release.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AccessDenied { .. } => "store.access_denied",
            Self::TransactionTimedOut { .. } => "transaction.timed_out",
            Self::BackgroundFailed { .. } => "store.background_failed",
        }
    }

    /// Its fields as text.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::AccessDenied { store, operation, reason } => {
                vec![
                    ("store", store.clone()),
                    ("operation", operation.to_string()),
                    ("reason", reason.clone()),
                ]
            }
            Self::TransactionTimedOut { store, timeout } => {
                vec![("store", store.clone()), ("timeout_ms", timeout.as_millis().to_string())]
            }
            Self::BackgroundFailed { store, work, error } => {
                vec![("store", store.clone()), ("work", work.to_string()), ("error", error.to_string())]
            }
        }
    }
}

/// Where events go. Called on the path of the guest's call: it must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// Writes events to `tracing`, as warnings.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingEvents;

impl EventSink for TracingEvents {
    fn emit(&self, event: Event) {
        tracing::warn!(target: "larder", event = event.name(), fields = ?event.fields());
    }
}
