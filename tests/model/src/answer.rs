//! What a call answers, in a form that can be compared.

use larder_core::{Error, LimitKind};

/// What a call that succeeded has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Value(Option<Vec<u8>>),
    Versioned(Option<(Vec<u8>, u64)>),
    Values(Vec<Option<Vec<u8>>>),
    Entries(Vec<(String, Vec<u8>)>),
    /// The entries of a page, and whether there are more.
    Page(Vec<(String, Vec<u8>)>, bool),
    Count(u64),
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    ReadOnly,
    Conflict,
    AccessDenied,
    InvalidArgument,
    /// The kind, the limit, and how much was requested. Of a result, 0 is requested: backends count
    /// as far as they have to.
    Limit(LimitKind, u64, u64),
    /// Nothing that the model knows of.
    Other(String),
}

impl Refusal {
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::Closed => Self::Closed,
            Error::ReadOnly => Self::ReadOnly,
            Error::Conflict => Self::Conflict,
            Error::AccessDenied(_) => Self::AccessDenied,
            Error::InvalidArgument(_) => Self::InvalidArgument,
            Error::LimitExceeded(exceeded) => {
                let requested = if exceeded.kind == LimitKind::ResultBytes { 0 } else { exceeded.requested };
                Self::Limit(exceeded.kind, exceeded.max, requested)
            }
            other => Self::Other(other.to_string()),
        }
    }
}
