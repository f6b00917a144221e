//! What a transaction asks of its engine, and what it makes of answers that are short, wrong or
//! missing.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::{Error, Handle, Limits, Mode, Range, Store, Version};
use larder_model::{Schedule, StandingClock, run};
use parking_lot::Mutex;
use support::{Engine, Script};

/// Puts rows named `00`, `01` and so on, with values of 10 bytes.
async fn put(handle: &Handle, rows: usize) {
    let mut update = handle.begin(Mode::Update).unwrap();
    for row in 0..rows {
        update.put("n".into(), format!("{row:02}"), vec![b'x'; 10]).unwrap();
    }
    update.commit().await.unwrap();
}

#[tokio::test]
async fn schedules_answer_as_the_model_does_whatever_the_engine_returns_at_once() {
    for seed in 0..200 {
        let engine = Engine::new(Script { chunk_rows: 1 + seed as usize % 3, ..Script::default() });
        let clock = Arc::<StandingClock>::default();
        let store = Store::builder(engine).clock(clock.clone()).sweep_interval(None).build().unwrap();
        let schedule = Schedule { seed, calls: 150, transactions: 3, reads_may_conflict: false };
        if let Err(difference) = run(schedule, &[store], &clock).await {
            panic!("{difference}");
        }
    }
}

#[tokio::test]
async fn a_scan_asks_for_one_row_and_one_byte_more_than_it_still_wants() {
    let engine = Engine::new(Script { chunk_rows: 4, ..Script::default() });
    let handle = engine.handle(Limits::default());
    put(&handle, 20).await;
    let asked = |script: &Arc<Mutex<Script>>| {
        let scans = std::mem::take(&mut script.lock().scans);
        scans.into_iter().map(|scan| (scan.max_rows, scan.max_bytes, scan.keys_only)).collect::<Vec<_>>()
    };
    let most = Limits::default().result_bytes;
    let each = 2 + 10 + 256;

    let mut view = handle.begin(Mode::View).unwrap();
    let page = Range { limit: Some(5), ..Range::default() };
    view.scan_page("n".into(), page.clone(), None).await.unwrap();
    assert_eq!(asked(&engine.script), [(6, most + 1, false), (2, most - 4 * each + 1, false)]);

    let keys = Range { keys_only: true, ..page };
    view.scan_page_packed("n".into(), keys, None).await.unwrap();
    assert_eq!(asked(&engine.script), [(6, most + 1, true), (2, most - 4 * (2 + 8) + 1, true)]);

    // However many rows are wanted, no more than this are asked for at once.
    view.scan("n".into(), String::new()).await.unwrap();
    let scans = asked(&engine.script);
    assert_eq!(scans[0], (1_024, most + 1, false));
    assert_eq!(scans[4], (1_024, most - 16 * each + 1, false));
    assert_eq!(scans.len(), 5, "the last one reaches the end");
}

#[tokio::test]
async fn a_range_that_is_deleted_is_read_by_keys_up_to_one_more_than_can_be_written() {
    let engine = Engine::new(Script::default());
    let limits = Limits::default().transaction_mutations(7);
    let handle = engine.handle(limits.clone());
    put(&engine.handle(Limits::default()), 20).await;
    let mut update = handle.begin(Mode::Update).unwrap();
    let range = Range { limit: Some(3), ..Range::default() };
    assert_eq!(update.delete_range("n".into(), range).await.unwrap(), 3);
    let refused = update.delete_range("n".into(), Range::default()).await;
    assert!(matches!(refused, Err(Error::LimitExceeded(_))), "{refused:?}");
    let scans: Vec<_> =
        engine.script.lock().scans.iter().map(|scan| (scan.max_rows, scan.keys_only)).collect();
    // Three of the nine rows are deleted already.
    assert_eq!(scans, [(4, true), (9, true), (3, true)]);
}

#[tokio::test]
async fn a_row_that_is_known_at_once_is_not_asked_for_again() {
    let engine = Engine::new(Script::default());
    let handle = engine.handle(Limits::default());
    put(&handle, 2).await;
    let mut update = handle.begin(Mode::Update).unwrap();
    for key in ["00", "01", "absent"] {
        update.get("n".into(), key.into()).await.unwrap();
        update.get_versioned("n".into(), key.into()).await.unwrap();
    }
    assert_eq!(engine.script.lock().gets, 0);
}

#[tokio::test]
async fn a_snapshot_is_asked_for_in_the_mode_and_until_the_deadline_of_the_transaction() {
    // Limits that were never validated may hold any timeout.
    for (timeout, most) in [(Duration::from_secs(5), 5), (Duration::MAX, 3_600)] {
        let engine = Engine::new(Script::default());
        let handle = engine.handle(Limits::default().transaction_timeout(timeout));
        for mode in [Mode::View, Mode::Update] {
            let mut transaction = handle.begin(mode).unwrap();
            // The clock of the store stands still, so all of the timeout is left.
            let left = Duration::from_secs(most);
            let earliest = Instant::now() + left;
            transaction.get("n".into(), "k".into()).await.unwrap();
            let deadline = engine.script.lock().deadlines.pop().unwrap();
            assert!(deadline >= earliest && deadline <= Instant::now() + left);
            assert_eq!(engine.script.lock().modes.pop(), Some(mode));
        }
    }
}

