//! Postgres's errors, put into their kind by SQLSTATE.

use std::sync::Arc;

use larder_core::Error;
use larder_core::schema::MigrationError;
use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::connect_error::ConnectError;
use crate::pool::PoolError;

/// What went wrong between larder and a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server's answer, or a broken connection.
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
    /// There is no connection, for a reason that SQLSTATE does not give.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A transaction that writes could not begin, as the server is a standby.
    #[error(transparent)]
    Standby(tokio_postgres::Error),
    /// The connection was closed before anything was sent.
    #[error("the connection was closed")]
    Gone,
    /// The deadline of a snapshot passed.
    #[error("the deadline passed")]
    Overdue,
    /// A bound of larder's own passed.
    #[error("{0}")]
    Stalled(&'static str),
    /// `COMMIT` was sent, and what became of it was not heard.
    #[error("the answer to COMMIT is missing")]
    CommitLost(#[source] Option<Box<Failure>>),
    /// The commit was made, and the server stopped waiting for a standby to have it.
    #[error("the server stopped waiting for its synchronous standby")]
    NotReplicated,
    /// It is in the words of larder already.
    #[error(transparent)]
    Known(#[from] Error),
}

const UNREACHABLE: &str = "the database can't be reached";
const READ_ONLY: &str = "the database takes no writes now";

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Whether a statement divided by zero.
    pub(crate) fn is_division_by_zero(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO))
    }

    /// Whether a statement computed a number that is too large.
    pub(crate) fn is_out_of_range(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::NUMERIC_VALUE_OUT_OF_RANGE))
    }

    /// Whether a statement did not get a lock: at once, or in time.
    pub(crate) fn is_lock_not_available(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// Whether the server ended a deadlock by this statement.
    pub(crate) fn is_deadlock(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED))
    }

    /// Whether the server refused a statement and goes on with the session.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(error) if is_refusal(error))
    }

    /// Whether the server, the database or the role has as many connections as it may, or cannot take one more at the moment.
    pub(crate) fn is_crowded(&self) -> bool {
        matches!(self, Self::Database(error)
            if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) || is_backlogged(error))
    }

    /// Stored bytes that are not as larder writes them.
    pub(crate) fn corrupt(what: &str) -> Self {
        Self::Known(Error::Corrupt(what.to_string()))
    }

    /// Whether the connection ended before anything was written, so that all can be done again on another.
    pub(crate) fn is_lost_before(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::Database(error) => is_lost(error),
            _ => false,
        }
    }
}

/// Whether a statement that failed so leaves its connection of no use.
pub(crate) fn breaks_connection(error: &tokio_postgres::Error) -> bool {
    match error.as_db_error() {
        // A server that has become a standby: the next connection may find the primary.
        Some(error) => ends_session(error) || *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION,
        None => true,
    }
}

/// Whether `BEGIN` of a transaction that writes failed because the server is a standby.
pub(crate) fn is_of_standby(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED)
}

/// Whether an error in answer to `COMMIT` leaves open what became of the transaction: a server that is told to stop
/// answers so while it waits for a standby, and the transaction is in its log.
pub(crate) fn leaves_commit_open(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(ends_session)
}

/// Whether the server refused something and goes on with the session.
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

/// Whether a socket in the file system refused a connection, as many others wait there for the server to accept them.
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
            PoolError::Timeout(_) => Self::Stalled("no connection to the database became free in time"),
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
                "the database made the commit and stopped waiting for its standby, so a failover may lose it",
                failure,
            ),
            Failure::Database(error) => match error.code() {
                Some(code) => Kind::of(code).error(error),
                None if is_lost(&error) => Self::unavailable(UNREACHABLE, error),
                None => Self::caused("the database's answer was not understood", error),
            },
        }
    }
}

fn unknown(reason: &str, cause: Failure) -> Error {
    Error::CommitUnknown { reason: reason.to_string(), cause: Some(Arc::new(cause)) }
}

impl From<Failure> for MigrationError {
    fn from(failure: Failure) -> Self {
        Self::Database(failure.into())
    }
}

/// What a SQLSTATE means to larder.
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
            SqlState::LOCK_NOT_AVAILABLE => Self::Unavailable("a lock of the database did not become free"),
            SqlState::READ_ONLY_SQL_TRANSACTION => Self::Unavailable(READ_ONLY),
            SqlState::INSUFFICIENT_PRIVILEGE => Self::Other("larder's database role lacks a privilege"),
            SqlState::INVALID_CATALOG_NAME => Self::Other("the database does not exist"),
            _ => Self::of_class(code),
        }
    }

    fn of_class(code: &SqlState) -> Self {
        match code.code().get(..2) {
            Some("08" | "57") => Self::Unavailable(UNREACHABLE),
            Some("53" | "58") => Self::Unavailable("the database lacks a resource"),
            Some("28") => Self::Other("the database refused larder's login"),
            _ => Self::Other("the database failed"),
        }
    }

    fn error(self, cause: tokio_postgres::Error) -> Error {
        match self {
            Self::Conflict => Error::Conflict,
            Self::TimedOut => Error::TimedOut,
            Self::Corrupt => Error::Corrupt("the database reports damaged data".to_string()),
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
        assert_eq!(reason, "the database can't be reached");
    }
}
