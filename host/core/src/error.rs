//! Errors of operations on a store.

use std::sync::Arc;

/// The result of an operation on a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause of an error, for logs and `source()` chains. Guests never see it.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// An error of an operation on a store. Except for [`Error::CommitUnknown`], nothing was written.
///
/// The variants are those of `error` in the WIT package `larder:storage`, and [`Error::NotFound`].
/// A newer package may have more. A caller treats an unknown variant as [`Error::Other`].
/// A backend maps the errors of its engine to them, so callers never have to parse a text. The
/// texts reach guests, so they contain no path, address or password.
///
/// ```
/// use larder_core::Error;
///
/// fn may_retry(error: &Error) -> bool {
///     matches!(error, Error::Conflict | Error::Unavailable { .. })
/// }
/// assert!(may_retry(&Error::Conflict));
/// assert!(!may_retry(&Error::Closed));
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The guest or the host closed the store or the handle.
    #[error("the store is closed")]
    Closed,
    /// The transaction is a view and cannot write.
    #[error("cannot write in a view; begin an update")]
    ReadOnly,
    /// Another transaction committed first, or a row did not have its required version.
    ///
    /// The host also gives this error if it ended the snapshot of an idle transaction, or cannot
    /// tell whether its reads still hold. Run the whole transaction again.
    #[error("another transaction committed first; run the whole transaction again")]
    Conflict,
    /// The transaction outlived its deadline and was rolled back.
    #[error("the transaction outlived its deadline and was rolled back")]
    TimedOut,
    /// The host granted no store of this name.
    #[error("no store named {0:?} was granted")]
    NoSuchStore(String),
    /// The host did not grant the operation, or the name is reserved.
    #[error("access denied: {0}")]
    AccessDenied(String),
    /// The identity lacks its tenant, user or session.
    #[error("an identity is required: {0}")]
    IdentityRequired(String),
    /// An argument is invalid. The text says why, and what is valid.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A limit was exceeded.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
    /// An applied migration was reordered, removed or edited, or the store is newer.
    #[error("migrations do not match: {0}")]
    MigrationMismatch(String),
    /// The bytes are not a valid snapshot, or another strategy wrote them.
    ///
    /// The host also gives this error if another strategy wrote the stored record of the session.
    #[error("invalid snapshot: {0}")]
    InvalidSnapshot(String),
    /// The store does not exist, and the caller did not ask to create it.
    #[error("{reason}")]
    NotFound {
        /// What does not exist, in words for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// The backend cannot be reached now. Nothing was written, and a retry may succeed.
    #[error("the store is unavailable: {reason}")]
    Unavailable {
        /// What failed, in words for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// The connection was lost, or the deadline passed, after the commit was sent. It may have been
    /// made.
    #[error("the outcome of the commit is unknown: {reason}")]
    CommitUnknown {
        /// What happened, in words for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
    /// Stored bytes failed a check.
    #[error("stored data is corrupt: {0}")]
    Corrupt(String),
    /// Any other error.
    #[error("{reason}")]
    Other {
        /// What went wrong, in words for the guest.
        reason: String,
        /// The backend's own error.
        #[source]
        cause: Option<Cause>,
    },
}

impl Error {
    /// Creates an [`Error::InvalidArgument`]. The reason says what is wrong and what is valid.
    pub fn invalid_argument(reason: impl Into<String>) -> Self {
        Self::InvalidArgument(reason.into())
    }

    /// Creates an [`Error::AccessDenied`] for a write to a read-only backend.
    ///
    /// [`Driver::open_read_only`](crate::Driver::open_read_only) opens such backends.
    pub fn opened_read_only() -> Self {
        Self::AccessDenied("the store is open for reading only".to_string())
    }

    /// Creates an [`Error::Unavailable`] with its cause.
    pub fn unavailable(
        reason: impl Into<String>,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Unavailable { reason: reason.into(), cause: Some(Arc::new(cause)) }
    }

    /// Whether a rule of this crate refused the commit.
    ///
    /// These are the errors that [`Commit::plan`] and the validation of reads give one transaction.
    /// A backend must not report errors of its engine as one of them.
    ///
    /// [`Commit::plan`]: crate::commit::Commit::plan
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Conflict | Self::TimedOut | Self::InvalidArgument(_) | Self::LimitExceeded(_))
    }

    /// Creates an [`Error::Other`] without a cause.
    pub fn other(reason: impl Into<String>) -> Self {
        Self::Other { reason: reason.into(), cause: None }
    }

    /// Creates an [`Error::Other`] with its cause.
    pub fn caused(reason: impl Into<String>, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other { reason: reason.into(), cause: Some(Arc::new(cause)) }
    }
}

/// The kind of a limit. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitKind {
    /// A namespace's name.
    NamespaceBytes,
    /// A key, a prefix, or a bound of a range.
    KeyBytes,
    /// One value.
    ValueBytes,
    /// The result of one call.
    ResultBytes,
    /// The staged writes, conditions and read set of one transaction.
    TransactionBytes,
    /// The rows for which one transaction stages writes, or which one `get_many` reads.
    TransactionMutations,
    /// Open transactions of one instance.
    OpenTransactions,
    /// Open store handles of one instance.
    OpenStores,
    /// The whole store.
    StoreBytes,
    /// A part of an identity.
    IdentityBytes,
    /// One turn of a conversation.
    TurnBytes,
    /// The record of one session.
    MemoryBytes,
    /// Open conversations of one instance.
    OpenMemories,
    /// The host's memory for one instance.
    InstanceBytes,
}

impl LimitKind {
    /// The name of the kind in the WIT.
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

/// The limit that an operation exceeded. The store is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit exceeded: {} is at most {max}, but {requested} were requested", kind.name())]
pub struct LimitExceeded {
    /// The kind of the limit.
    pub kind: LimitKind,
    /// The largest allowed amount.
    pub max: u64,
    /// The requested amount, as far as it was counted.
    pub requested: u64,
}
