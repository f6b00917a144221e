//! A scan of the database yields its thread after each slice of work, and finds the same rows.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub, reason = "tests")]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use common::{commit_of, put, sweep_at};
use larder_core::backend::{Backend, Swept};
use larder_core::{Driver, Handle, HandleOptions, Mode, MovableClock, PutOptions, Range, Store, Transaction};
use larder_sqlite::{Sqlite, SqliteDriver, SqliteOptions};
use tempfile::TempDir;

/// The output of a future, and how often it yielded before.
async fn pauses<T>(future: impl Future<Output = T>) -> (T, usize) {
    let mut future = pin!(future);
    let mut pauses = 0;
    let output = std::future::poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        pauses += usize::from(polled.is_pending());
        polled
    });
    (output.await, pauses)
}

struct Fixture {
    clock: Arc<MovableClock>,
    store: Store,
    handle: Handle,
    folder: TempDir,
}

impl Fixture {
    async fn new(options: SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Sqlite::open(folder.path().join("a.db"), options).await.unwrap();
        let clock = Arc::<MovableClock>::default();
        let store = Store::builder(database).clock(clock.clone()).sweep_interval(None).build().unwrap();
        Self { clock, handle: store.handle(HandleOptions::default()), store, folder }
    }

    fn begin(&self, mode: Mode) -> Transaction {
        self.handle.begin(mode).unwrap()
    }

    /// Commits rows that have expired by the time it returns.
    async fn put_expired(&self, namespace: &str, count: usize) {
        for part in (0..count).step_by(10_000) {
            let mut transaction = self.begin(Mode::Update);
            let options = PutOptions::default().ttl_ms(60_000);
            for number in part..count.min(part + 10_000) {
                let key = format!("{number:06}");
                transaction.put_with(namespace.into(), key, b"12".into(), options).unwrap();
            }
            transaction.commit().await.unwrap();
        }
        self.clock.advance(Duration::from_secs(120));
    }

    async fn put(&self, namespace: &str, keys: &[&str]) {
        let mut transaction = self.begin(Mode::Update);
        keys.iter().for_each(|key| transaction.put(namespace.into(), (*key).into(), b"1".into()).unwrap());
        transaction.commit().await.unwrap();
    }
}

/// The keys of a page, and how often the scan yielded.
async fn keys_of(transaction: &mut Transaction, range: Range) -> (Vec<String>, usize) {
    let (page, pauses) = pauses(transaction.scan_page("n".into(), range, None)).await;
    (page.unwrap().entries.into_iter().map(|entry| entry.key).collect(), pauses)
}

fn without_cache() -> SqliteOptions {
    SqliteOptions::default().cache_bytes(0)
}

