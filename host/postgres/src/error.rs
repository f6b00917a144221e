//! Errors of the server and of connections, mapped from SQLSTATE to [`Error`].

use std::sync::Arc;

use larder_core::Error;
use larder_schema::MigrationError;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::connect_error::ConnectError;
use crate::pool::PoolError;

/// Why an operation on the server failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// An error that the server reported, or a broken connection.
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
    /// Connecting failed for a reason that has no SQLSTATE.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A writing transaction could not begin because the server is a standby.
    #[error(transparent)]
    Standby(tokio_postgres::Error),
    /// The connection was closed before larder sent anything.
    #[error("the connection was closed")]
    Gone,
    /// The snapshot outlived its deadline.
    #[error("the deadline passed")]
    Overdue,
    /// An operation exceeded one of larder's own timeouts.
    #[error("{0}")]
    Stalled(&'static str),
    /// larder sent `COMMIT` and received no response.
    #[error("the server did not respond to COMMIT")]
    CommitLost(#[source] Option<Box<Failure>>),
    /// The server committed, but stopped waiting for a synchronous standby to confirm the commit.
    #[error("the server stopped waiting for its synchronous standby")]
    NotReplicated,
    /// An error that is already one of larder's own.
    #[error(transparent)]
    Known(#[from] Error),
}

const UNREACHABLE: &str = "cannot reach the database";
const READ_ONLY: &str = "the database is read-only at the moment";

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Whether a statement failed with a division by zero.
    pub(crate) fn is_division_by_zero(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO))
    }

    /// Whether a statement computed a number that is out of range.
    pub(crate) fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::NUMERIC_VALUE_OUT_OF_RANGE))
    }

    /// Whether a statement could not obtain a lock, either with `NOWAIT` or within `lock_timeout`.
    pub(crate) fn is_lock_not_available(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// Whether the server chose this statement's transaction as the victim of a deadlock.
    pub(crate) fn is_deadlock(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED))
    }

    /// Whether the server reported an error that leaves the session open.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(error) if is_refusal(error))
    }

    /// Whether a connection limit of the server, the database or the role is reached, or the queue
    /// of the server's socket is full.
    pub(crate) fn is_crowded(&self) -> bool {
        matches!(self, Self::Database(error)
            if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) || is_backlogged(error))
    }

    /// The failure for stored bytes that larder did not write like this.
    pub(crate) fn corrupt(what: &str) -> Self {
        Self::Known(Error::Corrupt(what.to_string()))
    }

    /// Whether the connection broke before anything was written. If so, the caller can retry on
    /// another connection.
    pub(crate) fn is_lost_before(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::Database(error) => is_lost(error),
            _ => false,
        }
    }
}

/// Whether a connection is unusable after a statement failed with this error.
pub(crate) fn breaks_connection(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        // The server has become a standby. A new connection may find the primary.
        Some(error) => ends_session(error) || *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION,
        None => true,
    }
}

/// Whether `BEGIN` of a writing transaction failed because the server is a standby.
pub(crate) fn is_of_standby(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED)
}

/// Whether an error in response to `COMMIT` leaves the outcome of the transaction unknown.
///
/// A server that is shut down while it waits for a standby sends such an error, although the commit
/// is already in its write-ahead log.
pub(crate) fn leaves_commit_open(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(ends_session)
}

/// Whether the server reported an error that leaves the session open.
pub(crate) fn is_refusal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| !ends_session(error))
}

fn is_lost(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        Some(error) => ends_session(error),
        None => error.is_closed() || is_io(error),
    }
}

fn ends_session(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
        || ends_session_by_code(error.code())
}

fn ends_session_by_code(code: &SqlState) -> bool {
    code.code().starts_with("08") || code.code().starts_with("57P")
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    io(error).is_some()
}

/// Whether a Unix-domain socket refused a connection because its accept queue is full.
fn is_backlogged(error: &tokio_postgres::Error) -> bool {
    io(error).is_some_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

fn io(error: &tokio_postgres::Error) -> Option<&std::io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(failure) => failure,
            PoolError::Timeout(_) => Self::Stalled("timed out while waiting for a free database connection"),
            PoolError::Closed => Self::Known(Error::Closed),
            error @ (PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_)) => {
                Self::Known(Error::caused("the connection pool failed", error))
            }
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Known(error) => error,
            Failure::Overdue => Self::TimedOut,
            Failure::Connect(error) if error.passes() => Self::unavailable(error.reason(), error),
            Failure::Connect(error) => Self::caused(error.reason(), error),
            Failure::Gone => Self::unavailable(UNREACHABLE, failure),
            Failure::Standby(error) => Self::unavailable(READ_ONLY, error),
            Failure::Stalled(reason) => Self::Unavailable { reason: reason.to_string(), cause: None },
            Failure::CommitLost(_) => {
                unknown("the connection to the database was lost during the commit", failure)
            }
            Failure::NotReplicated => unknown(
                "the database committed but stopped waiting for its synchronous standby; a failover may lose it",
                failure,
            ),
            Failure::Database(error) => match error.code() {
                Some(code) => Kind::of(code).error(error),
                None if is_lost(&error) => Self::unavailable(UNREACHABLE, error),
                None => Self::caused("cannot read the database's response", error),
            },
        }
    }
}

