//! Tests that long calls yield their thread after each slice of work, and stay atomic nevertheless.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use larder_core::backend::Backend;
use larder_core::{
    Entry, Error, Handle, HandleOptions, HeldBytes, InMemory, Limits, Mode, PutOptions, Range, Store,
    Transaction,
};
use larder_model::StandingClock;

/// An in-memory store whose clock the test moves.
struct Fixture {
    in_memory: InMemory,
    clock: Arc<StandingClock>,
    store: Store,
    handle: Handle,
}

impl Fixture {
    fn new() -> Self {
        let (in_memory, clock) = (InMemory::new(), Arc::<StandingClock>::default());
        let builder = Store::builder(in_memory.attach()).clock(clock.clone()).sweep_interval(None);
        let store = builder.build().unwrap();
        let limits = Limits::default()
            .transaction_mutations(200_000)
            .transaction_bytes(64 << 20)
            .result_bytes(64 << 20)
            .instance_bytes(256 << 20);
        let options = HandleOptions::default().limits(limits);
        Self { handle: store.handle(options), in_memory, clock, store }
    }

    fn begin(&self, mode: Mode) -> Transaction {
        self.handle.begin(mode).unwrap()
    }

    /// Commits rows that have expired when this returns.
    async fn put_expired(&self, namespace: &str, count: usize) {
        let mut transaction = self.begin(Mode::Update);
        let options = PutOptions::default().ttl_ms(1_000);
        for key in keys(count) {
            transaction.put_with(namespace.into(), key, b"12".into(), options).unwrap();
        }
        transaction.commit().await.unwrap();
        self.clock.advance(Duration::from_secs(2));
    }

    async fn put(&self, namespace: &str, keys: impl IntoIterator<Item = String>) {
        let mut transaction = self.begin(Mode::Update);
        keys.into_iter().for_each(|key| transaction.put(namespace.into(), key, Vec::new()).unwrap());
        transaction.commit().await.unwrap();
    }
}

/// The bytes that a stored row counts.
fn row(names: u64, value: u64) -> u64 {
    InMemory::STORED_COST.row(names, value)
}

fn keys(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("{number:06}"))
}

/// Returns the output of a future, and how often it yielded before. The in-memory backend makes it
/// wait for nothing else.
fn pauses<T>(future: impl Future<Output = T>) -> (T, usize) {
    let mut future = pin!(future);
    let mut pauses = 0;
    loop {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => return (output, pauses),
            Poll::Pending => pauses += 1,
        }
    }
}

#[tokio::test]
async fn a_scan_over_expired_rows_gives_its_thread_away() {
    let fixture = Fixture::new();
    fixture.put_expired("n", 100_000).await;
    fixture.put("n", ["z".to_string()]).await;
    for mode in [Mode::View, Mode::Update] {
        for reverse in [false, true] {
            let mut transaction = fixture.begin(mode);
            let range = Range { reverse, start: Some("0".into()), ..Range::default() };
            let (page, pauses) = pauses(transaction.scan_page("n".into(), range, None));
            let page = page.unwrap();
            assert_eq!(page.entries, [Entry { key: "z".into(), value: Vec::new() }]);
            assert_eq!(page.next, None);
            assert!((20..30).contains(&pauses), "{pauses}");
        }
    }
}

#[tokio::test]
async fn the_next_namespace_is_looked_for_in_slices() {
    let fixture = Fixture::new();
    fixture.put_expired("a", 50_000).await;
    fixture.put_expired("b", 50_000).await;
    fixture.put("c", ["z".to_string()]).await;
    let mut view = fixture.begin(Mode::View);
    let (next, pauses) = pauses(view.next_namespace(None));
    assert_eq!(next.unwrap().unwrap().as_bytes(), b"c");
    assert!((20..30).contains(&pauses), "{pauses}");
}

#[tokio::test]
async fn a_long_page_gives_its_thread_away_and_a_short_one_does_not() {
    let fixture = Fixture::new();
    fixture.put("n", keys(100_000)).await;
    let mut view = fixture.begin(Mode::View);
    let (page, many) = pauses(view.scan_page_packed("n".into(), Range::default(), None));
    assert_eq!(page.unwrap().entries.len(), 100_000 * (8 + 6));
    assert!((20..60).contains(&many), "{many}");
    let range = Range { limit: Some(1_000), ..Range::default() };
    let (page, none) = pauses(view.scan_page("n".into(), range, None));
    assert_eq!((page.unwrap().entries.len(), none), (1_000, 0));
}

