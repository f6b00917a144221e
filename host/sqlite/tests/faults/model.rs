//! A model of what a store must hold after a run.

use std::collections::BTreeMap;

use larder_core::{Error, Result, Version};

/// Rows by key, each with its value and version.
pub type Rows = BTreeMap<String, (Vec<u8>, u64)>;

/// The writes of one transaction, and what they relied on.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The number of the transaction. It names a marker row that only this transaction writes, and
    /// that shows whether it was committed.
    pub id: usize,
    pub puts: Vec<(String, Vec<u8>)>,
    pub deletes: Vec<String>,
    pub increments: Vec<String>,
    /// The versions of rows that it read or demanded; 0 for an absent row.
    pub relied_on: BTreeMap<String, u64>,
}

/// A transaction and the outcome that its caller got.
#[derive(Debug)]
pub struct Attempt {
    pub change: Change,
    pub outcome: Result<Version>,
}

impl Change {
    pub fn marker(&self) -> String {
        format!("commit/{:03}", self.id)
    }

    fn apply(&self, version: u64, rows: &mut Rows) {
        rows.insert(self.marker(), (Vec::new(), version));
        for (key, value) in &self.puts {
            rows.insert(key.clone(), (value.clone(), version));
        }
        for key in &self.deletes {
            rows.remove(key);
        }
        for key in &self.increments {
            let before = rows.get(key).map_or(0, |(value, _)| number(value));
            rows.insert(key.clone(), ((before + 1).to_string().into_bytes(), version));
        }
    }
}

fn number(value: &[u8]) -> i64 {
    String::from_utf8(value.to_vec()).unwrap().parse().unwrap()
}

impl Attempt {
    pub fn is_acknowledged(&self) -> bool {
        self.outcome.is_ok()
    }

    pub fn is_unknown(&self) -> bool {
        is_unknown(&self.outcome)
    }
}

pub fn is_unknown<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::CommitUnknown { .. }))
}

/// The states of a store, beginning with that before all commits.
#[derive(Debug)]
pub struct History {
    states: Vec<Rows>,
    /// The commit that led to each state after the first.
    order: Vec<usize>,
    acknowledged: Vec<usize>,
}

impl History {
    /// Finds the history that ends with `found`.
    ///
    /// Every acknowledged commit must be in it, and no refused one. Each commit must be there as a
    /// whole, and what it relied on must have been true right before it.
    pub fn check(base: &Rows, attempts: &[Attempt], found: &Rows) -> Self {
        let mut made = BTreeMap::new();
        for attempt in attempts {
            let version = found.get(&attempt.change.marker()).map(|(_, version)| *version);
            match (&attempt.outcome, version) {
                (Ok(acknowledged), found) => {
                    assert_eq!(found, Some(acknowledged.0), "acknowledged commit {:?}", attempt.change.id);
                }
                (Err(_), Some(_)) if !attempt.is_unknown() => {
                    panic!(
                        "commit {} was refused with {:?}, but was made",
                        attempt.change.id, attempt.outcome
                    )
                }
                _ => {}
            }
            if let Some(version) = version {
                assert!(made.insert(version, attempt).is_none(), "a version was allocated twice");
            }
        }
        let (mut states, mut order) = (vec![base.clone()], Vec::new());
        for (version, attempt) in made {
            let mut state = states.last().unwrap().clone();
            for (key, expected) in &attempt.change.relied_on {
                let was = state.get(key).map_or(0, |(_, version)| *version);
                assert_eq!(was, *expected, "commit {} relied on {key}", attempt.change.id);
            }
            attempt.change.apply(version, &mut state);
            states.push(state);
            order.push(attempt.change.id);
        }
        let last = states.last().unwrap();
        for key in found.keys().chain(last.keys()) {
            assert_eq!(found.get(key), last.get(key), "{key}, after commits {order:?}");
        }
        let acknowledged = attempts.iter().filter(|attempt| attempt.is_acknowledged());
        let acknowledged = acknowledged.map(|attempt| attempt.change.id).collect();
        Self { states, order, acknowledged }
    }

    /// Checks that a view saw a single state, which includes the commits that were acknowledged
    /// before it.
    pub fn check_view(&self, view: &View) {
        let first = self.first_with(&view.acknowledged_before);
        let fits = self.states.iter().skip(first).any(|state| view.fits(state));
        let seen: Vec<_> = view.seen.iter().map(Seen::describe).collect();
        assert!(fits, "no state from {first} on of {:?} matches what a view saw: {seen:#?}", self.order);
    }

    /// The index of the first state that includes all of these commits.
    fn first_with(&self, commits: &[usize]) -> usize {
        self.order.iter().rposition(|id| commits.contains(id)).map_or(0, |index| index + 1)
    }

    pub fn check_journaled(&self, rows: &Rows) {
        let first = self.first_with(&self.acknowledged);
        assert!(self.states[first..].contains(rows), "the journal leads to no state of {:?}", self.order);
    }

    pub fn check_state(&self, rows: &Rows) {
        assert!(self.states.contains(rows), "the rows match no state of {:?}", self.order);
    }
}

/// The results of one view.
#[derive(Debug, Default)]
pub struct View {
    /// The commits that were acknowledged before its first read.
    pub acknowledged_before: Vec<usize>,
    pub seen: Vec<Seen>,
}

#[derive(Debug)]
pub enum Seen {
    Row(String, Option<(Vec<u8>, u64)>),
    /// All rows with a prefix.
    Prefix(String, Vec<(String, Vec<u8>)>),
}

impl View {
    fn fits(&self, state: &Rows) -> bool {
        self.seen.iter().all(|seen| match seen {
            Seen::Row(key, row) => state.get(key) == row.as_ref(),
            Seen::Prefix(prefix, rows) => {
                let expected = state.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(prefix));
                expected
                    .map(|(key, (value, _))| (key, value))
                    .eq(rows.iter().map(|(key, value)| (key, value)))
            }
        })
    }
}

impl Seen {
    fn describe(&self) -> String {
        match self {
            Self::Row(key, row) => format!("{key} at {:?}", row.as_ref().map(|(_, version)| version)),
            Self::Prefix(prefix, rows) => {
                format!("{prefix}: {:?}", rows.iter().map(|(key, _)| key).collect::<Vec<_>>())
            }
        }
    }
}
