//! Checks whether a serializable, durable store could have produced a history.
//!
//! Versions give the order in which updates committed. Replayed one after the other in that order,
//! each must have read the state just before its version, and the last state must be the one in the
//! file. The snapshot of every transaction, whatever its outcome, must be one of these states. That
//! state has every commit that was acknowledged before the snapshot was taken, and no commit that
//! was requested after it.

use std::collections::{BTreeMap, HashMap};

use crate::calls::FAR;
use crate::clock::JUMP_MAX;
use crate::history::{
    Dump, Event, FileRow, Millis, Moment, Nanos, Outcome, Row, TASKS, Taken, Transaction, Window,
};
use crate::leases::Leases;
use crate::model::{Expiry, Reader, Run, Staged, Stored, Timeline};

#[cfg(test)]
mod tests;

/// The number of violations that a report lists.
const VIOLATIONS_MAX: usize = 8;

/// How far the machine's clock may be adjusted during a round.
const CLOCK_SLACK: Millis = 100;

/// The longest time that a commit of a killed process can have taken.
const OPEN_COMMIT_MAX: Millis = 30_000;

/// What all processes of a round reported, and the content of the file after the round.
pub(crate) struct History {
    pub(crate) records: Vec<Record>,
    pub(crate) dumps: Vec<Dump>,
    pub(crate) broken: Vec<String>,
    pub(crate) last: Dump,
    /// The machine's wall-clock time at the zero of its monotonic clock.
    pub(crate) wall_zero: Millis,
    /// Whether all stores used the machine's clock.
    pub(crate) one_clock: bool,
}

/// A transaction and its outcome.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) transaction: Transaction,
    pub(crate) asked: Option<(Nanos, Millis)>,
    pub(crate) answered: Option<(Nanos, Millis, Outcome)>,
}

/// Totals of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) acknowledged: u64,
    pub(crate) conflicts: u64,
    pub(crate) refused: u64,
    pub(crate) open: u64,
    pub(crate) open_and_made: u64,
    pub(crate) snapshots: u64,
    pub(crate) dumps: u64,
}

/// A commit in the order of versions.
struct Commit<'a> {
    version: u64,
    record: &'a Record,
    asked: Nanos,
    answered: Option<Nanos>,
    now: Moment,
}

impl History {
    /// Collects the events of all processes.
    pub(crate) fn of(events: &[Event], last: Dump, wall_zero: Millis, one_clock: bool) -> Self {
        let (records, dumps, broken) = (Vec::new(), Vec::new(), Vec::new());
        let mut history = Self { records, dumps, broken, last, wall_zero, one_clock };
        let mut places = HashMap::new();
        for event in events {
            match event.clone() {
                Event::Looked(transaction) => {
                    history.records.push(Record { transaction, asked: None, answered: None });
                }
                Event::Asked { transaction, at, now } => {
                    places.insert(transaction.id, history.records.len());
                    history.records.push(Record { transaction, asked: Some((at, now)), answered: None });
                }
                Event::Answered { id, at, now, outcome } => match places.get(&id) {
                    Some(place) => history.records[*place].answered = Some((at, now, outcome)),
                    None => history.broken.push(format!("{id} was answered without a request")),
                },
                Event::Dumped(dump) => history.dumps.push(dump),
                Event::Did(_) => {}
                Event::Broken(what) => history.broken.push(what),
            }
        }
        history
    }

    /// Checks the history.
    ///
    /// # Errors
    ///
    /// If the history has violations. The text lists the first ones.
    pub(crate) fn check(&self) -> Result<Counts, String> {
        let mut checker =
            Checker { history: self, violations: self.broken.clone(), timeline: Timeline::default() };
        let counts = checker.run();
        match checker.violations.as_slice() {
            [] => Ok(counts),
            violations => {
                let shown =
                    violations.iter().take(VIOLATIONS_MAX).map(|violation| format!("\n- {violation}"));
                Err(format!("{} violations{}", violations.len(), shown.collect::<String>()))
            }
        }
    }

