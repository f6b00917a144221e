//! What the platform that embeds larder is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::Error;
use crate::memory::{Health, IdentityParts};

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
    /// A transaction was rolled back because its snapshot kept from others what they wait for.
    SnapshotEnded {
        /// The store's name in the host.
        store: String,
        /// What others wait for.
        reason: SnapshotEndReason,
        /// How old the snapshot was.
        age: Duration,
    },
    /// A guest named an identity that it may not open, or none.
    MemoryIdentityRejected {
        /// What it called.
        operation: &'static str,
        /// Why it was refused.
        reason: String,
        /// What it named; tenant, user and session are `<missing>` where they were empty.
        identity: IdentityParts,
    },
    /// Summarising goes another way in a session.
    MemoryHealthChanged {
        /// Whose session.
        identity: IdentityParts,
        /// What it was.
        prior: Health,
        /// What it is.
        new: Health,
        /// Why: `summarizer_failed`, `retries_exhausted`, `summarizer_succeeded`, `recovery_attempt`,
        /// `recovery_failed`, `recovery_batch_summarised`, `recovered`, `host_closed` or `host_lost`.
        reason: &'static str,
    },
    /// Turns were dropped that waited for a summary.
    MemoryRecoveryDropped {
        /// Whose session.
        identity: IdentityParts,
        /// Why: `backlog_overflow`.
        reason: &'static str,
        /// How many.
        turns: usize,
    },
    /// What is stored of a session can't be read. It is left as it is.
    MemoryRecordCorrupt {
        /// Whose session.
        identity: IdentityParts,
        /// What is wrong with it.
        reason: String,
    },
    /// A tenant's database could not be kept and is in quarantine on this host, for an operator to look into.
    TenantQuarantined {
        /// Whose.
        tenant: String,
        /// Why.
        reason: String,
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

/// Why a snapshot was ended before its transaction's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotEndReason {
    /// It was idle, and another transaction waited for a connection.
    ConnectionWanted,
    /// It kept the write-ahead log from being used again, which had reached its bound.
    LogFull,
    /// It kept rows in memory that were replaced since, which had reached their bound.
    OldRowsFull,
}

impl SnapshotEndReason {
    /// Its name in [`Event::fields`], the same in every release.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectionWanted => "connection_wanted",
            Self::LogFull => "log_full",
            Self::OldRowsFull => "old_rows_full",
        }
    }
}

impl Event {
    /// Its name, the same in every release.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AccessDenied { .. } => "store.access_denied",
            Self::TransactionTimedOut { .. } => "transaction.timed_out",
            Self::SnapshotEnded { .. } => "transaction.snapshot_ended",
            Self::MemoryIdentityRejected { .. } => "memory.identity_rejected",
            Self::MemoryHealthChanged { .. } => "memory.health_changed",
            Self::MemoryRecoveryDropped { .. } => "memory.recovery_dropped",
            Self::MemoryRecordCorrupt { .. } => "memory.record_corrupt",
            Self::TenantQuarantined { .. } => "tenant.quarantined",
            Self::BackgroundFailed { .. } => "store.background_failed",
        }
    }

    /// What it comes from, to tell one storm of events from another: a store, an operation, or a tenant.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::AccessDenied { store, .. } | Self::TransactionTimedOut { store, .. } => store.clone(),
            Self::SnapshotEnded { store, reason, .. } => format!("{store}, {}", reason.name()),
            // What the guest named is its own choice.
            Self::MemoryIdentityRejected { operation, .. } => (*operation).to_string(),
            Self::MemoryHealthChanged { identity, .. }
            | Self::MemoryRecoveryDropped { identity, .. }
            | Self::MemoryRecordCorrupt { identity, .. } => identity.tenant.clone(),
            Self::TenantQuarantined { tenant, .. } => tenant.clone(),
            Self::BackgroundFailed { store, work, .. } => format!("{store}, {work}"),
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
            Self::SnapshotEnded { store, reason, age } => {
                vec![
                    ("store", store.clone()),
                    ("reason", reason.name().to_string()),
                    ("age_ms", age.as_millis().to_string()),
                ]
            }
            Self::MemoryIdentityRejected { operation, reason, identity } => {
                let said = [("operation", operation.to_string()), ("reason", reason.clone())];
                said.into_iter().chain(identity_fields(identity)).collect()
            }
            Self::MemoryHealthChanged { identity, prior, new, reason } => {
                let said = [
                    ("prior_health", prior.name().to_string()),
                    ("new_health", new.name().to_string()),
                    ("reason", reason.to_string()),
                ];
                said.into_iter().chain(identity_fields(identity)).collect()
            }
            Self::MemoryRecoveryDropped { identity, reason, turns } => {
                let said = [("reason", reason.to_string()), ("turns", turns.to_string())];
                said.into_iter().chain(identity_fields(identity)).collect()
            }
            Self::MemoryRecordCorrupt { identity, reason } => {
                [("reason", reason.clone())].into_iter().chain(identity_fields(identity)).collect()
            }
            Self::TenantQuarantined { tenant, reason } => {
                vec![("tenant", tenant.clone()), ("reason", reason.clone())]
            }
            Self::BackgroundFailed { store, work, error } => {
                vec![("store", store.clone()), ("work", work.to_string()), ("error", error.to_string())]
            }
        }
    }
}

