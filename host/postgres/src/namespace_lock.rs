//! Locks that stand for namespaces.
//!
//! Every commit locks those of the namespaces that it writes. Commits share such a lock, so it delays nobody. A commit that
//! rests on a range or an absent row has nothing to lock there that is a row. It takes the lock of the namespace alone:
//! then no other commit that writes there is under way, and none begins until it ends.
//!
//! A lock is that of an empty table. The server grants locks of tables in the order in which they were asked for, which it does
//! not do with rows: there, those who share a lock could keep out one who wants it alone without end. A commit takes them in
//! the order of their numbers, before any row, so they are part of no deadlock.

use std::fmt::Write;

use larder_core::name::Namespace;

/// How many there are.
pub(crate) const COUNT: usize = 16;

/// The beginning of the names of their tables; a number follows.
pub(crate) const TABLE: &str = "larder_namespace_lock_";

/// How a commit takes a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strength {
    /// Together with others who write in its namespaces.
    Shared,
    /// Alone.
    Exclusive,
}

/// The number of a namespace's lock. All hosts have to agree on it, so it must never change.
pub(crate) fn number(namespace: &Namespace) -> usize {
    // FNV-1a.
    let hash = namespace.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The last bits of this hash are those of the bytes' last bits.
    usize::try_from((hash ^ (hash >> 32)) % COUNT as u64).unwrap_or_default()
}

/// The locks that a commit takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamespaceLocks([Option<Strength>; COUNT]);

impl NamespaceLocks {
    /// All of them, alone.
    pub(crate) fn all() -> Self {
        Self([Some(Strength::Exclusive); COUNT])
    }

    /// Adds that of a namespace. The stronger demand counts.
    pub(crate) fn add(&mut self, namespace: &Namespace, strength: Strength) {
        if let Some(lock) = self.0.get_mut(number(namespace)) {
            *lock = (*lock).max(Some(strength));
        }
    }

    /// The same locks, each taken alone.
    pub(crate) fn exclusive(&self) -> Self {
        Self(self.0.map(|lock| lock.map(|_| Strength::Exclusive)))
    }

    /// Whether that of a namespace is taken alone.
    pub(crate) fn is_exclusive(&self, namespace: &Namespace) -> bool {
        self.0.get(number(namespace)) == Some(&Some(Strength::Exclusive))
    }

    /// Whether one of them is taken alone.
    pub(crate) fn has_exclusive(&self) -> bool {
        self.0.contains(&Some(Strength::Exclusive))
    }

    /// The statements that take them, in the order of their numbers. `schema` is quoted.
    pub(crate) fn statements(&self, schema: &str) -> String {
        let mut sql = String::new();
        for (number, lock) in self.0.iter().enumerate() {
            let mode = match lock {
                None => continue,
                Some(Strength::Shared) => "ROW SHARE",
                Some(Strength::Exclusive) => "EXCLUSIVE",
            };
            // Writing to a string does not fail.
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
