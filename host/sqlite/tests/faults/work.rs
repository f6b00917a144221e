//! The work that is done while calls fail, and the checks after it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use larder_core::backend::Backend;
use larder_core::memory::records::RecordWrite;
use larder_core::{
    Error, Handle, HandleOptions, Mode, OpenTransactions, PutOptions, Result, Store, Transaction, Version,
};
use larder_sqlite::{Sqlite, SqliteOptions};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::common::{open_positioned, record_write};
use crate::model::{Attempt, Change, History, Rows, Seen, View, is_unknown};
use crate::replay::Kept;
use larder_sqlite_vfs::{Call, Counts, Disk, Fault, UNDERLYING};

/// The work that is done while calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Two groups of commits, with views, a sweep and a backup between and beside them.
    Groups,
    /// A commit that does not fit into SQLite's page cache, in a group with others.
    Spill,
    /// A close of the store, after a few commits.
    Close,
}

/// The work, and the store that it is done on.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub work: Work,
    pub options: SqliteOptions,
    pub is_journaled: bool,
}

impl Setting {
    pub fn new(work: Work) -> Self {
        Self { work, options: SqliteOptions::default(), is_journaled: false }
    }

    async fn open(&self, path: &Path, journal: &Arc<Kept>) -> Result<Sqlite> {
        match self.is_journaled {
            true => Sqlite::open_journaled(path, self.options, journal.clone()).await,
            false => Sqlite::open(path, self.options).await,
        }
    }
}

const NAMESPACE: &str = "n";

/// The number of rows that exist before the work, on many pages.
const BASE_ROWS: usize = 400;

/// A closed database from which each run begins.
pub struct Template {
    folder: TempDir,
    rows: Rows,
}

impl Template {
    pub async fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let database = Sqlite::open(&path, SqliteOptions::default()).await.unwrap();
        let store = Store::builder(database).sweep_interval(None).build().unwrap();
        let mut base = handle(&store).begin(Mode::Update).unwrap();
        for number in 0..BASE_ROWS {
            base.put(NAMESPACE.into(), base_key(number), vec![b'b'; 200]).unwrap();
        }
        for key in ["pair/a", "pair/b"] {
            base.put(NAMESPACE.into(), key.into(), b"none".to_vec()).unwrap();
        }
        for number in 0..30 {
            let options = PutOptions::default().ttl_ms(1);
            base.put_with(NAMESPACE.into(), format!("ttl/{number:03}"), vec![b't'; 200], options).unwrap();
        }
        base.commit().await.unwrap();
        store.close().await;
        // These rows have expired by any clock.
        let connection = Connection::open(&path).unwrap();
        connection.execute("UPDATE larder_entries SET expires_at = 1 WHERE expires_at > 1", []).unwrap();
        drop(connection);
        let rows = dump(&path).rows;
        Self { folder, rows }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }
}

fn base_key(number: usize) -> String {
    format!("base/{number:03}")
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default().open_transactions(OpenTransactions::at_most(1_000)))
}

/// One run: the database, and what was done to it.
struct Run {
    folder: TempDir,
    disk: Arc<Disk>,
    database: Arc<Sqlite>,
    store: Store,
    base: Rows,
    attempts: Vec<Attempt>,
    views: Vec<View>,
    record: Record,
    /// The states that another process saw after each commit.
    observed: Arc<Mutex<Vec<Rows>>>,
    /// Whether the outcome of any commit is unknown.
    unknown: bool,
    swept: bool,
}

/// The versions of the only record, which follow each other.
#[derive(Default)]
struct Record {
    acknowledged: u64,
    /// Further versions that the record may have, because the outcome of their writes is unknown.
    possible: Vec<u64>,
}

