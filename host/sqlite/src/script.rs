//! Runs a text of many SQL statements.
//!
//! `rusqlite` passes SQLite the length of the text, and SQLite then copies the rest of the text for
//! each statement that it prepares, which takes quadratic time. SQLite does not copy a text that it
//! knows to end with NUL. It also returns where the next statement begins, which an error message
//! needs and `rusqlite` does not expose.

use std::ffi::{CStr, CString, c_int};
use std::ops::Range;
use std::ptr::NonNull;

use rusqlite::{Connection, ffi};

use crate::error::SqliteError;

/// A statement that failed.
pub(crate) struct Failed {
    /// The range of the statement in the text. It extends to the end of the text if the statement
    /// cannot be prepared.
    pub(crate) statement: Range<usize>,
    /// The byte of the text at which SQLite found the error, if SQLite tells.
    pub(crate) at: Option<usize>,
    /// The error of SQLite.
    pub(crate) error: SqliteError,
}

/// Runs all statements of a text, each to its last row, in time linear in the length of the text.
pub(crate) fn run(connection: &Connection, sql: &str) -> Result<(), Failed> {
    let end = sql.len();
    let terminated = CString::new(sql).map_err(|error| Failed {
        statement: 0..end,
        at: None,
        error: rusqlite::Error::from(error).into(),
    })?;
    let terminated = terminated.as_bytes_with_nul();
    let mut begin = 0;
    while begin < end {
        let rest = terminated.get(begin..).unwrap_or_default();
        let first = || begin + trivia(sql.get(begin..).unwrap_or_default());
        let prepared = Statement::prepare(connection, rest).map_err(|(error, offset)| Failed {
            statement: first()..end,
            at: offset.map(|offset| begin + offset),
            error: error.into(),
        });
        let (statement, length) = prepared?;
        let next = begin + length;
        if let Some(statement) = statement {
            let failed =
                |error: rusqlite::Error| Failed { statement: first()..next, at: None, error: error.into() };
            statement.run().map_err(failed)?;
        }
        begin = next;
    }
    Ok(())
}

/// How many bytes precede the first statement: white space, comments and semicolons, as SQLite's
/// tokenizer reads them.
fn trivia(sql: &str) -> usize {
    let mut rest = sql;
    while let Some(after) = after_trivia(rest) {
        rest = after;
    }
    sql.len() - rest.len()
}

/// The text after its leading white space, comment or semicolon; `None` if it begins with none of
/// these.
fn after_trivia(sql: &str) -> Option<&str> {
    if let Some(comment) = sql.strip_prefix("--") {
        return Some(comment.find('\n').and_then(|end| comment.get(end..)).unwrap_or_default());
    }
    // The star that opens a comment does not close it. At the end of the text, `/*` does not open a
    // comment.
    if let Some(comment) = sql.strip_prefix("/*").filter(|comment| !comment.is_empty()) {
        return Some(comment.split_once("*/").map_or("", |(_, rest)| rest));
    }
    let rest = sql.strip_prefix([';', '\u{feff}', ' ', '\t', '\n', '\x0c', '\r'])?;
    // A vertical tab does not begin white space, but may continue it.
    let is_blank = sql.starts_with(|first: char| first.is_ascii_whitespace());
    Some(if is_blank {
        rest.trim_start_matches(|next: char| next == '\x0b' || next.is_ascii_whitespace())
    } else {
        rest
    })
}

/// A prepared statement, which is finalized when it is dropped.
struct Statement<'a> {
    statement: NonNull<ffi::sqlite3_stmt>,
    connection: &'a Connection,
}

/// The error of SQLite, and the byte at which it occurred.
type PrepareError = (rusqlite::Error, Option<usize>);

impl<'a> Statement<'a> {
    /// Prepares the first statement of a text that ends with NUL, and returns the length of what
    /// was read. Returns no statement if the text begins with a comment or a semicolon that belongs
    /// to none.
    fn prepare(connection: &'a Connection, text: &[u8]) -> Result<(Option<Self>, usize), PrepareError> {
        debug_assert_eq!(text.last(), Some(&0));
        let mut statement = std::ptr::null_mut();
        let mut tail = std::ptr::null();
        // SAFETY: the handle is valid, and not in use by another thread, while `connection` is
        // borrowed. The text ends with NUL, where SQLite stops reading if the length is negative.
        // It writes two pointers that live long enough.
        let (database, code) = unsafe {
            let database = connection.handle();
            let begin = text.as_ptr().cast();
            (database, ffi::sqlite3_prepare_v2(database, begin, -1, &raw mut statement, &raw mut tail))
        };
        if code != ffi::SQLITE_OK {
            // SAFETY: as above. The last call on the connection is the one that failed.
            let offset = unsafe { ffi::sqlite3_error_offset(database) };
            return Err((last_error(connection, code), usize::try_from(offset).ok()));
        }
        // A tail is within the text. Without one, the whole text was read.
        let length = tail.addr().checked_sub(text.as_ptr().addr()).filter(|length| *length > 0);
        let statement = NonNull::new(statement).map(|statement| Self { statement, connection });
        Ok((statement, length.unwrap_or(text.len())))
    }

