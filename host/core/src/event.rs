//! Events that larder reports to its embedder.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::error::Error;
use crate::memory::{Health, IdentityParts};

/// An event that the embedder may log, count or act on. Guests never see events.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A guest asked for something that it was not granted.
    AccessDenied {
        /// The store's name, as the guest wrote it.
        store: String,
        /// The call.
        operation: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// A transaction outlived its deadline and was rolled back.
    TransactionTimedOut {
        /// The store's name in the host.
        store: String,
        /// The timeout of the transaction.
        timeout: Duration,
    },
    /// The host ended a snapshot that kept resources needed by other calls. Reads of its
    /// transaction fail.
    SnapshotEnded {
        /// The store's name in the host.
        store: String,
        /// Why it was ended.
        reason: SnapshotEndReason,
        /// The age of the snapshot. If a backend ended several at once, that of the oldest.
        age: Duration,
    },
    /// A call waited for a connection to the database for a second or longer.
    ///
    /// The store has as many connections as it may open, or the server was slow to accept one. If
    /// this happens often, allow the store more connections, or run fewer guests.
    ConnectionAwaited {
        /// The store's name in the host.
        store: String,
        /// How long the call waited, whether or not it got a connection.
        waited: Duration,
    },
    /// A guest named an identity that it may not open, or an incomplete one.
    MemoryIdentityRejected {
        /// The call.
        operation: &'static str,
        /// Why it was refused.
        reason: String,
        /// The identity that it named. An empty tenant, user or session is `<missing>`.
        identity: IdentityParts,
    },
    /// The health of summarising changed in a session.
    MemoryHealthChanged {
        /// The identity of the session.
        identity: IdentityParts,
        /// The health before.
        prior: Health,
        /// The health now.
        new: Health,
        /// Why: `summarizer_failed`, `retries_exhausted`, `summarizer_succeeded`,
        /// `recovery_attempt`, `recovery_failed`, `recovery_batch_summarised`, `recovered`,
        /// `host_closed` or `host_lost`.
        reason: &'static str,
    },
    /// The host dropped turns that waited for a summary.
    MemoryRecoveryDropped {
        /// The identity of the session.
        identity: IdentityParts,
        /// Why: `backlog_overflow`.
        reason: &'static str,
        /// The number of turns.
        turns: usize,
    },
    /// The stored record of a session cannot be read. The host leaves it unchanged.
    MemoryRecordCorrupt {
        /// The identity of the session.
        identity: IdentityParts,
        /// What is wrong with it.
        reason: String,
    },
    /// A tenant's database could not be written back and is in quarantine on this host. An operator
    /// has to inspect it.
    TenantQuarantined {
        /// The tenant.
        tenant: String,
        /// Why.
        reason: String,
    },
    /// This host took over a tenant that another host had not released.
    ///
    /// Commits that the other host had acknowledged but not shipped are in its cache directory, and
    /// go into quarantine there.
    TenantTakenOver {
        /// The tenant.
        tenant: String,
        /// The other host.
        holder: String,
        /// The other host's cache directory, if it is known.
        folder: Option<String>,
    },
    /// Background work failed. The host retries it.
    BackgroundFailed {
        /// The store's name in the host.
        store: String,
        /// The work.
        work: &'static str,
        /// Why it failed.
        error: Error,
    },
}

/// Why the host ended a snapshot before its transaction's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotEndReason {
    /// It was idle and held a connection that another transaction or a commit needed.
    ConnectionWanted,
    /// It kept the write-ahead log from restarting.
    ///
    /// The log had reached at least a quarter of its bound.
    LogFull,
    /// It was the oldest snapshot, and old in-memory rows exceeded their bound.
    ///
    /// Old rows are those that only snapshots keep.
    OldRowsFull,
}

impl SnapshotEndReason {
    /// The name in [`Event::fields`], the same in every release.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectionWanted => "connection_wanted",
            Self::LogFull => "log_full",
            Self::OldRowsFull => "old_rows_full",
        }
    }
}

