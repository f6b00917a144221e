//! Tests of the memory that the host holds for an instance, measured as the growth of a process.
//!
//! A separate process tries each way of holding memory until larder refuses more. It may grow by
//! the bound, by a quarter of the bound for memory that the allocator does not return, and by what
//! the test itself holds.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    Entry, Error, Handle, HandleOptions, HeldBytes, IdentityParts, IdentityScope, InMemory, LimitExceeded,
    LimitKind, Limits, Memory, MemoryOptions, MemoryStore, Mode, PutOptions, Range, Result, Store, Strategy,
    Transaction, Turn, Version,
};

const MIB: u64 = 1 << 20;

/// The quota of the store, and the bound of what the backend keeps for snapshots.
const STORE: u64 = 16 * MIB;

/// The memory of the test itself: its runtime, the arguments of the refused call, and the commit
/// log.
const BESIDE: u64 = 12 * MIB;

/// The bound of an instance.
const INSTANCE: u64 = 64 * MIB;

/// The bound of a transaction. While a large commit is made, its rows are in memory beside the
/// store.
const TRANSACTION: u64 = 16 * MIB;

/// The ways of holding memory, each with its bound.
const WAYS: [(&str, u64); 12] = [
    ("staged small rows", INSTANCE),
    ("staged large values", INSTANCE),
    ("staged packed rows", INSTANCE),
    ("conditions", INSTANCE),
    ("rows that were read", INSTANCE),
    ("ranges that were read", INSTANCE),
    ("deleted ranges", INSTANCE + STORE),
    ("results", INSTANCE + STORE),
    ("conversations", INSTANCE + STORE),
    ("views of earlier states", 2 * STORE + TRANSACTION),
    ("small stored rows", STORE),
    ("thinned out stored rows", STORE),
];

#[test]
fn an_instance_makes_the_host_hold_no_more_than_its_bound() {
    assert_eq!(Limits::default().instance_bytes, INSTANCE);
    for (way, bound) in WAYS {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", "one_way", "--ignored", "--nocapture"];
        let output = Command::new(program).args(arguments).env("LARDER_WAY", way).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{way}: {said}{}", String::from_utf8_lossy(&output.stderr));
        let grown = said.lines().find_map(|line| line.split("grew by ").nth(1)).unwrap();
        let grown: u64 = grown.parse().unwrap();
        let bound = bound / 4 * 5 + BESIDE;
        println!("{way}: {} of {} MiB", grown / MIB, bound / MIB);
        assert!(grown <= bound, "{way}: the process grew by {grown} bytes, more than {bound}");
    }
}

#[tokio::test]
#[ignore = "the test above runs it, in a process of its own for each way"]
async fn one_way() {
    let Ok(way) = std::env::var("LARDER_WAY") else { return };
    let instance = Instance::new();
    let before = memory("VmRSS:");
    instance.hold(&way).await;
    println!("grew by {}", memory("VmHWM:").saturating_sub(before));
}

/// A figure of `/proc/self/status`, in bytes.
fn memory(name: &str) -> u64 {
    let report = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = report.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Whether a call was refused because of the bound of the instance or of a transaction.
fn is_refused<T: std::fmt::Debug>(outcome: Result<T>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Error::LimitExceeded(LimitExceeded {
            kind: LimitKind::InstanceBytes | LimitKind::TransactionBytes,
            ..
        })) => true,
        other => panic!("{other:?}"),
    }
}

fn is_full<T: std::fmt::Debug>(outcome: Result<T>) -> bool {
    match outcome {
        Ok(_) => false,
        Err(Error::LimitExceeded(LimitExceeded { kind: LimitKind::StoreBytes, .. })) => true,
        other => panic!("{other:?}"),
    }
}

/// An instance with the default limits, except for those of a transaction, so that the bound of the
/// instance applies.
struct Instance {
    limits: Arc<Limits>,
    held: HeldBytes,
    store: Store,
    backend: InMemory,
    handle: Handle,
}

impl Instance {
    fn new() -> Self {
        let limits = Arc::new(
            Limits::default()
                .transaction_mutations(u64::from(u32::MAX))
                .transaction_bytes(TRANSACTION)
                .transaction_timeout(Duration::from_secs(600)),
        );
        let held = HeldBytes::at_most(limits.instance_bytes);
        let backend = InMemory::new().keep_for_snapshots(STORE);
        let store = Store::builder(backend.attach()).quota_bytes(STORE).sweep_interval(None).build().unwrap();
        let options = HandleOptions::default().limits(limits.clone()).held(held.clone());
        let handle = store.handle(options);
        Self { limits, held, store, backend, handle }
    }

