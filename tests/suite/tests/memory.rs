//! Conversation memory as an embedder uses it: snapshots between backends, background work, killed
//! processes, and summariser components.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use larder_core::{
    EchoSummarizer, Event, EventChannel, EventSink, Health, IdentityParts, IdentityScope, Memory,
    MemoryOptions, MemoryStore, MovableClock, Store, Strategy, Summarizer, SummaryError, SummaryRequest,
    Turn,
};
use larder_host::{ComponentSummarizer, drivers, engine_config};
use larder_suite::{InMemoryTestBed, SqliteTestBed, TestBed};
use support::{assistant, harness, postgres_server};
use wasmtime::component::ResourceTable;
use wasmtime::{StoreLimits, StoreLimitsBuilder};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

type Outcome = Result<(), String>;
type TestBeds = Vec<Result<Arc<dyn TestBed>, String>>;

/// The strategy and the store of a child process.
const ROLE: &str = "LARDER_MEMORY_ROLE";
const STORE: &str = "LARDER_MEMORY_STORE";

fn main() {
    let runtime = harness::runtime();
    if let (Ok(strategy), Ok(dsn)) = (std::env::var(ROLE), std::env::var(STORE)) {
        return runtime.block_on(talk_until_killed(&strategy, &dsn));
    }
    let arguments = harness::arguments();
    let (server, postgres) = postgres_server::test_bed(&arguments);
    let test_beds: TestBeds = vec![
        Ok(Arc::new(InMemoryTestBed)),
        Ok(Arc::new(SqliteTestBed::in_temporary_folder(drivers()))),
        postgres,
    ];
    let mut trials = vec![
        harness::trial(&runtime, "what_is_due_is_done_without_a_call", what_is_due_is_done_without_a_call),
        harness::trial(
            &runtime,
            "closing_with_a_summariser_that_hangs_returns_in_time",
            closing_with_a_summariser_that_hangs_returns_in_time,
        ),
        harness::trial(&runtime, "a_subscriber_hears_of_health", a_subscriber_hears_of_health),
        harness::trial(
            &runtime,
            "a_component_makes_summaries_and_none_of_its_crimes_gets_out",
            a_component_makes_summaries_and_none_of_its_crimes_gets_out,
        ),
        harness::trial(
            &runtime,
            "what_is_no_summariser_is_refused_with_a_reason",
            what_is_no_summariser_is_refused_with_a_reason,
        ),
    ];
    let pairs = test_beds.iter().flat_map(|from| test_beds.iter().map(move |to| (from.clone(), to.clone())));
    for (number, (from, to)) in pairs.enumerate() {
        let names = ["in_memory", "sqlite", "postgres"];
        let name = format!("snapshots_go_from_{}_to_{}", names[number / 3], names[number % 3]);
        trials.push(harness::trial(&runtime, name, || async move { snapshots_go(from?, to?).await }));
    }
    for (name, test_bed) in ["sqlite", "postgres"].into_iter().zip(test_beds.into_iter().skip(1)) {
        for strategy in [Strategy::Truncation, Strategy::RollingSummary] {
            let test_bed = test_bed.clone();
            let title = format!("{name}_{}_keeps_every_acknowledged_turn_through_kills", strategy.name());
            trials.push(harness::trial(&runtime, title, move || async move {
                survives_kills(test_bed?, strategy).await
            }));
        }
        let title = format!("the_assistant_continues_its_conversation_on_{name}");
        trials.push(harness::trial(&runtime, title, || async move { assistant::continues(test_bed?).await }));
    }
    harness::run(&arguments, trials, || drop(server));
}

fn expect(holds: bool, found: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{found:?}")) }
}

fn turn(text: &str) -> Turn {
    Turn { user_message: text.into(), ..Turn::default() }
}

fn open(memories: &MemoryStore, session: &str) -> Memory {
    let parts = IdentityParts::session("acme", "ann", session);
    memories.open(parts, &IdentityScope::Any, &Arc::default()).unwrap()
}

async fn in_memory() -> Store {
    Store::builder(larder_core::InMemory::new()).build().unwrap()
}

// Snapshots between backends.

