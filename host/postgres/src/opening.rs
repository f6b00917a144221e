//! The statements that begin transactions.
//!
//! A pooler may give a client another session for each transaction, with the settings of the role,
//! the database or another client. So every transaction states its isolation level and the settings
//! that it needs, by `SET LOCAL`, which ends with the transaction.

use crate::namespace_lock::{self, NamespaceLocks};

/// Settings for larder's statements.
///
/// - The planner underestimates sequential and bitmap scans of a table without statistics. Both read
///   a whole range for its first row. Without them, every read walks along the primary key. As only
///   one plan remains, planning again and compiling are a waste.
/// - The timeout ends statements of a larder process that was stopped. larder's own are shorter.
macro_rules! settings {
    () => {
        "; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off; \
         SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL statement_timeout = '60s'"
    };
}

/// Begins a transaction that writes.
///
/// A standby refuses the second statement, which fails the transaction. If it refused the first one, the statements that follow
/// would be transactions of their own.
///
/// Warnings must arrive: see [`Unreplicated`](crate::driver::Unreplicated).
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
/// At this isolation level, each statement sees all commits that ended before it began. So a
/// statement that runs under locks sees the current rows. Waiting for the lock of a namespace may
/// take long, as other commits may be queued for it.
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

/// Begins a commit and takes its locks. Later statements wait up to `row_wait_millis` for each row.
/// `schema` is quoted.
pub(crate) fn commit(locks: &NamespaceLocks, schema: &str, row_wait_millis: u32) -> String {
    let row_wait = format!("; SET LOCAL lock_timeout = {row_wait_millis}");
    [COMMIT, &locks.statements(schema), &row_wait].concat()
}

/// Begins a transaction that moves the sequence of versions, and excludes others that do so. `schema` is quoted.
///
/// Another session that does so needs a round trip, and is waited for: this session may draw the
/// next version. A commit that excludes others can take long, so the wait ends after a second.
///
/// It does not wait for a standby. A commit that draws a version later stands behind it in the
/// server's write-ahead log.
pub(crate) fn follow(schema: &str) -> String {
    let lock = format!(
        "; SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '1s'; \
         LOCK TABLE {schema}.{}0 IN SHARE UPDATE EXCLUSIVE MODE",
        namespace_lock::TABLE
    );
    [SHORT, &lock].concat()
}

/// Lifts a timeout that the server has since release 17.
pub(crate) const NO_TRANSACTION_TIMEOUT: &str = "; SET LOCAL transaction_timeout = 0";