/// Does the work with the fault, and checks the store. Returns how many calls failed, and how many
/// were made.
pub async fn run(template: &Template, setting: Setting, fault: Option<Fault>) -> (usize, Counts) {
    let work = setting.work;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::copy(template.path(), &path).unwrap();
    let disk = Disk::watch(folder.path());
    let journal = Arc::default();
    let database = Arc::new(setting.open(&path, &journal).await.unwrap());
    let store = Store::builder_shared(database.clone()).sweep_interval(None).build().unwrap();
    let mut run = Run {
        folder,
        disk,
        database,
        store,
        base: template.rows.clone(),
        attempts: Vec::new(),
        views: Vec::new(),
        record: Record::default(),
        observed: Arc::default(),
        unknown: false,
        swept: false,
    };
    if work != Work::Close {
        run.observe();
    }
    if work == Work::Close {
        run.alone(Change { puts: pair(0), ..Change::default() }).await;
        run.alone(Change { puts: pair(1), ..Change::default() }).await;
    }
    run.disk.arm(fault);
    match work {
        Work::Groups => run.groups().await,
        Work::Spill => run.spill().await,
        Work::Close => run.store.close().await,
    }
    let (failed, counts) = run.disk.disarm();
    if fault.is_none() {
        run.check_without_fault(work);
    }
    // SQLite reads nothing after it has begun to write the last page of a commit.
    let is_read = fault.is_some_and(|fault| matches!(fault.call, Call::Read | Call::Open | Call::Access));
    assert!(!(is_read && run.unknown), "a read left the outcome of a commit unknown");
    let history = run.finish(work).await;
    if setting.is_journaled {
        check_journal(template, &journal, &history).await;
    }
    (failed, counts)
}

/// Replaying the journal must lead to a state that includes all acknowledged commits.
async fn check_journal(template: &Template, journal: &Kept, history: &History) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    std::fs::copy(template.path(), &path).unwrap();
    let copy = open_positioned(&path).await;
    let redos = journal.bytes();
    // The journal is empty if the outcome of the first commit is unknown.
    if !redos.is_empty() {
        copy.replay(&redos).await.unwrap();
    }
    copy.finish().await.unwrap();
    history.check_journaled(&dump(&path).rows);
}

/// The same value in two rows. Each commit writes both.
fn pair(id: usize) -> Vec<(String, Vec<u8>)> {
    ["pair/a", "pair/b"].map(|key| (key.to_string(), id.to_string().into_bytes())).to_vec()
}

pub type Asked<'a> = Pin<Box<dyn Future<Output = Result<Version>> + Send + 'a>>;

impl Run {
    /// Makes another process read the rows after each commit.
    fn observe(&self) {
        let connection = open_underlying(&self.folder.path().join("store.db"));
        let connection = Mutex::new(connection.unwrap());
        let observed = self.observed.clone();
        self.disk.observe(move || {
            let (connection, mut observed) = (connection.lock(), observed.lock());
            // A read that fails while a checkpoint runs does not count.
            if let Ok(rows) = rows(&connection)
                && observed.last() != Some(&rows)
            {
                observed.push(rows);
            }
        });
    }

    async fn groups(&mut self) {
        let mut before = self.begin_view();
        let mut beside = self.begin_view();
        self.read(&mut before, "pair/a").await;
        let base = |number: usize| (base_key(number), b"changed".to_vec());
        let first_base = self.base.values().map(|(_, version)| *version).next().unwrap();
        let relied_on = |numbers: &[usize]| -> BTreeMap<String, u64> {
            numbers.iter().map(|number| (base_key(*number), first_base)).collect()
        };
        let leader = Change { puts: pair(0), ..Change::default() };
        let record = Some(record_write("s", 0, Some((1, b"one"))));
        let members = vec![
            Change { puts: [pair(1), vec![base(10)]].concat(), ..Change::default() },
            // Its rows are on pages that no connection has read yet.
            Change {
                puts: [pair(2), vec![base(111)]].concat(),
                increments: vec!["counter/x".into()],
                relied_on: relied_on(&[50, 150, 250, 350]),
                ..Change::default()
            },
            Change {
                puts: (0..40).map(|number| (format!("many/{number:03}"), vec![b'm'; 300])).collect(),
                increments: vec!["counter/x".into()],
                ..Change::default()
            },
            // A rule of core refuses this change, which is not a fault.
            Change { puts: pair(3), increments: vec![base_key(380)], ..Change::default() },
            Change { puts: pair(4), relied_on: [(base_key(10), 999)].into(), ..Change::default() },
            Change {
                puts: pair(5),
                deletes: (300..340).map(base_key).collect(),
                relied_on: relied_on(&[200]),
                ..Change::default()
            },
        ];
        self.group(leader, members, record).await;
        self.read(&mut beside, "pair/a").await;
        let mut after = self.begin_view();
        self.read(&mut after, "pair/a").await;
        self.read(&mut before, "pair/b").await;

        let swept = self.database.sweep(crate::common::sweep_at(2, 1_000)).await;
        self.unknown |= is_unknown(&swept);
        self.swept |= swept.is_ok();

        // Updates that read, and commit as a group.
        let mut updates = Vec::new();
        for (number, keys) in [[20, 120], [220, 290]].iter().enumerate() {
            let mut update = handle(&self.store).begin(Mode::Update).unwrap();
            let mut change = Change { puts: pair(10 + number), ..Change::default() };
            let mut is_whole = true;
            for key in keys.map(base_key) {
                match update.get_versioned(NAMESPACE.into(), key.clone()).await {
                    Ok(found) => {
                        let version = found.map_or(0, |(_, version)| version.0);
                        change.relied_on.insert(key, version);
                    }
                    Err(_) => is_whole = false,
                }
            }
            if is_whole {
                updates.push((update, change));
            }
        }
        let record = Some(record_write("s", 1, Some((2, b"two"))));
        self.group_of(Change { puts: pair(20), ..Change::default() }, Vec::new(), updates, record).await;

        self.backup().await;
        for view in [&mut before, &mut beside, &mut after] {
            self.read(view, "pair/b").await;
            self.scan(view, "commit/").await;
            self.read(view, &base_key(390)).await;
            self.read(view, &base_key(10)).await;
        }
        self.views.extend([before, beside, after].map(|view| view.view));
    }