    async fn hold(&self, way: &str) {
        match way {
            "staged small rows" => {
                // Descending order leaves the nodes of a B-tree emptiest.
                self.fill(|tx, number| tx.put(short(!number), short(number), vec![7])).await;
            }
            "staged large values" => {
                self.fill(|tx, number| tx.put("n".into(), short(number), vec![7; MIB as usize])).await;
            }
            "staged packed rows" => {
                let mut rows = Vec::new();
                for number in 0..1_000 {
                    rows.extend([6_u32, 200].map(u32::to_le_bytes).as_flattened());
                    rows.extend([short(number).as_bytes(), &[7; 200]].concat());
                }
                self.fill_reading(async |tx, number| tx.put_packed(short(number), &rows).await).await;
            }
            "conditions" => {
                let options = PutOptions::default().if_version(Version::ABSENT);
                self.fill(|tx, number| tx.put_with(short(number), short(number), vec![7], options)).await;
            }
            "rows that were read" => {
                self.fill_reading(async |tx, number| tx.get(short(!number), short(number)).await.map(drop))
                    .await;
            }
            "ranges that were read" => {
                self.fill_reading(async |tx, number| {
                    let end = Some("z".to_string());
                    let range = Range { start: Some(short(number)), end, ..Range::default() };
                    tx.scan_page(short(!number), range, None).await.map(drop)
                })
                .await;
            }
            "deleted ranges" => {
                self.fill_store(&[]).await;
                self.fill_reading(async |tx, number| {
                    if number == 0 {
                        let all = tx.delete_range("n".into(), Range::default()).await?;
                        assert!(all > 30_000, "{all}");
                    }
                    tx.put("more".into(), short(number), vec![7; 100_000])
                })
                .await;
            }
            "results" => self.hold_results().await,
            "conversations" => self.hold_conversations().await,
            "views of earlier states" => self.hold_views().await,
            "small stored rows" => {
                self.fill_store(&[7; 8]).await;
            }
            "thinned out stored rows" => self.thin_out().await,
            other => panic!("{other}"),
        }
    }

    /// Opens as many transactions as the limits allow, and repeats `stage` in each until it is
    /// refused.
    async fn fill(&self, stage: impl Fn(&mut Transaction, u64) -> Result<()>) {
        self.fill_reading(async |tx, number| stage(tx, number)).await;
    }

    async fn fill_reading(&self, call: impl AsyncFn(&mut Transaction, u64) -> Result<()>) {
        let mut open = Vec::new();
        for _ in 0..self.limits.open_transactions {
            let mut transaction = self.handle.begin(Mode::Update).unwrap();
            let mut number = 0;
            while !is_refused(call(&mut transaction, number).await) {
                number += 1;
            }
            open.push(transaction);
        }
        let (used, max) = (self.held.used(), self.limits.instance_bytes);
        assert!(used > max - 2 * MIB && used <= max, "{used}");
        drop(open);
        assert_eq!(self.held.used(), 0);
    }

    /// Commits rows with this value until the store is full, and returns their number.
    async fn fill_store(&self, value: &[u8]) -> u64 {
        let mut number = 0;
        for rows in [1_000, 1] {
            loop {
                let mut update = self.handle.begin(Mode::Update).unwrap();
                for row in number..number + rows {
                    update.put("n".into(), short(row), value.to_vec()).unwrap();
                }
                if is_full(update.commit().await) {
                    break;
                }
                number += rows;
            }
        }
        number
    }

    async fn hold_results(&self) {
        self.fill_store(&[7; 4_000]).await;
        let mut update = self.handle.begin(Mode::Update).unwrap();
        let mut pages = 0;
        let mut held = Vec::new();
        loop {
            let mut view = self.handle.begin(Mode::View).unwrap();
            let page = view.scan_page("n".into(), Range::default(), None).await.unwrap();
            if page.entries.len() <= 900 {
                break;
            }
            pages += 1;
            if is_refused(update.put("n".into(), short(pages), vec![7; MIB as usize])) {
                held.push(update);
                update = self.handle.begin(Mode::Update).unwrap();
            }
        }
        // A page of 4 MiB counts three times, so it is shorter once less than 12 MiB are left.
        let (used, max) = (self.held.used(), self.limits.instance_bytes);
        assert!(used > max - 14 * MIB && used <= max, "{used}");
        let mut last = self.handle.begin(Mode::Update).unwrap();
        last.put("n".into(), short(0), vec![7; MIB as usize]).unwrap();
        let mut view = self.handle.begin(Mode::View).unwrap();
        assert!(is_refused(view.get_many("n".into(), (0..1_000).map(short).collect()).await));
        assert!(is_refused(view.scan("n".into(), "000".into()).await.map(|rows| rows.len())));
    }

