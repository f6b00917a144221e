//! What each commit left, and what a transaction has to see on top of it.
//!
//! Nothing here is shared with larder: the states are plain maps, and each call is answered by looking at every row.

use std::collections::BTreeMap;

use crate::history::{Answer, Call, LEASES, Millis, Moment, Range, Row, Step};

/// When a row expires: not before, and not after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    pub(crate) earliest: Millis,
    pub(crate) latest: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) value: String,
    pub(crate) version: u64,
    pub(crate) expiry: Option<Expiry>,
}

/// The states of a database, by how many commits made them. A row that has expired stays: [`Reader`] says
/// whether a transaction may see it.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    rows: BTreeMap<String, BTreeMap<String, Writes>>,
}

/// The writes of one row, in the order of their commits: how many commits there were before, and what was left.
type Writes = Vec<(usize, Option<Stored>)>;

impl Timeline {
    /// A row as the first `commits` commits left it.
    pub(crate) fn get(&self, row: &Row, commits: usize) -> Option<&Stored> {
        at(self.rows.get(&row.0)?.get(&row.1)?, commits)
    }

    /// All rows of a namespace as the first `commits` commits left them.
    pub(crate) fn namespace(&self, name: &str, commits: usize) -> impl Iterator<Item = (&str, &Stored)> {
        let rows = self.rows.get(name).into_iter().flatten();
        rows.filter_map(move |(key, writes)| Some((key.as_str(), at(writes, commits)?)))
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// The commit that follows `commits` others writes a row, or deletes it.
    pub(crate) fn write(&mut self, row: &Row, commits: usize, stored: Option<Stored>) {
        let writes = self.rows.entry(row.0.clone()).or_default().entry(row.1.clone()).or_default();
        writes.push((commits, stored));
    }
}

fn at(writes: &[(usize, Option<Stored>)], commits: usize) -> Option<&Stored> {
    let made = writes.partition_point(|(before, _)| *before < commits);
    writes[..made].last()?.1.as_ref()
}

/// Whether a row that expires is there for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Live,
    Gone,
    Either,
}

/// Whose clock decides what a transaction sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// What the clock of its own store said.
    pub(crate) now: Moment,
    /// The latest that the clock of any store can have said: any process may have swept a row that has expired by it.
    pub(crate) anywhere: Millis,
}

impl Reader {
    fn life(&self, stored: &Stored) -> Life {
        match stored.expiry {
            None => Life::Live,
            Some(expiry) if self.now.earliest >= expiry.latest => Life::Gone,
            Some(expiry) if self.now.latest.max(self.anywhere) >= expiry.earliest => Life::Either,
            Some(_) => Life::Live,
        }
    }

    /// Whether the row may be missing in the database file.
    pub(crate) fn may_be_swept(&self, stored: &Stored) -> bool {
        stored.expiry.is_some_and(|expiry| self.anywhere >= expiry.earliest)
    }
}

/// A write that a transaction has staged.
#[derive(Clone, Debug)]
pub(crate) enum Staged {
    Put { value: String, ttl: Option<Millis> },
    Delete,
}

/// One transaction, run alone on one state.
pub(crate) struct Run<'a> {
    timeline: &'a Timeline,
    commits: usize,
    reader: Reader,
    pub(crate) staged: BTreeMap<Row, Staged>,
    conditions: Vec<(Row, u64)>,
}

impl<'a> Run<'a> {
    /// Runs a transaction on the state that the first `commits` commits left.
    ///
    /// # Errors
    /// Says which answer it can't have got there.
    pub(crate) fn of(
        steps: &[Step],
        timeline: &'a Timeline,
        commits: usize,
        reader: Reader,
    ) -> Result<Self, String> {
        let mut run = Self::new(timeline, commits, reader);
        steps.iter().try_for_each(|step| run.step(step))?;
        Ok(run)
    }