    async fn spill(&mut self) {
        let mut before = self.begin_view();
        self.read(&mut before, "pair/a").await;
        let large =
            (0..1_500).map(|number| (format!("large/{number:04}"), vec![b'l'; 2_000])).collect::<Vec<_>>();
        let members = vec![
            Change { puts: pair(1), increments: vec!["counter/x".into()], ..Change::default() },
            Change { puts: [pair(2), large].concat(), ..Change::default() },
            Change {
                puts: pair(3),
                increments: vec!["counter/x".into()],
                relied_on: [(base_key(200), self.base[&base_key(200)].1), ("large/x".into(), 0)].into(),
                ..Change::default()
            },
            Change { puts: pair(4), increments: vec!["counter/x".into()], ..Change::default() },
        ];
        self.group(Change { puts: pair(0), ..Change::default() }, members, None).await;
        self.read(&mut before, "pair/b").await;
        self.views.push(before.view);
    }

    /// Commits one change alone.
    async fn alone(&mut self, mut change: Change) {
        change.id = self.attempts.len();
        let outcome = self.blind(&change).commit().await;
        self.note(change, outcome);
    }

    async fn group(&mut self, leader: Change, members: Vec<Change>, record: Option<Arc<RecordWrite>>) {
        self.group_of(leader, members, Vec::new(), record).await;
    }

    /// Commits the leader alone, and then the others as one group. They are requested while the
    /// leader waits for the write lock.
    async fn group_of(
        &mut self,
        mut leader: Change,
        members: Vec<Change>,
        updates: Vec<(Transaction, Change)>,
        record: Option<Arc<RecordWrite>>,
    ) {
        leader.id = self.attempts.len();
        let leading = self.blind(&leader).commit();
        self.disk.close_gate();
        let disk = self.disk.clone();
        let leading = tokio::spawn(async move {
            let outcome = leading.await;
            // The leader may have failed before it reached the gate.
            disk.open_gate();
            outcome
        });
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || disk.wait_at_gate()).await.unwrap();

