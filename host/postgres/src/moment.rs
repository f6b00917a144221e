//! The time of commits and snapshots. It is the server's time, because several hosts share it.
//!
//! `now()` returns the time at which the transaction began, which is too early. So each statement
//! reads `clock_timestamp()` itself.

/// SQL for the server's time in milliseconds, plus the offset in a parameter.
macro_rules! moment {
    ($moved:literal) => {
        concat!("((extract(epoch FROM clock_timestamp()) * 1000)::bigint + ", $moved, "::bigint)")
    };
}

/// Wraps a read so that it also returns the time of the snapshot, read after the snapshot is taken.
///
/// Each row has the time in the column `moment`. If the read finds no rows, one row without data
/// has it. `$sql` refers to the time as `moment.now`.
macro_rules! with_moment {
    ($moved:literal, $sql:expr) => {
        concat!(
            "SELECT moment.now AS moment, found.* FROM (SELECT ",
            $crate::moment::moment!($moved),
            " AS now) AS moment LEFT JOIN LATERAL (SELECT true AS is_found, rows.* FROM (",
            $sql,
            ") AS rows) AS found ON true"
        )
    };
}

pub(crate) use {moment, with_moment};

/// The two forms of a read, which differ in how they get the time.
pub(crate) struct Read<T = String> {
    /// For the first read of a transaction. A parameter is the offset from the server's clock.
    pub(crate) first: T,
    /// For later reads. The same parameter is the time.
    pub(crate) next: T,
}
