//! The state after each commit, and what a transaction must observe on it.
//!
//! Shares no code with larder: states are plain maps, and each call is answered by scanning every
//! row.

use std::collections::BTreeMap;

use crate::history::{Answer, Call, LEASES, Millis, Moment, Range, Row, Step};

/// Bounds of the time at which a row expires.
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

/// The states of a database, by the number of commits. Expired rows stay in it; [`Reader`] decides
/// whether a transaction may see them.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    rows: BTreeMap<String, BTreeMap<String, Writes>>,
}

/// The writes of one row in commit order: the number of commits before each, and the row after it.
type Writes = Vec<(usize, Option<Stored>)>;

impl Timeline {
    /// A row after the first `commits` commits.
    pub(crate) fn get(&self, row: &Row, commits: usize) -> Option<&Stored> {
        at(self.rows.get(&row.0)?.get(&row.1)?, commits)
    }

    /// All rows of a namespace after the first `commits` commits.
    pub(crate) fn namespace(&self, name: &str, commits: usize) -> impl Iterator<Item = (&str, &Stored)> {
        let rows = self.rows.get(name).into_iter().flatten();
        rows.filter_map(move |(key, writes)| Some((key.as_str(), at(writes, commits)?)))
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// Records that the commit after `commits` others puts or deletes a row.
    pub(crate) fn write(&mut self, row: &Row, commits: usize, stored: Option<Stored>) {
        let writes = self.rows.entry(row.0.clone()).or_default().entry(row.1.clone()).or_default();
        writes.push((commits, stored));
    }
}

fn at(writes: &[(usize, Option<Stored>)], commits: usize) -> Option<&Stored> {
    let made = writes.partition_point(|(before, _)| *before < commits);
    writes[..made].last()?.1.as_ref()
}

/// Whether a row that expires exists for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Live,
    Gone,
    Either,
}

/// The clocks that decide what a transaction sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// The time of its own store's clock.
    pub(crate) now: Moment,
    /// The latest time of any store's clock. Any process may have swept a row that had expired by
    /// then.
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

/// One transaction, replayed alone on one state.
pub(crate) struct Run<'a> {
    timeline: &'a Timeline,
    commits: usize,
    reader: Reader,
    pub(crate) staged: BTreeMap<Row, Staged>,
    conditions: Vec<(Row, u64)>,
}

impl<'a> Run<'a> {
    /// Replays a transaction on the state after the first `commits` commits.
    ///
    /// # Errors
    ///
    /// If the transaction cannot have got one of its answers in that state.
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

    /// Replays only the writes of these steps, whatever the answers were.
    pub(crate) fn writes_of(steps: &[Step], timeline: &'a Timeline, commits: usize, reader: Reader) -> Self {
        let mut run = Self::new(timeline, commits, reader);
        for step in steps {
            // A wrong answer was reported before, and does not change what is staged.
            let _ = run.step(step);
        }
        run
    }

    fn new(timeline: &'a Timeline, commits: usize, reader: Reader) -> Self {
        Self { timeline, commits, reader, staged: BTreeMap::new(), conditions: Vec::new() }
    }

    /// Checks that the conditions hold at the commit.
    pub(crate) fn check_conditions(&self) -> Result<(), String> {
        for (row, expected) in &self.conditions {
            let possible = self.committed_versions(row);
            if !possible.contains(expected) {
                return Err(format!("{row} must have version {expected}, but has one of {possible:?}"));
            }
        }
        Ok(())
    }

    fn step(&mut self, Step { call, answer }: &Step) -> Result<(), String> {
        match (call, answer) {
            (Call::Get(row), Answer::Value(found)) => self.sees(row, found.as_deref()),
            (Call::GetMany(namespace, keys), Answer::Values(found)) => {
                if keys.len() != found.len() {
                    return Err(format!("got {} values for {} keys", found.len(), keys.len()));
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
                    false => Err(format!("{row} was read at version {version}, but has one of {possible:?}")),
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
                    false => Err(format!(
                        "{count} rows of {namespace} {range:?} were deleted instead of {expected}"
                    )),
                }
            }
            _ => Err(format!("{call:?} was answered with {answer:?}")),
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
        let before: i64 = before.parse().map_err(|_| format!("{row} is not a counter: {before}"))?;
        self.stage(row, Staged::Put { value: (before + delta).to_string(), ttl: None }, None);
        Ok(())
    }

    /// Checks that the transaction can have read this value of a row, or found no row.
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
            false => Err(format!("{row} was read as {found:?}, but is {value:?}")),
        }
    }

    /// The committed row, unless it has certainly expired.
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

    /// The entries of a range in its order, including those that may have expired.
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
        let wrong = |what: String| Err(format!("the page of {namespace} {range:?} after {after:?}: {what}"));
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
                    return wrong(format!(
                        "found {:?} instead of {}={}",
                        left.peek(),
                        entry.key,
                        entry.value
                    ));
                }
            }
        }
        if let Some(further) = left.next() {
            return wrong(format!("found {further:?}, which does not exist"));
        }
        let is_certain = namespace != LEASES;
        if is_certain && more != (behind > 0) {
            return wrong(format!("`more` is {more}, but {behind} rows follow"));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Entry {
    key: String,
    value: String,
    /// Whether the row may have expired for the reader.
    is_optional: bool,
}
