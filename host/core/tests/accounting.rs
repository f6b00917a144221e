//! What a transaction counts for `transaction_bytes` and `instance_bytes`, to the byte.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use larder_core::{
    Entry, Error, Handle, HandleOptions, HeldBytes, InMemory, LimitExceeded, LimitKind, Limits, Mode,
    PutOptions, Range, Result, Store, Transaction, Version,
};

/// What the WIT counts for each write, condition, row and range beside its names and value.
const EACH: u64 = 256;

/// A call, and what the transaction counts after it.
#[derive(Clone, Copy, Debug)]
enum Call {
    Put(&'static str, &'static str),
    PutMany(&'static [(&'static str, &'static str)]),
    PutPacked(&'static [(&'static str, &'static str)]),
    PutIf(&'static str, &'static str, u64),
    Delete(&'static str),
    DeleteMany(&'static [&'static str]),
    DeleteIf(&'static str, u64),
    DeleteRange(&'static str),
    Increment(&'static str),
    Get(&'static str),
    GetMany(&'static [&'static str]),
    GetVersioned(&'static str),
    Scan(&'static str),
    Page(&'static str, u32),
    PackedPage(&'static str, u32),
}

fn pack(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (key, value) in entries {
        packed.extend((key.len() as u32).to_le_bytes());
        packed.extend((value.len() as u32).to_le_bytes());
        packed.extend(key.as_bytes());
        packed.extend(value.as_bytes());
    }
    packed
}

fn strings(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_string()).collect()
}

fn range(prefix: &str, limit: u32) -> Range {
    Range { prefix: prefix.to_string(), limit: Some(limit), ..Range::default() }
}

impl Call {
    async fn make(self, tx: &mut Transaction) -> Result<()> {
        let entry = |(key, value): &(&str, &str)| Entry { key: (*key).into(), value: (*value).into() };
        match self {
            Self::Put(key, value) => tx.put("ns".into(), key.into(), value.into()),
            Self::PutMany(entries) => tx.put_many("ns".into(), entries.iter().map(entry).collect()).await,
            Self::PutPacked(entries) => tx.put_packed("ns".into(), &pack(entries)).await,
            Self::PutIf(key, value, version) => {
                let options = PutOptions::default().if_version(Version(version));
                tx.put_with("ns".into(), key.into(), value.into(), options)
            }
            Self::Delete(key) => tx.delete("ns".into(), key.into()),
            Self::DeleteMany(keys) => tx.delete_many("ns".into(), strings(keys)).await,
            Self::DeleteIf(key, version) => tx.delete_if_version("ns".into(), key.into(), Version(version)),
            Self::DeleteRange(prefix) => tx.delete_range("ns".into(), range(prefix, 100)).await.map(drop),
            Self::Increment(key) => tx.increment("ns".into(), key.into(), 1),
            Self::Get(key) => tx.get("ns".into(), key.into()).await.map(drop),
            Self::GetMany(keys) => tx.get_many("ns".into(), strings(keys)).await.map(drop),
            Self::GetVersioned(key) => tx.get_versioned("ns".into(), key.into()).await.map(drop),
            Self::Scan(prefix) => tx.scan("ns".into(), prefix.into()).await.map(drop),
            Self::Page(prefix, limit) => {
                tx.scan_page("ns".into(), range(prefix, limit), None).await.map(drop)
            }
            Self::PackedPage(prefix, limit) => {
                tx.scan_page_packed("ns".into(), range(prefix, limit), None).await.map(drop)
            }
        }
    }
}

/// The rows `k1` to `k3` with the values `1`, `22` and `333`.
async fn rows() -> Store {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    for (key, value) in [("k1", "1"), ("k2", "22"), ("k3", "333")] {
        update.put("ns".into(), key.into(), value.into()).unwrap();
    }
    update.commit().await.unwrap();
    store
}

fn handle(store: &Store, limits: Limits, held: &HeldBytes) -> Handle {
    let held = Some(held.clone());
    store.handle(HandleOptions::default().limits(limits).held(held))
}

fn exceeded<T: std::fmt::Debug>(outcome: Result<T>) -> LimitExceeded {
    match outcome {
        Err(Error::LimitExceeded(exceeded)) => exceeded,
        outcome => panic!("{outcome:?}"),
    }
}

/// Calls of an update, each with what all calls so far count.
const UPDATES: &[&[(Call, u64)]] = &[
    // Names and value of a row that is written, once for each row.
    &[
        (Call::Put("k", "value"), 2 + 1 + 5 + EACH),
        (Call::Put("k", "v"), 2 + 1 + 1 + EACH),
        (Call::Put("l", ""), 2 * (2 + 1 + EACH) + 1),
        (Call::Delete("k"), 2 * (2 + 1 + EACH)),
        (Call::Put("k", "value"), 2 * (2 + 1 + EACH) + 5),
    ],
    &[
        (Call::PutMany(&[("a", "1"), ("b", "22"), ("a", "333")]), 2 * (2 + 1 + EACH) + 2 + 3),
        (Call::PutMany(&[("b", "4"), ("c", "55")]), 3 * (2 + 1 + EACH) + 1 + 2 + 3),
        (Call::PutPacked(&[("c", ""), ("d", "")]), 4 * (2 + 1 + EACH) + 1 + 3),
        (Call::DeleteMany(&["a", "e"]), 5 * (2 + 1 + EACH) + 1),
    ],
    // The longest decimal number, as the sum is not known.
    &[
        (Call::Increment("k"), 2 + 1 + 20 + EACH),
        (Call::Increment("k"), 2 + 1 + 20 + EACH),
        (Call::Put("k", "7"), 2 + 1 + 1 + EACH),
        (Call::Increment("k"), 2 + 1 + 1 + EACH),
    ],
    // A condition counts beside the write, once for each row.
    &[
        (Call::PutIf("k", "v", 1), 2 * (2 + 1 + EACH) + 1),
        (Call::PutIf("k", "vv", 1), 2 * (2 + 1 + EACH) + 2),
        (Call::DeleteIf("k", 1), 2 * (2 + 1 + EACH)),
        (Call::DeleteIf("l", 0), 4 * (2 + 1 + EACH)),
        (Call::Put("l", "v"), 4 * (2 + 1 + EACH) + 1),
    ],
    // A row that is read, present or absent, counts once.
    &[
        (Call::Get("k1"), 2 + 2 + EACH),
        (Call::GetVersioned("k1"), 2 + 2 + EACH),
        (Call::Get("absent"), 2 + 2 + 2 + 6 + 2 * EACH),
        (Call::GetMany(&["k1", "k2", "k2"]), 3 * 2 + 2 + 2 + 6 + 3 * EACH),
    ],
    // A read of an own write looks at nothing that is committed.
    &[
        (Call::Put("k1", "v"), 2 + 2 + 1 + EACH),
        (Call::Get("k1"), 2 + 2 + 1 + EACH),
        (Call::GetVersioned("k1"), 2 * (2 + 2 + EACH) + 1),
    ],
    // A range counts its bounds: the prefix, and the first key behind all with the prefix.
    &[
        (Call::Scan("k"), 2 + 1 + 1 + EACH),
        (Call::Scan("k"), 2 + 1 + 1 + EACH),
        // All keys: an empty bound and none.
        (Call::Scan(""), 2 * 2 + 1 + 1 + 2 * EACH),
        // Up to the second row, which shows that there is more, and what follows its key.
        (Call::Page("k", 1), 3 * 2 + 2 + 1 + 3 + 3 * EACH),
        (Call::PackedPage("k", 1), 3 * 2 + 2 + 1 + 3 + 3 * EACH),
    ],
    &[(Call::DeleteRange("k"), 2 + 1 + 1 + EACH + 3 * (2 + 2 + EACH))],
];

#[tokio::test]
async fn an_update_counts_its_writes_conditions_rows_and_ranges_once_each() {
    let store = rows().await;
    for calls in UPDATES {
        let held = HeldBytes::default();
        let mut update = handle(&store, Limits::default(), &held).begin(Mode::Update).unwrap();
        for (call, counted) in *calls {
            call.make(&mut update).await.unwrap();
            assert_eq!(held.used(), *counted, "after {call:?} of {calls:?}");
        }
        drop(update);
        assert_eq!(held.used(), 0);
    }
}

#[tokio::test]
async fn a_call_over_the_bytes_of_a_transaction_changes_nothing() {
    let store = rows().await;
    for calls in UPDATES {
        for (index, (last, counted)) in calls.iter().enumerate() {
            let before = if index == 0 { 0 } else { calls[index - 1].1 };
            // A call that makes less of what is counted, or nothing more, is never refused.
            let most = calls[..=index].iter().map(|(_, counted)| *counted).max().unwrap();
            for (limit, is_enough) in [(most, true), (most - 1, *counted < most || before == most)] {
                let held = HeldBytes::default();
                let limits = Limits::default().transaction_bytes(limit);
                let mut update = handle(&store, limits, &held).begin(Mode::Update).unwrap();
                let mut is_refused = false;
                for (call, _) in &calls[..index] {
                    is_refused |= call.make(&mut update).await.is_err();
                }
                if is_refused {
                    continue;
                }
                let outcome = last.make(&mut update).await;
                if is_enough {
                    outcome.unwrap();
                    assert_eq!(held.used(), *counted, "{last:?} of {calls:?}");
                } else if !matches!(last, Call::DeleteRange(_) | Call::GetMany(_)) {
                    let kind = LimitKind::TransactionBytes;
                    assert_eq!(exceeded(outcome), LimitExceeded { kind, max: limit, requested: most });
                    assert_eq!(held.used(), before, "{last:?} of {calls:?}");
                } else {
                    assert_eq!(exceeded(outcome).kind, LimitKind::TransactionBytes);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_view_counts_nothing_that_it_read() {
    let store = rows().await;
    let held = HeldBytes::default();
    let mut view = handle(&store, Limits::default(), &held).begin(Mode::View).unwrap();
    let reads = [
        Call::Get("k1"),
        Call::GetMany(&["k1", "x"]),
        Call::GetVersioned("k2"),
        Call::Scan(""),
        Call::Page("k", 1),
    ];
    for call in reads {
        call.make(&mut view).await.unwrap();
        assert_eq!(held.used(), 0, "{call:?}");
    }
}

#[tokio::test]
async fn a_result_needs_room_for_three_copies_and_a_call_for_what_it_copies() {
    let store = rows().await;
    let copies = 3;
    let needs = [
        (Call::Get("k3"), copies * 3),
        (Call::GetVersioned("k3"), copies * 3),
        // The names of rows that are read from the store are there three times too.
        (Call::GetMany(&["k2", "k3"]), copies * (4 + 4) + copies * (2 + 3)),
        (Call::GetMany(&["absent"]), copies * 8),
        // Each entry of the list counts 256 bytes more.
        (Call::Scan("k"), copies * (3 * 2 + 1 + 2 + 3 + 3 * 256)),
    ];
    for (call, room) in needs {
        for (max, is_enough) in [(room, true), (room - 1, false)] {
            let held = HeldBytes::at_most(max);
            let mut view = handle(&store, Limits::default(), &held).begin(Mode::View).unwrap();
            let outcome = call.make(&mut view).await;
            assert_eq!(outcome.is_ok(), is_enough, "{call:?} with {max} bytes: {outcome:?}");
            if !is_enough {
                let found = exceeded(outcome);
                assert_eq!((found.kind, found.max), (LimitKind::InstanceBytes, max), "{call:?}");
                // `get-many` counts names before it reads the values.
                let is_exact = !matches!(call, Call::GetMany(_));
                assert!(found.requested == room || !is_exact && found.requested > max, "{call:?}: {found:?}");
            }
            assert_eq!(held.used(), 0, "{call:?}");
            // The refusal did not end the transaction.
            view.get("ns".into(), "absent".into()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_absent_row_needs_no_room() {
    let store = rows().await;
    let held = HeldBytes::at_most(0);
    let mut view = handle(&store, Limits::default(), &held).begin(Mode::View).unwrap();
    for call in [Call::Get("absent"), Call::GetVersioned("absent"), Call::Scan("absent"), Call::GetMany(&[])]
    {
        call.make(&mut view).await.unwrap();
    }
}

#[tokio::test]
async fn a_page_holds_as_many_entries_as_the_instance_has_room_for() {
    let store = rows().await;
    // Each entry of a packed page counts 8 bytes more.
    let (one, two, three) = (3 * (3 + 8), 3 * (7 + 16), 3 * (12 + 24));
    for (max, entries) in [(three, 3), (three - 1, 2), (two, 2), (two - 1, 1), (one, 1)] {
        let held = HeldBytes::at_most(max);
        let mut view = handle(&store, Limits::default(), &held).begin(Mode::View).unwrap();
        let page = view.scan_page_packed("ns".into(), Range::default(), None).await;
        let page = page.unwrap_or_else(|error| panic!("{max}: {error}"));
        let bytes = [11, 11 + 12, 11 + 12 + 13][entries - 1];
        assert_eq!((page.entries.len(), page.next.is_some()), (bytes, entries < 3), "{max}");
        assert_eq!(held.used(), 0);
    }
    let held = HeldBytes::at_most(one - 1);
    let mut view = handle(&store, Limits::default(), &held).begin(Mode::View).unwrap();
    let refused = exceeded(view.scan_page_packed("ns".into(), Range::default(), None).await);
    assert_eq!((refused.kind, refused.max), (LimitKind::InstanceBytes, one - 1));
}
