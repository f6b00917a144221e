//! Why an operation did not happen.

use std::sync::Arc;

/// The result of an operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What lies under an error, for logs and `source()` chains; never shown to a guest.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an operation did not happen. Nothing was written, [`Error::CommitUnknown`] aside.
///
/// The variants are those of `larder:storage/types.error`: what a backend finds is put into one of
/// them at its own edge, so no caller ever decides by an error's text. The texts reach guests; they name no
/// path, address or password.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store or the handle was closed, by the guest or by the host.
    #[error("the store is closed")]
    Closed,
    /// A write in a view.
    #[error("a view can't write; begin an update")]
    ReadOnly,
    /// Another transaction committed first, or a version was not the expected one.
    #[error("another transaction committed first; run the whole transaction again")]
    Conflict,
    /// The transaction outlived its deadline and was rolled back.
    #[error("the transaction outlived its deadline and was rolled back")]
    TimedOut,
    /// The host granted no store of this name.
    #[error("no store named {0:?} was granted")]
    NoSuchStore(String),
    /// The host did not grant this, or the name is reserved.
    #[error("access denied: {0}")]
    AccessDenied(String),
    /// Tenant, user or session is missing.
    #[error("an identity needs tenant, user and session: {0}")]
    IdentityRequired(String),
    /// An argument has no meaning here.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A bound was run into.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    /// An applied migration was reordered, removed or edited, or the store is newer than the set.
    #[error("migrations do not match: {0}")]
    MigrationMismatch(String),
    /// A snapshot, or what is stored, is of another strategy; or bytes are no snapshot.
    #[error("invalid snapshot: {0}")]
    InvalidSnapshot(String),
    /// The store does not exist, and the caller did not ask to create it.
    #[error("{reason}")]
    NotFound {
        /// What does not exist, for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// The backend can't be reached now; nothing was written.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What could not be done, for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// The connection was lost between sending the commit and hearing of it.
    #[error("the outcome of the commit is unknown: {reason}")]
    CommitUnknown {
        /// What was lost, for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// Stored bytes failed a check.
    #[error("stored data is corrupt: {0}")]
    Corrupt(String),
    /// Anything else.
    #[error("{reason}")]
    Other {
        /// What went wrong, for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
}

impl Error {
    /// An [`Error::InvalidArgument`] that says what is wrong and what would be right.
    pub fn invalid_argument(reason: impl Into<String>) -> Self {
        Self::InvalidArgument(reason.into())
    }

    /// An [`Error::AccessDenied`] for a write to a backend that was opened with
    /// [`Driver::open_read_only`](crate::Driver::open_read_only).
    pub fn opened_read_only() -> Self {
        Self::AccessDenied("the store is open for reading only".to_string())
    }

    /// An [`Error::Unavailable`] over what caused it.
    pub fn unavailable(
        reason: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable { reason: reason.into(), cause: Some(Arc::new(cause)) }
    }

    /// Whether a rule of this crate refused the commit: what [`Commit::plan`] and the validation of reads say of one
    /// transaction. A backend must not report an error of its engine as one of these.
    ///
    /// [`Commit::plan`]: crate::commit::Commit::plan
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Conflict | Self::TimedOut | Self::InvalidArgument(_) | Self::LimitExceeded(_))
    }

    /// An [`Error::Other`] without a cause beneath it.
    pub fn other(reason: impl Into<String>) -> Self {
        Self::Other { reason: reason.into(), cause: None }
    }

    /// An [`Error::Other`] over what caused it.
    pub fn caused(reason: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other { reason: reason.into(), cause: Some(Arc::new(cause)) }
    }
}

/// What a limit bounds. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// A namespace's name.
    NamespaceBytes,
    /// A key, a prefix, or a bound of a range.
    KeyBytes,
    /// One value.
    ValueBytes,
    /// What one call returns.
    ResultBytes,
    /// What one transaction stages and remembers.
    TransactionBytes,
    /// How many rows one transaction stages writes for, or one `get_many` reads.
    TransactionMutations,
    /// Transactions that one instance has open.
    OpenTransactions,
    /// Handles on stores that one instance has open.
    OpenStores,
    /// The whole store.
    StoreBytes,
    /// A part of an identity.
    IdentityBytes,
    /// One turn of a conversation.
    TurnBytes,
    /// What is kept of one session.
    MemoryBytes,
    /// Memories that one instance has open.
    OpenMemories,
    /// What the host holds in memory for one instance.
    InstanceBytes,
}

impl LimitKind {
    /// The name that the WIT gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NamespaceBytes => "namespace-bytes",
            Self::KeyBytes => "key-bytes",
            Self::ValueBytes => "value-bytes",
            Self::ResultBytes => "result-bytes",
            Self::TransactionBytes => "transaction-bytes",
            Self::TransactionMutations => "transaction-mutations",
            Self::OpenTransactions => "open-transactions",
            Self::OpenStores => "open-stores",
            Self::StoreBytes => "store-bytes",
            Self::IdentityBytes => "identity-bytes",
            Self::TurnBytes => "turn-bytes",
            Self::MemoryBytes => "memory-bytes",
            Self::OpenMemories => "open-memories",
            Self::InstanceBytes => "instance-bytes",
        }
    }
}

/// Which bound an operation ran into. The store is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit exceeded: {} is at most {max}, {requested} were asked for", kind.name())]
pub struct LimitExceeded {
    /// What is bounded.
    pub kind: LimitKind,
    /// The largest amount that is allowed.
    pub max: u64,
    /// The amount that was asked for, as far as it was counted.
    pub requested: u64,
}