        let mut asked: Vec<(Change, Asked<'static>, Option<Result<Version>>)> = Vec::new();
        let members = members.into_iter().map(|change| (None, change));
        let updates = updates.into_iter().map(|(update, change)| (Some(update), change));
        for (number, (update, mut change)) in members.chain(updates).enumerate() {
            change.id = leader.id + 1 + number;
            let transaction = match update {
                None => {
                    let kept = change.relied_on.iter().filter(|(_, version)| **version > 0);
                    let kept: Vec<_> = kept.map(|(key, _)| (key.clone(), b"relied on".to_vec())).collect();
                    change.puts.extend(kept);
                    self.blind(&change)
                }
                Some(mut update) => {
                    stage(&mut update, &change);
                    update
                }
            };
            let mut asked_for: Asked<'static> = Box::pin(transaction.commit());
            let outcome = poll_once(&mut asked_for);
            asked.push((change, asked_for, outcome));
        }
        let database = self.database.clone();
        let version = record.as_ref().and_then(|write| write.record.as_ref()).map(|record| record.version.0);
        let mut writing: Asked<'static> = Box::pin(async move {
            match record {
                Some(write) => database.write_record(write).await.map(|()| Version::ABSENT),
                None => Ok(Version::ABSENT),
            }
        });
        let written = poll_once(&mut writing);
        self.disk.open_gate();

        let outcome = leading.await.unwrap();
        self.note(leader, outcome);
        for (change, asked_for, outcome) in asked {
            let outcome = match outcome {
                Some(outcome) => outcome,
                None => asked_for.await,
            };
            self.note(change, outcome);
        }
        let written = match written {
            Some(written) => written,
            None => writing.await,
        };
        if let Some(version) = version {
            self.unknown |= is_unknown(&written);
            self.record.note(version, &written);
        }
    }

    fn note(&mut self, change: Change, outcome: Result<Version>) {
        self.unknown |= is_unknown(&outcome);
        self.attempts.push(Attempt { change, outcome });
    }

    /// A transaction that reads nothing. What it relies on are conditions of its commit.
    fn blind(&self, change: &Change) -> Transaction {
        let mut transaction = handle(&self.store).begin(Mode::Update).unwrap();
        stage(&mut transaction, change);
        for (key, version) in &change.relied_on {
            let (key, version) = (key.clone(), Version(*version));
            if version == Version::ABSENT {
                transaction.delete_if_version(NAMESPACE.into(), key, version).unwrap();
            } else {
                let options = PutOptions::default().if_version(version);
                transaction.put_with(NAMESPACE.into(), key, b"relied on".to_vec(), options).unwrap();
            }
        }
        transaction
    }

    async fn backup(&mut self) {
        let to = self.folder.path().join("copy.db");
        match self.database.backup(&to).await {
            Ok(_) => assert!(to.exists()),
            Err(_) => assert!(!to.exists(), "a failed backup left a file"),
        }
    }

    fn begin_view(&self) -> Viewing {
        let transaction = handle(&self.store).begin(Mode::View).unwrap();
        Viewing { transaction, view: View::default(), has_read: false }
    }

    async fn read(&self, viewing: &mut Viewing, key: &str) {
        self.begins_to_read(viewing);
        let read = viewing.transaction.get_versioned(NAMESPACE.into(), key.into()).await;
        if let Ok(found) = read {
            let found = found.map(|(value, version)| (value, version.0));
            viewing.view.seen.push(Seen::Row(key.into(), found));
        }
    }

    async fn scan(&self, viewing: &mut Viewing, prefix: &str) {
        self.begins_to_read(viewing);
        if let Ok(found) = viewing.transaction.scan(NAMESPACE.into(), prefix.into()).await {
            let found = found.into_iter().map(|entry| (entry.key, entry.value)).collect();
            viewing.view.seen.push(Seen::Prefix(prefix.into(), found));
        }
    }

    fn begins_to_read(&self, viewing: &mut Viewing) {
        if !std::mem::replace(&mut viewing.has_read, true) {
            let acknowledged = self.attempts.iter().filter(|attempt| attempt.is_acknowledged());
            viewing.view.acknowledged_before = acknowledged.map(|attempt| attempt.change.id).collect();
        }
    }

    fn check_without_fault(&self, work: Work) {
        assert!(!self.unknown);
        for attempt in &self.attempts {
            let is_refused = work == Work::Groups && [4, 5].contains(&attempt.change.id);
            assert_eq!(attempt.outcome.is_err(), is_refused, "{attempt:?}");
            assert!(attempt.outcome.as_ref().err().is_none_or(Error::is_refusal), "{attempt:?}");
        }
        if work == Work::Groups {
            assert!(
                self.swept && self.record.acknowledged == 2 && self.folder.path().join("copy.db").exists()
            );
            let observed = self.observed.lock().len();
            assert!(observed >= 4, "another process saw only {observed} states");
            assert!(self.views.iter().all(|view| view.seen.len() > 4), "{:?}", self.views);
        }
    }

    /// Checks the store after the disk works again. It must go on, or have said why it does not.
    /// Reopened after a kill or a close, it must hold what the history allows.
    async fn finish(mut self, work: Work) -> History {
        if work != Work::Close {
            self.alone(Change { puts: pair(99), ..Change::default() }).await;
            let after = &self.attempts.last().unwrap().outcome;
            match self.unknown {
                false => assert!(after.is_ok(), "the store refuses further commits: {after:?}"),
                true => assert!(matches!(after, Err(Error::Unavailable { .. })), "{after:?}"),
            }
            let mut view = self.begin_view();
            self.read(&mut view, "pair/a").await;
            self.scan(&mut view, "commit/").await;
            self.scan(&mut view, "base/").await;
            // The journal never keeps a commit whose outcome is unknown, so no view may see it.
            let has_failed = self.database.has_failed();
            assert!(self.unknown || !has_failed);
            let readable = if has_failed { 0 } else { 3 };
            assert_eq!(view.view.seen.len(), readable, "the store cannot be read");
            self.views.push(view.view);
        }
        let path = self.folder.path().join("store.db");
        let killed = kill(self.folder.path());
        self.store.close().await;
        self.check(&killed.path().join("store.db"));
        let history = self.check(&path);
        self.views.iter().for_each(|view| history.check_view(view));
        self.observed.lock().iter().for_each(|rows| history.check_state(rows));
        let copy = self.folder.path().join("copy.db");
        if copy.exists() {
            history.check_state(&dump(&copy).rows);
        }
        // Whatever happened, the database can be opened again and works.
        let database = Sqlite::open(&path, SqliteOptions::default()).await.unwrap();
        let store = Store::builder(database).sweep_interval(None).build().unwrap();
        let mut update = handle(&store).begin(Mode::Update).unwrap();
        assert!(update.get(NAMESPACE.into(), "pair/a".into()).await.unwrap().is_some());
        update.put(NAMESPACE.into(), "pair/a".into(), b"again".to_vec()).unwrap();
        update.commit().await.unwrap();
        store.close().await;
        history
    }

    fn check(&self, path: &Path) -> History {
        let found = dump(path);
        let expired = if self.swept { 0..=0 } else { 0..=30 };
        assert!(expired.contains(&found.expired), "{} rows are not swept", found.expired);
        let records = [vec![self.record.acknowledged], self.record.possible.clone()].concat();
        assert!(
            records.contains(&found.record),
            "the record is at version {}, which is not in {records:?}",
            found.record
        );
        History::check(&self.base, &self.attempts, &found.rows)
    }
}