    /// The latest time that the clock of any store can have shown at a moment.
    fn latest_anywhere_at(&self, at: Nanos) -> Millis {
        self.wall_zero + at / 1_000_000 + JUMP_MAX + CLOCK_SLACK
    }
}

struct Checker<'a> {
    history: &'a History,
    violations: Vec<String>,
    timeline: Timeline,
}

impl<'a> Checker<'a> {
    fn run(&mut self) -> Counts {
        let mut counts = Counts::default();
        let commits = self.commits(&mut counts);
        self.check_versions(&commits);
        let mut leases = Leases::new(self.history.one_clock);
        for (before, commit) in commits.iter().enumerate() {
            self.replay(before, commit);
            leases.relied_on(&commit.record.transaction, commit.asked, before, &self.timeline);
        }
        self.check_file(&commits);
        let order = Order::of(&commits);
        for record in &self.history.records {
            if let Some(taken) = record.transaction.snapshot {
                counts.snapshots += 1;
                self.check_snapshot(record, taken, &order, &mut leases);
            }
        }
        self.violations.extend(leases.returned());
        for dump in &self.history.dumps {
            counts.dumps += 1;
            self.check_dump(dump, &order);
        }
        counts
    }

    /// The commits that were made, in the order of their versions.
    fn commits(&mut self, counts: &mut Counts) -> Vec<Commit<'a>> {
        let mut markers: HashMap<&str, u64> = HashMap::new();
        for found in self.history.last.rows.iter().filter(|found| found.row.0 == TASKS) {
            markers.insert(&found.value, found.version);
        }
        let mut commits = Vec::new();
        for record in &self.history.records {
            let Some((asked, earliest)) = record.asked else { continue };
            let id = record.transaction.id.to_string();
            // The marker row of a task holds the id of its last update, so it tells whether an
            // update with an unknown outcome was made.
            let marked = markers.get(id.as_str()).copied();
            let latest = self.history.latest_anywhere_at(asked) + OPEN_COMMIT_MAX;
            let open = Commit { version: 0, record, asked, answered: None, now: Moment { earliest, latest } };
            match &record.answered {
                Some((answered, latest, Outcome::Committed(version))) => {
                    counts.acknowledged += 1;
                    let now = Moment { earliest, latest: *latest };
                    commits.push(Commit { version: *version, answered: Some(*answered), now, ..open });
                }
                None | Some((_, _, Outcome::Open(_))) => {
                    counts.open += 1;
                    if let Some(version) = marked {
                        counts.open_and_made += 1;
                        commits.push(Commit { version, ..open });
                    }
                }
                Some((_, _, refused)) => {
                    match refused {
                        Outcome::Conflict => counts.conflicts += 1,
                        _ => counts.refused += 1,
                    }
                    if let Some(version) = marked {
                        self.violations.push(format!(
                            "{id} was answered {refused:?}, but is stored at version {version}"
                        ));
                    }
                }
            }
        }
        commits.sort_by_key(|commit| commit.version);
        commits
    }

    /// Checks that versions are unique and grow in real time.
    fn check_versions(&mut self, commits: &[Commit<'_>]) {
        for pair in commits.windows(2) {
            if pair[0].version == pair[1].version {
                let ids = (pair[0].record.transaction.id, pair[1].record.transaction.id);
                self.violations
                    .push(format!("{} and {} both have version {}", ids.0, ids.1, pair[0].version));
            }
        }
        let mut last_asked: Option<&Commit<'_>> = None;
        for commit in commits {
            if let Some(before) = last_asked
                && commit.answered.is_some_and(|answered| answered < before.asked)
            {
                self.violations.push(format!(
                    "{} has version {} and was acknowledged before {} was requested, which has version {}",
                    commit.record.transaction.id,
                    commit.version,
                    before.record.transaction.id,
                    before.version
                ));
            }
            if last_asked.is_none_or(|before| before.asked < commit.asked) {
                last_asked = Some(commit);
            }
        }
    }

    /// Replays a commit on the state just before it, and applies its writes.
    fn replay(&mut self, before: usize, commit: &Commit<'_>) {
        let Transaction { id, steps, .. } = &commit.record.transaction;
        let by = commit.answered.unwrap_or(commit.asked + OPEN_COMMIT_MAX * 1_000_000);
        let reader = Reader { now: commit.now, anywhere: self.history.latest_anywhere_at(by) };
        let run = Run::of(steps, &self.timeline, before, reader)
            .and_then(|run| run.check_conditions().map(|()| run))
            .map_err(|error| format!("{id} committed with version {}: {error}", commit.version));
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                self.violations.push(error);
                Run::writes_of(steps, &self.timeline, before, reader)
            }
        };
        for (row, staged) in run.staged {
            let stored = match staged {
                Staged::Delete => None,
                Staged::Put { value, ttl } => {
                    let expiry = ttl.map(|ttl| expiry(commit.now, ttl));
                    Some(Stored { value, version: commit.version, expiry })
                }
            };
            self.timeline.write(&row, before, stored);
        }
    }

    fn check_file(&mut self, commits: &[Commit<'_>]) {
        let last = &self.history.last;
        if let Err(error) = self.holds(last, commits.len()) {
            // Listed first: it tells which commits are lost.
            self.violations.insert(0, format!("the file after the round: {error}"));
        }
        let newest = commits.last().map_or(0, |commit| commit.version);
        if last.reserved < newest {
            self.violations
                .push(format!("version {newest} was assigned, but the file reserves only {}", last.reserved));
        }
    }

    /// Checks that a file with these rows holds the state after the first `commits` commits.
    fn holds(&self, dump: &Dump, commits: usize) -> Result<(), String> {
        let mut found: BTreeMap<&Row, &FileRow> = dump.rows.iter().map(|found| (&found.row, found)).collect();
        let anywhere = self.history.latest_anywhere_at(dump.window.to);
        let reader = Reader { now: Moment { earliest: 0, latest: 0 }, anywhere };
        for namespace in self.timeline.namespaces() {
            for (key, stored) in self.timeline.namespace(namespace, commits) {
                let row = Row(namespace.to_string(), key.to_string());
                match found.remove(&row) {
                    Some(found) => same_row(found, stored)?,
                    None if reader.may_be_swept(stored) => {}
                    None => return Err(format!("{row} is missing; it was {stored:?}")),
                }
            }
        }
        found.values().next().map_or(Ok(()), |found| Err(format!("{found:?} must not be stored")))
    }

    fn check_dump(&mut self, dump: &Dump, order: &Order) {
        let outcome = self.one_of(order, dump.window, |commits| self.holds(dump, commits).map(drop));
        if let Err(error) = outcome {
            self.violations.push(format!("a read of the whole file, {}: {error}", show(dump.window)));
        }
        let newest = dump.rows.iter().map(|found| found.version).max().unwrap_or_default();
        if dump.reserved < newest {
            self.violations
                .push(format!("a row has version {newest}, but the file reserves only {}", dump.reserved));
        }
    }

    fn check_snapshot(&mut self, record: &Record, taken: Taken, order: &Order, leases: &mut Leases) {
        let transaction = &record.transaction;
        let committing = record.asked.map(|(from, _)| Window {
            from,
            to: record.answered.as_ref().map_or(Nanos::MAX, |(answered, ..)| *answered),
        });
        let reader = Reader { now: taken.now, anywhere: self.history.latest_anywhere_at(taken.window.to) };
        let sees = |commits| Run::of(&transaction.steps, &self.timeline, commits, reader).map(drop);
        match self.one_of(order, taken.window, sees) {
            Ok(Some(commits)) => leases.saw(transaction, (taken.window, committing), commits, &self.timeline),
            Ok(None) => {}
            Err(error) => {
                let what = format!("the snapshot of {}, taken {}", transaction.id, show(taken.window));
                self.violations.push(format!("{what}: {error}"));
            }
        }
    }

    /// Finds the state that fits, among those that a snapshot taken within `window` may show.
    /// `None` if several states fit.
    fn one_of(
        &self,
        order: &Order,
        window: Window,
        fits: impl Fn(usize) -> Result<(), String>,
    ) -> Result<Option<usize>, String> {
        let (least, most) = order.states(window);
        if least > most {
            return Err(format!("it must show at least {least} commits and at most {most}"));
        }
        let mut fitting = (least..=most).filter(|commits| fits(*commits).is_ok());
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => return Ok(Some(only)),
            (Some(_), Some(_)) => return Ok(None),
            (None, _) => {}
        }
        let why = fits(least).err().unwrap_or_default();
        if self.violations.len() > VIOLATIONS_MAX {
            return Err(why);
        }
        let stale = (0..least).rev().find(|commits| fits(*commits).is_ok());
        let early = (most + 1..=order.len()).find(|commits| fits(*commits).is_ok());
        let instead = match (stale, early) {
            (Some(stale), _) => format!("it shows the state after {stale} commits, which is stale"),
            (None, Some(early)) => format!("it shows the state after {early} commits, which is too new"),
            (None, None) => "it shows no single state".to_string(),
        };
        Err(format!("states {least} to {most} are possible; {instead}; {why}"))
    }
}