#[tokio::test]
async fn calls_with_many_keys_give_their_thread_away() {
    let fixture = Fixture::new();
    let mut update = fixture.begin(Mode::Update);
    let entries = keys(10_000).map(|key| Entry { key, value: vec![1] }).collect();
    let (put, paused) = pauses(update.put_many("n".into(), entries));
    put.unwrap();
    assert!(paused >= 8, "{paused}");
    let packed: Vec<u8> =
        keys(10_000).flat_map(|key| [&[6, 0, 0, 0, 0, 0, 0, 0], key.as_bytes()].concat()).collect();
    let (put, paused) = pauses(update.put_packed("n".into(), &packed));
    put.unwrap();
    assert!(paused >= 8, "{paused}");
    update.commit().await.unwrap();

    let mut update = fixture.begin(Mode::Update);
    let (found, paused) = pauses(update.get_many("n".into(), keys(10_000).collect()));
    assert_eq!(found.unwrap(), vec![Some(Vec::new()); 10_000]);
    assert!(paused >= 8, "{paused}");
    let (deleted, paused) = pauses(update.delete_range("n".into(), Range::default()));
    assert_eq!(deleted.unwrap(), 10_000);
    assert!(paused >= 8, "{paused}");
    let (scanned, paused) = pauses(update.scan("n".into(), String::new()));
    assert_eq!(scanned.unwrap(), []);
    assert!(paused >= 2, "{paused}");
    let (deleted, paused) = pauses(update.delete_many("n".into(), keys(10_000).collect()));
    deleted.unwrap();
    assert!(paused >= 8, "{paused}");
}

#[tokio::test]
async fn a_call_that_is_given_up_at_a_pause_stages_nothing() {
    let fixture = Fixture::new();
    fixture.put("n", keys(10_000)).await;
    let mut update = fixture.begin(Mode::Update);
    update.put("n".into(), "own".into(), Vec::new()).unwrap();
    for pauses in 1..8 {
        let entries = keys(10_000).map(|key| Entry { key, value: vec![1] }).collect();
        let mut call = Box::pin(update.put_many("n".into(), entries));
        for _ in 0..pauses {
            let polled = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
        }
        drop(call);
        let range = Range { limit: Some(10_000), ..Range::default() };
        let page = update.scan_page_packed("n".into(), range, None).await.unwrap();
        assert_eq!(page.entries.len(), 10_000 * (8 + 6));
    }
    update.commit().await.unwrap();
    assert_eq!(Backend::stored_bytes(&fixture.in_memory).await.unwrap(), 10_000 * row(7, 0) + row(4, 0));
}

/// Begins a long scan, runs `happen` at its first pause, and returns the error with which the scan
/// ends.
async fn end_while_scanning(happen: impl AsyncFnOnce(&Fixture)) -> Error {
    let fixture = Fixture::new();
    fixture.put_expired("n", 100_000).await;
    let mut view = fixture.begin(Mode::View);
    let mut scan = Box::pin(view.scan("n".into(), String::new()));
    assert!(scan.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    happen(&fixture).await;
    let Poll::Ready(ended) = scan.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("the scan did not end");
    };
    ended.unwrap_err()
}

#[tokio::test]
async fn a_scan_ends_with_its_transaction() {
    let late = end_while_scanning(async |fixture| fixture.clock.advance(Duration::from_secs(60))).await;
    assert!(matches!(late, Error::TimedOut), "{late}");
    let closed = end_while_scanning(async |fixture| fixture.store.close().await).await;
    assert!(matches!(closed, Error::Closed), "{closed}");
}

#[tokio::test]
async fn commits_are_made_between_the_steps_of_a_sweep() {
    let fixture = Fixture::new();
    fixture.put_expired("n", 1_000).await;
    let bytes = async || Backend::stored_bytes(&fixture.in_memory).await.unwrap();
    assert_eq!(bytes().await, 1_000 * row(7, 2));
    let mut sweep = Box::pin(fixture.store.sweep());
    let polled = sweep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    assert_eq!(bytes().await, (1_000 - 256) * row(7, 2));
    fixture.put("n", ["000999".to_string()]).await;
    assert_eq!(sweep.await.unwrap(), 999);
    assert_eq!(bytes().await, row(7, 0));
    assert_eq!(fixture.store.sweep().await.unwrap(), 0);
}

