//! The benchmark's loops over a store, through the SDK.
#![allow(unreachable_pub, reason = "only the bindings' export macro uses these items")]

mod bindings;
mod loops;
mod workloads;

use std::cell::RefCell;
use std::time::Duration;

use bindings::exports::larder::bench::loops::{Guest, Shape, Workload};
use larder_bench_workload::{BATCH, Digest, Key, Random, Rows};
use larder_guest::raw::tx::Mode;
use larder_guest::{Entry, Error, Store};
use loops::Loops;

/// Exports the loops.
struct Bench;

thread_local! {
    /// The store that [`Bench::open`] opened. An instance has one thread.
    static OPEN: RefCell<Option<Loops>> = const { RefCell::new(None) };
}

impl Guest for Bench {
    fn open(store: String, shape: Shape) -> Result<(), String> {
        let opened = Loops::open(&store, shape).map_err(text)?;
        OPEN.with(|open| *open.borrow_mut() = Some(opened));
        Ok(())
    }

    fn fill(first: u64, count: u64) -> Result<(), String> {
        with_open(|loops| fill(loops, first, count))
    }

    fn run(workload: Workload, count: u64, seed: u64, salt: u64) -> Result<u64, String> {
        with_open(|loops| loops.run(workload, count, seed, salt))
    }

    fn open_and_get(store: String, count: u64, seed: u64) -> Result<u64, String> {
        with_open(|loops| open_and_get(&loops.rows, &store, count, seed))
    }

    fn request(store: String, shape: Shape, seed: u64, salt: u64) -> Result<u64, String> {
        let mut loops = Loops::open(&store, shape).map_err(text)?;
        loops.run(Workload::UpdateGetPut, 1, seed, salt).map_err(text)
    }

    fn nothing() {}

    fn sleep_in_update(milliseconds: u32) -> Result<(), String> {
        with_open(|loops| {
            loops.store.update(|tx| {
                tx.get("sleeper", "row")?;
                tx.put("sleeper", "row", "written")?;
                std::thread::sleep(Duration::from_millis(milliseconds.into()));
                Ok(())
            })
        })
    }

    fn hold(count: u64, read: bool) -> Result<(), String> {
        OPEN.with(|open| match open.borrow_mut().as_mut() {
            Some(loops) => hold(loops, count, read).map_err(|error| format!("{error:?}")),
            None => Err("no store is open; call `open` first".to_string()),
        })
    }
}

fn with_open<T>(work: impl FnOnce(&mut Loops) -> Result<T, Error>) -> Result<T, String> {
    OPEN.with(|open| match open.borrow_mut().as_mut() {
        Some(loops) => work(loops).map_err(text),
        None => Err("no store is open; call `open` first".to_string()),
    })
}

fn text(error: Error) -> String {
    error.to_string()
}

/// Puts the rows in batches, one update for each.
fn fill(loops: &mut Loops, first: u64, count: u64) -> Result<(), Error> {
    let (store, rows) = (&loops.store, &mut loops.rows);
    let mut indices = (first..first.saturating_add(count)).peekable();
    while indices.peek().is_some() {
        let batch: Vec<u64> = indices.by_ref().take(BATCH as usize * 10).collect();
        store.update(|tx| {
            for index in &batch {
                let value = rows.value(*index, 0).to_vec();
                let entry = Entry { key: Key::of(*index).as_str().to_string(), value };
                tx.put_many(rows.namespace(*index), [entry])?;
            }
            Ok::<_, Error>(())
        })?;
    }
    Ok(())
}

fn open_and_get(rows: &Rows, store: &str, count: u64, seed: u64) -> Result<u64, Error> {
    let (mut random, mut digest) = (Random::new(seed), Digest::default());
    for _ in 0..count {
        let opened = Store::open(store)?;
        let index = random.below(rows.count());
        let value = opened.view(|tx| loops::present(tx, rows, index))?;
        digest.add(&value);
    }
    Ok(digest.sum())
}

/// Leaves transactions open by forgetting their handles, which the SDK does not allow.
fn hold(loops: &mut Loops, count: u64, read: bool) -> Result<(), larder_guest::raw::types::Error> {
    let store = larder_guest::raw::store::Store::open(&loops.name)?;
    for index in 0..count {
        let tx = store.begin(Mode::Update)?;
        let key = Key::of(index % loops.rows.count().max(1));
        if read {
            tx.get(loops.rows.namespace(index), key.as_str())?;
        }
        let namespace = loops.rows.namespace(index).to_string();
        tx.put(&namespace, key.as_str(), loops.rows.value(index, 1))?;
        std::mem::forget(tx);
    }
    std::mem::forget(store);
    Ok(())
}

bindings::export!(Bench with_types_in bindings);
