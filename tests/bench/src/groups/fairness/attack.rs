//! The attacks of `tests/guests`, and what each needs.

use serde::{Deserialize, Serialize};

/// Rows that the host prepares before an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Prepared {
    /// No rows beside those that every attacker reads.
    Rows,
    /// Expired rows, followed by one live row.
    Expired,
    /// Rows with short keys and empty values.
    Empty,
    /// Rows of 8 bytes.
    Tiny,
    /// One row with the largest value.
    Largest,
}

/// One attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attack {
    /// Its name in the program `attackers`.
    pub(super) name: &'static str,
    pub(super) prepared: Prepared,
    /// Whether the attackers' grant is read-only.
    pub(super) read_only: bool,
    /// Whether its instances trap, so that the host starts new ones.
    pub(super) traps: bool,
}

const fn attack(name: &'static str) -> Attack {
    Attack { name, prepared: Prepared::Rows, read_only: false, traps: false }
}

/// The well-behaved guests of the baseline.
pub(super) const WELL_BEHAVED: Attack = attack("well-behaved");

/// All attacks. The first is the control: it never calls a store.
pub(super) const ALL: [Attack; 42] = [
    attack("computes"),
    attack("held-views"),
    Attack { read_only: true, ..attack("held-read-only-views") },
    attack("held-updates"),
    attack("held-scans"),
    attack("touched-views"),
    attack("staggered-views"),
    attack("views-back-to-back"),
    attack("rewrites"),
    attack("validated-ranges"),
    attack("validated-pages"),
    attack("validated-rows"),
    attack("many-rows"),
    attack("many-bytes"),
    attack("long-keys"),
    attack("absent-rows"),
    attack("small-commits"),
    attack("increments"),
    attack("hot-row"),
    attack("failing-conditions"),
    attack("short-lived-rows"),
    attack("many-namespaces"),
    attack("tiny-rows"),
    attack("staged-bytes"),
    attack("staged-rows"),
    attack("read-sets"),
    attack("generations"),
    attack("conversations"),
    Attack { prepared: Prepared::Expired, ..attack("scan-expired") },
    Attack { prepared: Prepared::Empty, ..attack("scan-empty-values") },
    Attack { prepared: Prepared::Tiny, ..attack("scan-tiny-rows") },
    attack("delete-range"),
    attack("get-many"),
    attack("put-many"),
    Attack { prepared: Prepared::Largest, ..attack("largest-value") },
    attack("reverse-over-deleted"),
    attack("migrations"),
    attack("begin-and-drop"),
    attack("open-stores"),
    attack("forged-cursors"),
    attack("refused-calls"),
    Attack { traps: true, ..attack("traps") },
];

/// Attacks that the short form runs on every backend and store.
const EVERYWHERE: [&str; 2] = ["held-views", "many-rows"];

impl Attack {
    /// Finds an attack by name.
    pub(super) fn find(name: &str) -> Option<Self> {
        ALL.into_iter().find(|attack| attack.name == name)
    }

    /// Whether the short form includes the cell.
    pub(super) fn is_short(self, backend: Backend, attacked: AttackedStore) -> bool {
        (backend, attacked) == (Backend::Sqlite, AttackedStore::SameStore) || EVERYWHERE.contains(&self.name)
    }
}

/// The backend of the stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    InMemory,
    Sqlite,
    Postgres,
    /// Tenants in a folder.
    Tenants,
}

impl Backend {
    pub(super) const ALL: [Self; 4] = [Self::InMemory, Self::Sqlite, Self::Postgres, Self::Tenants];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InMemory => "in memory",
            Self::Sqlite => "SQLite",
            Self::Postgres => "Postgres",
            Self::Tenants => "tenants",
        }
    }
}

/// The store that the attackers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttackedStore {
    /// The victim's.
    SameStore,
    /// Another one of the same process.
    OtherStore,
}

impl AttackedStore {
    pub(super) const ALL: [Self; 2] = [Self::SameStore, Self::OtherStore];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SameStore => "same store",
            Self::OtherStore => "other store",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_is_in_the_short_form() {
        for attack in ALL {
            assert!(attack.is_short(Backend::Sqlite, AttackedStore::SameStore), "{}", attack.name);
        }
        for backend in Backend::ALL {
            let short = ALL.iter().filter(|attack| attack.is_short(backend, AttackedStore::OtherStore));
            assert_eq!(short.count(), EVERYWHERE.len(), "{}", backend.name());
        }
    }

    #[test]
    fn attacks_are_told_apart_by_their_names() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|attack| attack.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(!names.contains(WELL_BEHAVED.name));
        assert_eq!(Attack::find("traps").map(|attack| attack.traps), Some(true));
        assert_eq!(Attack::find("well-behaved"), None);
    }
}