fn unknown(reason: &str, cause: Failure) -> Error {
    Error::CommitUnknown { reason: reason.to_string(), cause: Some(Arc::new(cause)) }
}

impl From<Failure> for MigrationError<Error> {
    fn from(failure: Failure) -> Self {
        Self::Database(failure.into())
    }
}

/// The kind of error that a SQLSTATE stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Conflict,
    TimedOut,
    Corrupt,
    Unavailable(&'static str),
    Other(&'static str),
}

impl Kind {
    fn of(code: &SqlState) -> Self {
        match *code {
            SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => Self::Conflict,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Self::TimedOut,
            SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => Self::Corrupt,
            SqlState::QUERY_CANCELED => Self::Unavailable("the database cancelled the statement"),
            SqlState::LOCK_NOT_AVAILABLE => Self::Unavailable("could not obtain a database lock"),
            SqlState::READ_ONLY_SQL_TRANSACTION => Self::Unavailable(READ_ONLY),
            SqlState::INSUFFICIENT_PRIVILEGE => Self::Other("larder's database role lacks a privilege"),
            SqlState::INVALID_CATALOG_NAME => Self::Other("the database does not exist"),
            _ => Self::of_class(code),
        }
    }

    fn of_class(code: &SqlState) -> Self {
        match code.code().get(..2) {
            Some("08" | "57") => Self::Unavailable(UNREACHABLE),
            Some("53" | "58") => {
                Self::Unavailable("the database server is out of resources or had a system error")
            }
            Some("28") => Self::Other("the database refused larder's login"),
            _ => Self::Other("the database reported an error"),
        }
    }

    fn error(self, cause: tokio_postgres::Error) -> Error {
        match self {
            Self::Conflict => Error::Conflict,
            Self::TimedOut => Error::TimedOut,
            Self::Corrupt => Error::Corrupt("the database reported corrupt data".to_string()),
            Self::Unavailable(reason) => Error::unavailable(reason, cause),
            Self::Other(reason) => Error::caused(reason, cause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::Connector;
    use crate::{Environment, PostgresOptions};
    use deadpool::managed::TimeoutType;

    fn kind(code: &str) -> Kind {
        Kind::of(&SqlState::from_code(code))
    }

    #[test]
    fn what_another_transaction_did_is_a_conflict() {
        assert_eq!([kind("40001"), kind("40P01")], [Kind::Conflict; 2]);
        assert!(matches!(kind("40003"), Kind::Other(_)));
    }

    #[test]
    fn what_passes_by_itself_is_unavailable() {
        let codes = [
            "08000", "08003", "08006", "53000", "53100", "53200", "53300", "57P01", "57P02", "57P03",
            "57P05", "57014", "58030", "55P03", "25006",
        ];
        for code in codes {
            assert!(matches!(kind(code), Kind::Unavailable(_)), "{code}");
        }
    }

    #[test]
    fn what_stays_is_not() {
        for code in ["28P01", "28000", "3D000", "42501", "42P01", "XX000", "54000", "0A000"] {
            assert!(matches!(kind(code), Kind::Other(_)), "{code}");
        }
        assert_eq!([kind("XX001"), kind("XX002")], [Kind::Corrupt; 2]);
        assert_eq!(kind("25P03"), Kind::TimedOut);
    }

    #[test]
    fn only_the_end_of_a_session_loses_the_connection() {
        for (code, ends) in
            [("57P01", true), ("08006", true), ("40001", false), ("57014", false), ("53100", false)]
        {
            assert_eq!(ends_session_by_code(&SqlState::from_code(code)), ends, "{code}");
        }
    }

    #[test]
    fn bounds_of_the_pool_are_unavailable_and_a_closed_one_is_closed() {
        let failure = Failure::from(PoolError::Timeout(TimeoutType::Wait));
        assert!(!failure.is_lost_before());
        assert!(matches!(failure.into(), Error::Unavailable { .. }));
        assert!(matches!(Failure::from(PoolError::Closed).into(), Error::Closed));
    }

    #[test]
    fn a_commit_without_an_answer_is_unknown_and_keeps_its_cause() {
        let lost = Failure::CommitLost(Some(Box::new(Failure::Stalled("late"))));
        assert!(!lost.is_lost_before() && Failure::Gone.is_lost_before());
        let Error::CommitUnknown { cause: Some(cause), .. } = lost.into() else { panic!("known") };
        assert_eq!(cause.source().unwrap().to_string(), "late");
    }

    #[tokio::test]
    async fn a_server_that_does_not_listen_is_unavailable() {
        let dsn = "postgres://ann:hunter2@127.0.0.1:1/d";
        let options = PostgresOptions::parse_with(dsn, &Environment::empty()).unwrap();
        let Err(failure) = Connector::new(options).connect().await else { panic!("connected") };
        let Error::Unavailable { reason, .. } = Error::from(failure) else { panic!("other") };
        assert_eq!(reason, "cannot reach the database");
    }
}