impl Event {
    /// The event's name, the same in every release.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AccessDenied { .. } => "store.access_denied",
            Self::TransactionTimedOut { .. } => "transaction.timed_out",
            Self::SnapshotEnded { .. } => "transaction.snapshot_ended",
            Self::ConnectionAwaited { .. } => "store.connection_awaited",
            Self::MemoryIdentityRejected { .. } => "memory.identity_rejected",
            Self::MemoryHealthChanged { .. } => "memory.health_changed",
            Self::MemoryRecoveryDropped { .. } => "memory.recovery_dropped",
            Self::MemoryRecordCorrupt { .. } => "memory.record_corrupt",
            Self::TenantQuarantined { .. } => "tenant.quarantined",
            Self::TenantTakenOver { .. } => "tenant.taken_over",
            Self::BackgroundFailed { .. } => "store.background_failed",
        }
    }

    /// The source by which the rate of events is limited: a store, an operation, or a tenant.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::AccessDenied { store, .. }
            | Self::TransactionTimedOut { store, .. }
            | Self::ConnectionAwaited { store, .. } => store.clone(),
            Self::SnapshotEnded { store, reason, .. } => format!("{store}, {}", reason.name()),
            // Not the identity: a guest could choose a new one for each event.
            Self::MemoryIdentityRejected { operation, .. } => (*operation).to_string(),
            Self::MemoryHealthChanged { identity, .. }
            | Self::MemoryRecoveryDropped { identity, .. }
            | Self::MemoryRecordCorrupt { identity, .. } => identity.tenant.clone(),
            Self::TenantQuarantined { tenant, .. } | Self::TenantTakenOver { tenant, .. } => tenant.clone(),
            Self::BackgroundFailed { store, work, .. } => format!("{store}, {work}"),
        }
    }

    /// The event's fields as text.
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
            Self::ConnectionAwaited { store, waited } => {
                vec![("store", store.clone()), ("waited_ms", waited.as_millis().to_string())]
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
            Self::TenantTakenOver { tenant, holder, folder } => vec![
                ("tenant", tenant.clone()),
                ("holder", holder.clone()),
                ("folder", folder.clone().unwrap_or_default()),
            ],
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

/// A receiver of events.
///
/// Guests' calls invoke it, so it must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Receives one event.
    fn emit(&self, event: Event);

    /// Receives an event that stands for `times` events of its kind and source.
    ///
    /// [`RatedEvents`] calls this. By default it is the same as [`emit`](Self::emit).
    ///
    /// [`RatedEvents`]: crate::RatedEvents
    fn emit_repeated(&self, event: Event, times: u64) {
        let _ = times;
        self.emit(event);
    }
}

/// A sink that writes events to `tracing` as warnings.
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

/// A sink that sends events to subscribers and to another sink.
///
/// A slow subscriber loses the oldest events. It does not delay the sender.
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

/// The number of events that a slow subscriber lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed(pub u64);

impl EventChannel {
    /// Creates a channel that buffers at least `capacity` events for each subscriber.
    ///
    /// The capacity is clamped to 1 to 65,536. Each event also goes to `next`.
    pub fn new(capacity: usize, next: Arc<dyn EventSink>) -> Self {
        Self { sender: broadcast::Sender::new(capacity.clamp(1, 1 << 16)), next }
    }

    /// Subscribes to the events from now on.
    pub fn subscribe(&self) -> EventSubscriber {
        EventSubscriber { receiver: self.sender.subscribe() }
    }
}

impl EventSink for EventChannel {
    fn emit(&self, event: Event) {
        // Fails if there is no subscriber.
        drop(self.sender.send(event.clone()));
        self.next.emit(event);
    }

    fn emit_repeated(&self, event: Event, times: u64) {
        drop(self.sender.send(event.clone()));
        self.next.emit_repeated(event, times);
    }
}

/// A subscriber of an [`EventChannel`].
pub struct EventSubscriber {
    receiver: broadcast::Receiver<Event>,
}

impl EventSubscriber {
    /// Waits for the next event, or the number of events lost before it; `None` once the channel is
    /// dropped.
    pub async fn next(&mut self) -> Option<Result<Event, Missed>> {
        match self.receiver.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Err(Missed(count))),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