async fn snapshots_go(from: Arc<dyn TestBed>, to: Arc<dyn TestBed>) -> Outcome {
    let (from, to) = (from.scratch().await.unwrap(), to.scratch().await.unwrap());
    let stores = [from.open().await.unwrap(), to.open().await.unwrap()]
        .map(|backend| Store::builder_shared(backend).sweep_interval(None).build().unwrap());
    for strategy in Strategy::ALL {
        for fails in [false, true] {
            snapshot_goes(&stores, strategy, fails).await?;
        }
    }
    for store in &stores {
        store.close().await;
    }
    from.remove().await.unwrap();
    to.remove().await.map_err(|error| format!("{error:#}"))
}

async fn snapshot_goes([from, to]: &[Store; 2], strategy: Strategy, fails: bool) -> Outcome {
    let options = MemoryOptions::new(strategy)
        .window_turns(2)
        .retry_backoff(Duration::ZERO)
        .recovery_interval(Duration::from_secs(3_600));
    let summarizer: Arc<dyn Summarizer> = if fails { Arc::new(Fails) } else { Arc::new(EchoSummarizer) };
    let memories = [from, to].map(|store| {
        MemoryStore::builder(store, options.clone())
            .summarizer(summarizer.clone())
            .background(false)
            .build()
            .unwrap()
    });
    let [here, there] = memories.each_ref().map(|memories| open(memories, "monday"));
    for memory in [&here, &there] {
        memory.flush().await.unwrap();
    }
    for number in 0..7 {
        here.add_turn(turn(&format!("turn \0 {number} \u{1F980}"))).await.unwrap();
    }
    let taken = here.snapshot().await.unwrap();
    there.restore(taken.clone()).await.unwrap();
    let again = there.snapshot().await.unwrap();
    expect(again == taken, (&again, &taken))?;
    expect(
        there.llm_context().await.unwrap() == here.llm_context().await.unwrap(),
        "the contexts differ after the restore",
    )?;
    expect(
        there.health().await.unwrap() == here.health().await.unwrap(),
        "the health differs after the restore",
    )?;
    // The same further calls give the same bytes.
    for memory in [&here, &there] {
        memory.add_turn(turn("one more")).await.unwrap();
    }
    expect(
        here.snapshot().await.unwrap() == there.snapshot().await.unwrap(),
        "the snapshots differ after another turn",
    )
}

struct Fails;

#[async_trait]
impl Summarizer for Fails {
    async fn summarize(&self, _: SummaryRequest) -> Result<String, SummaryError> {
        Err(SummaryError::new("this summariser always fails"))
    }
}

struct Hangs;

#[async_trait]
impl Summarizer for Hangs {
    async fn summarize(&self, _: SummaryRequest) -> Result<String, SummaryError> {
        std::future::pending().await
    }
}

// Background work.

fn rolling(window_turns: usize) -> MemoryOptions {
    MemoryOptions::new(Strategy::RollingSummary).window_turns(window_turns)
}

/// Fails as often as its counter says, then echoes.
struct FailsAtFirst(Mutex<u32>);

#[async_trait]
impl Summarizer for FailsAtFirst {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        {
            let mut left = self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Err(SummaryError::new("this attempt fails"));
            }
        }
        EchoSummarizer.summarize(request).await
    }
}

