//! Random schedules on a store, each answer compared with the model's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use larder_core::{
    Clock, Entry, Error, Handle, HandleOptions, Limits, Mode, OpenTransactions, Page, PutOptions, Range,
    Store, Transaction, Version,
};

use crate::model::Name;
use crate::script::{NAMESPACES, delta, entries, key, keys, namespace, prefix, range, value};
use crate::{Answer, Model, ModelTransaction, Refusal};

/// A clock that moves only when it is told, so that rows expire at the same step in every run.
#[derive(Debug, Default)]
pub struct StandingClock(AtomicU64);

impl StandingClock {
    /// Moves the clock forward by whole milliseconds.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for StandingClock {
    fn unix_millis(&self) -> u64 {
        1_800_000_000_000 + self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A random schedule.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Decides about everything.
    pub seed: u64,
    /// How many calls are made.
    pub calls: usize,
    /// How many transactions are open at once, at most.
    pub transactions: usize,
    /// Whether a read or a commit may give `conflict` once another host has committed, as the
    /// specification allows. Which commits must not conflict is then checked on one host only.
    pub reads_may_conflict: bool,
}

/// Makes a schedule on one store that several hosts have open, and compares each answer.
///
/// The stores have the clock, and sweep only when the schedule says so.
///
/// # Errors
/// Which answer was not the model's, with the calls before it.
pub async fn run(schedule: Schedule, stores: &[Store], clock: &StandingClock) -> Result<(), String> {
    let mut run = Run::new(schedule, stores, clock);
    for _ in 0..schedule.calls {
        let step = run.step().await;
        if let Err(difference) = step {
            let log = run.log.join("\n");
            return Err(format!("{schedule:?}:\n{log}\n{difference}"));
        }
    }
    run.compare_states().await.map_err(|difference| format!("{schedule:?}: at the end, {difference}"))
}

struct Run<'a> {
    schedule: Schedule,
    stores: &'a [Store],
    clock: &'a StandingClock,
    random: Rng,
    model: Model,
    handles: Vec<Handle>,
    open: Vec<Option<Open>>,
    /// Versions that were read, for conditions.
    versions: Vec<u64>,
    /// Pages that can be continued.
    pages: Vec<Continued>,
    log: Vec<String>,
}

struct Open {
    transaction: Transaction,
    model: ModelTransaction,
    /// The handle that began it.
    handle: usize,
    /// What every further call gives.
    ended: Option<Refusal>,
}

#[derive(Clone)]
struct Continued {
    namespace: String,
    range: Range,
    cursor: String,
    last: String,
}

