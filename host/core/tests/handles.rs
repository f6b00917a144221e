//! Tests of handles with different limits and rights on one store.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    Error, Handle, HandleOptions, InMemory, LimitExceeded, LimitKind, Limits, Mode, MovableClock,
    OpenTransactions, Range, Store,
};

fn handle(store: &Store, limits: Limits) -> Handle {
    limits.validate().unwrap();
    store.handle(HandleOptions::default().limits(limits))
}

async fn put(handle: &Handle, key: &str, value: &[u8]) {
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("n".into(), key.into(), value.to_vec()).unwrap();
    update.commit().await.unwrap();
}

fn too_large<T: std::fmt::Debug>(outcome: Result<T, Error>, requested: u64) {
    let Err(Error::LimitExceeded(exceeded)) = outcome else { panic!("{outcome:?}") };
    assert_eq!(exceeded, LimitExceeded { kind: LimitKind::ResultBytes, max: 306, requested });
}

#[tokio::test]
async fn a_row_written_under_wider_limits_is_refused_and_never_left_out() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let wide = handle(&store, Limits::default());
    put(&wide, "a", b"small").await;
    put(&wide, "b", &[0; 310]).await;
    let limits = Limits::default().key_bytes(10).value_bytes(40).result_bytes(306);
    let narrow = handle(&store, limits);

    let mut view = narrow.begin(Mode::View).unwrap();
    too_large(view.get("n".into(), "b".into()).await, 310);
    too_large(view.get_versioned("n".into(), "b".into()).await, 310);
    too_large(view.get_many("n".into(), vec!["b".into()]).await, 310);
    too_large(view.scan("n".into(), "b".into()).await, 567);
    let first = view.scan_page("n".into(), Range::default(), None).await.unwrap();
    assert_eq!(first.entries.len(), 1);
    too_large(view.scan_page("n".into(), Range::default(), first.next).await, 567);
    let keys = Range { keys_only: true, ..Range::default() };
    let packed = view.scan_page_packed("n".into(), keys, None).await.unwrap();
    assert_eq!(packed.entries, b"\x01\0\0\0\0\0\0\0a\x01\0\0\0\0\0\0\0b");
}

/// Reads every key of a range, in pages of one row.
async fn page_through(handle: &Handle, range: Range) -> Vec<String> {
    let mut view = handle.begin(Mode::View).unwrap();
    let range = Range { limit: Some(1), ..range };
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = view.scan_page("n".into(), range.clone(), after.clone()).await.unwrap();
        let packed = view.scan_page_packed("n".into(), range.clone(), after).await.unwrap();
        assert_eq!(page.next, packed.next);
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        after = page.next;
        if after.is_none() {
            return keys;
        }
    }
}

#[tokio::test]
async fn a_guest_pages_over_keys_that_are_longer_than_its_own_limit() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let wide = handle(&store, Limits::default());
    let longest = "l".repeat(Limits::KEY_BYTES_MAX as usize);
    let keys = ["a".to_string(), "k".repeat(201), longest, "z".to_string()];
    for key in &keys {
        put(&wide, key, b"1").await;
    }
    let narrow = handle(&store, Limits::default().key_bytes(100));
    assert_eq!(page_through(&narrow, Range::default()).await, keys);
    let mut backwards = page_through(&narrow, Range { reverse: true, ..Range::default() }).await;
    backwards.reverse();
    assert_eq!(backwards, keys);

    let mut update = narrow.begin(Mode::Update).unwrap();
    let too_long = update.get("n".into(), keys[1].clone()).await;
    assert!(matches!(too_long, Err(Error::LimitExceeded(LimitExceeded { max: 100, requested: 201, .. }))));
    let middle = Range { start: Some("b".into()), end: Some("m".into()), ..Range::default() };
    assert_eq!(update.delete_range("n".into(), middle).await.unwrap(), 2);
    update.commit().await.unwrap();
    assert_eq!(page_through(&narrow, Range::default()).await, ["a", "z"]);
}

#[tokio::test]
async fn handles_that_share_a_count_share_its_bound() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let open_transactions = OpenTransactions::at_most(2);
    let options = HandleOptions::default().open_transactions(open_transactions);
    let (first, second) = (store.handle(options.clone()), store.handle(options));
    let held = first.begin(Mode::View).unwrap();
    let _other = second.begin(Mode::View).unwrap();
    assert!(matches!(second.begin(Mode::View), Err(Error::LimitExceeded(_))));
    drop(held);
    second.begin(Mode::View).unwrap();
}

#[tokio::test]
async fn a_store_that_is_closed_is_closed_for_every_handle() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let handle = handle(&store, Limits::default());
    let mut view = handle.begin(Mode::View).unwrap();
    view.get("n".into(), "a".into()).await.unwrap();
    store.close().await;
    store.close().await;
    assert!(matches!(view.get("n".into(), "a".into()).await, Err(Error::Closed)));
    assert!(matches!(handle.begin(Mode::View), Err(Error::Closed)));
    assert!(matches!(store.ping().await, Err(Error::Closed)));
}

#[tokio::test]
async fn an_error_that_ended_a_transaction_is_given_again() {
    let clock = Arc::new(MovableClock::default());
    let store = Store::builder(InMemory::new()).clock(clock.clone()).build().unwrap();
    let handle = handle(&store, Limits::default());
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("n".into(), "a".into(), vec![]).unwrap();
    clock.advance(Duration::from_secs(6));
    assert!(matches!(update.get("n".into(), "a".into()).await, Err(Error::TimedOut)));
    handle.close();
    assert!(matches!(update.put("n".into(), "a".into(), vec![]), Err(Error::TimedOut)));
    assert!(matches!(update.commit().await, Err(Error::TimedOut)));
}