async fn what_is_due_is_done_without_a_call() -> Outcome {
    let clock = Arc::new(MovableClock::default());
    let store = Store::builder(larder_core::InMemory::new()).clock(clock.clone()).build().unwrap();
    let memories = MemoryStore::builder(&store, rolling(1))
        .summarizer(Arc::new(FailsAtFirst(Mutex::new(3))))
        .build()
        .unwrap();
    let memory = open(&memories, "monday");
    memory.add_turn(turn("a")).await.unwrap();
    memory.add_turn(turn("b")).await.unwrap();
    // Two retries and a recovery. The clock alone makes each of them due.
    let until = Instant::now() + Duration::from_secs(60);
    while memory.llm_context().await.unwrap().summary != "U:a A:" {
        if Instant::now() > until {
            return Err(format!("no summary after 60 s; the health is {:?}", memory.health().await));
        }
        clock.advance(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    expect(memory.health().await.unwrap() == Health::Healthy, memory.health().await)
}

async fn closing_with_a_summariser_that_hangs_returns_in_time() -> Outcome {
    let store = in_memory().await;
    let memories = MemoryStore::builder(&store, rolling(1)).summarizer(Arc::new(Hangs)).build().unwrap();
    let memory = Arc::new(open(&memories, "monday"));
    memory.add_turn(turn("a")).await.unwrap();
    let adding = tokio::spawn({
        let memory = memory.clone();
        async move { memory.add_turn(turn("b")).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    expect(!adding.is_finished(), "the turn did not wait for its summary")?;
    tokio::time::timeout(Duration::from_secs(10), memories.close())
        .await
        .map_err(|_| "`close` did not return")?;
    let added = tokio::time::timeout(Duration::from_secs(10), adding)
        .await
        .map_err(|_| "`add_turn` did not return")?;
    added.unwrap().map_err(|error| error.to_string())?;
    // Another host continues the summary at once.
    let next = MemoryStore::builder(&store, rolling(1)).summarizer(Arc::new(EchoSummarizer)).build().unwrap();
    next.run_due().await.unwrap();
    let context = open(&next, "monday").llm_context().await.unwrap();
    expect(context.summary == "U:a A:", context)
}

async fn a_subscriber_hears_of_health() -> Outcome {
    struct Nowhere;
    impl EventSink for Nowhere {
        fn emit(&self, _: Event) {}
    }
    let channel = Arc::new(EventChannel::new(16, Arc::new(Nowhere)));
    let mut subscriber = channel.subscribe();
    let store = Store::builder(larder_core::InMemory::new()).events(channel).build().unwrap();
    let options = rolling(1).retry_count(1);
    let memories =
        MemoryStore::builder(&store, options).summarizer(Arc::new(Fails)).background(false).build().unwrap();
    let memory = open(&memories, "monday");
    memory.add_turn(turn("a")).await.unwrap();
    memory.add_turn(turn("b")).await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..2 {
        match subscriber.next().await {
            Some(Ok(Event::MemoryHealthChanged { prior, new, reason, identity })) => {
                heard.push((prior, new, reason, identity.session));
            }
            other => return Err(format!("{other:?}")),
        }
    }
    let session = || "monday".to_string();
    let expected = [
        (Health::Healthy, Health::Retry, "summarizer_failed", session()),
        (Health::Retry, Health::Degraded, "retries_exhausted", session()),
    ];
    expect(heard == expected, heard)
}

// Summariser components.

struct Plugin {
    table: ResourceTable,
    wasi: WasiCtx,
    limits: StoreLimits,
}

impl WasiView for Plugin {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

fn component(path: &str) -> wasmtime::Result<ComponentSummarizer<Plugin>> {
    ComponentSummarizer::from_file(path, wasmtime_wasi::p2::add_to_linker_async, |engine| {
        let limits = StoreLimitsBuilder::new().memory_size(64 << 20).build();
        let plugin = Plugin { table: ResourceTable::new(), wasi: WasiCtx::builder().build(), limits };
        let mut store = wasmtime::Store::new(engine, plugin);
        store.limiter(|plugin| &mut plugin.limits);
        store.set_hostcall_fuel(1 << 20);
        store
    })
}

async fn a_component_makes_summaries_and_none_of_its_crimes_gets_out() -> Outcome {
    let summarizer =
        component(larder_artifacts::LARDER_HOSTILE_SUMMARIZER).map_err(|error| format!("{error:#}"))?;
    let store = in_memory().await;
    let options = rolling(1).summary_timeout(Duration::from_millis(500));
    let memories = MemoryStore::builder(&store, options)
        .summarizer(Arc::new(summarizer))
        .background(false)
        .build()
        .unwrap();
    for crime in ["refuse", "loop", "trap", "allocate", "flood"] {
        let memory = open(&memories, crime);
        for text in ["good", crime, "next"] {
            memory.add_turn(turn(text)).await.map_err(|error| format!("{crime}: {error}"))?;
        }
        let health = memory.health().await.unwrap();
        expect(health == Health::Retry, (crime, health))?;
        let context = memory.llm_context().await.unwrap();
        expect(context.summary == "good;" && context.recent_turns == [turn("next")], (crime, context))?;
        let kept = String::from_utf8(memory.snapshot().await.unwrap().bytes).unwrap();
        expect(kept.contains(&format!("\"pending\":[{{\"user_message\":\"{crime}\"")), kept)?;
    }
    let memory = open(&memories, "good");
    for text in ["one", "two", "three"] {
        memory.add_turn(turn(text)).await.unwrap();
    }
    let context = memory.llm_context().await.unwrap();
    expect(context.summary == "one;two;", context)
}

async fn what_is_no_summariser_is_refused_with_a_reason() -> Outcome {
    let Err(error) = component(larder_artifacts::CATALOG) else { return Err("it was accepted".to_string()) };
    let reason = error.to_string();
    expect(reason == "the component does not export `larder:storage/summarizer@0.1.0`", reason)?;
    // An embedder's engine needs no special settings.
    wasmtime::Engine::new(&engine_config()).map(drop).map_err(|error| error.to_string())
}

// Killed processes.

const KILLS: u32 = 50;

async fn survives_kills(test_bed: Arc<dyn TestBed>, strategy: Strategy) -> Outcome {
    let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
    let dsn = scratch.dsn().ok_or("no other process can open the store")?.to_string();
    let mut acknowledged = 0_u64;
    for round in 0..KILLS {
        let said = harness::kill(start(strategy, &dsn), Duration::from_millis(40)).await?;
        acknowledged = acknowledged.max(harness::last_number(&said));
        let kept = kept(strategy, &dsn).await;
        let whole: Vec<u64> = (1..=kept.len() as u64).collect();
        expect(
            kept == whole && kept.len() as u64 >= acknowledged,
            format!(
                "round {round}: expected each turn once and in order, at least {acknowledged}; found {}",
                kept.len()
            ),
        )?;
    }
    scratch.remove().await.map_err(|error| format!("{error:#}"))?;
    expect(acknowledged >= u64::from(KILLS), format!("only {acknowledged} turns were acknowledged"))
}

fn start(strategy: Strategy, dsn: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, strategy.name()).env(STORE, dsn).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

async fn conversations(strategy: Strategy, dsn: &str) -> (Store, MemoryStore) {
    let backend = drivers().open(dsn).await.unwrap();
    let store = Store::builder_shared(backend).sweep_interval(None).build().unwrap();
    // A claim of a killed host expires soon, so that it does not delay the next host.
    let options = rolling(2).summary_timeout(Duration::from_millis(20));
    let memories = MemoryStore::builder(&store, options.strategy(strategy))
        .summarizer(Arc::new(Numbers))
        .background(false)
        .build()
        .unwrap();
    (store, memories)
}

/// Summarises turns as a list of their numbers.
struct Numbers;

#[async_trait]
impl Summarizer for Numbers {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let numbers = request.turns.iter().map(|turn| turn.user_message.as_str());
        let previous = Some(request.previous_summary.as_str()).filter(|previous| !previous.is_empty());
        Ok(previous.into_iter().chain(numbers).collect::<Vec<_>>().join(" "))
    }
}

/// Adds the next number as a turn, and prints it once the turn is acknowledged.
async fn talk_until_killed(strategy: &str, dsn: &str) {
    let strategy = strategy.parse().unwrap();
    let mut next = 1 + kept(strategy, dsn).await.last().copied().unwrap_or_default();
    let (_store, memories) = conversations(strategy, dsn).await;
    let memory = open(&memories, "monday");
    loop {
        memory.add_turn(turn(&next.to_string())).await.unwrap();
        // A full stop marks a complete line.
        println!("{next}.");
        std::io::stdout().flush().unwrap();
        next += 1;
    }
}

/// The numbers in the conversation, in order, after all due work is done.
async fn kept(strategy: Strategy, dsn: &str) -> Vec<u64> {
    let (store, memories) = conversations(strategy, dsn).await;
    let memory = open(&memories, "monday");
    let until = Instant::now() + Duration::from_secs(60);
    let context = loop {
        memories.run_due().await.unwrap();
        let snapshot = memory.snapshot().await.unwrap();
        let text = String::from_utf8(snapshot.bytes).unwrap();
        if !text.contains("pending") && !text.contains("backlog") {
            break memory.llm_context().await.unwrap();
        }
        assert!(Instant::now() < until, "turns still wait for a summary: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    memories.close().await;
    store.close().await;
    let summarised = context.summary.split_whitespace();
    let recent = context.recent_turns.iter().map(|turn| turn.user_message.as_str());
    summarised.chain(recent).map(|number| number.parse().unwrap()).collect()
}
