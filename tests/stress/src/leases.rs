//! Checks that expired rows do not come back: a commit that relied on a lease comes before every
//! transaction that found the lease gone.
//!
//! There is one exception. While an update commits, a view of another process may find the lease
//! gone although the update relies on it. The update reads its clock under the write lock, and
//! readers do not wait for that lock. Views of the update's own process see the lease until the
//! commit ends. Once a view has found the lease gone, no update may request a commit and rely on
//! it.

use std::collections::{HashMap, HashSet};

use crate::history::{Answer, Call, Id, LEASES, Nanos, Row, Step, Transaction, Window};
use crate::model::Timeline;

/// The machine's clock, which all stores share unless clocks jump. Otherwise each opening of a
/// store has its own clock.
const MACHINE: u64 = 0;

/// A row as written by one commit, for transactions with the same clock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lease {
    clock: u64,
    row: Row,
    version: u64,
}

/// The transactions that saw a lease, and those that found it gone.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The last update that relied on it, and the number of commits before that update.
    relied_on: Option<(usize, Id)>,
    /// The last update that relied on it, and when its commit was requested.
    relied_on_at: Option<(Nanos, Id)>,
    /// The first transaction that found it gone, and the number of commits before that.
    gone: Option<(usize, Id)>,
    /// The snapshots that show it: the opening of the store, and when they were taken.
    shown: Vec<(u64, Window, Id)>,
    /// When commits of updates that relied on it were in progress, whatever their outcome, and in
    /// which opening of the store.
    relied_on_in: Vec<(u64, Window)>,
    /// The first snapshot in which it is gone, and by when that was taken.
    hidden: Option<(Nanos, Id)>,
}

#[derive(Default)]
pub(crate) struct Leases {
    seen: HashMap<Lease, Seen>,
    /// Whether all stores use the same clock.
    one_clock: bool,
}

impl Leases {
    pub(crate) fn new(one_clock: bool) -> Self {
        Self { seen: HashMap::new(), one_clock }
    }

    /// Records an update that committed after `commits` others.
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

    /// Records a snapshot that showed the state after `commits` commits. `committing` is when the
    /// commit of its transaction was in progress, if it requested one.
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

    /// The violations: leases that came back.
    pub(crate) fn returned(&self) -> Vec<String> {
        let mut returned = Vec::new();
        for (Lease { row, version, .. }, seen) in &self.seen {
            if let (Some((gone, who)), Some((relied_on, id))) = (seen.gone, seen.relied_on)
                && gone <= relied_on
            {
                returned.push(format!(
                    "{who} found {row} of version {version} gone, but {id} committed after that and relied on it"
                ));
            }
            let Some((hidden, who)) = seen.hidden else { continue };
            let again = seen.shown_after(hidden).map(|id| (id, "saw it later"));
            let relied_on = seen.relied_on_at.filter(|(at, _)| hidden < *at);
            let after = relied_on.map(|(_, id)| (id, "relied on it later"));
            for (id, did) in again.into_iter().chain(after) {
                returned.push(format!("{who} found {row} of version {version} gone, but {id} {did}"));
            }
        }
        returned
    }

    /// The leases that a transaction read, and whether each was found. Omits those that it wrote
    /// itself.
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
    /// The first snapshot that shows the lease although it was taken after `hidden`, unless an
    /// update of its process that relied on the lease was committing.
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
