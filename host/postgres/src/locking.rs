//! The locks that a commit takes before it validates.
//!
//! A commit in steps does three things in order:
//!
//! 1. It locks the rows that it writes, in key order, including rows that do not exist. All commits
//!    wait in the same order, so they cannot deadlock.
//! 2. It takes a shared lock on each row that it read and does not write. It does not wait for
//!    these locks, because a transaction that holds such a row is about to change it. An absent row
//!    and a range have no row to lock. For them, the commit takes the [lock of the
//!    namespace](crate::namespace_lock).
//! 3. It draws its version, checks that everything it read is unchanged, and writes.
//!
//! If one commit changes what another commit read, there are two cases. Either the other commit
//! validated before the first one got its locks, or it finds the change. So the order of validation
//! is a serial order. A version is drawn under the lock of its row, so the versions of a row
//! increase, even across a delete.

use std::collections::BTreeSet;

use larder_core::commit::Commit;
use larder_core::name::{KeyRange, RowKey};
use larder_core::row::Version;

use crate::namespace_lock::{NamespaceLocks, Strength};

/// The maximum number of rows that a commit locks because it read them. For more rows, exclusive
/// locks on their namespaces cost less.
const SHARED_ROWS_MAX: usize = 256;

/// The locks of a commit.
pub(crate) struct Locking<'a> {
    pub(crate) namespaces: NamespaceLocks,
    /// The rows that the commit writes, in key order.
    pub(crate) written: Vec<&'a RowKey>,
    /// The rows that the commit locks in shared mode.
    pub(crate) shared: Vec<&'a RowKey>,
    /// The ranges that must be unchanged.
    pub(crate) stretches: Vec<KeyRange>,
}

impl<'a> Locking<'a> {
    pub(crate) fn of(commit: &'a Commit) -> Self {
        let written: Vec<&RowKey> = commit.writes.keys().collect();
        let stretches = commit.reads.stretches();
        let mut namespaces = NamespaceLocks::default();
        for row in &written {
            namespaces.add(&row.namespace, Strength::Shared);
        }
        for stretch in &stretches {
            namespaces.add(stretch.namespace(), Strength::Exclusive);
        }
        let conditions = commit.conditions.iter().map(|(row, version)| (row, *version));
        let dependencies = commit.reads.rows().chain(conditions);
        let (there, absent): (Vec<_>, Vec<_>) = dependencies
            .filter(|(row, _)| !commit.writes.contains_key(*row))
            .partition(|(_, version)| *version != Version::ABSENT);
        for (row, _) in absent {
            namespaces.add(&row.namespace, Strength::Exclusive);
        }
        let shared = |namespaces: &NamespaceLocks| -> BTreeSet<&'a RowKey> {
            there.iter().map(|(row, _)| *row).filter(|row| !namespaces.is_exclusive(&row.namespace)).collect()
        };
        if shared(&namespaces).len() > SHARED_ROWS_MAX {
            for (row, _) in &there {
                namespaces.add(&row.namespace, Strength::Exclusive);
            }
        }
        let shared = shared(&namespaces).into_iter().collect();
        Self { namespaces, written, shared, stretches }
    }

    /// Returns the same locks, with exclusive locks on all namespaces. Then no other commit holds
    /// any of the rows.
    pub(crate) fn exclusive(mut self) -> Self {
        for row in std::mem::take(&mut self.shared) {
            self.namespaces.add(&row.namespace, Strength::Exclusive);
        }
        self.namespaces = self.namespaces.exclusive();
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use larder_core::Limits;
    use larder_core::commit::Mutation;
    use larder_core::name::{Key, Namespace};

    use super::*;

    fn row(namespace: &str, key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey {
            namespace: Namespace::new(namespace, &limits).unwrap(),
            key: Key::new(key, &limits).unwrap(),
        }
    }

    fn commit(conditions: &[(RowKey, u64)], written: &[RowKey]) -> Commit {
        Commit {
            conditions: conditions.iter().map(|(row, version)| (row.clone(), Version(*version))).collect(),
            writes: written.iter().map(|row| (row.clone(), Mutation::Delete)).collect::<BTreeMap<_, _>>(),
            ..Commit::default()
        }
    }

    #[test]
    fn rows_that_are_written_are_locked_and_others_shared_as_far_as_they_are_there() {
        let commit = commit(&[(row("n", "a"), 1), (row("n", "b"), 2)], &[row("n", "b"), row("m", "c")]);
        let locking = Locking::of(&commit);
        assert_eq!(locking.written, [&row("m", "c"), &row("n", "b")]);
        assert_eq!(locking.shared, [&row("n", "a")]);
        let shared = |row: &RowKey| !locking.namespaces.is_exclusive(&row.namespace);
        assert!(locking.written.iter().all(|row| shared(row)) && !locking.namespaces.has_exclusive());
    }

    #[test]
    fn an_absent_row_that_is_not_written_takes_its_namespace_alone_and_one_that_is_written_does_not() {
        let written = commit(&[(row("n", "a"), 0)], &[row("n", "a")]);
        assert!(!Locking::of(&written).namespaces.is_exclusive(&row("n", "a").namespace));
        let other = commit(&[(row("n", "a"), 0), (row("n", "c"), 3)], &[row("n", "b")]);
        let locking = Locking::of(&other);
        assert!(locking.namespaces.is_exclusive(&row("n", "a").namespace));
        assert!(locking.shared.is_empty());
    }

    #[test]
    fn many_rows_take_their_namespaces_alone() {
        let read: Vec<_> =
            (0..=SHARED_ROWS_MAX as u64).map(|number| (row("n", &number.to_string()), 1)).collect();
        let few = commit(&read[1..], &[row("m", "a")]);
        assert_eq!(Locking::of(&few).shared.len(), SHARED_ROWS_MAX);
        let many = commit(&read, &[row("m", "a")]);
        let locking = Locking::of(&many);
        assert!(locking.shared.is_empty() && locking.namespaces.is_exclusive(&row("n", "a").namespace));
        let exclusive = Locking::of(&few).exclusive();
        assert!(exclusive.shared.is_empty() && exclusive.namespaces.is_exclusive(&row("m", "a").namespace));
    }
}
