//! Locks on namespaces.
//!
//! Every commit takes a shared lock on each namespace that it writes. If a commit depends on a
//! range or an absent row, there is no row to lock, so it takes the namespace's lock in exclusive
//! mode. Then no other commit that writes there is in progress, and none starts until this one
//! ends.
//!
//! Each lock is an empty table, and several namespaces may share one. The server grants table locks
//! in the order of the requests. It does not do so for row locks, where shared locks could starve
//! an exclusive one. A commit takes its table locks in the order of their numbers, before any row
//! lock, so they cannot deadlock.

use std::fmt::Write;
use std::hash::Hasher as _;

use fnv::FnvHasher;
use larder_core::name::Namespace;

/// The number of lock tables.
pub(crate) const COUNT: usize = 16;

/// The prefix of the names of the lock tables. The number follows.
pub(crate) const TABLE: &str = "larder_namespace_lock_";

/// The mode in which a commit takes a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// Allows other commits that write in the namespace.
    Shared,
    /// Excludes all other commits that write in the namespace.
    Exclusive,
}

/// Returns the number of a namespace's lock. All hosts have to agree on it, so it must never
/// change.
pub(crate) fn number(namespace: &Namespace) -> usize {
    let mut hash = FnvHasher::default();
    hash.write(namespace.as_bytes());
    let hash = hash.finish();
    // The low bits of the hash depend only on the low bits of the bytes.
    usize::try_from((hash ^ (hash >> 32)) % COUNT as u64).unwrap_or_default()
}

/// The namespace locks of a commit, with their modes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespaceLocks([Option<Strength>; COUNT]);

impl NamespaceLocks {
    /// Returns all locks, in exclusive mode.
    pub(crate) fn all() -> Self {
        Self([Some(Strength::Exclusive); COUNT])
    }

    /// Adds the lock of a namespace. If it is there already, the stronger mode wins.
    pub(crate) fn add(&mut self, namespace: &Namespace, strength: Strength) {
        if let Some(lock) = self.0.get_mut(number(namespace)) {
            *lock = (*lock).max(Some(strength));
        }
    }

    /// Returns the same locks, all in exclusive mode.
    pub(crate) fn exclusive(&self) -> Self {
        Self(self.0.map(|lock| lock.map(|_| Strength::Exclusive)))
    }

    /// Whether the lock of a namespace is taken in exclusive mode.
    pub(crate) fn is_exclusive(&self, namespace: &Namespace) -> bool {
        self.0.get(number(namespace)) == Some(&Some(Strength::Exclusive))
    }

    /// Whether any lock is taken in exclusive mode.
    pub(crate) fn has_exclusive(&self) -> bool {
        self.0.contains(&Some(Strength::Exclusive))
    }

    /// Returns the statements that take the locks, in the order of their numbers.
    ///
    /// `schema` is a quoted identifier. The result begins with a semicolon if it is not empty.
    pub(crate) fn statements(&self, schema: &str) -> String {
        let mut sql = String::new();
        for (number, lock) in self.0.iter().enumerate() {
            let mode = match lock {
                None => continue,
                Some(Strength::Shared) => "ROW SHARE",
                Some(Strength::Exclusive) => "EXCLUSIVE",
            };
            // Writing to a `String` cannot fail.
            let _ = write!(sql, "; LOCK TABLE {schema}.{TABLE}{number} IN {mode} MODE");
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_core::Limits;

    fn namespace(name: &str) -> Namespace {
        Namespace::new(name, &Limits::default()).unwrap()
    }

    #[test]
    fn the_numbers_of_namespaces_are_those_of_all_releases() {
        let names = ["a", "b", "default", "plugin:catalog", "größe"];
        assert_eq!(names.map(|name| number(&namespace(name))), [0, 9, 8, 11, 4]);
    }

    #[test]
    fn namespaces_are_spread_over_all_locks() {
        let mut counts = [0; COUNT];
        for name in 0..1_600 {
            counts[number(&namespace(&format!("namespace-{name}")))] += 1;
        }
        assert!(counts.iter().all(|count| (50..200).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_stronger_demand_counts_and_locks_are_taken_in_the_order_of_their_numbers() {
        let mut locks = NamespaceLocks::default();
        assert_eq!((locks.statements("\"s\""), locks.has_exclusive()), (String::new(), false));
        let namespaces = [namespace("a"), namespace("default")];
        let [one, other] = namespaces.each_ref().map(number);
        locks.add(&namespaces[0], Strength::Shared);
        locks.add(&namespaces[1], Strength::Exclusive);
        locks.add(&namespaces[1], Strength::Shared);
        assert!(locks.is_exclusive(&namespaces[1]) && !locks.is_exclusive(&namespaces[0]));
        let statement = |number: usize, mode| format!("; LOCK TABLE \"s\".{TABLE}{number} IN {mode} MODE");
        let mut expected = [(one, statement(one, "ROW SHARE")), (other, statement(other, "EXCLUSIVE"))];
        expected.sort();
        assert_eq!(locks.statements("\"s\""), expected.map(|(_, statement)| statement).concat());
        assert_eq!(
            locks.exclusive().statements("s").matches("EXCLUSIVE").count(),
            if one == other { 1 } else { 2 }
        );
        assert_eq!(NamespaceLocks::all().statements("s").matches("EXCLUSIVE").count(), COUNT);
    }
}
