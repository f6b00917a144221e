//! Hostile guests. None may harm the host, delay other guests, or leave anything behind.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod support;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use larder_host::{
    EchoSummarizer, Handle, HandleOptions, IdentityScope, InMemory, Limits, MemoryOptions, MemoryStore,
    MigrationScope, Mode, StorageCtx, Store, Strategy, engine_config,
};
use larder_sqlite::{Sqlite, SqliteOptions};
use support::instance::Instance;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Trap};
use wasmtime_wasi::p2::bindings::Command;
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::{I32Exit, WasiCtx};

/// The engine of all tests. Its epoch advances every 10 ms, which interrupts guests that loop.
fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let make = || {
        let mut config = engine_config();
        config.epoch_interruption(true);
        let engine = Engine::new(&config).unwrap();
        let ticking = engine.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(10));
                ticking.increment_epoch();
            }
        });
        engine
    };
    ENGINE.get_or_init(make).clone()
}

struct Guest {
    store: wasmtime::Store<Instance>,
    output: MemoryOutputPipe,
    program: &'static str,
}

/// The longest run of a guest, in epochs.
const EPOCHS: u64 = 3_000;

fn guest(program: &'static str, arguments: &[&str], storage: StorageCtx) -> Guest {
    let output = MemoryOutputPipe::new(1 << 20);
    let mut wasi = WasiCtx::builder();
    wasi.stdout(output.clone()).inherit_stderr().arg(program).args(arguments);
    let instance = Instance { table: ResourceTable::new(), wasi: wasi.build(), storage };
    let mut store = wasmtime::Store::new(&engine(), instance);
    store.set_hostcall_fuel(32 << 20);
    store.set_epoch_deadline(EPOCHS);
    Guest { store, output, program }
}

impl Guest {
    /// Runs the guest to its end. Its data, with everything that it left open, stays.
    async fn run(&mut self) -> wasmtime::Result<Result<(), ()>> {
        let component = Component::from_file(&engine(), self.program)?;
        let mut linker = Linker::new(&engine());
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        larder_host::add_to_linker(&mut linker)?;
        let command = Command::instantiate_async(&mut self.store, &component, &linker).await?;
        command.wasi_cli_run().call_run(&mut self.store).await
    }

    fn output(&self) -> String {
        String::from_utf8(self.output.contents().to_vec()).unwrap()
    }
}

struct Database {
    store: Store,
    _folder: tempfile::TempDir,
}

async fn sqlite() -> Database {
    let folder = tempfile::tempdir().unwrap();
    let backend = Sqlite::open(folder.path().join("store.db"), SqliteOptions::default()).await.unwrap();
    Database { store: Store::builder(backend).build().unwrap(), _folder: folder }
}

fn storage(store: &Store) -> StorageCtx {
    StorageCtx::builder().grant("default", store).build().unwrap()
}

fn handle(store: &Store) -> Handle {
    store.handle(HandleOptions::default())
}

/// Writes and reads the row that the guest has used in its update.
async fn others_go_on(store: &Store) {
    let handle = handle(store);
    let mut update = handle.begin(Mode::Update).unwrap();
    assert_eq!(
        update.get("n".into(), "key".into()).await.unwrap(),
        None,
        "a write of the guest was committed"
    );
    update.put("n".into(), "key".into(), b"another's".to_vec()).unwrap();
    update.commit().await.unwrap();
}

/// Whether a linker has all imports of a component.
fn links(program: &str, add: fn(&mut Linker<Instance>) -> wasmtime::Result<()>) -> bool {
    let mut linker = Linker::new(&engine());
    wasmtime_wasi::p2::add_to_linker_async(&mut linker).unwrap();
    add(&mut linker).unwrap();
    linker.instantiate_pre(&Component::from_file(&engine(), program).unwrap()).is_ok()
}

