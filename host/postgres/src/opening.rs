//! How transactions begin, with all that they need.
//!
//! A pooler may give a client another session for each transaction, with the settings of the role, the database or another client.
//! So every transaction says its isolation level and what else it depends on, and nothing that it sets outlives it.

use crate::namespace_lock::NamespaceLocks;

/// What the statements of a snapshot need.
///
/// - The planner takes a sequential or a bitmap scan to be cheap for a table that it knows nothing of. Either would read a whole
///   range for its first row. Without them every read is a walk along the primary key. With one plan left, planning anew is a
///   waste, and so is to compile it.
/// - The timeouts are a safety net for a larder process that is stopped. Timeouts of larder itself are shorter.
macro_rules! settings {
    () => {
        "; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off; \
         SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL statement_timeout = '60s'"
    };
}

/// Begins a snapshot. It sees one committed state, and a hot standby allows it too.
pub(crate) const SNAPSHOT: &str = concat!(
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    settings!(),
    "; SET LOCAL lock_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = '10min'"
);

/// Begins a commit. In this isolation level, each statement sees all that was committed before it began, so what is read
/// under locks is what counts. A lock of a namespace may take long: others are before it.
const COMMIT: &str = concat!(
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    settings!(),
    "; SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL lock_timeout = '10s'"
);

/// Begins a transaction of a few statements that lock at most a row.
pub(crate) const SHORT: &str = concat!(
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
    settings!(),
    "; SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = '10s'"
);

/// Begins a transaction that looks at every row, and only reads.
pub(crate) const COUNT: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '10min'";

/// Begins a short transaction that only reads.
pub(crate) const READ: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '60s'";

/// Begins a commit and takes its locks. It waits so many milliseconds for each row. `schema` is quoted.
pub(crate) fn commit(locks: &NamespaceLocks, schema: &str, row_wait_millis: u32) -> String {
    let row_wait = format!("; SET LOCAL lock_timeout = {row_wait_millis}");
    [COMMIT, &locks.statements(schema), &row_wait].concat()
}

/// What a server has to be told besides, that ends transactions after some time: releases since 17.
pub(crate) const NO_TRANSACTION_TIMEOUT: &str = "; SET LOCAL transaction_timeout = 0";
