//! The consequences of single faults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::backend::Backend;
use larder_core::name::{Key, Namespace, RowKey};
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{
    Error, Handle, HandleOptions, Limits, Mode, PutOptions, Result, Share, Store, Transaction, Version,
};
use larder_sqlite::{Sqlite, SqliteOptions, Synchronous};
use rusqlite::{Connection, ffi};
use tempfile::TempDir;

use crate::work::{Asked, poll_once};
use larder_sqlite_vfs::{Call, Disk, Fault, Victim};

const NAMESPACE: &str = "n";

/// A store whose rows are on many pages, none of which is cached.
struct Opened {
    folder: TempDir,
    disk: Arc<Disk>,
    database: Arc<Sqlite>,
    store: Store,
}

fn key(number: usize) -> String {
    format!("{number:04}")
}

impl Opened {
    async fn new(options: SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        let store = Store::builder(Sqlite::open(&path, options).await.unwrap()).build().unwrap();
        let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        for number in 0..400 {
            update.put(NAMESPACE.into(), key(number), vec![b'o'; 300]).unwrap();
        }
        update.commit().await.unwrap();
        store.close().await;
        let disk = Disk::watch(folder.path());
        let database = Arc::new(Sqlite::open(&path, options).await.unwrap());
        let store = Store::builder_shared(database.clone()).sweep_interval(None).build().unwrap();
        Self { folder, disk, database, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    fn fail(&self, call: Call, victim: Victim, code: i32) {
        self.disk.arm(Some(Fault { call, victim, code, nth: 1, is_lasting: false }));
    }

    async fn snapshot(&self) -> Box<dyn Snapshot> {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.database
            .snapshot(SnapshotOptions::new(Mode::View, crate::common::clock_at(1), deadline, Share::host()))
            .await
            .unwrap()
    }

    fn begin(&self, mode: Mode) -> Transaction {
        let handle: Handle = self.store.handle(HandleOptions::default());
        handle.begin(mode).unwrap()
    }

    async fn put(&self, number: usize, value: &[u8]) -> Result<Version> {
        let mut update = self.begin(Mode::Update);
        update.put(NAMESPACE.into(), key(number), value.to_vec()).unwrap();
        update.commit().await
    }
}

async fn first_byte(view: &mut Transaction, number: usize) -> Result<Option<u8>> {
    Ok(view.get(NAMESPACE.into(), key(number)).await?.and_then(|value| value.first().copied()))
}

fn row(number: usize) -> RowKey {
    let limits = Limits::default();
    let key = Key::new(key(number), &limits).unwrap();
    RowKey { namespace: Namespace::new(NAMESPACE, &limits).unwrap(), key }
}

fn without_cache() -> SqliteOptions {
    SqliteOptions::default().cache_bytes(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_whose_read_failed_reads_no_newer_state() {
    for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_NOMEM] {
        let opened = Opened::new(without_cache()).await;
        let mut view = opened.begin(Mode::View);
        assert_eq!(first_byte(&mut view, 0).await.unwrap(), Some(b'o'));
        opened.put(200, b"new").await.unwrap();
        opened.fail(Call::Read, Victim::Reader, code);
        let failed = first_byte(&mut view, 390).await;
        assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
        let next = first_byte(&mut view, 200).await;
        assert!(next.is_err(), "{next:?}");
        // Another view is not affected.
        assert_eq!(first_byte(&mut opened.begin(Mode::View), 200).await.unwrap(), Some(b'n'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_that_share_a_connection_conflict_once_a_failed_read_has_ended_its_transaction() {
    let opened = Opened::new(SqliteOptions::default()).await;
    let mut views = [(); 3].map(|()| opened.begin(Mode::View));
    // Once the row is cached, views stand on the newest state without a connection of their own.
    first_byte(&mut opened.begin(Mode::View), 0).await.unwrap();
    for view in &mut views {
        assert_eq!(first_byte(view, 0).await.unwrap(), Some(b'o'));
    }
    opened.put(200, b"new").await.unwrap();
    let [first, second, third] = &mut views;
    // This view has read through the pinned connection already. The last one has not.
    assert_eq!(first_byte(second, 201).await.unwrap(), Some(b'o'));
    opened.fail(Call::Read, Victim::Reader, ffi::SQLITE_IOERR_READ);
    let failed = first_byte(first, 390).await;
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    for view in [second, third] {
        let next = first_byte(view, 200).await;
        assert!(matches!(next, Err(Error::Conflict)), "{next:?}");
    }
    assert_eq!(first_byte(&mut opened.begin(Mode::View), 200).await.unwrap(), Some(b'n'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_read_failed_is_not_used_again() {
    // A page that was read as zeros stays in the page cache of its connection.
    let opened = Opened::new(without_cache()).await;
    let mut view = opened.begin(Mode::View);
    first_byte(&mut view, 0).await.unwrap();
    opened.fail(Call::Read, Victim::Reader, ffi::SQLITE_IOERR_SHORT_READ);
    let failed = first_byte(&mut view, 390).await;
    assert!(matches!(failed, Err(Error::Corrupt(_))), "{failed:?}");
    drop(view);
    assert_eq!(first_byte(&mut opened.begin(Mode::View), 390).await.unwrap(), Some(b'o'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_read_failed_reads_no_newer_state() {
    for cache_bytes in [0, SqliteOptions::CACHE_BYTES] {
        let opened = Opened::new(SqliteOptions::default().cache_bytes(cache_bytes)).await;
        let mut snapshot = opened.snapshot().await;
        assert!(snapshot.get(&row(0)).await.unwrap().is_some());
        opened.put(200, b"new").await.unwrap();
        opened.fail(Call::Read, Victim::Reader, ffi::SQLITE_IOERR_READ);
        let failed = snapshot.get(&row(390)).await;
        assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
        let next = snapshot.get(&row(200)).await;
        assert!(matches!(next, Err(Error::Conflict)), "{next:?}");
    }
}

fn synced() -> SqliteOptions {
    SqliteOptions::default().synchronous(Synchronous::Full)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_sync_failed_is_unknown_and_the_writer_refuses_the_next() {
    let opened = Opened::new(synced()).await;
    opened.put(1, b"before").await.unwrap();
    opened.fail(Call::Sync, Victim::Writer, ffi::SQLITE_IOERR_FSYNC);
    let unknown = opened.put(1, b"after").await;
    assert!(matches!(unknown, Err(Error::CommitUnknown { .. })), "{unknown:?}");
    let refused = opened.put(2, b"after").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    // The cached row is not that of the commit with an unknown outcome.
    assert_eq!(first_byte(&mut opened.begin(Mode::View), 1).await.unwrap(), Some(b'b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_whose_commit_got_no_answer_stops_the_writer() {
    let opened = Opened::new(synced()).await;
    let other = Connection::open(opened.path()).unwrap();
    other.execute("UPDATE larder_entries SET expires_at = 1 WHERE key < x'30303130'", []).unwrap();
    opened.put(100, b"before").await.unwrap();
    opened.fail(Call::Sync, Victim::Writer, ffi::SQLITE_IOERR_FSYNC);
    let swept = opened.database.sweep(crate::common::sweep_at(2, 100)).await;
    assert!(matches!(swept, Err(Error::CommitUnknown { .. })), "{swept:?}");
    let refused = opened.put(2, b"after").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    let again = opened.database.sweep(crate::common::sweep_at(2, 100)).await;
    assert!(matches!(again, Err(Error::Unavailable { .. })), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_on_a_full_disk_is_refused_and_the_next_one_is_made() {
    let opened = Opened::new(synced()).await;
    opened.put(200, b"before").await.unwrap();
    opened.fail(Call::Write, Victim::Writer, ffi::SQLITE_FULL);
    let refused = opened.put(200, b"refused").await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    assert_eq!(first_byte(&mut opened.begin(Mode::View), 200).await.unwrap(), Some(b'b'));
    opened.put(200, b"made").await.unwrap();
    assert_eq!(first_byte(&mut opened.begin(Mode::View), 200).await.unwrap(), Some(b'm'));
}

/// Commits three members of one group, each of which reads pages that are not cached, while the
/// n-th read fails. Returns their outcomes, and how many calls failed.
async fn group_with_a_failed_read(opened: &Opened, code: i32, nth: usize) -> (Vec<Result<Version>>, usize) {
    opened.disk.close_gate();
    let mut leader = opened.begin(Mode::Update);
    leader.put(NAMESPACE.into(), "leader".into(), vec![]).unwrap();
    let leader = tokio::spawn(leader.commit());
    let disk = opened.disk.clone();
    tokio::task::spawn_blocking(move || disk.wait_at_gate()).await.unwrap();
    let mut members = Vec::new();
    for numbers in [100..101, 200..201, 300..400] {
        let mut member = opened.begin(Mode::Update);
        let if_version = (numbers.start == 200).then_some(Version(1));
        for number in numbers {
            // To compare the version, the commit must read the row first.
            let options = PutOptions::default().if_version(if_version);
            member.put_with(NAMESPACE.into(), key(number), b"group".to_vec(), options).unwrap();
        }
        let mut asked: Asked<'static> = Box::pin(member.commit());
        assert!(poll_once(&mut asked).is_none());
        members.push(asked);
    }
    opened.disk.arm(Some(Fault { call: Call::Read, victim: Victim::Writer, code, nth, is_lasting: false }));
    opened.disk.open_gate();
    drop(leader.await.unwrap());
    let mut outcomes = Vec::new();
    for member in members {
        outcomes.push(member.await);
    }
    (outcomes, opened.disk.disarm().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_in_a_group_costs_no_member_its_commit() {
    for code in [ffi::SQLITE_IOERR_READ, ffi::SQLITE_NOMEM, ffi::SQLITE_IOERR_CORRUPTFS] {
        let mut failed_together = 0;
        for nth in 1.. {
            let opened = Opened::new(SqliteOptions::default()).await;
            let (outcomes, failed) = group_with_a_failed_read(&opened, code, nth).await;
            // If the transaction of the group cannot begin, the group fails. Otherwise the members
            // are tried again.
            let is_made = outcomes.iter().all(Result::is_ok);
            let is_refused = |outcome: &Result<Version>| {
                matches!(outcome, Err(Error::Unavailable { .. } | Error::Corrupt(_)))
            };
            assert!(is_made || outcomes.iter().all(is_refused), "{nth}: {outcomes:?}");
            let expected = if is_made { b'g' } else { b'o' };
            let mut view = opened.begin(Mode::View);
            for number in [100, 200].into_iter().chain(300..400) {
                assert_eq!(first_byte(&mut view, number).await.unwrap(), Some(expected), "{outcomes:?}");
            }
            failed_together += usize::from(!is_made);
            if failed == 0 {
                assert!(nth - failed_together > 5, "{failed_together} of {nth} groups failed");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_a_page_that_was_read_wrongly_is_corrupt_and_leaves_no_file() {
    let opened = Opened::new(SqliteOptions::default()).await;
    let to = opened.folder.path().join("copy.db");
    let mut refused = 0;
    for nth in 1.. {
        let code = ffi::SQLITE_IOERR_SHORT_READ;
        opened.disk.arm(Some(Fault {
            call: Call::Read,
            victim: Victim::Reader,
            code,
            nth,
            is_lasting: false,
        }));
        let copied = opened.database.backup(&to).await;
        let (failed, _) = opened.disk.disarm();
        assert_eq!(copied.is_ok(), to.exists());
        match copied {
            Ok(_) => {
                Sqlite::verify(&to).await.unwrap();
                std::fs::remove_file(&to).unwrap();
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(error, Error::Corrupt(_) | Error::Unavailable { .. }), "{error:?}");
            }
        }
        if failed == 0 {
            break;
        }
    }
    assert!(refused > 20, "{refused}");
}