struct Viewing {
    transaction: Transaction,
    view: View,
    has_read: bool,
}

fn stage(transaction: &mut Transaction, change: &Change) {
    transaction.put(NAMESPACE.into(), change.marker(), Vec::new()).unwrap();
    for (key, value) in &change.puts {
        transaction.put(NAMESPACE.into(), key.clone(), value.clone()).unwrap();
    }
    for key in &change.deletes {
        transaction.delete(NAMESPACE.into(), key.clone()).unwrap();
    }
    for key in &change.increments {
        transaction.increment(NAMESPACE.into(), key.clone(), 1).unwrap();
    }
}

pub fn poll_once(asked: &mut Asked<'_>) -> Option<Result<Version>> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

impl Record {
    fn note(&mut self, version: u64, written: &Result<Version>) {
        match written {
            Ok(_) => {
                self.acknowledged = version;
                self.possible.clear();
            }
            Err(Error::CommitUnknown { .. }) => self.possible.push(version),
            Err(_) => {}
        }
    }
}

struct Found {
    rows: Rows,
    expired: u64,
    record: u64,
}

/// A connection of another process, which the faults do not reach.
fn open_underlying(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(path, flags, UNDERLYING)
}

fn rows(connection: &Connection) -> rusqlite::Result<Rows> {
    let sql = "SELECT CAST(key AS TEXT), value, version FROM larder_entries
        WHERE namespace = x'6e' AND expires_at IS NULL";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
    rows.collect()
}

/// The contents of a file.
fn dump(path: &Path) -> Found {
    let connection = open_underlying(path).unwrap();
    let intact: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get(0)).unwrap();
    let expired = count("SELECT count(*) FROM larder_entries WHERE expires_at IS NOT NULL");
    let record = count("SELECT coalesce(max(version), 0) FROM larder_memory_state");
    Found { rows: rows(&connection).unwrap(), expired, record }
}

/// Copies the files of a database as a killed process leaves them.
pub fn kill(folder: &Path) -> TempDir {
    let killed = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal"] {
        let from = folder.join(name);
        if from.exists() {
            std::fs::copy(from, killed.path().join(name)).unwrap();
        }
    }
    killed
}