#[tokio::test]
async fn what_a_quota_counts_is_given_back_by_deletes_and_sweeps() {
    let clock = Arc::new(MovableClock::default());
    // Space for two rows with 6 bytes of values.
    let row = InMemory::STORED_COST.row(2, 0);
    let builder = Store::builder(InMemory::new()).clock(clock.clone()).quota_bytes(2 * row + 6);
    let store = builder.sweep_interval(None).build().unwrap();
    let handle = handle(&store, Limits::default());
    let put = async |key: &str, bytes: usize, ttl_ms: Option<u64>| {
        let mut update = handle.begin(Mode::Update).unwrap();
        let options = larder_core::PutOptions::default().ttl_ms(ttl_ms);
        update.put_with("n".into(), key.into(), vec![0; bytes], options).unwrap();
        update.commit().await
    };
    put("a", 8, Some(1_000)).await.unwrap();
    assert!(matches!(put("b", 0, None).await, Err(Error::LimitExceeded(_))));
    put("a", 6, Some(1_000)).await.unwrap();
    put("b", 0, None).await.unwrap();
    clock.advance(Duration::from_secs(2));
    assert!(
        matches!(put("c", 0, None).await, Err(Error::LimitExceeded(_))),
        "expired rows count until a sweep"
    );
    assert_eq!(store.sweep().await.unwrap(), 1);
    put("c", 6, None).await.unwrap();
    assert!(matches!(put("c", 7, None).await, Err(Error::LimitExceeded(_))));
}

#[tokio::test]
async fn expired_rows_are_swept_without_being_asked_for() {
    let clock = Arc::new(MovableClock::default());
    let builder = Store::builder(InMemory::new()).clock(clock.clone());
    let store = builder.sweep_interval(Some(Duration::from_millis(10))).build().unwrap();
    let handle = handle(&store, Limits::default());
    let mut update = handle.begin(Mode::Update).unwrap();
    let options = larder_core::PutOptions::default().ttl_ms(1_000);
    update.put_with("n".into(), "a".into(), vec![], options).unwrap();
    update.commit().await.unwrap();
    clock.advance(Duration::from_secs(2));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.sweep().await.unwrap(), 0, "the sweep in the background left the row");
}

#[tokio::test]
async fn one_transaction_too_many_is_refused_with_both_numbers() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let open_transactions = OpenTransactions::at_most(2);
    let handle = store.handle(HandleOptions::default().open_transactions(open_transactions));
    let (first, _second) = (handle.begin(Mode::View).unwrap(), handle.begin(Mode::Update).unwrap());
    let Err(Error::LimitExceeded(exceeded)) = handle.begin(Mode::View) else { panic!("it began") };
    let kind = LimitKind::OpenTransactions;
    assert_eq!(exceeded, LimitExceeded { kind, max: 2, requested: 3 });
    drop(first);
    handle.begin(Mode::View).unwrap();
}

#[tokio::test]
async fn a_read_only_handle_begins_views_and_no_updates() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let handle = store.handle(HandleOptions::default().read_only(true));
    handle.begin(Mode::View).unwrap();
    assert!(matches!(handle.begin(Mode::Update), Err(Error::AccessDenied(_))));
}

#[tokio::test]
async fn a_closed_handle_or_store_answers_no_ping() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let (first, second) = (handle(&store, Limits::default()), handle(&store, Limits::default()));
    first.ping().await.unwrap();
    first.close();
    assert!(matches!(first.ping().await, Err(Error::Closed)));
    second.ping().await.unwrap();
    store.close().await;
    assert!(matches!(second.ping().await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_result_of_exactly_the_limit_is_returned() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let wide = handle(&store, Limits::default());
    put(&wide, "a", &[1; 50]).await;
    put(&wide, "b", &[2; 44]).await;
    let limits = |result_bytes| Limits::default().key_bytes(1).value_bytes(1).result_bytes(result_bytes);
    // Two values of `get-many`, which count 256 bytes more each.
    let most = 50 + 44 + 2 * 256;
    for (result_bytes, is_enough) in [(most, true), (most - 1, false)] {
        let mut view = handle(&store, limits(result_bytes)).begin(Mode::View).unwrap();
        let found = view.get_many("n".into(), vec!["a".into(), "b".into(), "x".into()]).await;
        assert_eq!(found.is_ok(), is_enough, "{result_bytes}");
        assert!(view.scan("n".into(), String::new()).await.is_err(), "keys count too");
    }
    let most = most + 2;
    for (result_bytes, is_enough) in [(most, true), (most - 1, false)] {
        let mut view = handle(&store, limits(result_bytes)).begin(Mode::View).unwrap();
        assert_eq!(view.scan("n".into(), String::new()).await.is_ok(), is_enough, "{result_bytes}");
    }
    let wide = Limits::default().key_bytes(1).value_bytes(1).result_bytes(258);
    for (length, is_enough) in [(258, true), (259, false)] {
        put(&handle(&store, Limits::default()), "c", &vec![3; length]).await;
        let mut view = handle(&store, wide.clone()).begin(Mode::View).unwrap();
        assert_eq!(view.get("n".into(), "c".into()).await.is_ok(), is_enough, "{length}");
        assert_eq!(view.get_versioned("n".into(), "c".into()).await.is_ok(), is_enough, "{length}");
    }
}