/// When a row expires that was written at a moment. If no round reaches the expiry, wide bounds
/// suffice.
fn expiry(written: Moment, ttl: Millis) -> Expiry {
    let slack = if ttl >= FAR { 2 * JUMP_MAX } else { 0 };
    Expiry { earliest: written.earliest + ttl - slack, latest: written.latest + ttl }
}

fn same_row(found: &FileRow, stored: &Stored) -> Result<(), String> {
    let same_expiry = match (found.expires_at, stored.expiry) {
        (None, None) => true,
        (Some(at), Some(expiry)) => (expiry.earliest..=expiry.latest).contains(&at),
        _ => false,
    };
    match found.value == stored.value && found.version == stored.version && same_expiry {
        true => Ok(()),
        false => Err(format!("found {found:?}, but it was written as {stored:?}")),
    }
}

fn show(window: Window) -> String {
    let micros = |nanos: Nanos| nanos / 1_000;
    format!("in {} to {} µs", micros(window.from), micros(window.to))
}

/// The commits in real time.
struct Order {
    /// For the time of each acknowledgement, the least number of commits in a state that has all
    /// commits acknowledged by then.
    acknowledged: Vec<(Nanos, usize)>,
    /// For the time of each request, the largest number of commits in a state that has none of the
    /// commits requested from then on.
    asked: Vec<(Nanos, usize)>,
    commits: usize,
}

