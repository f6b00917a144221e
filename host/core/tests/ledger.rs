//! Tests of migration scopes, and of an operator's repairs of the ledger.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_core::backend::Backend;
use larder_core::commit::{Commit, Mutation};
use larder_core::name::{Key, Namespace, RowKey, Value};
use larder_core::{
    Error, Event, EventSink, Handle, HandleOptions, InMemory, Limits, Migration, MigrationLedger,
    MigrationScope, Mode, Result, Store,
};
use parking_lot::Mutex;

#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl EventSink for Told {
    fn emit(&self, event: Event) {
        self.0.lock().push(event);
    }
}

impl Told {
    fn take(&self) -> Vec<String> {
        let events = std::mem::take(&mut *self.0.lock());
        let operation = |event: &Event| match event {
            Event::AccessDenied { operation, .. } => format!("{} {operation}", event.name()),
            other => panic!("{other:?}"),
        };
        events.iter().map(operation).collect()
    }
}

fn store() -> (Store, Arc<Told>) {
    let told = Arc::new(Told::default());
    (Store::builder(InMemory::new()).events(told.clone()).build().unwrap(), told)
}

fn bound(store: &Store, names: &[&str]) -> Handle {
    let migrations = MigrationScope::only(names.iter().copied()).unwrap();
    store.handle(HandleOptions::default().migrations(migrations))
}

fn ledger(store: &Store) -> MigrationLedger {
    MigrationLedger::new(store.handle(HandleOptions::default()))
}

fn steps(ids: &[&str]) -> Vec<Migration> {
    ids.iter().map(|id| Migration { id: id.to_string(), checksum: vec![7; 32] }).collect()
}

/// Applies the pending steps and returns their ids.
async fn apply(handle: &Handle, component: &str, ids: &[&str]) -> Result<Vec<String>> {
    let mut applied = Vec::new();
    while let Some(next) = handle.begin_migration(component.into(), steps(ids)).await? {
        next.transaction.commit().await?;
        applied.push(next.id);
    }
    Ok(applied)
}

async fn recorded(store: &Store, component: &str) -> Vec<(u64, String)> {
    let entries = ledger(store).entries(component).await.unwrap();
    entries.into_iter().map(|entry| (entry.ordinal().unwrap_or_default(), entry.id)).collect()
}

