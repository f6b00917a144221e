//! Tests of the in-memory backend through its interface.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use larder_core::backend::Backend;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::{
    Driver, Error, Event, EventChannel, Handle, HandleOptions, Identity, IdentityParts, InMemory,
    InMemoryDriver, Limits, Mode, MovableClock, PutOptions, Result, Store, TracingEvents, Version,
};

fn key(session: &str) -> RecordKey {
    let parts = IdentityParts::session("acme", "ann", session);
    RecordKey::conversation(Identity::new(parts, &Limits::default()).unwrap())
}

/// Writes a new record of 100 bytes.
async fn write_record(backend: &InMemory, session: &str, due_at: Option<u64>) {
    let record = StoredRecord {
        strategy: "truncation".to_string(),
        bytes: vec![7; 100],
        version: Version(1),
        due_at,
        created_at: 0,
        updated_at: 0,
    };
    let write = RecordWrite { key: key(session), expected: Version::ABSENT, record: Some(record) };
    backend.write_record(Arc::new(write)).await.unwrap();
}

fn handle(backend: &InMemory) -> Handle {
    let store = Store::builder(backend.attach()).sweep_interval(None).build().unwrap();
    store.handle(HandleOptions::default())
}

/// Writes rows whose keys are the numbers of a range, with four digits or more.
async fn put_numbers(handle: &Handle, namespace: &str, numbers: std::ops::Range<usize>) -> Version {
    let mut update = handle.begin(Mode::Update).unwrap();
    for number in numbers {
        update.put(namespace.into(), format!("{number:04}"), b"value".to_vec()).unwrap();
    }
    update.commit().await.unwrap()
}

/// The outcome of a future, and how often it let other tasks run.
async fn with_pauses<T>(future: impl Future<Output = Result<T>>) -> (T, usize) {
    let (mut future, mut pauses) = (pin!(future), 0);
    let outcome = std::future::poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        pauses += usize::from(polled.is_pending());
        polled
    });
    let outcome = outcome.await.unwrap();
    (outcome, pauses)
}

#[tokio::test]
async fn the_stored_bytes_are_those_of_rows_and_records_and_are_counted_in_slices() {
    let backend = InMemory::new();
    put_numbers(&handle(&backend), "n", 0..9_000).await;
    let rows = 9_000 * InMemory::STORED_COST.row(1 + 4, 5);
    // 9,000 rows are two full slices and a part of one.
    assert_eq!(with_pauses(backend.stored_bytes()).await, (rows, 2));
    assert_eq!(with_pauses(backend.recount()).await, (rows, 2));
    for number in 0..2_500 {
        write_record(&backend, &format!("{number:04}"), None).await;
    }
    let records = 2_500 * InMemory::STORED_COST.record(key("0000").bytes(), 100);
    // The records are read 1,024 at a time.
    assert_eq!(with_pauses(backend.stored_bytes()).await, (rows + records, 5));
    assert_eq!(with_pauses(backend.recount()).await, (rows + records, 5));
}

#[tokio::test]
async fn due_records_are_those_whose_moment_has_come_the_earliest_first() {
    let backend = InMemory::new();
    for (session, due_at) in [("a", Some(30)), ("b", Some(10)), ("c", None), ("d", Some(20)), ("e", Some(31))]
    {
        write_record(&backend, session, due_at).await;
    }
    let due = async |now, max| -> Vec<String> {
        let keys = backend.due_records(now, max).await.unwrap();
        keys.into_iter().map(|key| key.identity.session().to_string()).collect()
    };
    assert_eq!(due(9, 10).await, [""; 0]);
    assert_eq!(due(10, 10).await, ["b"]);
    assert_eq!(due(30, 10).await, ["b", "d", "a"]);
    assert_eq!(due(30, 2).await, ["b", "d"]);
}

#[tokio::test]
async fn a_closed_handle_answers_nothing_and_another_one_on_the_same_rows_stays_open() {
    let (first, rest) = (InMemory::new(), InMemory::new());
    let second = first.attach();
    write_record(&second, "a", None).await;
    first.close().await;
    assert!(matches!(first.ping().await, Err(Error::Closed)));
    assert!(matches!(first.stored_bytes().await, Err(Error::Closed)));
    assert!(matches!(first.load_record(&key("a")).await, Err(Error::Closed)));
    second.ping().await.unwrap();
    assert_eq!(second.load_record(&key("a")).await.unwrap().unwrap().bytes, [7; 100]);
    assert_eq!(rest.load_record(&key("a")).await.unwrap(), None, "another backend has other rows");
}

