//! Rows that have expired stay away: a commit that relied on one comes before every transaction that found it gone.
//!
//! One exception is allowed. While an update commits, a view of another process may still find the lease gone in the state
//! before: the update judges time under the write lock, and readers do not wait for that lock. Views of the update's own
//! process see the lease as long as it commits. Once a view has found the lease gone, no update may begin its commit and rely
//! on it.

use std::collections::{HashMap, HashSet};

use crate::history::{Answer, Call, Id, LEASES, Nanos, Row, Step, Transaction, Window};
use crate::model::Timeline;

/// The machine's clock, which is that of all stores unless clocks jump. Otherwise each opening of a store has its own.
const MACHINE: u64 = 0;

/// A row as one commit wrote it, as seen by transactions with the same clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lease {
    clock: u64,
    row: Row,
    version: u64,
}

/// Which transactions saw a lease, and which found it gone.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The last update that relied on it, and how many commits there were before that.
    relied_on: Option<(usize, Id)>,
    /// The last update that relied on it, and when its commit was asked for.
    relied_on_at: Option<(Nanos, Id)>,
    /// The first transaction that found it gone, and after how many commits.
    gone: Option<(usize, Id)>,
    /// The snapshots that show it: of which opening of a store, and when they were taken.
    shown: Vec<(u64, Window, Id)>,
    /// When updates that relied on it were under way, made or not, and in which opening of a store.
    relied_on_in: Vec<(u64, Window)>,
    /// The first snapshot in which it is gone, and when that had been taken.
    hidden: Option<(Nanos, Id)>,
}

#[derive(Default)]
pub(crate) struct Leases {
    seen: HashMap<Lease, Seen>,
    /// Whether all stores have the same clock.
    one_clock: bool,
}

impl Leases {
    pub(crate) fn new(one_clock: bool) -> Self {
        Self { seen: HashMap::new(), one_clock }
    }

    /// An update committed, as the one that follows `commits` others.
    pub(crate) fn relied_on(
        &mut self,
        transaction: &Transaction,
        asked: Nanos,
        commits: usize,
        timeline: &Timeline,
    ) {
        for (lease, is_there) in self.looks(transaction, commits, timeline) {
            let seen = self.seen.entry(lease).or_default();
            match is_there {
                true => {
                    seen.relied_on = seen.relied_on.max(Some((commits, transaction.id)));
                    seen.relied_on_at = seen.relied_on_at.max(Some((asked, transaction.id)));
                }
                false => seen.gone = earliest(seen.gone, (commits, transaction.id)),
            }
        }
    }

    /// A snapshot showed the state that `commits` commits left. Its transaction asked for its commit, if it did, and was
    /// answered within `committing`.
    pub(crate) fn saw(
        &mut self,
        transaction: &Transaction,
        (window, committing): (Window, Option<Window>),
        commits: usize,
        timeline: &Timeline,
    ) {
        let id = transaction.id;
        for (lease, is_there) in self.looks(transaction, commits, timeline) {
            let is_own_clock = lease.clock == transaction.opening;
            let seen = self.seen.entry(lease).or_default();
            if is_there {
                seen.shown.push((transaction.opening, window, id));
                seen.relied_on_in.extend(committing.map(|committing| (transaction.opening, committing)));
            } else {
                seen.hidden = earliest(seen.hidden, (window.to, id));
                if is_own_clock {
                    seen.gone = earliest(seen.gone, (commits, id));
                }
            }
        }
    }

    /// What came back.
    pub(crate) fn returned(&self) -> Vec<String> {
        let mut returned = Vec::new();
        for (Lease { row, version, .. }, seen) in &self.seen {
            if let (Some((gone, who)), Some((relied_on, id))) = (seen.gone, seen.relied_on)
                && gone <= relied_on
            {
                returned.push(format!(
                    "{who} found {row} of version {version} gone, and {id}, which committed after that, relied on it"
                ));
            }
            let Some((hidden, who)) = seen.hidden else { continue };
            let again = seen.shown_after(hidden).map(|id| (id, "saw it again"));
            let relied_on = seen.relied_on_at.filter(|(at, _)| hidden < *at);
            let after = relied_on.map(|(_, id)| (id, "relied on it after that"));
            for (id, did) in again.into_iter().chain(after) {
                returned.push(format!("{who} found {row} of version {version} gone, and {id} {did}"));
            }
        }
        returned
    }

    /// The leases that a transaction looked for, and whether they were there. Those that it wrote itself are left out.
    fn looks(&self, transaction: &Transaction, commits: usize, timeline: &Timeline) -> Vec<(Lease, bool)> {
        let clocks = [Some(transaction.opening), self.one_clock.then_some(MACHINE)];
        let mut written = HashSet::new();
        let mut looks = Vec::new();
        let mut look = |written: &HashSet<&Row>, row: Row, is_there: bool| {
            if let Some(stored) = timeline.get(&row, commits).filter(|_| !written.contains(&row)) {
                let leases = clocks.iter().flatten();
                let leases =
                    leases.map(|clock| Lease { clock: *clock, row: row.clone(), version: stored.version });
                looks.extend(leases.map(|lease| (lease, is_there)));
            }
        };
        for Step { call, answer } in &transaction.steps {
            match (call, answer) {
                (Call::Put { row, .. } | Call::Delete { row, .. }, _) if row.0 == LEASES => {
                    written.insert(row);
                }
                (Call::Get(row), Answer::Value(found)) if row.0 == LEASES => {
                    look(&written, row.clone(), found.is_some());
                }
                (Call::Page(namespace, ..), Answer::Page(entries, _)) if namespace == LEASES => {
                    for (key, _) in timeline.namespace(LEASES, commits) {
                        let is_there = entries.iter().any(|(found, _)| found == key);
                        look(&written, Row(LEASES.to_string(), key.to_string()), is_there);
                    }
                }
                _ => {}
            }
        }
        looks
    }
}

impl Seen {
    /// A snapshot that shows it and was begun after a moment, while no update of its process that relied on it committed.
    fn shown_after(&self, hidden: Nanos) -> Option<Id> {
        let is_beside_update = |opening: u64, window: &Window| {
            let mut updates = self.relied_on_in.iter().filter(|(of, _)| *of == opening);
            updates.any(|(_, update)| update.from <= window.to && window.from <= update.to)
        };
        let mut late = self.shown.iter().filter(|(_, window, _)| hidden < window.from);
        late.find(|(opening, window, _)| !is_beside_update(*opening, window)).map(|(_, _, id)| *id)
    }
}

fn earliest<T: Ord>(first: Option<T>, second: T) -> Option<T> {
    Some(match first {
        Some(first) => first.min(second),
        None => second,
    })
}
