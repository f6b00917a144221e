//! The attacks that `tests/guests` makes, and what each needs.

use serde::{Deserialize, Serialize};

/// Rows that the host prepares before an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Prepared {
    /// Only the rows that every attacker reads.
    Rows,
    /// Rows that have expired, before one that has not.
    Expired,
    /// Rows with short keys and empty values.
    Empty,
    /// Rows of 8 bytes.
    Tiny,
    /// A row of the largest value.
    Largest,
}

/// One attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attack {
    /// What the program `attackers` calls it.
    pub(super) name: &'static str,
    pub(super) prepared: Prepared,
    /// The attackers may only read.
    pub(super) read_only: bool,
    /// Its instances trap, and the host starts them again.
    pub(super) traps: bool,
}

const fn attack(name: &'static str) -> Attack {
    Attack { name, prepared: Prepared::Rows, read_only: false, traps: false }
}

/// The neighbours of the baseline.
pub(super) const WELL_BEHAVED: Attack = attack("well-behaved");

/// All attacks. The first calls no store: its row shows that the comparison is about larder.
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

/// Attacks that the short form runs on every backend, and not on SQLite alone.
const EVERYWHERE: [&str; 2] = ["held-views", "many-rows"];

impl Attack {
    /// The attack of a name.
    pub(super) fn find(name: &str) -> Option<Self> {
        ALL.into_iter().find(|attack| attack.name == name)
    }

    /// Whether the short form has the cell.
    pub(super) fn is_short(self, backend: Backend, place: Place) -> bool {
        (backend, place) == (Backend::Sqlite, Place::SameStore) || EVERYWHERE.contains(&self.name)
    }
}

/// Where the stores are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    InMemory,
    Sqlite,
    Postgres,
}

impl Backend {
    pub(super) const ALL: [Self; 3] = [Self::InMemory, Self::Sqlite, Self::Postgres];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::InMemory => "in memory",
            Self::Sqlite => "SQLite",
            Self::Postgres => "Postgres",
        }
    }
}

/// Which store the attackers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The victim's.
    SameStore,
    /// Another one of the same process.
    OtherStore,
}

impl Place {
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
            assert!(attack.is_short(Backend::Sqlite, Place::SameStore), "{}", attack.name);
        }
        let everywhere = |attack: &Attack| attack.is_short(Backend::Postgres, Place::OtherStore);
        assert_eq!(ALL.iter().filter(|attack| everywhere(attack)).count(), EVERYWHERE.len());
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