impl Order {
    fn of(commits: &[Commit<'_>]) -> Self {
        let with_place = || commits.iter().enumerate();
        let mut acknowledged: Vec<_> =
            with_place().filter_map(|(place, commit)| Some((commit.answered?, place + 1))).collect();
        acknowledged.sort_unstable();
        let mut most = 0;
        for (_, least) in &mut acknowledged {
            most = most.max(*least);
            *least = most;
        }
        let mut asked: Vec<_> = with_place().map(|(place, commit)| (commit.asked, place)).collect();
        asked.sort_unstable();
        let mut least = commits.len();
        for (_, most) in asked.iter_mut().rev() {
            least = least.min(*most);
            *most = least;
        }
        Self { acknowledged, asked, commits: commits.len() }
    }

    fn len(&self) -> usize {
        self.commits
    }

    /// The states that a snapshot taken within `window` may show: the least and the largest number
    /// of commits.
    fn states(&self, window: Window) -> (usize, usize) {
        let before = self.acknowledged.partition_point(|(at, _)| *at < window.from);
        let after = self.asked.partition_point(|(at, _)| *at <= window.to);
        let least = before.checked_sub(1).map_or(0, |last| self.acknowledged[last].1);
        (least, self.asked.get(after).map_or(self.commits, |(_, most)| *most))
    }
}