fn expect_denied<T: std::fmt::Debug>(outcome: Result<T>) {
    assert!(matches!(outcome, Err(Error::AccessDenied(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_guest_declares_under_the_names_that_the_host_bound_and_no_other() {
    let (store, told) = store();
    let attacker = bound(&store, &["plugin", "library"]);
    for component in ["tasks", "plugin2", "plug", "Plugin"] {
        expect_denied(attacker.pending_migrations(component.into(), steps(&["evil"])).await);
        expect_denied(attacker.begin_migration(component.into(), steps(&["evil"])).await);
        expect_denied(attacker.pending_migrations(component.into(), Vec::new()).await);
        let told = told.take();
        assert_eq!(
            told,
            ["pending-migrations", "begin-migration", "pending-migrations"]
                .map(|operation| format!("store.access_denied {operation}"))
        );
        assert!(recorded(&store, component).await.is_empty());
    }
    assert_eq!(apply(&attacker, "library", &["a"]).await.unwrap(), ["a"]);
    assert_eq!(apply(&bound(&store, &["tasks"]), "tasks", &["a", "b"]).await.unwrap(), ["a", "b"]);
    assert!(told.take().is_empty());
}

#[tokio::test]
async fn a_handle_that_nothing_is_bound_to_declares_nothing() {
    let (store, _) = store();
    let unbound = store.handle(HandleOptions::default());
    expect_denied(unbound.pending_migrations("tasks".into(), steps(&["a"])).await);
    let any = HandleOptions::default().migrations(MigrationScope::Any);
    assert_eq!(apply(&store.handle(any), "tasks", &["a"]).await.unwrap(), ["a"]);
}

#[tokio::test]
async fn arguments_are_judged_before_rights_and_a_closed_handle_before_both() {
    let (store, told) = store();
    let handle = bound(&store, &["plugin"]);
    let bad = handle.pending_migrations("ta\0sks".into(), steps(&["a"])).await;
    assert!(matches!(bad, Err(Error::InvalidArgument(_))));
    let long = handle.begin_migration("t".repeat(3_000), steps(&["a"])).await;
    assert!(matches!(long, Err(Error::LimitExceeded(_))));
    handle.close();
    let closed = handle.pending_migrations("tasks".into(), steps(&["a"])).await;
    assert!(matches!(closed, Err(Error::Closed)));
    assert!(told.take().is_empty());
}

#[tokio::test]
async fn removed_steps_are_applied_again_and_those_before_them_are_not() {
    let (store, _) = store();
    let handle = bound(&store, &["tasks", "tasks2"]);
    apply(&handle, "tasks", &["c", "a", "b"]).await.unwrap();
    apply(&handle, "tasks2", &["a"]).await.unwrap();
    let ids = |entries: Vec<larder_core::migrations::LedgerEntry>| {
        entries.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(ledger(&store).remove("tasks", Some("a"), true).await.unwrap()), ["a", "b"]);
    assert_eq!(recorded(&store, "tasks").await.len(), 3);
    assert_eq!(ids(ledger(&store).remove("tasks", Some("a"), false).await.unwrap()), ["a", "b"]);
    assert_eq!(recorded(&store, "tasks").await, [(1, "c".to_string())]);
    assert_eq!(apply(&handle, "tasks", &["c", "x"]).await.unwrap(), ["x"]);
    assert_eq!(ids(ledger(&store).remove("tasks", None, false).await.unwrap()), ["c", "x"]);
    assert!(ledger(&store).remove("tasks", None, false).await.unwrap().is_empty());
    assert_eq!(recorded(&store, "tasks2").await, [(1, "a".to_string())]);
    let absent = ledger(&store).remove("tasks2", Some("b"), false).await;
    assert!(matches!(absent, Err(Error::InvalidArgument(_))), "{absent:?}");
    assert_eq!(recorded(&store, "tasks2").await.len(), 1);
}

#[tokio::test]
async fn a_component_that_was_locked_out_migrates_again_after_the_repair() {
    let (store, _) = store();
    let tasks = bound(&store, &["tasks"]);
    apply(&tasks, "tasks", &["a"]).await.unwrap();
    let trusted = HandleOptions::default().migrations(MigrationScope::Any);
    apply(&store.handle(trusted), "tasks", &["a", "evil"]).await.unwrap();
    assert!(matches!(apply(&tasks, "tasks", &["a", "b"]).await, Err(Error::MigrationMismatch(_))));
    ledger(&store).remove("tasks", Some("evil"), false).await.unwrap();
    assert_eq!(apply(&tasks, "tasks", &["a", "b"]).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn a_recorded_step_counts_as_applied() {
    let (store, _) = store();
    let handle = bound(&store, &["tasks"]);
    apply(&handle, "tasks", &["a"]).await.unwrap();
    let [b] = steps(&["b"]).try_into().unwrap();
    assert_eq!(ledger(&store).record("tasks", Migration::clone(&b), true).await.unwrap(), 2);
    assert_eq!(recorded(&store, "tasks").await.len(), 1);
    assert_eq!(ledger(&store).record("tasks", b.clone(), false).await.unwrap(), 2);
    let again = ledger(&store).record("tasks", b.clone(), false).await;
    assert!(matches!(again, Err(Error::InvalidArgument(_))), "{again:?}");
    assert_eq!(apply(&handle, "tasks", &["a", "b", "c"]).await.unwrap(), ["c"]);
    let short = Migration { checksum: vec![7; 31], ..b.clone() };
    for (component, step) in [("ta\0sks", b.clone()), ("", b), ("tasks", short)] {
        let refused = ledger(&store).record(component, step, false).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_repair_beside_a_step_conflicts_and_changes_nothing() {
    let (store, _) = store();
    let handle = bound(&store, &["tasks"]);
    apply(&handle, "tasks", &["a"]).await.unwrap();
    let step = handle.begin_migration("tasks".into(), steps(&["a", "b"])).await.unwrap().unwrap();
    ledger(&store).remove("tasks", None, false).await.unwrap();
    assert!(matches!(step.transaction.commit().await, Err(Error::Conflict)));
    assert!(recorded(&store, "tasks").await.is_empty());
}

#[tokio::test]
async fn guests_still_can_not_write_the_ledger() {
    let (store, _) = store();
    let options = HandleOptions::default().migrations(MigrationScope::Any).limits(Limits::default());
    let mut update = store.handle(options).begin(Mode::Update).unwrap();
    let namespace = larder_core::migrations::LEDGER_NAMESPACE;
    expect_denied(update.put(namespace.into(), "tasks\0a".into(), Vec::new()));
    expect_denied(update.delete(namespace.into(), "tasks\0a".into()));
}

/// Puts a row into the ledger that no release writes.
async fn put_invalid(in_memory: &InMemory, key: &[u8]) {
    let limits = Limits::default();
    let namespace = Namespace::from_stored(larder_core::migrations::LEDGER_NAMESPACE.into()).unwrap();
    let row = RowKey { namespace, key: Key::from_stored(key.to_vec()).unwrap() };
    let value = Value::new(b"not an entry".to_vec(), &limits).unwrap();
    let writes = BTreeMap::from([(row, Mutation::Put { value, ttl_ms: None })]);
    Backend::commit(in_memory, Arc::new(Commit { writes, ..Commit::default() })).await.unwrap();
}

#[tokio::test]
async fn one_invalid_row_is_removed_by_its_key_and_nothing_else() {
    let in_memory = InMemory::new();
    let store = Store::builder(in_memory.attach()).build().unwrap();
    apply(&bound(&store, &["tasks"]), "tasks", &["a"]).await.unwrap();
    put_invalid(&in_memory, b"tasks\0x").await;
    put_invalid(&in_memory, b"tasks\0x2").await;
    let ids = async || {
        let entries = ledger(&store).entries("tasks").await.unwrap();
        entries.into_iter().map(|entry| (entry.key.clone(), entry.applied.is_ok())).collect::<Vec<_>>()
    };
    let row = |key: &[u8], is_valid| (key.to_vec(), is_valid);
    let all = [row(b"tasks\0a", true), row(b"tasks\0x", false), row(b"tasks\0x2", false)];
    assert_eq!(ids().await, all);
    for wrong in [b"tasks\0a".as_slice(), b"tasks\0", b"tasks\0x1", b"tasks\0x\0"] {
        let refused = ledger(&store).remove_invalid(wrong, false).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{refused:?}");
    }
    let shown = ledger(&store).remove_invalid(b"tasks\0x", true).await.unwrap();
    assert_eq!((shown.key.as_slice(), ids().await.len()), (b"tasks\0x".as_slice(), 3));
    ledger(&store).remove_invalid(b"tasks\0x", false).await.unwrap();
    assert_eq!(ids().await, [row(b"tasks\0a", true), row(b"tasks\0x2", false)]);
    // A component with an invalid row is locked out until the row is removed.
    let steps = bound(&store, &["tasks"]).pending_migrations("tasks".into(), steps(&["a"])).await;
    assert!(matches!(steps, Err(Error::Corrupt(_))), "{steps:?}");
    ledger(&store).remove("tasks", None, false).await.unwrap();
    assert_eq!(ids().await, []);
}

#[tokio::test]
async fn components_are_listed_one_after_the_other_over_any_number_of_steps() {
    let (store, _) = store();
    let all: Vec<String> = (0..1_100).map(|number| format!("{number:04}")).collect();
    for (component, count) in [("a", 3), ("b", 1_100), ("c", 2)] {
        for id in all.iter().take(count) {
            let step = Migration { id: id.clone(), checksum: vec![7; 32] };
            ledger(&store).record(component, step, false).await.unwrap();
        }
    }
    let mut listed = Vec::new();
    let each = |entries: Vec<larder_core::migrations::LedgerEntry>| {
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
        listed.push((entries[0].component.clone(), ids));
        Ok::<_, Error>(())
    };
    ledger(&store).for_each_component(each).await.unwrap();
    let expected = [("a", 3), ("b", 1_100), ("c", 2)];
    assert_eq!(listed, expected.map(|(name, count)| (name.to_string(), all[..count].to_vec())));
}

#[tokio::test]
async fn a_component_has_at_most_as_many_steps_as_a_transaction_may_write_rows() {
    let (store, _) = store();
    apply(&bound(&store, &["tasks"]), "tasks", &["a", "b", "c"]).await.unwrap();
    for (most, is_enough) in [(3, true), (2, false)] {
        let limits = Limits::default().transaction_mutations(most);
        let handle = store.handle(HandleOptions::default().limits(limits));
        let entries = MigrationLedger::new(handle).entries("tasks").await;
        assert_eq!(entries.is_ok(), is_enough, "{entries:?}");
        if let Err(error) = entries {
            assert!(matches!(error, Error::LimitExceeded(exceeded) if exceeded.requested == 3));
        }
    }
}