#[test]
fn a_linker_has_only_the_interfaces_that_were_added() {
    let (catalog, assistant) = (larder_artifacts::CATALOG, larder_artifacts::ASSISTANT);
    let puts = larder_artifacts::LOOP_IN_UPDATE;
    assert!(links(puts, larder_host::store::add_to_linker));
    assert!(!links(catalog, larder_host::store::add_to_linker), "it reads packed pages");
    assert!(!links(puts, larder_host::packed::add_to_linker), "it uses a store");
    assert!(links(catalog, |linker| {
        larder_host::store::add_to_linker(linker)?;
        larder_host::packed::add_to_linker(linker)
    }));
    assert!(!links(catalog, larder_host::memory::add_to_linker), "it uses a store");
    assert!(!links(assistant, larder_host::store::add_to_linker), "it keeps a conversation");
    for program in [catalog, assistant] {
        assert!(links(program, larder_host::add_to_linker), "{program}");
    }
    assert!(links(assistant, |linker| {
        larder_host::store::add_to_linker(linker)?;
        larder_host::bindings::memory::add_to_linker::<_, larder_host::HasStorage>(
            linker,
            larder_host::StorageView::storage,
        )
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_loops_in_an_update_delays_no_other_and_is_interrupted() {
    let database = sqlite().await;
    let mut looping = guest(larder_artifacts::LOOP_IN_UPDATE, &[], storage(&database.store));
    looping.store.set_epoch_deadline(100);
    let output = looping.output.clone();
    let running = tokio::spawn(async move {
        let outcome = looping.run().await;
        (looping, outcome)
    });
    while output.contents().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    others_go_on(&database.store).await;
    assert!(!running.is_finished(), "the guest ended before the other update");
    let (_, outcome) = running.await.unwrap();
    assert_eq!(outcome.unwrap_err().downcast_ref(), Some(&Trap::Interrupt));
}

#[tokio::test]
async fn the_sdk_does_what_it_says() {
    let database = sqlite().await;
    for store in [&database.store, &Store::builder(InMemory::new()).build().unwrap()] {
        let options = MemoryOptions::new(Strategy::RollingSummary).window_turns(2);
        let memories =
            MemoryStore::builder(store, options).summarizer(Arc::new(EchoSummarizer)).build().unwrap();
        let scope = IdentityScope::user("acme", "ann").unwrap();
        let migrations = MigrationScope::only(["tasks", "search", "failing", "crowded"]).unwrap();
        let builder = StorageCtx::builder().grant("default", store).memory(&memories, scope);
        let storage = builder.migrations(migrations).build().unwrap();
        let mut checking = guest(larder_artifacts::SDK, &[], storage);
        let outcome = checking.run().await.unwrap();
        assert_eq!(checking.output(), "the SDK does what it says\n");
        outcome.unwrap();
    }
}

#[tokio::test]
async fn a_trap_in_an_update_rolls_it_back() {
    let database = sqlite().await;
    let mut trapping = guest(larder_artifacts::TRAP_IN_UPDATE, &[], storage(&database.store));
    let error = trapping.run().await.unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&Trap::UnreachableCodeReached));
    others_go_on(&database.store).await;
}

#[tokio::test]
async fn an_exit_in_an_update_rolls_it_back() {
    let database = sqlite().await;
    let mut exiting = guest(larder_artifacts::EXIT_IN_UPDATE, &[], storage(&database.store));
    let error = exiting.run().await.unwrap_err();
    assert_eq!(error.downcast_ref::<I32Exit>().map(|exit| exit.0), Some(1));
    others_go_on(&database.store).await;
}

#[tokio::test]
async fn leaked_transactions_are_bounded_and_end_with_their_instance() {
    let database = sqlite().await;
    for _ in 0..10 {
        let mut leaking = guest(larder_artifacts::LEAK_TRANSACTIONS, &[], storage(&database.store));
        leaking.run().await.unwrap().unwrap();
        let refused = "16: Error::LimitExceeded(LimitExceeded { kind: LimitKind::OpenTransactions, max: 16, requested: 17 })\n";
        assert_eq!(leaking.output(), refused);
    }
    // 160 leaked snapshots are more than the number of connections.
    others_go_on(&database.store).await;
}

#[tokio::test]
async fn leaked_handles_are_bounded() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let mut opening = guest(larder_artifacts::OPEN_STORES_FOREVER, &[], storage(&store));
    opening.run().await.unwrap().unwrap();
    let refused =
        "64: Error::LimitExceeded(LimitExceeded { kind: LimitKind::OpenStores, max: 64, requested: 65 })\n";
    assert_eq!(opening.output(), refused);
}

#[tokio::test]
async fn arguments_over_every_bound_get_typed_errors() {
    let database = sqlite().await;
    let mut large = guest(larder_artifacts::LARGE_ARGUMENTS, &[], storage(&database.store));
    large.run().await.unwrap().unwrap();
    let limit = |kind: &str, max: u64, requested: u64| {
        format!(
            "Err(Error::LimitExceeded(LimitExceeded {{ kind: LimitKind::{kind}, max: {max}, requested: {requested} }}))"
        )
    };
    let expected = [
        format!("value: {}", limit("ValueBytes", 1 << 20, 8 << 20)),
        format!("key: {}", limit("KeyBytes", 2_048, 100_000)),
        format!("namespace: {}", limit("NamespaceBytes", 255, 100_000)),
        format!("prefix: {}", limit("KeyBytes", 2_048, 100_000)),
        format!("keys: {}", limit("TransactionMutations", 10_000, 100_000)),
        format!("deletes: {}", limit("TransactionMutations", 10_000, 100_000)),
        format!("start: {}", limit("KeyBytes", 2_048, 100_000)),
        "after: Err(Error::InvalidArgument(\"`after` is not a cursor of this range; pass the `next` of a page of the \
         same range\"))"
            .to_string(),
        "still usable: Ok(None)".to_string(),
    ];
    assert_eq!(large.output().lines().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_argument_larger_than_the_host_lifts_is_a_trap_and_costs_no_memory() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let mut sending = guest(larder_artifacts::EXHAUST_HOSTCALL_FUEL, &[], storage(&store));
    sending.run().await.unwrap_err();
    assert_eq!(sending.output(), "sending\n");
    others_go_on(&store).await;
}

#[tokio::test]
async fn names_that_were_never_granted_open_nothing() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let mut forging = guest(larder_artifacts::FORGE, &[], storage(&store));
    forging.run().await.unwrap().unwrap();
    let output = forging.output();
    let (long, names) =
        output.lines().collect::<Vec<_>>().split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
    assert_eq!(names.len(), 7);
    for line in names {
        let (name, answer) = line.split_once(": Err").unwrap();
        assert_eq!(answer, format!("(Error::NoSuchStore({name}))"));
    }
    let too_long = "the store's name has 1048576 bytes; it can have at most 255";
    assert_eq!(long, format!("1 MiB: Err(Error::InvalidArgument({too_long:?}))"));
}

#[tokio::test]
async fn an_import_that_the_host_lacks_is_an_error_of_the_linker() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let mut unknown = guest(larder_artifacts::IMPORT_UNKNOWN, &[], storage(&store));
    let error = unknown.run().await.unwrap_err();
    assert!(format!("{error:#}").contains("larder:unknown/thing"), "{error:#}");
}

