//! A transaction that reports its calls and answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{Error, Handle, Mode, PutOptions, Result, Version};

use crate::clock::JumpingClock;
use crate::history::{
    Answer, Call, Event, Id, Millis, Moment, Nanos, Outcome, Range, Row, Step, Taken, Transaction, Window,
    expand, nanos, report, shorten,
};

/// An open transaction.
pub(crate) struct Session {
    transaction: larder_core::Transaction,
    clock: Arc<JumpingClock>,
    record: Transaction,
    /// Rows that are staged as a whole, so that a read of them needs no committed state.
    staged: HashMap<Row, Staged>,
    /// The time before the first call that may have taken the snapshot.
    before: Option<(Nanos, Millis)>,
    page: Option<NextPage>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Staged {
    Put,
    Delete,
}

/// The arguments that read the page after the last one.
struct NextPage {
    namespace: String,
    range: Range,
    last: String,
    cursor: String,
}

impl Session {
    pub(crate) fn begin(
        handle: &Handle,
        mode: Mode,
        id: Id,
        opening: u64,
        clock: Arc<JumpingClock>,
    ) -> Result<Self> {
        let record = Transaction { id, opening, steps: Vec::new(), snapshot: None };
        let transaction = handle.begin(mode)?;
        Ok(Self { transaction, clock, record, staged: HashMap::new(), before: None, page: None })
    }

    /// The call that reads the page after the last one, if there is one.
    pub(crate) fn next_page(&self) -> Option<Call> {
        let page = self.page.as_ref()?;
        Some(Call::Page(page.namespace.clone(), page.range.clone(), Some(page.last.clone())))
    }

    /// Makes a call, and records its answer.
    pub(crate) async fn call(&mut self, call: Call) -> Result<Answer> {
        let reads = self.reads(&call);
        if reads != Reads::Nothing && self.before.is_none() {
            self.before = Some((nanos(), self.clock.earliest()));
        }
        let answer = self.perform(&call).await?;
        if let (Reads::Committed, None, Some((from, earliest))) = (reads, self.record.snapshot, self.before) {
            let now = Moment { earliest, latest: self.clock.latest() };
            self.record.snapshot = Some(Taken { window: Window { from, to: nanos() }, now });
        }
        match &call {
            Call::Put { row, .. } => drop(self.staged.insert(row.clone(), Staged::Put)),
            Call::Delete { row, .. } => drop(self.staged.insert(row.clone(), Staged::Delete)),
            _ => {}
        }
        self.record.steps.push(Step { call, answer: answer.clone() });
        Ok(answer)
    }

    fn reads(&self, call: &Call) -> Reads {
        match call {
            Call::Put { .. } | Call::Delete { .. } | Call::Increment(..) => Reads::Nothing,
            Call::Get(row) if self.staged.contains_key(row) => Reads::Maybe,
            Call::GetVersioned(row) if self.staged.get(row) == Some(&Staged::Delete) => Reads::Maybe,
            Call::GetMany(namespace, keys) => {
                let is_staged = |key: &String| self.staged.contains_key(&Row(namespace.clone(), key.clone()));
                if keys.iter().all(is_staged) { Reads::Maybe } else { Reads::Committed }
            }
            // An empty range reads no committed state.
            Call::Page(_, range, _) | Call::DeleteRange(_, range) => {
                let is_bounded = range.end.is_some();
                if is_bounded { Reads::Maybe } else { Reads::Committed }
            }
            Call::Get(_) | Call::GetVersioned(_) => Reads::Committed,
        }
    }