impl<'a> Run<'a> {
    fn new(schedule: Schedule, stores: &'a [Store], clock: &'a StandingClock) -> Self {
        let handles = stores.iter().cycle().take(2 * stores.len()).map(handle).collect();
        Self {
            schedule,
            stores,
            clock,
            random: Rng::with_seed(schedule.seed),
            model: Model::default(),
            handles,
            open: (0..schedule.transactions).map(|_| None).collect(),
            versions: vec![0],
            pages: Vec::new(),
            log: Vec::new(),
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.random.u8(..) {
            0..8 => {
                let by = Duration::from_millis(self.random.u64(1..40_000));
                self.clock.advance(by);
                self.log.push(format!("{by:?} pass"));
                return Ok(());
            }
            8..11 => return self.sweep().await,
            11 => {
                self.close_handle();
                return Ok(());
            }
            _ => {}
        }
        let at = self.random.usize(..self.open.len());
        if self.open[at].is_none() {
            return self.begin(at);
        }
        if self.random.u8(..) < 32 {
            return self.end(at).await;
        }
        self.call(at).await
    }

    /// Compares what every host holds at the end.
    async fn compare_states(&self) -> Result<(), String> {
        let now = self.clock.unix_millis();
        for (host, store) in self.stores.iter().enumerate() {
            let handle = store.handle(HandleOptions::default());
            let found = loop {
                match rows_of(&handle).await {
                    Err(Error::Conflict) if self.schedule.reads_may_conflict => {}
                    found => break found.map_err(|error| error.to_string())?,
                }
            };
            let expected = self.model.values(now);
            if found != expected {
                return Err(format!("host {host} holds {found:?}, and the model {expected:?}"));
            }
        }
        Ok(())
    }

    async fn sweep(&mut self) -> Result<(), String> {
        let store = self.random.usize(..self.stores.len());
        self.log.push(format!("host {store} sweeps"));
        self.stores[store].sweep().await.map(drop).map_err(|error| format!("the sweep failed: {error}"))
    }

    /// Its transactions end, and the next one is of another handle.
    fn close_handle(&mut self) {
        let index = self.random.usize(..self.handles.len());
        self.log.push(format!("handle {index} closes"));
        self.handles[index].close();
        self.handles[index] = handle(&self.stores[index % self.stores.len()]);
        let of_handle = self.open.iter_mut().flatten().filter(|open| open.handle == index);
        for open in of_handle {
            open.ended.get_or_insert(Refusal::Closed);
        }
    }

    fn begin(&mut self, at: usize) -> Result<(), String> {
        let handle = self.random.usize(..self.handles.len());
        let mode = if self.random.u8(..) < 50 { Mode::View } else { Mode::Update };
        self.log.push(format!("{at}: begin {mode:?} on handle {handle}"));
        let transaction = self.handles[handle].begin(mode).map_err(|error| error.to_string())?;
        let model = ModelTransaction::new(mode == Mode::Update, limits());
        self.open[at] = Some(Open { transaction, model, handle, ended: None });
        Ok(())
    }

    async fn end(&mut self, at: usize) -> Result<(), String> {
        let Some(Open { transaction, model, handle, ended }) = self.open[at].take() else { return Ok(()) };
        if self.random.u8(..) < 40 {
            self.log.push(format!("{at}: rollback"));
            transaction.rollback();
            return Ok(());
        }
        let (now, host) = (self.clock.unix_millis(), self.host(handle));
        let mut may = model.outcomes(&self.model, now);
        may.conflict |= self.schedule.reads_may_conflict && model.has_been_overtaken(&self.model, host);
        let outcome = transaction.commit().await;
        self.log.push(format!("{at}: commit gives {outcome:?}"));
        match (outcome, ended) {
            (Err(error), Some(ended)) if Refusal::of(&error) == ended => Ok(()),
            (Ok(Version(version)), None) if may.commit => model.apply(&mut self.model, host, now, version),
            (Err(Error::Conflict), None) if may.conflict => Ok(()),
            (Err(Error::InvalidArgument(_)), None) if may.invalid => Ok(()),
            (outcome, ended) => {
                Err(format!("the commit gave {outcome:?}, the model {may:?}, ended: {ended:?}"))
            }
        }
    }

    fn host(&self, handle: usize) -> usize {
        handle % self.stores.len()
    }

    async fn call(&mut self, at: usize) -> Result<(), String> {
        let Some(mut open) = self.open[at].take() else { return Ok(()) };
        let (expected, found) = self.both(at, &mut open).await;
        self.log.push(format!("    {found:?}"));
        let expected = open.ended.clone().map_or(expected, Err);
        let may_conflict = self.schedule.reads_may_conflict
            && open.ended.is_none()
            && open.model.has_been_overtaken(&self.model, self.host(open.handle));
        let is_right = if may_conflict && found == Err(Refusal::Conflict) {
            open.ended = Some(Refusal::Conflict);
            true
        } else {
            expected == found
        };
        self.open[at] = Some(open);
        if is_right { Ok(()) } else { Err(format!("the model gives\n    {expected:?}")) }
    }

    /// Makes a call on the model and on the store.
    async fn both(
        &mut self,
        at: usize,
        Open { transaction, model, .. }: &mut Open,
    ) -> (Result<Answer, Refusal>, Result<Answer, Refusal>) {
        let random = &mut self.random;
        let (state, now) = (&self.model, self.clock.unix_millis());
        let (namespace, key) = (namespace(random), key(random));
        let name: Name = (namespace.clone(), key.clone());
        // Of the newest ones, and that of an absent row.
        let newest = self.versions.len().saturating_sub(4);
        let version = match random.u8(..4) {
            0 => 0,
            _ => random.choice(&self.versions[newest..]).copied().unwrap_or_default(),
        };
        let kind = random.u8(..18);
        match kind {
            0..3 => {
                self.log.push(format!("{at}: get {name:?}"));
                let found = transaction.get(namespace, key).await;
                (model.get(state, now, name), found.map(Answer::Value).map_err(refused))
            }
            3 => {
                let keys = keys(random);
                self.log.push(format!("{at}: get-many {namespace:?} {keys:?}"));
                let expected = model.get_many(state, now, namespace.clone(), keys.clone());
                let found = transaction.get_many(namespace, keys).await;
                (expected, found.map(Answer::Values).map_err(refused))
            }
            4 => {
                self.log.push(format!("{at}: get-versioned {name:?}"));
                let found = transaction.get_versioned(namespace, key).await;
                if let Ok(Some((_, version))) = &found {
                    self.versions.push(version.0);
                }
                let found = found.map(|found| found.map(|(value, version)| (value, version.0)));
                let expected = model.get_versioned(state, now, name);
                (expected, found.map(Answer::Versioned).map_err(refused))
            }
            5 | 6 => {
                let value = value(random);
                let options = match random.u8(..3) {
                    0 => PutOptions::default()
                        .ttl_ms(random.bool().then(|| random.u64(..60) * 1_000))
                        .if_version(random.bool().then_some(Version(version))),
                    _ => PutOptions::default(),
                };
                self.log.push(format!("{at}: put {name:?} {value:?} {options:?}"));
                let found = transaction.put_with(namespace, key, value.clone(), options);
                (model.put(name, value, options), done(found))
            }
            7 => {
                let entries = entries(random);
                let packed = random.bool();
                self.log.push(format!("{at}: put-many {namespace:?} {entries:?}, packed: {packed}"));
                let expected = model.put_many(namespace.clone(), entries.clone());
                let found = match packed {
                    true => transaction.put_packed(namespace, &pack(&entries)).await,
                    false => transaction.put_many(namespace, entries).await,
                };
                (expected, done(found))
            }
            8 => {
                let keys = keys(random);
                self.log.push(format!("{at}: delete-many {namespace:?} {keys:?}"));
                let expected = model.delete_many(namespace.clone(), keys.clone());
                (expected, done(transaction.delete_many(namespace, keys).await))
            }
            9 => {
                self.log.push(format!("{at}: delete {name:?}"));
                (model.delete(name, None), done(transaction.delete(namespace, key)))
            }
            10 => {
                self.log.push(format!("{at}: delete {name:?} at version {version}"));
                let found = transaction.delete_if_version(namespace, key, Version(version));
                (model.delete(name, Some(version)), done(found))
            }
            11 => {
                let range = range(random);
                self.log.push(format!("{at}: delete-range {namespace:?} {range:?}"));
                let expected = model.delete_range(state, now, namespace.clone(), range.clone());
                let found = transaction.delete_range(namespace, range).await;
                (expected, found.map(Answer::Count).map_err(refused))
            }
            12 => {
                let delta = delta(random);
                self.log.push(format!("{at}: increment {name:?} by {delta}"));
                (model.increment(name, delta), done(transaction.increment(namespace, key, delta)))
            }
            13 => {
                let prefix = prefix(random);
                self.log.push(format!("{at}: scan {namespace:?} {prefix:?}"));
                let expected = model.scan(state, now, namespace.clone(), prefix.clone());
                let found = transaction.scan(namespace, prefix).await;
                (expected, found.map(|entries| Answer::Entries(pairs(entries))).map_err(refused))
            }
            _ => self.both_pages(at, transaction, model, namespace).await,
        }
    }

    /// A first page, or one that continues any page of before, of this transaction or another one.
    async fn both_pages(
        &mut self,
        at: usize,
        transaction: &mut Transaction,
        model: &mut ModelTransaction,
        namespace: String,
    ) -> (Result<Answer, Refusal>, Result<Answer, Refusal>) {
        let random = &mut self.random;
        let before = if random.bool() { random.choice(&self.pages).cloned() } else { None };
        let (namespace, range) = match &before {
            Some(before) => (before.namespace.clone(), before.range.clone()),
            None => (namespace, range(random)),
        };
        let is_packed = random.bool();
        let behind = before.as_ref().map(|before| before.last.as_str());
        self.log.push(format!("{at}: page {namespace:?} {range:?} behind {behind:?}, packed: {is_packed}"));
        let entry_bytes = if is_packed { 8 } else { 256 };
        let now = self.clock.unix_millis();
        let expected = model.page(&self.model, now, namespace.clone(), &range, behind, entry_bytes);
        let cursor = before.map(|before| before.cursor);
        let found = match is_packed {
            false => transaction.scan_page(namespace.clone(), range.clone(), cursor).await,
            true => match transaction.scan_page_packed(namespace.clone(), range.clone(), cursor).await {
                Ok(page) => Ok(Page { entries: unpack(&page.entries), next: page.next }),
                Err(error) => Err(error),
            },
        };
        if let Ok(Page { entries, next: Some(cursor) }) = &found
            && let Some(last) = entries.last()
        {
            let (cursor, last) = (cursor.clone(), last.key.clone());
            self.pages.push(Continued { namespace, range, cursor, last });
        }
        let found = found.map(|page| Answer::Page(pairs(page.entries), page.next.is_some()));
        (expected, found.map_err(refused))
    }
}

/// All rows of the namespaces that schedules use.
async fn rows_of(handle: &Handle) -> Result<BTreeMap<Name, Vec<u8>>, Error> {
    let mut rows = BTreeMap::new();
    let mut view = handle.begin(Mode::View)?;
    for namespace in NAMESPACES {
        for entry in view.scan(namespace.to_string(), String::new()).await? {
            rows.insert((namespace.to_string(), entry.key), entry.value);
        }
    }
    Ok(rows)
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default().limits(limits()).open_transactions(OpenTransactions::at_most(64)))
}

fn limits() -> Limits {
    Limits::default()
        .namespace_bytes(6)
        .key_bytes(8)
        .value_bytes(40)
        // Three entries of a list, or many that are packed.
        .result_bytes(840)
        .transaction_mutations(12)
        .transaction_timeout(Duration::from_secs(3_000))
}

fn refused(error: Error) -> Refusal {
    Refusal::of(&error)
}

fn done(found: Result<(), Error>) -> Result<Answer, Refusal> {
    found.map(|()| Answer::Done).map_err(refused)
}

fn pairs(entries: Vec<Entry>) -> Vec<(String, Vec<u8>)> {
    entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

/// Entries as the WIT says that they are packed.
fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut packed = Vec::new();
    for Entry { key, value } in entries {
        packed.extend((key.len() as u32).to_le_bytes());
        packed.extend((value.len() as u32).to_le_bytes());
        packed.extend(key.as_bytes());
        packed.extend(value);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while !packed.is_empty() {
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let (key, value) = (number(packed), number(&packed[4..]));
        let rest = &packed[8..];
        let text = String::from_utf8_lossy(&rest[..key]).into_owned();
        entries.push(Entry { key: text, value: rest[key..key + value].to_vec() });
        packed = &rest[key + value..];
    }
    entries
}