#[tokio::test]
async fn a_guest_past_its_deadline_is_told_and_has_written_nothing() {
    let database = sqlite().await;
    let limits = Limits::default().transaction_timeout(Duration::from_millis(50));
    let storage = StorageCtx::builder().limits(limits).grant("default", &database.store).build().unwrap();
    let mut holding = guest(larder_artifacts::HOLD_UPDATE, &["400"], storage);
    holding.run().await.unwrap().unwrap();
    assert_eq!(holding.output(), "holding\ncommitted: Err(Error::TimedOut)\n");
    others_go_on(&database.store).await;
}

#[tokio::test]
async fn a_cancelled_call_rolls_back_and_frees_what_it_held() {
    let database = sqlite().await;
    for _ in 0..80 {
        let mut holding = guest(larder_artifacts::HOLD_UPDATE, &["60000"], storage(&database.store));
        let output = holding.output.clone();
        let until_held = async {
            while output.contents().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            outcome = holding.run() => panic!("the guest ended: {outcome:?}"),
            () = until_held => {}
        }
    }
    // 80 abandoned snapshots are more than the number of connections.
    others_go_on(&database.store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_sleeps_in_an_update_delays_no_other() {
    let database = sqlite().await;
    let mut sleeping = guest(larder_artifacts::HOLD_UPDATE, &["3000"], storage(&database.store));
    let output = sleeping.output.clone();
    let start = Instant::now();
    let running = tokio::spawn(async move { sleeping.run().await });
    while output.contents().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    others_go_on(&database.store).await;
    assert!(!running.is_finished(), "the guest ended after {:?}", start.elapsed());
    running.abort();
}