fn identity_fields(identity: &IdentityParts) -> [(&'static str, String); 4] {
    let IdentityParts { tenant, user, session, run } = identity.clone();
    [("tenant", tenant), ("user", user), ("session", session), ("run", run)]
}

/// Where events go. Called on the path of the guest's call: it must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event.
    fn emit(&self, event: Event);

    /// Takes an event that stands for as many of its kind and source, as [`RatedEvents`] gives it. By default, the same as one.
    ///
    /// [`RatedEvents`]: crate::RatedEvents
    fn emit_repeated(&self, event: Event, times: u64) {
        let _ = times;
        self.emit(event);
    }
}

/// Writes events to `tracing`, as warnings.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingEvents;

impl EventSink for TracingEvents {
    fn emit(&self, event: Event) {
        tracing::warn!(target: "larder", event = event.name(), fields = ?event.fields());
    }

    fn emit_repeated(&self, event: Event, times: u64) {
        match times {
            1 => self.emit(event),
            _ => tracing::warn!(target: "larder", event = event.name(), times, fields = ?event.fields()),
        }
    }
}

/// Gives events to whoever subscribes, and to another sink. A subscriber that is slow loses the oldest, and delays
/// nobody.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::sync::Arc;
/// use larder_core::{Event, EventChannel, EventSink, Missed, TracingEvents};
///
/// let events = EventChannel::new(2, Arc::new(TracingEvents));
/// let mut subscriber = events.subscribe();
/// for reason in ["a", "b", "c"] {
///     let (store, operation) = ("notes".to_string(), "begin");
///     events.emit(Event::AccessDenied { store, operation, reason: reason.to_string() });
/// }
/// assert_eq!(subscriber.next().await.unwrap().unwrap_err(), Missed(1));
/// assert_eq!(subscriber.next().await.unwrap().unwrap().fields()[2].1, "b");
/// # }
/// ```
pub struct EventChannel {
    sender: broadcast::Sender<Event>,
    next: Arc<dyn EventSink>,
}

/// So many events were lost, as the subscriber was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed(pub u64);

impl EventChannel {
    /// A channel that keeps at least `capacity` events, 1 to 65,536, for each subscriber. Each event also goes to
    /// `next`.
    pub fn new(capacity: usize, next: Arc<dyn EventSink>) -> Self {
        Self { sender: broadcast::Sender::new(capacity.clamp(1, 1 << 16)), next }
    }

    /// The events from now on.
    pub fn subscribe(&self) -> EventSubscriber {
        EventSubscriber { receiver: self.sender.subscribe() }
    }
}

impl EventSink for EventChannel {
    fn emit(&self, event: Event) {
        // Nobody has to subscribe.
        drop(self.sender.send(event.clone()));
        self.next.emit(event);
    }

    fn emit_repeated(&self, event: Event, times: u64) {
        drop(self.sender.send(event.clone()));
        self.next.emit_repeated(event, times);
    }
}

/// Hears the events of an [`EventChannel`].
pub struct EventSubscriber {
    receiver: broadcast::Receiver<Event>,
}

impl EventSubscriber {
    /// The next event, or how many were lost before it; none once the channel is gone.
    pub async fn next(&mut self) -> Option<Result<Event, Missed>> {
        match self.receiver.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Err(Missed(count))),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