    /// The writes that these steps stage, whatever was answered.
    pub(crate) fn writes_of(steps: &[Step], timeline: &'a Timeline, commits: usize, reader: Reader) -> Self {
        let mut run = Self::new(timeline, commits, reader);
        for step in steps {
            // A wrong answer was reported already, and stages the same.
            let _ = run.step(step);
        }
        run
    }

    fn new(timeline: &'a Timeline, commits: usize, reader: Reader) -> Self {
        Self { timeline, commits, reader, staged: BTreeMap::new(), conditions: Vec::new() }
    }

    /// Whether the conditions hold at its commit.
    pub(crate) fn check_conditions(&self) -> Result<(), String> {
        for (row, expected) in &self.conditions {
            let possible = self.committed_versions(row);
            if !possible.contains(expected) {
                return Err(format!("{row} had to be at version {expected}, and is at {possible:?}"));
            }
        }
        Ok(())
    }

    fn step(&mut self, Step { call, answer }: &Step) -> Result<(), String> {
        match (call, answer) {
            (Call::Get(row), Answer::Value(found)) => self.sees(row, found.as_deref()),
            (Call::GetMany(namespace, keys), Answer::Values(found)) => {
                if keys.len() != found.len() {
                    return Err(format!("{} values for {} keys", found.len(), keys.len()));
                }
                keys.iter().zip(found).try_for_each(|(key, found)| {
                    self.sees(&Row(namespace.clone(), key.clone()), found.as_deref())
                })
            }
            (Call::GetVersioned(row), Answer::Versioned(found)) => {
                self.sees(row, found.as_ref().map(|(value, _)| value.as_str()))?;
                let Some((_, version)) = found else { return Ok(()) };
                let possible = self.committed_versions(row);
                match possible.contains(version) {
                    true => Ok(()),
                    false => Err(format!("{row} was at version {version}, and is at {possible:?}")),
                }
            }
            (Call::Page(namespace, range, after), Answer::Page(entries, more)) => {
                self.check_page(namespace, range, after.as_deref(), entries, *more)
            }
            (Call::Put { row, value, ttl, if_version }, Answer::Nothing) => {
                self.stage(row, Staged::Put { value: value.clone(), ttl: *ttl }, *if_version);
                Ok(())
            }
            (Call::Delete { row, if_version }, Answer::Nothing) => {
                self.stage(row, Staged::Delete, *if_version);
                Ok(())
            }
            (Call::Increment(row, delta), Answer::Nothing) => self.increment(row, *delta),
            (Call::DeleteRange(namespace, range), Answer::Count(count)) => {
                let entries = self.entries(namespace, range, None);
                let max = range.limit.map_or(usize::MAX, |limit| limit as usize);
                let deleted: Vec<_> = entries.into_iter().take(max).map(|entry| entry.key).collect();
                let expected = deleted.len() as u64;
                for key in deleted {
                    self.stage(&Row(namespace.clone(), key), Staged::Delete, None);
                }
                match expected == *count {
                    true => Ok(()),
                    false => {
                        Err(format!("{count} rows of {namespace} {range:?} were deleted, not {expected}"))
                    }
                }
            }
            _ => Err(format!("{call:?} was answered by {answer:?}")),
        }
    }

    fn stage(&mut self, row: &Row, staged: Staged, if_version: Option<u64>) {
        self.conditions.extend(if_version.map(|version| (row.clone(), version)));
        self.staged.insert(row.clone(), staged);
    }

    fn increment(&mut self, row: &Row, delta: i64) -> Result<(), String> {
        let before = match self.staged.get(row) {
            Some(Staged::Put { value, .. }) => value.as_str(),
            Some(Staged::Delete) => "0",
            None => self.timeline.get(row, self.commits).map_or("0", |stored| stored.value.as_str()),
        };
        let before: i64 = before.parse().map_err(|_| format!("{row} is no counter: {before}"))?;
        self.stage(row, Staged::Put { value: (before + delta).to_string(), ttl: None }, None);
        Ok(())
    }

