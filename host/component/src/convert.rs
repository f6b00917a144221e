//! Conversions between larder's types and those of the WIT.

use larder_core::{
    ContextPatch, Entry, Error, Health, IdentityParts, LimitExceeded, LimitKind, MemorySnapshot, Migration,
    Mode, Page, PutOptions, Range, Strategy, TrajectoryDigest, Turn, Version,
};

use crate::bindings::{memory, store, tx, types};

/// Why a call from a guest failed: with an error for the guest, or a trap.
#[derive(Debug)]
pub enum StorageError {
    /// The call returns this error to the guest.
    Guest(Error),
    /// The guest traps.
    ///
    /// The host has a bug, or the guest used a handle that it does not own.
    Trap(wasmtime::Error),
}

/// The result of a call from a guest.
pub type StorageResult<T> = Result<T, StorageError>;

impl From<Error> for StorageError {
    fn from(error: Error) -> Self {
        Self::Guest(error)
    }
}

impl From<wasmtime::component::ResourceTableError> for StorageError {
    fn from(error: wasmtime::component::ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<Error> for types::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Closed => Self::Closed,
            Error::ReadOnly => Self::ReadOnly,
            Error::Conflict => Self::Conflict,
            Error::TimedOut => Self::TimedOut,
            Error::NoSuchStore(name) => Self::NoSuchStore(name),
            Error::AccessDenied(reason) => Self::AccessDenied(reason),
            Error::IdentityRequired(reason) => Self::IdentityRequired(reason),
            Error::MigrationMismatch(reason) => Self::MigrationMismatch(reason),
            Error::InvalidSnapshot(reason) => Self::InvalidSnapshot(reason),
            Error::InvalidArgument(reason) => Self::InvalidArgument(reason),
            Error::LimitExceeded(LimitExceeded { kind, max, requested }) => match limit_kind(kind) {
                Some(kind) => Self::LimitExceeded(types::LimitExceeded { kind, max, requested }),
                None => Self::Other(error.to_string()),
            },
            Error::Unavailable { reason, .. } => Self::Unavailable(reason),
            Error::CommitUnknown { reason, .. } => Self::CommitUnknown(reason),
            Error::Corrupt(reason) => Self::Corrupt(reason),
            error => Self::Other(error.to_string()),
        }
    }
}

/// The kind of a limit in the WIT. `None` for a kind that the WIT does not have.
fn limit_kind(kind: LimitKind) -> Option<types::LimitKind> {
    Some(match kind {
        LimitKind::NamespaceBytes => types::LimitKind::NamespaceBytes,
        LimitKind::KeyBytes => types::LimitKind::KeyBytes,
        LimitKind::ValueBytes => types::LimitKind::ValueBytes,
        LimitKind::ResultBytes => types::LimitKind::ResultBytes,
        LimitKind::TransactionBytes => types::LimitKind::TransactionBytes,
        LimitKind::TransactionMutations => types::LimitKind::TransactionMutations,
        LimitKind::OpenTransactions => types::LimitKind::OpenTransactions,
        LimitKind::OpenStores => types::LimitKind::OpenStores,
        LimitKind::StoreBytes => types::LimitKind::StoreBytes,
        LimitKind::IdentityBytes => types::LimitKind::IdentityBytes,
        LimitKind::TurnBytes => types::LimitKind::TurnBytes,
        LimitKind::MemoryBytes => types::LimitKind::MemoryBytes,
        LimitKind::OpenMemories => types::LimitKind::OpenMemories,
        LimitKind::InstanceBytes => types::LimitKind::InstanceBytes,
        _ => return None,
    })
}

impl From<tx::Mode> for Mode {
    fn from(mode: tx::Mode) -> Self {
        match mode {
            tx::Mode::View => Self::View,
            tx::Mode::Update => Self::Update,
        }
    }
}

impl From<tx::Range> for Range {
    fn from(range: tx::Range) -> Self {
        let tx::Range { prefix, start, end, reverse, limit, keys_only } = range;
        Self { prefix, start, end, reverse, limit, keys_only }
    }
}

impl From<tx::PutOptions> for PutOptions {
    fn from(options: tx::PutOptions) -> Self {
        Self::default().ttl_ms(options.ttl_ms).if_version(options.if_version.map(Version))
    }
}