#[tokio::test]
async fn a_large_range_that_the_log_forgot_is_validated_row_by_row() {
    for changes in [false, true] {
        let handle = handle(&InMemory::new());
        put_numbers(&handle, "read", 0..3_000).await;
        let mut update = handle.begin(Mode::Update).unwrap();
        let read = update.scan("read".into(), String::new()).await.unwrap();
        assert_eq!(read.len(), 3_000);
        update.put("n".into(), "key".into(), b"value".to_vec()).unwrap();
        if changes {
            put_numbers(&handle, "read", 2_900..2_901).await;
        }
        // More rows than the log of the last commits holds.
        put_numbers(&handle, "beside", 0..9_000).await;
        put_numbers(&handle, "beside", 0..9_000).await;
        let outcome = update.commit().await;
        match changes {
            true => assert!(matches!(outcome, Err(Error::Conflict)), "{outcome:?}"),
            false => assert_eq!(outcome.unwrap(), Version(4)),
        }
    }
}

#[tokio::test]
async fn small_commits_add_any_number_of_rows() {
    let handle = handle(&InMemory::new());
    // The table of the newest rows grows several times on the way.
    for number in 0..80 {
        let version = put_numbers(&handle, "n", number * 400..(number + 1) * 400).await;
        assert_eq!(version, Version(number as u64 + 1));
    }
    let mut view = handle.begin(Mode::View).unwrap();
    for key in ["0000", "14336", "31999"] {
        assert_eq!(view.get("n".into(), key.into()).await.unwrap(), Some(b"value".to_vec()), "{key}");
    }
}

#[tokio::test]
async fn a_row_that_is_deleted_counts_for_the_snapshots_that_still_read_it() {
    let handle = handle(&InMemory::new().keep_for_snapshots(50_000));
    let put = async |bytes| {
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), "key".into(), vec![7; bytes]).unwrap();
        update.commit().await.unwrap();
    };
    for (bytes, is_kept) in [(10_000, true), (100_000, false)] {
        put(bytes).await;
        let mut view = handle.begin(Mode::View).unwrap();
        assert!(view.get("n".into(), "key".into()).await.unwrap().is_some());
        let mut delete = handle.begin(Mode::Update).unwrap();
        delete.delete("n".into(), "key".into()).unwrap();
        delete.commit().await.unwrap();
        match view.get("n".into(), "key".into()).await {
            Ok(value) => assert!(is_kept && value.is_some_and(|value| value.len() == bytes)),
            Err(error) => assert!(!is_kept && matches!(error, Error::TimedOut), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_sweep_counts_what_it_removes_for_snapshots_and_tells_of_those_that_it_ends() {
    let events = Arc::new(EventChannel::new(10, Arc::new(TracingEvents)));
    let mut told = events.subscribe();
    let clock = Arc::<MovableClock>::default();
    let store = Store::builder(InMemory::new().keep_for_snapshots(50_000)).clock(clock.clone());
    let store = store.events(events).sweep_interval(None).build().unwrap();
    let handle = store.handle(HandleOptions::default());
    let mut update = handle.begin(Mode::Update).unwrap();
    let mut options = PutOptions::default();
    options.ttl_ms = Some(1_000);
    update.put_with("n".into(), "key".into(), vec![7; 100_000], options).unwrap();
    update.commit().await.unwrap();
    let mut view = handle.begin(Mode::View).unwrap();
    assert!(view.get("n".into(), "key".into()).await.unwrap().is_some());
    clock.advance(Duration::from_secs(2));
    assert_eq!(store.sweep().await.unwrap(), 1);
    let Event::SnapshotEnded { .. } = told.next().await.unwrap().unwrap() else { panic!("another event") };
    assert!(matches!(view.get("n".into(), "key".into()).await, Err(Error::TimedOut)));
}

#[tokio::test]
async fn the_driver_opens_a_new_store_each_time_and_refuses_a_name_beside_the_scheme() {
    let driver = InMemoryDriver;
    assert_eq!(driver.name(), "in-memory");
    assert!(driver.accepts("in-memory:") && driver.accepts("in-memory:name"));
    assert!(!driver.accepts("in-memory") && !driver.accepts("sqlite:memory:"));
    driver.open("in-memory:").await.unwrap().ping().await.unwrap();
    assert!(matches!(driver.open("in-memory:name").await, Err(Error::InvalidArgument(_))));
    let read_only = driver.open_read_only("in-memory:").await.unwrap();
    assert_eq!(read_only.stored_bytes().await.unwrap(), 0);
    let delete = RecordWrite { key: key("a"), expected: Version::ABSENT, record: None };
    let refused = read_only.write_record(Arc::new(delete)).await;
    assert!(matches!(refused, Err(Error::AccessDenied(_))), "{refused:?}");
}