    async fn perform(&mut self, call: &Call) -> Result<Answer> {
        let transaction = &mut self.transaction;
        match call.clone() {
            Call::Get(Row(namespace, key)) => {
                let found = transaction.get(namespace, key).await?;
                Ok(Answer::Value(found.map(|value| shorten(&value))))
            }
            Call::GetVersioned(Row(namespace, key)) => {
                let found = transaction.get_versioned(namespace, key).await?;
                Ok(Answer::Versioned(found.map(|(value, version)| (shorten(&value), version.0))))
            }
            Call::GetMany(namespace, keys) => {
                let found = transaction.get_many(namespace, keys).await?;
                let values = found.into_iter().map(|value| value.map(|value| shorten(&value)));
                Ok(Answer::Values(values.collect()))
            }
            Call::Page(namespace, range, after) => self.page(namespace, range, after).await,
            Call::Put { row: Row(namespace, key), value, ttl, if_version } => {
                let options = PutOptions::default().ttl_ms(ttl).if_version(if_version.map(Version));
                transaction.put_with(namespace, key, expand(&value), options)?;
                Ok(Answer::Nothing)
            }
            Call::Delete { row: Row(namespace, key), if_version: None } => {
                transaction.delete(namespace, key)?;
                Ok(Answer::Nothing)
            }
            Call::Delete { row: Row(namespace, key), if_version: Some(version) } => {
                transaction.delete_if_version(namespace, key, Version(version))?;
                Ok(Answer::Nothing)
            }
            Call::DeleteRange(namespace, range) => {
                Ok(Answer::Count(transaction.delete_range(namespace, core_range(range)).await?))
            }
            Call::Increment(Row(namespace, key), delta) => {
                transaction.increment(namespace, key, delta)?;
                Ok(Answer::Nothing)
            }
        }
    }

    async fn page(&mut self, namespace: String, range: Range, after: Option<String>) -> Result<Answer> {
        let cursor = self.page.take().filter(|_| after.is_some()).map(|page| page.cursor);
        let page = self.transaction.scan_page(namespace.clone(), core_range(range.clone()), cursor).await?;
        let entries: Vec<_> =
            page.entries.into_iter().map(|entry| (entry.key, shorten(&entry.value))).collect();
        let more = page.next.is_some();
        self.page = page.next.zip(entries.last()).map(|(cursor, (last, _))| {
            let last = last.clone();
            NextPage { namespace, range, last, cursor }
        });
        Ok(Answer::Page(entries, more))
    }

    /// Ends the transaction without a commit, or after an error.
    pub(crate) fn leave(self) {
        report(&Event::Looked(self.record));
    }

    /// Commits a transaction that wrote nothing.
    pub(crate) async fn commit_view(self) {
        let id = self.record.id;
        report(&Event::Looked(self.record));
        match self.transaction.commit().await {
            Ok(Version::ABSENT) => {}
            Ok(version) => report(&Event::Broken(format!(
                "{id} wrote nothing, but its commit returned version {version:?}"
            ))),
            Err(error) => check_kind(&error, id),
        }
    }

    /// Commits, and waits for the answer at most `longest`.
    pub(crate) async fn commit(self, longest: Option<Duration>) -> Outcome {
        let id = self.record.id;
        let (at, now) = (nanos(), self.clock.earliest());
        report(&Event::Asked { transaction: self.record, at, now });
        let commit = self.transaction.commit();
        let answer = match longest {
            None => commit.await,
            Some(longest) => match tokio::time::timeout(longest, commit).await {
                Ok(answer) => answer,
                Err(_) => return Outcome::Open("the task did not wait for the answer".to_string()),
            },
        };
        let at = nanos();
        let outcome = match answer {
            Ok(version) => Outcome::Committed(version.0),
            Err(Error::Conflict) => Outcome::Conflict,
            Err(error @ Error::CommitUnknown { .. }) => Outcome::Open(error.to_string()),
            Err(error) => {
                check_kind(&error, id);
                Outcome::Refused(error.to_string())
            }
        };
        report(&Event::Answered { id, at, now: self.clock.latest(), outcome: outcome.clone() });
        outcome
    }
}

/// Whether a call reads the committed state.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Nothing,
    Maybe,
    Committed,
}

fn core_range(range: Range) -> larder_core::Range {
    let Range { prefix, start, end, reverse, limit, keys_only } = range;
    larder_core::Range { prefix, start, end, reverse, limit, keys_only }
}

/// Reports an error that no call of a worker may return.
pub(crate) fn check_kind(error: &Error, id: Id) {
    let is_expected = matches!(
        error,
        Error::Conflict
            | Error::Unavailable { .. }
            | Error::CommitUnknown { .. }
            | Error::TimedOut
            | Error::Closed
    );
    if !is_expected {
        report(&Event::Broken(format!("{id} got an unexpected kind of error: {error:?}")));
    }
}
