//! The statements that begin transactions.
//!
//! A pooler may run each transaction of a client in another session, which has the settings of the
//! role, the database or another client. So every transaction states its isolation level and the
//! settings that it needs. `SET LOCAL` ends with the transaction.

use crate::namespace_lock::{self, NamespaceLocks};

/// Settings for larder's statements.
///
/// - Without table statistics, the planner underestimates the cost of sequential and bitmap scans,
///   which read a whole range to return its first row. With both disabled, every read is an index
///   scan of the primary key. Only one plan remains, so replanning and JIT compilation are wasted
///   time.
/// - `statement_timeout` ends the statements of a larder process that was stopped. larder's own
///   timeouts are shorter.
macro_rules! settings {
    () => {
        "; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off; \
         SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL statement_timeout = '60s'"
    };
}

/// Begins a writing transaction.
///
/// A standby refuses the second statement, which aborts the transaction. If it refused the first
/// one, the statements after it would run as transactions of their own.
///
/// Warnings must reach the client: see [`Unreplicated`](crate::driver::Unreplicated).
macro_rules! write {
    () => {
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET TRANSACTION READ WRITE; SET LOCAL client_min_messages = warning"
    };
}

/// Begins a snapshot, which sees one committed state. A hot standby accepts it too.
pub(crate) const SNAPSHOT: &str = concat!(
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    settings!(),
    "; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '10min'"
);

/// Begins a commit.
///
/// At READ COMMITTED, each statement sees all commits that ended before it began. So a statement
/// that runs after the locks are taken sees the current rows. Waiting for the lock of a namespace
/// may take long, because other commits may be queued for it.
const COMMIT: &str = concat!(
    write!(),
    settings!(),
    "; SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '10s'"
);

/// Begins a transaction that locks few rows.
pub(crate) const SHORT: &str = concat!(
    write!(),
    settings!(),
    "; SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '10s'"
);

/// Begins a read-only transaction that reads every row.
pub(crate) const COUNT: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '10min'";

/// Begins a short read-only transaction.
pub(crate) const READ: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '60s'";

/// Begins a commit and takes its namespace locks.
///
/// Later statements wait up to `row_wait_millis` for each row lock. `schema` is a quoted
/// identifier.
pub(crate) fn commit(locks: &NamespaceLocks, schema: &str, row_wait_millis: u32) -> String {
    let row_wait = format!("; SET LOCAL lock_timeout = {row_wait_millis}");
    [COMMIT, &locks.statements(schema), &row_wait].concat()
}

/// Begins a transaction that advances the version sequence, and excludes other transactions that do
/// so.
///
/// The lock waits for such a transaction, because this session may draw the next version. It takes
/// one round trip. A commit that excludes others can take longer, so the wait ends after a second.
///
/// The transaction does not wait for a standby. A commit that draws a version later comes after it
/// in the server's write-ahead log.
///
/// `schema` is a quoted identifier.
pub(crate) fn follow(schema: &str) -> String {
    let lock = format!(
        "; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '1s'; \
         LOCK TABLE {schema}.{}0 IN SHARE UPDATE EXCLUSIVE MODE",
        namespace_lock::TABLE
    );
    [SHORT, &lock].concat()
}

/// Disables `transaction_timeout`, a setting since Postgres 17.
pub(crate) const NO_TRANSACTION_TIMEOUT: &str = "; SET LOCAL transaction_timeout = 0";
