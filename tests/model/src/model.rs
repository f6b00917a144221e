//! The model: one committed state after the other, and transactions on copies of them.

use std::collections::{BTreeMap, BTreeSet};

use larder_core::{Entry, LimitKind, Limits, PutOptions, Range};

use crate::range::Span;
use crate::{Answer, Refusal};

/// A namespace and a key.
pub(crate) type Name = (String, String);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    value: Vec<u8>,
    version: u64,
    expires_at: Option<u64>,
}

type State = BTreeMap<Name, Row>;

/// The committed state of a store, and how it came about.
#[derive(Debug, Default)]
pub(crate) struct Model {
    state: State,
    commits: Vec<Written>,
    /// The last version that each row was written with, deletes included.
    last: BTreeMap<Name, u64>,
    versions: BTreeSet<u64>,
}

/// What a commit wrote, and which host made it.
#[derive(Debug)]
struct Written {
    host: usize,
    rows: BTreeSet<Name>,
}

impl Model {
    /// The live rows.
    pub(crate) fn values(&self, now: u64) -> BTreeMap<Name, Vec<u8>> {
        self.live(now).into_iter().map(|(name, row)| (name, row.value)).collect()
    }

    fn live(&self, now: u64) -> State {
        let rows = self.state.iter().filter(|(_, row)| row.expires_at.is_none_or(|at| at > now));
        rows.map(|(name, row)| (name.clone(), row.clone())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Write {
    Put { value: Vec<u8>, ttl: Option<u64> },
    Delete,
    Add(i64),
}

/// What a transaction saw at its first read.
#[derive(Debug)]
struct Snapshot {
    state: State,
    /// How many commits it includes.
    commits: usize,
}

/// Keys that a read depends on, and the versions that it saw.
#[derive(Debug)]
struct Seen {
    namespace: String,
    span: Span,
    rows: BTreeMap<String, u64>,
}

/// A transaction of the model.
#[derive(Debug)]
pub(crate) struct ModelTransaction {
    is_update: bool,
    limits: Limits,
    writes: BTreeMap<Name, Write>,
    conditions: BTreeMap<Name, u64>,
    is_contradictory: bool,
    snapshot: Option<Snapshot>,
    seen: Vec<Seen>,
    /// What a call that failed may have looked at.
    maybe_seen: Vec<(String, Span)>,
    /// The first moment at which a row that it saw has expired.
    expires_at: Option<u64>,
}

/// What a commit may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) conflict: bool,
    pub(crate) invalid: bool,
    pub(crate) commit: bool,
}

type Answered = Result<Answer, Refusal>;

impl ModelTransaction {
    pub(crate) fn new(is_update: bool, limits: Limits) -> Self {
        Self {
            is_update,
            limits,
            writes: BTreeMap::new(),
            conditions: BTreeMap::new(),
            is_contradictory: false,
            snapshot: None,
            seen: Vec::new(),
            maybe_seen: Vec::new(),
            expires_at: None,
        }
    }

    pub(crate) fn get(&mut self, model: &Model, now: u64, name: Name) -> Answered {
        self.check_name(&name)?;
        self.value(model, now, &name).map(Answer::Value)
    }

    pub(crate) fn get_many(
        &mut self,
        model: &Model,
        now: u64,
        namespace: String,
        keys: Vec<String>,
    ) -> Answered {
        self.check_count(keys.len())?;
        self.check_namespace(&namespace)?;
        keys.iter().try_for_each(|key| self.check_key(key))?;
        let mut bytes = 0;
        let mut values = Vec::new();
        let names: Vec<Name> = keys.into_iter().map(|key| (namespace.clone(), key)).collect();
        let seen_before = self.seen.len();
        for name in &names {
            let value = self.value(model, now, name);
            let counted = value.as_ref().ok().and_then(Option::as_ref);
            bytes += counted.map_or(0, |value| value.len() as u64 + 256);
            let value = value.and_then(|value| self.check_result(bytes).map(|()| value));
            // Which rows were looked at before the error is up to the backend.
            if value.is_err() {
                self.seen.truncate(seen_before);
                names.iter().for_each(|name| self.maybe_seen.push((name.0.clone(), only(&name.1))));
            }
            values.push(value?);
        }
        Ok(Answer::Values(values))
    }

    pub(crate) fn get_versioned(&mut self, model: &Model, now: u64, name: Name) -> Answered {
        self.check_name(&name)?;
        if self.writes.get(&name) == Some(&Write::Delete) {
            return Ok(Answer::Versioned(None));
        }
        let committed = self.committed(model, now, &name);
        let version = committed.as_ref().map_or(0, |row| row.version);
        let value = on_top(self.writes.get(&name), committed.map(|row| row.value))?;
        Ok(Answer::Versioned(value.map(|value| (value, version))))
    }

    pub(crate) fn put(&mut self, name: Name, value: Vec<u8>, options: PutOptions) -> Answered {
        if options.ttl_ms == Some(0) {
            return Err(Refusal::InvalidArgument);
        }
        self.check_name(&name)?;
        self.check_value(&value)?;
        self.check_writable(&name.0)?;
        self.check_rows([&name])?;
        if let Some(version) = options.if_version {
            self.expect(&name, version.0);
        }
        self.writes.insert(name, Write::Put { value, ttl: options.ttl_ms });
        Ok(Answer::Done)
    }

    pub(crate) fn put_many(&mut self, namespace: String, entries: Vec<Entry>) -> Answered {
        self.check_count(entries.len())?;
        self.check_namespace(&namespace)?;
        for entry in &entries {
            self.check_key(&entry.key)?;
            self.check_value(&entry.value)?;
        }
        self.check_writable(&namespace)?;
        let named = |entry: &Entry| (namespace.clone(), entry.key.clone());
        self.check_rows(entries.iter().map(named).collect::<Vec<_>>().iter())?;
        for entry in entries {
            self.writes.insert((namespace.clone(), entry.key), Write::Put { value: entry.value, ttl: None });
        }
        Ok(Answer::Done)
    }

    pub(crate) fn delete_many(&mut self, namespace: String, keys: Vec<String>) -> Answered {
        self.check_count(keys.len())?;
        self.check_namespace(&namespace)?;
        keys.iter().try_for_each(|key| self.check_key(key))?;
        self.check_writable(&namespace)?;
        let names: Vec<Name> = keys.into_iter().map(|key| (namespace.clone(), key)).collect();
        self.check_rows(&names)?;
        names.into_iter().for_each(|name| drop(self.writes.insert(name, Write::Delete)));
        Ok(Answer::Done)
    }

    pub(crate) fn delete(&mut self, name: Name, expected: Option<u64>) -> Answered {
        self.check_name(&name)?;
        self.check_writable(&name.0)?;
        self.check_rows([&name])?;
        if let Some(version) = expected {
            self.expect(&name, version);
        }
        self.writes.insert(name, Write::Delete);
        Ok(Answer::Done)
    }

    pub(crate) fn increment(&mut self, name: Name, delta: i64) -> Answered {
        self.check_name(&name)?;
        self.check_writable(&name.0)?;
        let write = match self.writes.get(&name) {
            None => Write::Add(delta),
            Some(Write::Add(before)) => {
                Write::Add(before.checked_add(delta).ok_or(Refusal::InvalidArgument)?)
            }
            Some(Write::Delete) => Write::Put { value: delta.to_string().into_bytes(), ttl: None },
            Some(Write::Put { value, ttl }) => Write::Put { value: sum(Some(value), delta)?, ttl: *ttl },
        };
        self.check_rows([&name])?;
        self.writes.insert(name, write);
        Ok(Answer::Done)
    }

    pub(crate) fn delete_range(
        &mut self,
        model: &Model,
        now: u64,
        namespace: String,
        range: Range,
    ) -> Answered {
        self.check_range(&namespace, &range)?;
        self.check_writable(&namespace)?;
        let wanted = range.limit.map_or(u64::MAX, u64::from).min(self.limits.transaction_mutations + 1);
        let range = Range { keys_only: true, ..range };
        let most = Most { entries: wanted as usize, bytes: u64::MAX, entry_bytes: 0 };
        let found = self.find(model, now, &namespace, Span::of(&range), &range, most)?;
        let names: Vec<Name> = found.entries.into_iter().map(|(key, _)| (namespace.clone(), key)).collect();
        self.check_rows(&names)?;
        let count = names.len() as u64;
        names.into_iter().for_each(|name| drop(self.writes.insert(name, Write::Delete)));
        Ok(Answer::Count(count))
    }

    pub(crate) fn scan(&mut self, model: &Model, now: u64, namespace: String, prefix: String) -> Answered {
        let range = Range { prefix, ..Range::default() };
        self.check_range(&namespace, &range)?;
        let most = Most { entries: usize::MAX, bytes: self.limits.result_bytes, entry_bytes: 256 };
        let found = self.find(model, now, &namespace, Span::of(&range), &range, most)?;
        match found.has_more {
            true => Err(self.result_exceeded()),
            false => Ok(Answer::Entries(found.entries)),
        }
    }

    /// The page of a range behind a key, which is the last of the page before.
    pub(crate) fn page(
        &mut self,
        model: &Model,
        now: u64,
        namespace: String,
        range: &Range,
        behind: Option<&str>,
        entry_bytes: u64,
    ) -> Answered {
        self.check_range(&namespace, range)?;
        let span = Span::of(range);
        let span = behind.map_or(span.clone(), |last| span.behind(last, range.reverse));
        if range.limit == Some(0) {
            return Ok(Answer::Page(Vec::new(), false));
        }
        let entries = range.limit.map_or(usize::MAX, |limit| limit as usize);
        let most = Most { entries, bytes: self.limits.result_bytes, entry_bytes };
        let found = self.find(model, now, &namespace, span, range, most)?;
        match found.has_more && found.entries.is_empty() {
            true => Err(self.result_exceeded()),
            false => Ok(Answer::Page(found.entries, found.has_more)),
        }
    }

    /// What may come of a commit now.
    pub(crate) fn outcomes(&self, model: &Model, now: u64) -> Outcomes {
        let nothing = Outcomes { conflict: false, invalid: false, commit: false };
        if self.writes.is_empty() {
            return Outcomes { commit: true, ..nothing };
        }
        let live = model.live(now);
        let version = |name: &Name| live.get(name).map_or(0, |row| row.version);
        let fails = self.is_contradictory
            || self.conditions.iter().any(|(name, expected)| version(name) != *expected)
            || self.expires_at.is_some_and(|at| at <= now)
            || self.seen.iter().any(|seen| seen.rows != versions_in(&live, &seen.namespace, &seen.span));
        let invalid = self.writes.iter().any(|(name, write)| match write {
            Write::Add(delta) => sum(live.get(name).map(|row| row.value.as_slice()), *delta).is_err(),
            _ => false,
        });
        let is_touched = self.snapshot.as_ref().is_some_and(|snapshot| {
            let written = model.commits[snapshot.commits..].iter().flat_map(|commit| &commit.rows);
            written.into_iter().any(|name| self.may_depend_on(name))
        });
        match (fails, invalid) {
            (true, invalid) => Outcomes { conflict: true, invalid, ..nothing },
            (false, true) => Outcomes { invalid: true, conflict: is_touched, ..nothing },
            (false, false) => Outcomes { commit: true, conflict: is_touched, ..nothing },
        }
    }

    /// Whether another host has committed since the snapshot.
    pub(crate) fn has_been_overtaken(&self, model: &Model, host: usize) -> bool {
        let since = self.snapshot.as_ref().map_or(model.commits.len(), |snapshot| snapshot.commits);
        model.commits[since..].iter().any(|commit| commit.host != host)
    }

    fn may_depend_on(&self, (namespace, key): &Name) -> bool {
        let seen = self.seen.iter().map(|seen| (&seen.namespace, &seen.span));
        let maybe = self.maybe_seen.iter().map(|(namespace, span)| (namespace, span));
        seen.chain(maybe).any(|(of, span)| of == namespace && span.contains(key))
    }

    /// Makes the writes of a host with the version that the store has given.
    ///
    /// # Errors
    /// If the version was given before, or is not larger than those of the rows.
    pub(crate) fn apply(self, model: &mut Model, host: usize, now: u64, version: u64) -> Result<(), String> {
        if self.writes.is_empty() {
            let is_right = version == 0;
            return is_right.then_some(()).ok_or(format!("a commit without writes has version {version}"));
        }
        if !model.versions.insert(version) {
            return Err(format!("version {version} was given twice"));
        }
        model.commits.push(Written { host, rows: self.writes.keys().cloned().collect() });
        let live = model.live(now);
        for (name, write) in self.writes {
            let last = model.last.insert(name.clone(), version).unwrap_or_default();
            if last >= version {
                return Err(format!("{name:?} was at version {last}, and is at {version} now"));
            }
            let before = live.get(&name);
            let row = match write {
                Write::Put { value, ttl } => Some((value, ttl.map(|ttl| now.saturating_add(ttl)))),
                Write::Delete => None,
                Write::Add(delta) => {
                    let sum = sum(before.map(|row| row.value.as_slice()), delta);
                    sum.ok().map(|value| (value, before.and_then(|row| row.expires_at)))
                }
            };
            match row {
                Some((value, expires_at)) => {
                    drop(model.state.insert(name, Row { value, version, expires_at }))
                }
                None => drop(model.state.remove(&name)),
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, model: &Model, now: u64) -> &State {
        let taken = || Snapshot { state: model.live(now), commits: model.commits.len() };
        &self.snapshot.get_or_insert_with(taken).state
    }

    fn committed(&mut self, model: &Model, now: u64, name: &Name) -> Option<Row> {
        let row = self.snapshot(model, now).get(name).cloned();
        let rows = row.iter().map(|row| (name.1.clone(), row.version)).collect();
        self.note(Seen { namespace: name.0.clone(), span: only(&name.1), rows });
        self.note_expiry(row.as_ref().and_then(|row| row.expires_at));
        row
    }

    fn value(&mut self, model: &Model, now: u64, name: &Name) -> Result<Option<Vec<u8>>, Refusal> {
        let committed = match self.writes.get(name) {
            None | Some(Write::Add(_)) => self.committed(model, now, name).map(|row| row.value),
            Some(_) => None,
        };
        on_top(self.writes.get(name), committed)
    }

    fn find(
        &mut self,
        model: &Model,
        now: u64,
        namespace: &str,
        span: Span,
        range: &Range,
        most: Most,
    ) -> Result<Found, Refusal> {
        let mut found = Found::default();
        if span.is_empty() {
            return Ok(found);
        }
        let state = self.snapshot(model, now).clone();
        let all = state.keys().chain(self.writes.keys());
        let keys: BTreeSet<&String> =
            all.filter(|(of, key)| of == namespace && span.contains(key)).map(|(_, key)| key).collect();
        let mut keys: Vec<&String> = keys.into_iter().collect();
        if range.reverse {
            keys.reverse();
        }
        let (mut bytes, mut stop, mut failed) = (0, None, false);
        for key in keys {
            let name = (namespace.to_string(), key.clone());
            let write = self.writes.get(&name);
            let stored = state.get(&name).map(|row| row.value.clone());
            let value = match (range.keys_only, write) {
                (true, Some(Write::Put { .. } | Write::Add(_))) => Ok(Some(Vec::new())),
                (true, None) => Ok(stored.map(|_| Vec::new())),
                _ => on_top(write, stored),
            };
            let Ok(value) = value else {
                failed = true;
                break;
            };
            let Some(value) = value else { continue };
            let entry = (key.len() + value.len()) as u64 + most.entry_bytes;
            if found.entries.len() >= most.entries || bytes + entry > most.bytes {
                stop = Some(key.clone());
                break;
            }
            bytes += entry;
            found.entries.push((key.clone(), value));
        }
        if failed {
            self.maybe_seen.push((namespace.to_string(), span));
            return Err(Refusal::InvalidArgument);
        }
        found.has_more = stop.is_some();
        let span = stop.map_or(span.clone(), |stop| span.up_to(&stop, range.reverse));
        let rows = versions_in(&state, namespace, &span);
        let inside = state.iter().filter(|((of, key), _)| of == namespace && span.contains(key));
        let first = inside.filter_map(|(_, row)| row.expires_at).min();
        self.note_expiry(first);
        self.note(Seen { namespace: namespace.to_string(), span, rows });
        Ok(found)
    }

    /// A view depends on nothing: what it read need not hold later.
    fn note(&mut self, seen: Seen) {
        if self.is_update {
            self.seen.push(seen);
        }
    }

    fn note_expiry(&mut self, expires_at: Option<u64>) {
        if self.is_update {
            self.expires_at = self.expires_at.into_iter().chain(expires_at).min();
        }
    }

    fn expect(&mut self, name: &Name, version: u64) {
        let before = self.conditions.insert(name.clone(), version);
        self.is_contradictory |= before.is_some_and(|before| before != version);
    }

    fn check_name(&self, (namespace, key): &Name) -> Result<(), Refusal> {
        self.check_namespace(namespace)?;
        self.check_key(key)
    }

    fn check_namespace(&self, namespace: &str) -> Result<(), Refusal> {
        check(LimitKind::NamespaceBytes, self.limits.namespace_bytes, namespace.len())
    }

    fn check_key(&self, key: &str) -> Result<(), Refusal> {
        check(LimitKind::KeyBytes, self.limits.key_bytes, key.len())
    }

    fn check_value(&self, value: &[u8]) -> Result<(), Refusal> {
        check(LimitKind::ValueBytes, self.limits.value_bytes, value.len())
    }

    fn check_range(&self, namespace: &str, range: &Range) -> Result<(), Refusal> {
        self.check_namespace(namespace)?;
        let texts = [Some(&range.prefix), range.start.as_ref(), range.end.as_ref()];
        texts.into_iter().flatten().try_for_each(|text| self.check_key(text))
    }

    fn check_count(&self, rows: usize) -> Result<(), Refusal> {
        check(LimitKind::TransactionMutations, self.limits.transaction_mutations, rows)
    }

    /// Whether there is room for writes of these rows too.
    fn check_rows<'a>(&'a self, names: impl IntoIterator<Item = &'a Name>) -> Result<(), Refusal> {
        let all: BTreeSet<&Name> = self.writes.keys().chain(names).collect();
        self.check_count(all.len())
    }

    fn check_writable(&self, namespace: &str) -> Result<(), Refusal> {
        match (self.is_update, namespace.starts_with("__")) {
            (false, _) => Err(Refusal::ReadOnly),
            (true, true) => Err(Refusal::AccessDenied),
            (true, false) => Ok(()),
        }
    }

    fn check_result(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes > self.limits.result_bytes { Err(self.result_exceeded()) } else { Ok(()) }
    }

    fn result_exceeded(&self) -> Refusal {
        Refusal::Limit(LimitKind::ResultBytes, self.limits.result_bytes, 0)
    }
}

/// How much of a range is wanted.
struct Most {
    entries: usize,
    bytes: u64,
    /// What an entry counts beside its key and value.
    entry_bytes: u64,
}

#[derive(Default)]
struct Found {
    entries: Vec<(String, Vec<u8>)>,
    has_more: bool,
}

fn check(kind: LimitKind, max: u64, length: usize) -> Result<(), Refusal> {
    if length as u64 > max { Err(Refusal::Limit(kind, max, length as u64)) } else { Ok(()) }
}

/// The span of one key.
fn only(key: &str) -> Span {
    Span::of(&Range { start: Some(key.to_string()), ..Range::default() }).up_to(key, false)
}

fn versions_in(state: &State, namespace: &str, span: &Span) -> BTreeMap<String, u64> {
    let inside = state.iter().filter(|((of, key), _)| of == namespace && span.contains(key));
    inside.map(|((_, key), row)| (key.clone(), row.version)).collect()
}

fn on_top(write: Option<&Write>, committed: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Refusal> {
    match write {
        None => Ok(committed),
        Some(Write::Put { value, .. }) => Ok(Some(value.clone())),
        Some(Write::Delete) => Ok(None),
        Some(Write::Add(delta)) => sum(committed.as_deref(), *delta).map(Some),
    }
}

/// Adds to a counter: the text of a number as Rust prints it.
fn sum(counter: Option<&[u8]>, delta: i64) -> Result<Vec<u8>, Refusal> {
    let before = match counter {
        None => 0,
        Some(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| Refusal::InvalidArgument)?;
            let number: i64 = text.parse().map_err(|_| Refusal::InvalidArgument)?;
            if number.to_string() != text {
                return Err(Refusal::InvalidArgument);
            }
            number
        }
    };
    let sum = before.checked_add(delta).ok_or(Refusal::InvalidArgument)?;
    Ok(sum.to_string().into_bytes())
}
