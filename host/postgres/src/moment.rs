//! The moments of commits and snapshots: the server's, as several hosts share it.
//!
//! `now()` is when a transaction began; a moment has to be later than that: it is read in the statement that it is for.

/// The server's time in milliseconds, moved by what a parameter says.
macro_rules! moment {
    ($moved:literal) => {
        concat!("((extract(epoch FROM clock_timestamp()) * 1000)::bigint + ", $moved, "::bigint)")
    };
}

/// A read that gives the moment, taken once the snapshot is, beside each row, and once without a row where there is none.
/// `$sql` uses it as `moment.now`.
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

/// A read, with where its moment comes from.
pub(crate) struct Read<T = String> {
    /// For the first read of a transaction: a parameter says how far to move the server's clock.
    pub(crate) first: T,
    /// For a later one: the same parameter is the moment.
    pub(crate) next: T,
}