impl From<Entry> for types::Entry {
    fn from(entry: Entry) -> Self {
        Self { key: entry.key, value: entry.value }
    }
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        Self { key: entry.key, value: entry.value }
    }
}

impl From<store::Migration> for Migration {
    fn from(step: store::Migration) -> Self {
        let store::Migration { id, checksum } = step;
        Self { id, checksum }
    }
}

impl From<Page> for tx::Page {
    fn from(page: Page) -> Self {
        Self { entries: page.entries.into_iter().map(Into::into).collect(), next: page.next }
    }
}

impl From<memory::Identity> for IdentityParts {
    fn from(identity: memory::Identity) -> Self {
        let memory::Identity { tenant, user, session, run } = identity;
        Self { tenant, user, session, run }
    }
}

impl From<IdentityParts> for memory::Identity {
    fn from(parts: IdentityParts) -> Self {
        let IdentityParts { tenant, user, session, run } = parts;
        Self { tenant, user, session, run }
    }
}

impl From<memory::Turn> for Turn {
    fn from(turn: memory::Turn) -> Self {
        Self {
            user_message: turn.user_message,
            assistant_response: turn.assistant_response,
            trajectory: turn.trajectory.map(Into::into),
            artifacts_shown: turn.artifacts_shown,
            artifacts_hidden: turn.artifacts_hidden,
            timestamp_millis: turn.timestamp_ms,
        }
    }
}

impl From<Turn> for memory::Turn {
    fn from(turn: Turn) -> Self {
        Self {
            user_message: turn.user_message,
            assistant_response: turn.assistant_response,
            trajectory: turn.trajectory.map(Into::into),
            artifacts_shown: turn.artifacts_shown,
            artifacts_hidden: turn.artifacts_hidden,
            timestamp_ms: turn.timestamp_millis,
        }
    }
}

impl From<memory::TrajectoryDigest> for TrajectoryDigest {
    fn from(digest: memory::TrajectoryDigest) -> Self {
        let memory::TrajectoryDigest {
            tools_invoked,
            observations_summary,
            reasoning_summary,
            artifact_refs,
        } = digest;
        Self { tools_invoked, observations_summary, reasoning_summary, artifact_refs }
    }
}

impl From<TrajectoryDigest> for memory::TrajectoryDigest {
    fn from(digest: TrajectoryDigest) -> Self {
        let TrajectoryDigest { tools_invoked, observations_summary, reasoning_summary, artifact_refs } =
            digest;
        Self { tools_invoked, observations_summary, reasoning_summary, artifact_refs }
    }
}

impl From<memory::Strategy> for Strategy {
    fn from(strategy: memory::Strategy) -> Self {
        match strategy {
            memory::Strategy::None => Self::None,
            memory::Strategy::Truncation => Self::Truncation,
            memory::Strategy::RollingSummary => Self::RollingSummary,
        }
    }
}

impl From<Strategy> for memory::Strategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::None => Self::None,
            Strategy::Truncation => Self::Truncation,
            Strategy::RollingSummary => Self::RollingSummary,
        }
    }
}

impl From<Health> for memory::Health {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy => Self::Healthy,
            Health::Retry => Self::Retry,
            Health::Degraded => Self::Degraded,
            Health::Recovering => Self::Recovering,
        }
    }
}

impl From<ContextPatch> for memory::ContextPatch {
    fn from(context: ContextPatch) -> Self {
        Self {
            strategy: context.strategy.into(),
            summary: context.summary,
            recent_turns: context.recent_turns.into_iter().map(Into::into).collect(),
            tokens: context.tokens,
            over_budget: context.over_budget,
        }
    }
}

impl From<memory::Snapshot> for MemorySnapshot {
    fn from(snapshot: memory::Snapshot) -> Self {
        Self { strategy: snapshot.strategy.into(), bytes: snapshot.bytes }
    }
}

impl From<MemorySnapshot> for memory::Snapshot {
    fn from(snapshot: MemorySnapshot) -> Self {
        Self { strategy: snapshot.strategy.into(), bytes: snapshot.bytes }
    }
}