    async fn hold_conversations(&self) {
        let memory_bytes = 4 * MIB;
        let options = MemoryOptions::new(Strategy::Truncation).memory_bytes(memory_bytes);
        let memories = MemoryStore::builder(&self.store, options).build().unwrap();
        let open = |number: u64| -> Memory {
            let parts = IdentityParts::session("acme", "ann", &short(number));
            memories.open_within(parts, &IdentityScope::Any, &self.limits, &self.held).unwrap()
        };
        let open: Vec<Memory> = (0..self.limits.open_memories).map(open).collect();
        let first = open.first().unwrap();
        // Elements take the most memory for their JSON, so the turn has nothing else.
        let elements = usize::try_from(self.limits.turn_bytes / 16).unwrap();
        let turn = Turn { artifacts_hidden: vec![String::new(); elements], ..Turn::default() };
        let mut turns = 0;
        while !is_refused(first.add_turn(turn.clone()).await) {
            turns += 1;
        }
        assert!(turns > 3, "{turns}");
        assert!(is_refused(first.add_turn(turn).await));
        for memory in &open {
            memory
                .add_turn(Turn { user_message: "x".repeat(100_000), ..Turn::default() })
                .await
                .unwrap_or_else(|error| assert!(is_refused::<()>(Err(error))));
        }
        for memory in &open {
            memory.llm_context().await.unwrap();
            let snapshot = memory.snapshot().await.unwrap();
            memory
                .restore(snapshot)
                .await
                .map(drop)
                .unwrap_or_else(|error| assert!(is_refused::<()>(Err(error))));
        }
        assert_eq!(self.held.used(), 0);
    }

    async fn hold_views(&self) {
        let rows = self.fill_store(&[7; 4_000]).await;
        let mut views = Vec::new();
        for generation in 0..14 {
            let mut view = self.handle.begin(Mode::View).unwrap();
            view.get("n".into(), short(0)).await.unwrap();
            views.push(view);
            for first in (0..rows).step_by(1_000) {
                let mut update = self.handle.begin(Mode::Update).unwrap();
                for row in first..rows.min(first + 1_000) {
                    update.put("n".into(), short(row), vec![generation; 4_000]).unwrap();
                }
                update.commit().await.unwrap();
            }
        }
        let ended = self.backend.ended_snapshots();
        assert!((12..14).contains(&ended), "{ended}");
        for (number, view) in views.iter_mut().enumerate() {
            let page = view.scan_page("n".into(), Range { limit: Some(1), ..Range::default() }, None).await;
            let is_ended = (number as u64) < ended;
            assert_eq!(matches!(page, Err(Error::TimedOut)), is_ended, "{number}: {page:?}");
            if let Ok(page) = page {
                assert_eq!(page.entries, [Entry { key: short(0), value: vec![number as u8 - 1; 4_000] }]);
            }
        }
    }

    /// Deletes two thirds of the rows, and fills the store again with keys after them.
    async fn thin_out(&self) {
        let rows = self.fill_store(&[]).await;
        for first in (0..rows).step_by(10_000) {
            let mut update = self.handle.begin(Mode::Update).unwrap();
            for row in (first..rows.min(first + 10_000)).filter(|row| row % 3 > 0) {
                update.delete("n".into(), short(row)).unwrap();
            }
            update.commit().await.unwrap();
        }
        let mut number = rows;
        loop {
            let mut update = self.handle.begin(Mode::Update).unwrap();
            for row in number..number + 100 {
                update.put("n".into(), short(row), Vec::new()).unwrap();
            }
            if is_full(update.commit().await) {
                break;
            }
            number += 100;
        }
        assert!(number > rows + rows / 2, "{number}");
    }
}

fn short(number: u64) -> String {
    format!("{:06x}", number & 0xff_ffff)
}