    /// Whether the transaction can have found this value, or no row.
    fn sees(&self, row: &Row, found: Option<&str>) -> Result<(), String> {
        let (value, is_optional) = match self.staged.get(row) {
            Some(Staged::Put { value, .. }) => (Some(value.as_str()), false),
            Some(Staged::Delete) => (None, false),
            None => match self.committed(row) {
                None => (None, false),
                Some((stored, life)) => (Some(stored.value.as_str()), life == Life::Either),
            },
        };
        match found == value || found.is_none() && is_optional {
            true => Ok(()),
            false => Err(format!("{row} was {found:?}, and is {value:?}")),
        }
    }

    /// The row as it is committed, unless it is certainly gone.
    fn committed(&self, row: &Row) -> Option<(&'a Stored, Life)> {
        let stored = self.timeline.get(row, self.commits)?;
        let life = self.reader.life(stored);
        (life != Life::Gone).then_some((stored, life))
    }

    fn committed_versions(&self, row: &Row) -> Vec<u64> {
        match self.committed(row) {
            None => vec![0],
            Some((stored, Life::Either)) => vec![0, stored.version],
            Some((stored, _)) => vec![stored.version],
        }
    }

    /// The entries of a range, in its order, those that only may be there among them.
    fn entries(&self, namespace: &str, range: &Range, after: Option<&str>) -> Vec<Entry> {
        let mut entries = BTreeMap::new();
        for (key, stored) in self.timeline.namespace(namespace, self.commits) {
            let life = self.reader.life(stored);
            if life != Life::Gone {
                entries.insert(key.to_string(), (stored.value.clone(), life == Life::Either));
            }
        }
        for (row, staged) in self.staged.iter().filter(|(row, _)| row.0 == namespace) {
            match staged {
                Staged::Put { value, .. } => entries.insert(row.1.clone(), (value.clone(), false)),
                Staged::Delete => entries.remove(&row.1),
            };
        }
        let is_in = |key: &str| {
            key.starts_with(&range.prefix)
                && range.start.as_deref().is_none_or(|start| key >= start)
                && range.end.as_deref().is_none_or(|end| key < end)
                && after.is_none_or(|after| if range.reverse { key < after } else { key > after })
        };
        let entries = entries.into_iter().filter(|(key, _)| is_in(key));
        let mut entries: Vec<Entry> = entries
            .map(|(key, (value, is_optional))| {
                let value = if range.keys_only { String::new() } else { value };
                Entry { key, value, is_optional }
            })
            .collect();
        if range.reverse {
            entries.reverse();
        }
        entries
    }

    fn check_page(
        &self,
        namespace: &str,
        range: &Range,
        after: Option<&str>,
        found: &[(String, String)],
        more: bool,
    ) -> Result<(), String> {
        let expected = self.entries(namespace, range, after);
        let max = range.limit.map_or(usize::MAX, |limit| limit as usize);
        let wrong = |what: String| Err(format!("a page of {namespace} {range:?} after {after:?}: {what}"));
        let (mut left, mut behind) = (found.iter().peekable(), 0);
        let mut taken = 0;
        for entry in &expected {
            if taken == max {
                behind += usize::from(!entry.is_optional);
                continue;
            }
            match left.next_if(|(key, value)| *key == entry.key && *value == entry.value) {
                Some(_) => taken += 1,
                None if entry.is_optional => {}
                None => {
                    return wrong(format!("it has {:?}, and not {}={}", left.peek(), entry.key, entry.value));
                }
            }
        }
        if let Some(further) = left.next() {
            return wrong(format!("it has {further:?}, which is not there"));
        }
        let is_certain = namespace != LEASES;
        if is_certain && more != (behind > 0) {
            return wrong(format!("more: {more}, with {behind} rows behind it"));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Entry {
    key: String,
    value: String,
    /// Whether it is missing for a reader whose clock is as late as it may be.
    is_optional: bool,
}
