//! The benchmark's loops over `wasi:keyvalue`, for the workloads that it supports.
#![allow(unreachable_pub, reason = "only the bindings' export macro uses these items")]

mod bindings;

use std::cell::RefCell;

use bindings::exports::larder::bench::loops::{Guest, Shape, Workload};
use bindings::wasi::keyvalue::store::{self, Bucket};
use larder_bench_workload::{Digest, Key, Random};

/// Exports the loops.
struct Bench;

struct Open {
    bucket: Bucket,
    rows: u64,
}

thread_local! {
    /// The bucket that [`Bench::open`] opened. An instance has one thread.
    static OPEN: RefCell<Option<Open>> = const { RefCell::new(None) };
}

impl Guest for Bench {
    fn open(store: String, shape: Shape) -> Result<(), String> {
        let bucket = store::open(&store).map_err(text)?;
        OPEN.with(|open| *open.borrow_mut() = Some(Open { bucket, rows: shape.rows }));
        Ok(())
    }

    fn run(workload: Workload, count: u64, seed: u64, _salt: u64) -> Result<u64, String> {
        match workload {
            Workload::GetInOneView => with_open(|open| get(open, count, seed)),
            _ => Err(NOT_MEASURED.to_string()),
        }
    }

    fn open_and_get(store: String, count: u64, seed: u64) -> Result<u64, String> {
        with_open(|open| open_and_get(open.rows, &store, count, seed))
    }

    fn nothing() {}

    fn fill(_first: u64, _count: u64) -> Result<(), String> {
        Err(NOT_MEASURED.to_string())
    }

    fn request(_store: String, _shape: Shape, _seed: u64, _salt: u64) -> Result<u64, String> {
        Err(NOT_MEASURED.to_string())
    }

    fn sleep_in_update(_milliseconds: u32) -> Result<(), String> {
        Err(NOT_MEASURED.to_string())
    }

    fn hold(_count: u64, _read: bool) -> Result<(), String> {
        Err(NOT_MEASURED.to_string())
    }
}

const NOT_MEASURED: &str = "this workload is not measured with wasi:keyvalue";

fn with_open<T>(work: impl FnOnce(&Open) -> Result<T, String>) -> Result<T, String> {
    OPEN.with(|open| match open.borrow().as_ref() {
        Some(open) => work(open),
        None => Err("no bucket is open; call `open` first".to_string()),
    })
}

fn text(error: store::Error) -> String {
    format!("{error:?}")
}

fn get(open: &Open, count: u64, seed: u64) -> Result<u64, String> {
    let (mut random, mut digest) = (Random::new(seed), Digest::default());
    for _ in 0..count {
        digest.add(&present(&open.bucket, random.below(open.rows))?);
    }
    Ok(digest.sum())
}

fn open_and_get(rows: u64, store: &str, count: u64, seed: u64) -> Result<u64, String> {
    let (mut random, mut digest) = (Random::new(seed), Digest::default());
    for _ in 0..count {
        let bucket = store::open(store).map_err(text)?;
        digest.add(&present(&bucket, random.below(rows))?);
    }
    Ok(digest.sum())
}

fn present(bucket: &Bucket, index: u64) -> Result<Vec<u8>, String> {
    let value = bucket.get(Key::of(index).as_str()).map_err(text)?;
    value.ok_or_else(|| format!("row {index} is missing"))
}

bindings::export!(Bench with_types_in bindings);