    /// Runs the statement to its last row.
    fn run(&self) -> rusqlite::Result<()> {
        loop {
            // SAFETY: the statement belongs to the borrowed connection, and is finalized only when
            // it is dropped.
            match unsafe { ffi::sqlite3_step(self.statement.as_ptr()) } {
                ffi::SQLITE_ROW => {}
                ffi::SQLITE_DONE => return Ok(()),
                code => return Err(last_error(self.connection, code)),
            }
        }
    }
}

impl Drop for Statement<'_> {
    fn drop(&mut self) {
        // SAFETY: the statement is finalized once, while its connection is open. The result repeats
        // the error of the last step.
        unsafe { ffi::sqlite3_finalize(self.statement.as_ptr()) };
    }
}

fn last_error(connection: &Connection, code: c_int) -> rusqlite::Error {
    // SAFETY: SQLite returns a text that ends with NUL and is valid until the next call on the
    // connection.
    let message = unsafe { CStr::from_ptr(ffi::sqlite3_errmsg(connection.handle())) };
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(message.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(connection: &Connection) -> Vec<i64> {
        let mut statement = connection.prepare("SELECT x FROM t ORDER BY x").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    fn failure(sql: &str) -> Failed {
        run(&Connection::open_in_memory().unwrap(), sql).unwrap_err()
    }

    #[test]
    fn every_statement_is_run_whatever_stands_between_and_behind_them() {
        for end in ["", ";", ";\n", "; -- end", ";;\n/* end */", "\n-- end", ";/* not closed"] {
            let connection = Connection::open_in_memory().unwrap();
            let sql = format!(
                "; -- begin\nCREATE TABLE t (x);;\n/* ; */ CREATE TRIGGER two AFTER INSERT ON t WHEN new.x = 1
                 BEGIN INSERT INTO t VALUES (2); END; INSERT INTO t VALUES (1), (length('a;é'))  {end}"
            );
            run(&connection, &sql).map_err(|failed| failed.error).unwrap();
            assert_eq!(numbers(&connection), [1, 2, 3], "{end:?}");
        }
        for nothing in ["", " ", ";", "-- only", "/* only */\n", "\u{a0}"] {
            let connection = Connection::open_in_memory().unwrap();
            assert_eq!(run(&connection, nothing).is_ok(), nothing != "\u{a0}", "{nothing:?}");
        }
    }

    /// SQLite applies its limit for the length of a text to what it copies.
    #[test]
    fn what_is_left_of_a_text_is_not_copied_for_each_statement() {
        let connection = Connection::open_in_memory().unwrap();
        // SAFETY: the handle is valid while `connection` is borrowed.
        unsafe { ffi::sqlite3_limit(connection.handle(), ffi::SQLITE_LIMIT_SQL_LENGTH, 1_000) };
        let rows: String = (1..=2_000).map(|row| format!("INSERT INTO t VALUES ({row});\n")).collect();
        let sql = format!("CREATE TABLE t (x);\n{rows}");
        assert!(connection.execute_batch(&sql).is_err());
        run(&connection, &sql).map_err(|failed| failed.error).unwrap();
        assert_eq!(numbers(&connection), (1..=2_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_statement_begins_where_sqlite_finds_its_first_token() {
        let trivia = [
            "/", "*", "/*", "*/", "/*/", "-", "--", "\n", " ", "\t", "\r", "\x0b", "\x0c", ";", "\u{feff}",
            "é",
        ];
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let connection = Connection::open_in_memory().unwrap();
        let mut failures = 0;
        for _ in 0..20_000 {
            let count = random.usize(..12);
            let mut sql: String = (0..count).map(|_| trivia[random.usize(..trivia.len())]).collect();
            sql += ["nope", "/*", ""][random.usize(..3)];
            // No statement begins with any of this, so SQLite reports the first token, unless there
            // is none.
            match run(&connection, &sql) {
                Ok(()) => assert_eq!(super::trivia(&sql), sql.len(), "{seed}: {sql:?}"),
                Err(Failed { statement, at, .. }) => {
                    failures += 1;
                    assert_eq!(Some(statement.start), at, "{seed}: {sql:?}");
                }
            }
        }
        assert!(failures > 5_000, "{failures}");
    }

    #[test]
    fn a_comment_is_not_closed_by_the_star_that_opens_it() {
        let sql = "/*/////\n//// head\n////*/\nINSERT INTO nope VALUES (1)";
        assert_eq!(failure(sql).statement, 25..sql.len());
    }

    #[test]
    fn a_query_runs_to_its_last_row() {
        let sql = "SELECT 1; SELECT abs(x) FROM (SELECT 1 AS x UNION ALL SELECT 2 UNION ALL SELECT -9223372036854775808)";
        let failed = failure(sql);
        assert!(failed.error.to_string().contains("overflow"), "{}", failed.error);
        assert_eq!((failed.statement, failed.at), (10..sql.len(), None));
    }

    #[test]
    fn a_failure_says_where_its_statement_begins_and_where_in_it_the_error_is() {
        let failed = failure("SELECT 1; -- SELECT 2\n;/* é */\nSELECT 3, nothing");
        assert_eq!((failed.statement, failed.at), (32..49, Some(42)));
        let failed = failure("SELECT 1 FROM");
        assert_eq!(failed.statement, 0..13);
        let failed = failure("CREATE TABLE t (x UNIQUE);\nINSERT INTO t VALUES (1), (1); SELECT 1");
        assert_eq!((failed.statement, failed.at), (27..57, None));
        assert!(failed.error.has_code(rusqlite::ErrorCode::ConstraintViolation));
    }
}