#[tokio::test]
async fn large_expired_rows_are_removed_fewer_at_a_time() {
    let fixture = Fixture::new();
    let mut transaction = fixture.begin(Mode::Update);
    for key in keys(12) {
        let options = PutOptions::default().ttl_ms(1_000);
        transaction.put_with("n".into(), key, vec![0; 500_000], options).unwrap();
    }
    transaction.commit().await.unwrap();
    fixture.clock.advance(Duration::from_secs(2));
    let mut sweep = Box::pin(fixture.store.sweep());
    let polled = sweep.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    // Three of them exceed the bound of a step.
    assert_eq!(Backend::stored_bytes(&fixture.in_memory).await.unwrap(), 9 * row(7, 500_000));
    assert_eq!(sweep.await.unwrap(), 12);
}

/// Work is counted and not measured, so how often a call yields is the same on every machine.
#[tokio::test]
async fn each_call_yields_once_for_each_slice_of_the_work_that_it_counts() {
    let fixture = Fixture::new();
    let rows = 10_000;
    let list = |value: &[u8]| keys(rows).map(|key| Entry { key, value: value.to_vec() }).collect::<Vec<_>>();
    let packed: Vec<u8> = keys(rows)
        .flat_map(|key| [&[6, 0, 0, 0, 0, 8, 0, 0], key.as_bytes(), &[7; 2_048]].concat())
        .collect();
    let all = || keys(rows).collect::<Vec<_>>();
    let count = |outcome: (larder_core::Result<()>, usize)| {
        outcome.0.unwrap();
        outcome.1
    };

    let mut update = fixture.begin(Mode::Update);
    let put_many = count(pauses(update.put_many("n".into(), list(&[]))));
    let put_packed = count(pauses(update.put_packed("n".into(), &packed)));
    let (own, get_own) = pauses(update.get_many("n".into(), all()));
    assert_eq!(own.unwrap(), vec![Some(vec![7; 2_048]); rows]);
    update.commit().await.unwrap();

    let mut update = fixture.begin(Mode::Update);
    let (stored, get_many) = pauses(update.get_many("n".into(), all()));
    assert_eq!(stored.unwrap().len(), rows);
    let (listed, scan) = pauses(update.scan("n".into(), String::new()));
    assert_eq!(listed.unwrap().len(), rows);
    // With a write in every part that is read at once, each row is merged.
    for key in keys(rows).step_by(500) {
        update.put("n".into(), key, vec![8; 2_048]).unwrap();
    }
    let (listed, merged) = pauses(update.scan("n".into(), String::new()));
    assert_eq!(listed.unwrap().len(), rows);
    let (deleted, delete_range) = pauses(update.delete_range("n".into(), Range::default()));
    assert_eq!(deleted.unwrap(), rows as u64);
    let delete_many = count(pauses(update.delete_many("n".into(), all())));
    let found = [
        ("put_many", put_many),
        ("put_packed", put_packed),
        ("get_many of own rows", get_own),
        ("get_many", get_many),
        ("scan", scan),
        ("scan of a mix", merged),
        ("delete_range", delete_range),
        ("delete_many", delete_many),
    ];
    let expected = [19, 31, 29, 58, 24, 24, 21, 19];
    assert_eq!(found.map(|(_, pauses)| pauses), expected, "{found:?}");
}

/// Polls a call to its end, and returns the most that was held for the instance at a pause.
fn most_held<T>(held: &HeldBytes, call: impl Future<Output = T>) -> u64 {
    let mut call = pin!(call);
    let mut most = 0;
    while call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        most = most.max(held.used());
    }
    most
}

#[tokio::test]
async fn a_result_is_held_for_its_instance_until_the_call_returns() {
    let fixture = Fixture::new();
    fixture.put("n", keys(50_000)).await;
    let held = HeldBytes::default();
    let limits =
        Limits::default().transaction_mutations(200_000).result_bytes(16 << 20).instance_bytes(256 << 20);
    let options = HandleOptions::default().limits(limits).held(held.clone());
    let handle = fixture.store.handle(options);
    let mut view = handle.begin(Mode::View).unwrap();
    // Three copies of keys of 6 bytes, with lengths of 8 bytes or a namespace of 1 byte.
    assert_eq!(most_held(&held, view.scan("n".into(), String::new())), 3 * 50_000 * (6 + 8));
    assert_eq!(most_held(&held, view.get_many("n".into(), keys(50_000).collect())), 3 * 50_000 * 7);
    let mut update = handle.begin(Mode::Update).unwrap();
    let packed: Vec<u8> =
        keys(10_000).flat_map(|key| [&[6, 0, 0, 0, 0, 0, 0, 0], key.as_bytes()].concat()).collect();
    assert_eq!(most_held(&held, update.put_packed("n".into(), &packed)), packed.len() as u64);
    assert_eq!(held.used(), 10_000 * (7 + 256));
}
