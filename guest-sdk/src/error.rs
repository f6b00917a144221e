//! The error type of this crate.

use std::fmt;

use crate::raw::types;
pub use crate::raw::types::LimitKind;

/// Why an operation failed.
///
/// The operation wrote nothing, except possibly for [`Error::CommitUnknown`].
///
/// ```
/// use larder_guest::Error;
///
/// let error = Error::NoSuchStore("notes".to_string());
/// assert_eq!(error.to_string(), "the host granted no store named \"notes\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The guest or the host closed the store or the conversation.
    Closed,
    /// The transaction is a view, and the call writes.
    ReadOnly,
    /// The transaction conflicted in every run that the retry policy allows.
    ///
    /// In each run, another transaction committed first, or a row was not at the expected version.
    Conflict,
    /// The transaction exceeded its deadline and was rolled back.
    TimedOut,
    /// The host granted no store of this name.
    NoSuchStore(String),
    /// The host did not grant this operation, or the namespace is reserved.
    AccessDenied(String),
    /// The tenant, the user or the session is missing.
    IdentityRequired(String),
    /// An argument is invalid; the text says what is valid.
    InvalidArgument(String),
    /// An amount is over one of the host's limits.
    LimitExceeded {
        /// The limit.
        kind: LimitKind,
        /// The largest allowed amount; sizes are in bytes.
        max: u64,
        /// The requested amount.
        requested: u64,
    },
    /// The applied migrations are not the beginning of the declared set.
    ///
    /// An applied step was reordered, removed or edited, or the store is newer than the set.
    MigrationMismatch(String),
    /// The snapshot is not valid, or belongs to another strategy.
    ///
    /// Also returned if the session was stored with another strategy than the host declares now.
    InvalidSnapshot(String),
    /// The backend cannot be reached; the same call may succeed later.
    Unavailable(String),
    /// The connection was lost during the commit, which may or may not have happened.
    CommitUnknown(String),
    /// Stored bytes failed a check.
    Corrupt(String),
    /// A stored value is not of the requested type.
    Decode {
        /// The row's namespace.
        namespace: String,
        /// The row's key.
        key: String,
        /// The decoder's message.
        reason: String,
    },
    /// A value cannot be encoded.
    Encode(String),
    /// Any other failure of the host or its backend.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("the store or the conversation is closed"),
            Self::ReadOnly => formatter.write_str("a view cannot write; use an update"),
            Self::Conflict => {
                formatter.write_str("other transactions committed first in every run; try again later")
            }
            Self::TimedOut => {
                formatter.write_str("the transaction exceeded its deadline and was rolled back")
            }
            Self::NoSuchStore(name) => write!(formatter, "the host granted no store named {name:?}"),
            Self::AccessDenied(reason) => write!(formatter, "access denied: {reason}"),
            Self::IdentityRequired(reason) => write!(formatter, "an identity is required: {reason}"),
            Self::InvalidArgument(reason) => write!(formatter, "invalid argument: {reason}"),
            Self::LimitExceeded { kind, max, requested } => {
                write!(
                    formatter,
                    "limit exceeded: {} is at most {max}, {requested} were asked for",
                    name(*kind)
                )
            }
            Self::MigrationMismatch(reason) => write!(formatter, "migrations do not match: {reason}"),
            Self::InvalidSnapshot(reason) => write!(formatter, "invalid snapshot: {reason}"),
            Self::Unavailable(reason) => write!(formatter, "the store is unavailable: {reason}"),
            Self::CommitUnknown(reason) => {
                write!(formatter, "the outcome of the commit is unknown: {reason}")
            }
            Self::Corrupt(reason) => write!(formatter, "stored data is corrupt: {reason}"),
            Self::Decode { namespace, key, reason } => {
                write!(formatter, "the row {key:?} in {namespace:?} is not of the expected type: {reason}")
            }
            Self::Encode(reason) => write!(formatter, "cannot encode the value: {reason}"),
            Self::Other(reason) => formatter.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}

fn name(kind: LimitKind) -> &'static str {
    match kind {
        LimitKind::NamespaceBytes => "namespace-bytes",
        LimitKind::KeyBytes => "key-bytes",
        LimitKind::ValueBytes => "value-bytes",
        LimitKind::ResultBytes => "result-bytes",
        LimitKind::TransactionBytes => "transaction-bytes",
        LimitKind::TransactionMutations => "transaction-mutations",
        LimitKind::OpenTransactions => "open-transactions",
        LimitKind::OpenStores => "open-stores",
        LimitKind::StoreBytes => "store-bytes",
        LimitKind::IdentityBytes => "identity-bytes",
        LimitKind::TurnBytes => "turn-bytes",
        LimitKind::MemoryBytes => "memory-bytes",
        LimitKind::OpenMemories => "open-memories",
        LimitKind::InstanceBytes => "instance-bytes",
    }
}

impl From<types::Error> for Error {
    fn from(error: types::Error) -> Self {
        match error {
            types::Error::Closed => Self::Closed,
            types::Error::ReadOnly => Self::ReadOnly,
            types::Error::Conflict => Self::Conflict,
            types::Error::TimedOut => Self::TimedOut,
            types::Error::NoSuchStore(name) => Self::NoSuchStore(name),
            types::Error::AccessDenied(reason) => Self::AccessDenied(reason),
            types::Error::IdentityRequired(reason) => Self::IdentityRequired(reason),
            types::Error::InvalidArgument(reason) => Self::InvalidArgument(reason),
            types::Error::LimitExceeded(types::LimitExceeded { kind, max, requested }) => {
                Self::LimitExceeded { kind, max, requested }
            }
            types::Error::MigrationMismatch(reason) => Self::MigrationMismatch(reason),
            types::Error::InvalidSnapshot(reason) => Self::InvalidSnapshot(reason),
            types::Error::Unavailable(reason) => Self::Unavailable(reason),
            types::Error::CommitUnknown(reason) => Self::CommitUnknown(reason),
            types::Error::Corrupt(reason) => Self::Corrupt(reason),
            types::Error::Other(reason) => Self::Other(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_says_both_numbers() {
        let error = Error::LimitExceeded { kind: LimitKind::KeyBytes, max: 10, requested: 11 };
        assert_eq!(error.to_string(), "limit exceeded: key-bytes is at most 10, 11 were asked for");
    }
}
