//! Checks that transactions are serializable: they could have run one after the other in some
//! order.
//!
//! Every written value names its transaction, so each read tells which transaction wrote the value.
//! The versions of the commits give the order of the writes of a row. Together they say for pairs
//! of transactions which one comes first. A serial order exists if and only if these pairs form no
//! cycle.
#![allow(clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use larder_core::{Error, Version};

/// A committed transaction, or one with an unknown outcome whose commit was observed. Transaction 0
/// stands for the empty store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Made {
    /// For each row that it read, the transaction that had written it.
    pub(crate) read: BTreeMap<u64, u64>,
    pub(crate) written: Vec<u64>,
    pub(crate) version: Version,
    /// Transactions of a phase come after all acknowledged transactions of the phase before.
    pub(crate) phase: u64,
    /// Whether its caller got an unknown outcome.
    pub(crate) is_unknown: bool,
}

impl Made {
    /// Records which transaction wrote the value that transaction `number` read, unless it was its
    /// own.
    pub(crate) fn note(&mut self, row: u64, value: Option<&[u8]>, number: u64) -> Result<(), Error> {
        let text = value.map(|value| std::str::from_utf8(value).unwrap_or_default());
        let writer = text.map_or(0, |text| text.parse().unwrap_or(u64::MAX));
        if writer != number && *self.read.entry(row).or_insert(writer) != writer {
            return Err(Error::Corrupt(format!("row {row} changed within transaction {number}")));
        }
        Ok(())
    }
}

/// Derives the order of pairs of transactions, and checks that a serial order satisfies all of
/// them.
pub(crate) fn check(made: &BTreeMap<u64, Made>) -> Result<(), String> {
    let mut before: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let rows: BTreeSet<u64> =
        made.values().flat_map(|one| one.read.keys().copied().chain(one.written.iter().copied())).collect();
    for row in rows {
        let mut writes: BTreeMap<Version, u64> = BTreeMap::new();
        for (number, one) in made {
            if (*number == 0 || one.written.contains(&row))
                && let Some(other) = writes.insert(one.version, *number)
            {
                return Err(format!("{other} and {number} wrote row {row} at {:?}", one.version));
            }
        }
        let order: Vec<u64> = writes.into_values().collect();
        let writers: BTreeSet<u64> = order.iter().copied().collect();
        let next: BTreeMap<u64, u64> = order.windows(2).map(|pair| (pair[0], pair[1])).collect();
        for (first, second) in &next {
            before.entry(*first).or_default().push(*second);
        }
        for (number, one) in made {
            let Some(writer) = one.read.get(&row) else { continue };
            if !writers.contains(writer) {
                return Err(format!("{number} read a write of {writer}, which was not committed"));
            }
            before.entry(*writer).or_default().push(*number);
            if let Some(next) = next.get(writer).filter(|next| *next != number) {
                before.entry(*number).or_default().push(*next);
            }
        }
    }
    for (number, one) in made.iter().filter(|(_, one)| one.phase > 0) {
        before.entry(end_of(one.phase - 1)).or_default().push(*number);
        if !one.is_unknown {
            before.entry(*number).or_default().push(end_of(one.phase));
        }
    }
    let phases = made.values().map(|one| one.phase).max().unwrap_or_default();
    for phase in 1..=phases {
        before.entry(end_of(phase - 1)).or_default().push(end_of(phase));
    }
    let ends = (0..=phases).map(end_of);
    let ordered = ordered(made.keys().copied().chain(ends), &before);
    if made.keys().all(|number| ordered.contains(number)) {
        return Ok(());
    }
    let left: Vec<_> = made.iter().filter(|(number, _)| !ordered.contains(number)).take(20).collect();
    Err(format!("no serial order exists for transactions {left:?}"))
}

/// The end of a phase, as a number that no transaction has.
fn end_of(phase: u64) -> u64 {
    u64::MAX - phase
}

/// The transactions that have a place in the order: those that are in no cycle and come after none.
fn ordered(all: impl Iterator<Item = u64>, before: &BTreeMap<u64, Vec<u64>>) -> BTreeSet<u64> {
    let mut waits_for: BTreeMap<u64, usize> = all.map(|number| (number, 0)).collect();
    for later in before.values().flatten() {
        *waits_for.entry(*later).or_default() += 1;
    }
    let mut free: VecDeque<u64> =
        waits_for.iter().filter(|(_, count)| **count == 0).map(|(number, _)| *number).collect();
    let mut ordered = BTreeSet::new();
    while let Some(number) = free.pop_front() {
        ordered.insert(number);
        for later in before.get(&number).into_iter().flatten() {
            if let Some(count) = waits_for.get_mut(later) {
                *count -= 1;
                if *count == 0 {
                    free.push_back(*later);
                }
            }
        }
    }
    ordered
}