#[tokio::test]
async fn an_error_of_the_engine_in_the_middle_of_a_scan_ends_the_transaction() {
    for error in [
        Error::unavailable("lost".to_string(), std::io::Error::other("gone")),
        Error::Corrupt("torn".to_string()),
        Error::Conflict,
    ] {
        let failing_scan = Some((2, error.clone()));
        let engine = Engine::new(Script { chunk_rows: 4, failing_scan, ..Script::default() });
        let handle = engine.handle(Limits::default());
        put(&handle, 20).await;
        let mut update = handle.begin(Mode::Update).unwrap();
        update.put("n".into(), "own".into(), Vec::new()).unwrap();
        let failed = update.scan("n".into(), String::new()).await.unwrap_err();
        assert_eq!(failed.to_string(), error.to_string());
        // Later calls give the same error and do not reach the engine.
        let again = update.scan("n".into(), String::new()).await.unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        assert_eq!(
            update.put("n".into(), "k".into(), Vec::new()).unwrap_err().to_string(),
            error.to_string()
        );
        assert_eq!(engine.script.lock().scans.len(), 2);
        assert_eq!(update.commit().await.unwrap_err().to_string(), error.to_string());
        let mut view = handle.begin(Mode::View).unwrap();
        assert_eq!(view.get("n".into(), "own".into()).await.unwrap(), None, "nothing was written");
    }
}

#[tokio::test]
async fn a_mistake_of_the_guest_in_the_middle_of_a_scan_leaves_the_transaction_as_it_was() {
    let engine = Engine::new(Script { chunk_rows: 4, ..Script::default() });
    let handle = engine.handle(Limits::default());
    put(&handle, 20).await;
    let mut update = handle.begin(Mode::Update).unwrap();
    // The value of this row is not a counter.
    update.increment("n".into(), "09".into(), 1).unwrap();
    let failed = update.scan("n".into(), String::new()).await;
    assert!(matches!(failed, Err(Error::InvalidArgument(_))), "{failed:?}");
    update.delete("n".into(), "09".into()).unwrap();
    assert_eq!(update.scan("n".into(), String::new()).await.unwrap().len(), 19);
    update.commit().await.unwrap();
}

#[tokio::test]
async fn a_stored_key_that_is_not_utf_8_is_corrupt_for_every_read_of_a_range() {
    for read in 0..5 {
        let engine = Engine::new(Script { has_invalid_key: true, ..Script::default() });
        let mut update = engine.handle(Limits::default()).begin(Mode::Update).unwrap();
        let (namespace, range) = ("n".to_string(), Range::default());
        let outcome = match read {
            0 => update.scan(namespace, String::new()).await.map(drop),
            1 => update.scan_page(namespace, range, None).await.map(drop),
            2 => update.scan_page_packed(namespace, range, None).await.map(drop),
            3 => update.delete_range(namespace, range).await.map(drop),
            _ => update.scan_page(namespace, Range { keys_only: true, ..range }, None).await.map(drop),
        };
        assert!(matches!(outcome, Err(Error::Corrupt(_))), "{read}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_closed_transaction_says_so_before_it_looks_at_arguments() {
    let engine = Engine::new(Script::default());
    let handle = engine.handle(Limits::default());
    let mut update = handle.begin(Mode::Update).unwrap();
    handle.close();
    let long = || "k".repeat(100_000);
    let (n, range) = (String::new, Range::default);
    let outcomes = [
        update.get(long(), n()).await.map(drop),
        update.get_many(long(), vec![n(); 100_000]).await.map(drop),
        update.get_versioned(long(), n()).await.map(drop),
        update.put(long(), n(), Vec::new()),
        update.put_many(long(), Vec::new()).await,
        update.put_packed(n(), b"not packed").await,
        update.delete(long(), n()),
        update.delete_many(long(), Vec::new()).await,
        update.delete_if_version(long(), n(), Version(1)),
        update.delete_range(long(), range()).await.map(drop),
        update.increment(long(), n(), 1),
        update.scan(long(), n()).await.map(drop),
        update.scan_page(long(), range(), None).await.map(drop),
        update.scan_page_packed(long(), range(), None).await.map(drop),
        update.next_namespace(None).await.map(drop),
        update.commit().await.map(drop),
    ];
    for (call, outcome) in outcomes.into_iter().enumerate() {
        assert!(matches!(outcome, Err(Error::Closed)), "call {call}: {outcome:?}");
    }
}