#[tokio::test]
async fn a_scan_over_expired_rows_gives_its_thread_away() {
    for options in [SqliteOptions::default(), without_cache()] {
        let fixture = Fixture::new(options).await;
        fixture.put_expired("n", 100_000).await;
        // Live rows among the expired ones, within a slice and at its end.
        fixture.put("n", &["!", "000000", "000500", "070000", "099999", "z"]).await;
        for mode in [Mode::View, Mode::Update] {
            for (reverse, keys_only) in [(false, true), (true, false), (true, true), (false, false)] {
                let mut expected = ["000000", "000500", "070000", "099999", "z"];
                if reverse {
                    expected.reverse();
                }
                let range = Range { reverse, keys_only, start: Some("0".into()), ..Range::default() };
                let mut transaction = fixture.begin(mode);
                let (keys, pauses) = keys_of(&mut transaction, range.clone()).await;
                assert_eq!(keys, expected);
                if mode == Mode::View || options == without_cache() {
                    assert!((90..130).contains(&pauses), "{pauses} {range:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn what_a_scan_in_slices_found_is_cached_as_a_whole() {
    let fixture = Fixture::new(SqliteOptions::default()).await;
    fixture.put_expired("n", 20_000).await;
    fixture.put("n", &["010000", "z"]).await;
    let (keys, first) = keys_of(&mut fixture.begin(Mode::View), Range::default()).await;
    assert_eq!(keys, ["010000", "z"]);
    assert!(first >= 18, "{first}");
    assert_eq!(keys_of(&mut fixture.begin(Mode::View), Range::default()).await, (keys, 0));
}

#[tokio::test]
async fn a_view_that_shares_a_connection_scans_its_own_state_in_slices() {
    let fixture = Fixture::new(SqliteOptions::default()).await;
    fixture.put_expired("n", 20_000).await;
    fixture.put("n", &["a"]).await;
    let (mut first, mut second) = (fixture.begin(Mode::View), fixture.begin(Mode::View));
    for view in [&mut first, &mut second] {
        assert_eq!(view.get("n".into(), "a".into()).await.unwrap(), Some(b"1".to_vec()));
    }
    fixture.put("n", &["b"]).await;
    let (one, other) = tokio::join!(
        keys_of(&mut first, Range::default()),
        keys_of(&mut second, Range { reverse: true, ..Range::default() })
    );
    for (keys, pauses) in [one, other] {
        assert_eq!(keys, ["a"]);
        assert!(pauses >= 18, "{pauses}");
    }
}

#[tokio::test]
async fn the_next_namespace_is_looked_for_in_slices() {
    let fixture = Fixture::new(SqliteOptions::default()).await;
    fixture.put_expired("a", 5_000).await;
    fixture.put_expired("b\0", 5_000).await;
    fixture.put("c", &["z"]).await;
    fixture.put("d", &["z"]).await;
    fixture.put_expired("e", 5_000).await;
    let name = format!("sqlite:{}", fixture.folder.path().join("a.db").display());
    let read_only = SqliteDriver.open_read_only(&name).await.unwrap();
    let looking = Store::builder_shared(read_only).clock(fixture.clock.clone()).build().unwrap();
    // The read-only store reads on a thread of the blocking pool.
    for (handle, least) in [(&fixture.handle, 8), (&looking.handle(HandleOptions::default()), 0)] {
        let mut view = handle.begin(Mode::View).unwrap();
        let (first, paused) = pauses(view.next_namespace(None)).await;
        let first = first.unwrap();
        assert_eq!(first.as_ref().unwrap().as_bytes(), b"c");
        assert!(paused >= least, "{paused}");
        let second = view.next_namespace(first).await.unwrap();
        assert_eq!(second.as_ref().unwrap().as_bytes(), b"d");
        assert_eq!(view.next_namespace(second).await.unwrap(), None);
    }
    assert_eq!(fixture.store.sweep().await.unwrap(), 15_000);
}

#[tokio::test]
async fn many_keys_are_looked_up_in_slices() {
    let fixture = Fixture::new(without_cache()).await;
    fixture.put("n", &["000007"]).await;
    let keys: Vec<_> = (0..10_000).map(|number| format!("{number:06}")).collect();
    let mut view = fixture.begin(Mode::View);
    let (found, paused) = pauses(view.get_many("n".into(), keys)).await;
    assert_eq!(found.unwrap().iter().position(Option::is_some), Some(7));
    assert!(paused >= 40, "{paused}");
}

#[tokio::test]
async fn a_sweep_ends_at_the_bound_of_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let database = Sqlite::open(folder.path().join("a.db"), SqliteOptions::default()).await.unwrap();
    for key in ["a", "b", "c", "d", "e"] {
        database.commit(commit_of(1, [(key, put(&[7; 1_000], Some(10)))])).await.unwrap();
    }
    // Each row has 1,002 bytes.
    let options = sweep_at(100, 10).max_bytes(1_003);
    let swept = database.sweep(options.clone()).await.unwrap();
    assert_eq!(swept, Swept { rows: 2, bytes: 2_004 });
    assert!(options.is_reached_by(&swept));
    let options = options.max_bytes(u64::MAX).max_rows(2);
    let swept = database.sweep(options.clone()).await.unwrap();
    assert_eq!((swept.rows, options.is_reached_by(&swept)), (2, true));
    let swept = database.sweep(options.clone()).await.unwrap();
    assert_eq!((swept.rows, options.is_reached_by(&swept)), (1, false));
}
