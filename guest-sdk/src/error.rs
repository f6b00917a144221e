//! Why an operation did not happen.

use std::fmt;

use crate::raw::types;
pub use crate::raw::types::LimitKind;

/// Why an operation did not happen. Nothing was written, [`Error::CommitUnknown`] aside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The store or the memory was closed, by the guest or by the host.
    Closed,
    /// A write in a view.
    ReadOnly,
    /// Other transactions committed first, or a version was not the expected one, in every run that the retry policy
    /// allows.
    Conflict,
    /// The transaction outlived its deadline and was rolled back.
    TimedOut,
    /// The host granted no store of this name.
    NoSuchStore(String),
    /// The host did not grant this, or the namespace is reserved.
    AccessDenied(String),
    /// Tenant, user or session is missing.
    IdentityRequired(String),
    /// An argument has no meaning; the text says what would be right.
    InvalidArgument(String),
    /// A bound of the host was run into.
    LimitExceeded {
        /// What is bounded.
        kind: LimitKind,
        /// The largest amount that is allowed; sizes are in bytes.
        max: u64,
        /// The amount that was asked for.
        requested: u64,
    },
    /// An applied migration was reordered, removed or edited, or the store is newer than the set.
    MigrationMismatch(String),
    /// Bytes that are no snapshot, or one of another strategy; or a session that was kept by another strategy than the
    /// host declares now.
    InvalidSnapshot(String),
    /// The backend can't be reached now; the same call may work later.
    Unavailable(String),
    /// The connection was lost during the commit: it may or may not have happened.
    CommitUnknown(String),
    /// Stored bytes failed a check.
    Corrupt(String),
    /// A stored value is not of the type that was asked for.
    Decode {
        /// The row's namespace.
        namespace: String,
        /// The row's key.
        key: String,
        /// What the decoder says.
        reason: String,
    },
    /// A value can't be encoded.
    Encode(String),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => formatter.write_str("the store or the memory is closed"),
            Self::ReadOnly => formatter.write_str("a view can't write"),
            Self::Conflict => formatter.write_str("other transactions committed first, again and again"),
            Self::TimedOut => {
                formatter.write_str("the transaction outlived its deadline and was rolled back")
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
            Self::Encode(reason) => write!(formatter, "the value can't be encoded: {reason}"),
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
