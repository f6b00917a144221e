//! Helpers for cases: short calls of the store, and checks whose failures state what was expected.

use std::fmt::{self, Debug, Display};
use std::hash::{BuildHasher, RandomState};
use std::panic::Location;
use std::time::Duration;

pub(crate) use crate::bindings::larder::conformance::probe;
pub(crate) use crate::bindings::larder::storage::packed;
pub(crate) use crate::bindings::larder::storage::store::Store;
pub(crate) use crate::bindings::larder::storage::tx::{Entry, Mode, Page, PutOptions, Range, Tx};
pub(crate) use crate::bindings::larder::storage::types::{Error, LimitExceeded, LimitKind};

/// The namespace of cases that need only one.
pub(crate) const NS: &str = "shelf";

/// Why a case failed.
pub(crate) enum Failure {
    /// A call that should have succeeded returned an error.
    Refused { error: Error, at: &'static Location<'static> },
    /// A check failed.
    Wrong(String),
}

/// The result of a case or of a part of it.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { error, at } => write!(formatter, "{at}: expected success, got {error:?}"),
            Self::Wrong(text) => formatter.write_str(text),
        }
    }
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self::Refused { error, at: Location::caller() }
    }
}

/// The probe returns errors as text.
impl From<String> for Failure {
    #[track_caller]
    fn from(text: String) -> Self {
        wrong(text)
    }
}

/// A failure that names the line of the caller.
#[track_caller]
pub(crate) fn wrong(text: impl Display) -> Failure {
    Failure::Wrong(format!("{}: {text}", Location::caller()))
}

// Checks

/// Expects a value.
#[track_caller]
pub(crate) fn expect_eq<T: Debug + PartialEq>(got: T, expected: T) -> Outcome {
    if got == expected {
        return Ok(());
    }
    Err(wrong(format!("expected {}, got {}", shortened(&expected), shortened(&got))))
}

/// Expects a condition. `what` completes the sentence "expected that".
#[track_caller]
pub(crate) fn expect(holds: bool, what: impl Display) -> Outcome {
    if holds { Ok(()) } else { Err(wrong(format!("expected that {what}"))) }
}

/// Expects that a row exists with this value.
#[track_caller]
pub(crate) fn expect_value(got: Option<Vec<u8>>, expected: impl AsRef<[u8]>) -> Outcome {
    expect_eq(got.as_deref().map(readable), Some(readable(expected.as_ref())))
}

/// Expects that a row does not exist.
#[track_caller]
pub(crate) fn expect_absent(got: Option<Vec<u8>>) -> Outcome {
    expect_eq(got.as_deref().map(readable), None)
}

/// Expects keys and values in order.
#[track_caller]
pub(crate) fn expect_entries(got: &[Entry], expected: &[(&str, &str)]) -> Outcome {
    let got: Vec<_> = got.iter().map(|entry| (entry.key.clone(), readable(&entry.value))).collect();
    let expected: Vec<_> =
        expected.iter().map(|(key, value)| (key.to_string(), readable(value.as_bytes()))).collect();
    expect_eq(got, expected)
}

/// Expects keys in order.
#[track_caller]
pub(crate) fn expect_keys<K: AsRef<str>>(got: &[Entry], expected: &[K]) -> Outcome {
    let got: Vec<_> = got.iter().map(|entry| entry.key.as_str()).collect();
    let expected: Vec<_> = expected.iter().map(K::as_ref).collect();
    expect_eq(got, expected)
}

#[track_caller]
pub(crate) fn expect_closed<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "closed", |error| *error == Error::Closed)
}

#[track_caller]
pub(crate) fn expect_read_only<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "read-only", |error| *error == Error::ReadOnly)
}

#[track_caller]
pub(crate) fn expect_conflict<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "conflict", |error| *error == Error::Conflict)
}

#[track_caller]
pub(crate) fn expect_timed_out<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "timed-out", |error| *error == Error::TimedOut)
}

#[track_caller]
pub(crate) fn expect_access_denied<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "access-denied", |error| matches!(error, Error::AccessDenied(_)))
}

#[track_caller]
pub(crate) fn expect_invalid_argument<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "invalid-argument", |error| matches!(error, Error::InvalidArgument(_)))
}

/// Expects `limit-exceeded` with exactly these numbers.
#[track_caller]
pub(crate) fn expect_limit<T: Debug>(
    got: Result<T, Error>,
    kind: LimitKind,
    max: u64,
    requested: u64,
) -> Outcome {
    let expected = Error::LimitExceeded(LimitExceeded { kind, max, requested });
    expect_error(got, &format!("{expected:?}"), |error| *error == expected)
}

/// Expects `limit-exceeded` if the host need not determine the exact amount requested.
#[track_caller]
pub(crate) fn expect_limit_passed<T: Debug>(got: Result<T, Error>, kind: LimitKind, max: u64) -> Outcome {
    expect_error(got, &format!("limit-exceeded, {kind:?} over {max}"), |error| {
        matches!(error, Error::LimitExceeded(found)
            if found.kind == kind && found.max == max && found.requested > max)
    })
}

/// Expects an error. `expected` describes it.
#[track_caller]
pub(crate) fn expect_error<T: Debug>(
    got: Result<T, Error>,
    expected: &str,
    is: impl Fn(&Error) -> bool,
) -> Outcome {
    match got {
        Err(error) if is(&error) => Ok(()),
        got => Err(wrong(format!("expected {expected}, got {}", shortened(&got)))),
    }
}

/// A value in a form for messages.
fn readable(value: &[u8]) -> String {
    value.escape_ascii().to_string()
}

fn shortened(value: &impl Debug) -> String {
    const CHARS_MAX: usize = 600;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", text.get(..end).unwrap_or_default(), text.len()),
        None => text,
    }
}

// Access to the store

/// Opens `main`.
#[track_caller]
pub(crate) fn main() -> Outcome<Store> {
    Ok(Store::open("main")?)
}

/// Opens `other`: the same data in another host.
#[track_caller]
pub(crate) fn other() -> Outcome<Store> {
    Ok(Store::open("other")?)
}

#[track_caller]
pub(crate) fn update(store: &Store) -> Outcome<Tx> {
    Ok(store.begin(Mode::Update)?)
}

#[track_caller]
pub(crate) fn view(store: &Store) -> Outcome<Tx> {
    Ok(store.begin(Mode::View)?)
}

/// Commits one update of `main` and returns its version.
#[track_caller]
pub(crate) fn write(work: impl FnOnce(&Tx) -> Outcome) -> Outcome<u64> {
    write_in(&main()?, work)
}

/// Commits one update and returns its version.
#[track_caller]
pub(crate) fn write_in(store: &Store, work: impl FnOnce(&Tx) -> Outcome) -> Outcome<u64> {
    let tx = update(store)?;
    work(&tx)?;
    Ok(Tx::commit(tx)?)
}

/// Reads in one view of `main`.
pub(crate) fn read<T>(work: impl Fn(&Tx) -> Outcome<T>) -> Outcome<T> {
    let store = main()?;
    retrying(|| work(&view(&store)?))
}

/// Commits one row.
#[track_caller]
pub(crate) fn put(key: &str, value: impl AsRef<[u8]>) -> Outcome<u64> {
    write(|tx| Ok(tx.put(NS, key, value.as_ref())?))
}

/// Commits one row with a time to live.
#[track_caller]
pub(crate) fn put_for(key: &str, value: &str, ttl_ms: u64) -> Outcome<u64> {
    write(|tx| Ok(tx.put_with(NS, key, value.as_bytes(), ttl(ttl_ms))?))
}

/// Commits rows whose values are their keys.
#[track_caller]
pub(crate) fn put_keys(keys: &[&str]) -> Outcome<u64> {
    write(|tx| stage_keys(tx, keys))
}

/// Stages rows whose values are their keys.
#[track_caller]
pub(crate) fn stage_keys(tx: &Tx, keys: &[&str]) -> Outcome {
    keys.iter().try_for_each(|key| Ok(tx.put(NS, key, key.as_bytes())?))
}

/// Reads one committed row.
pub(crate) fn get(key: &str) -> Outcome<Option<Vec<u8>>> {
    read(|tx| Ok(tx.get(NS, key)?))
}

/// Reads the version of one committed row; 0 if the row does not exist.
pub(crate) fn version(key: &str) -> Outcome<u64> {
    read(|tx| Ok(tx.get_versioned(NS, key)?.map_or(0, |(_, version)| version)))
}

/// Reads committed rows by prefix.
pub(crate) fn scan(prefix: &str) -> Outcome<Vec<Entry>> {
    read(|tx| Ok(tx.scan(NS, prefix)?))
}

/// Deletes all rows of [`NS`], so that a scenario can start over.
#[track_caller]
pub(crate) fn clear() -> Outcome<u64> {
    write(|tx| Ok(tx.delete_range(NS, &range("")).map(drop)?))
}

/// Calls every read method on `ns`.
pub(crate) fn read_calls(tx: &Tx, ns: &str) -> [(&'static str, Result<(), Error>); 6] {
    [
        ("get", tx.get(ns, "key").map(drop)),
        ("get-many", tx.get_many(ns, &keys(&["key"])).map(drop)),
        ("get-versioned", tx.get_versioned(ns, "key").map(drop)),
        ("scan", tx.scan(ns, "").map(drop)),
        ("scan-page", tx.scan_page(ns, &range(""), None).map(drop)),
        ("packed.scan-page", packed::scan_page(tx, ns, &range(""), None).map(drop)),
    ]
}

/// Calls every write method on `key` of `ns`.
pub(crate) fn write_calls(tx: &Tx, ns: &str, key: &str) -> [(&'static str, Result<(), Error>); 9] {
    [
        ("put", tx.put(ns, key, b"1")),
        ("put-many", tx.put_many(ns, &[entry(key, "1")])),
        ("packed.put-many", packed::put_many(tx, ns, &pack(&[entry(key, "1")]))),
        ("put-with", tx.put_with(ns, key, b"1", ttl(60_000))),
        ("delete", tx.delete(ns, key)),
        ("delete-many", tx.delete_many(ns, &keys(&[key]))),
        ("delete-if-version", tx.delete_if_version(ns, key, 0)),
        ("delete-range", tx.delete_range(ns, &range(key)).map(drop)),
        ("increment", tx.increment(ns, key, 1)),
    ]
}

/// Expects the same outcome of each call.
pub(crate) fn expect_each<const N: usize>(
    calls: [(&'static str, Result<(), Error>); N],
    expected: fn(Result<(), Error>) -> Outcome,
) -> Outcome {
    calls.into_iter().try_for_each(|(call, got)| {
        expected(got).map_err(|failure| Failure::Wrong(format!("{call}: {failure}")))
    })
}

// Arguments

pub(crate) fn limits() -> probe::Bounds {
    probe::limits()
}

pub(crate) fn entry(key: &str, value: &str) -> Entry {
    Entry { key: key.to_string(), value: value.as_bytes().to_vec() }
}

pub(crate) fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

/// The range of a prefix, without other bounds.
pub(crate) fn range(prefix: &str) -> Range {
    Range {
        prefix: prefix.to_string(),
        start: None,
        end: None,
        reverse: false,
        limit: None,
        keys_only: false,
    }
}

pub(crate) fn ttl(ms: u64) -> PutOptions {
    PutOptions { ttl_ms: Some(ms), if_version: None }
}

pub(crate) fn if_version(version: u64) -> PutOptions {
    PutOptions { ttl_ms: None, if_version: Some(version) }
}

/// Rows whose keys and values, with `ns` counted once for each row, have exactly `total` bytes.
pub(crate) fn rows_of_size(ns: &str, prefix: &str, total: u64) -> Vec<(String, Vec<u8>)> {
    let key = |number: usize| format!("{prefix}{number:03}");
    let names = ns.len() + key(0).len();
    let sizes = shares(total, limits().value_bytes).into_iter().enumerate();
    sizes.map(|(number, size)| (key(number), vec![b'x'; (size as usize).saturating_sub(names)])).collect()
}

/// Rows that cost exactly `total`. `cost` takes the bytes of a row's names and returns its cost
/// without the value.
pub(crate) fn rows_of_cost(
    ns: &str,
    prefix: &str,
    total: u64,
    cost: fn(u64) -> u64,
) -> Vec<(String, Vec<u8>)> {
    let key = |number: usize| format!("{prefix}{number:03}");
    let beside = cost((ns.len() + key(0).len()) as u64);
    let sizes = shares(total, limits().value_bytes).into_iter().enumerate();
    sizes.map(|(number, size)| (key(number), vec![b'x'; size.saturating_sub(beside) as usize])).collect()
}

/// The cost of a staged row without its value, from the bytes of its names.
pub(crate) fn in_transaction(names: u64) -> u64 {
    names + 256
}

/// The cost of a stored row without its value, from the bytes of its names.
pub(crate) fn in_store(names: u64) -> u64 {
    let limits = limits();
    names * limits.name_copies + limits.row_overhead
}

/// What each entry of a list adds to `result-bytes` in addition to its key and value.
pub(crate) const LIST_ENTRY_BYTES: u64 = 256;

/// What each entry of a packed page adds to `result-bytes` in addition to its key and value.
pub(crate) const PACKED_ENTRY_BYTES: u64 = 8;

/// Rows that fill `result-bytes` exactly in one answer that adds `entry_bytes` for each.
pub(crate) fn rows_of_a_result(prefix: &str, entry_bytes: u64) -> Vec<(String, Vec<u8>)> {
    let limits = limits();
    let count = limits.result_bytes.div_ceil(limits.value_bytes + entry_bytes);
    rows_of_size("", prefix, limits.result_bytes - count * entry_bytes)
}

/// Splits `total` into parts of nearly equal size, each at most `max`.
pub(crate) fn shares(total: u64, max: u64) -> Vec<u64> {
    let count = total.div_ceil(max);
    (0..count).map(|number| total / count + u64::from(number < total % count)).collect()
}

/// Encodes entries in the format of the interface `packed`. The suite does not use larder's own
/// encoder, so that it tests any host against the specification.
pub(crate) fn pack(entries: &[Entry]) -> Vec<u8> {
    let mut packed = Vec::new();
    for Entry { key, value } in entries {
        packed.extend((key.len() as u32).to_le_bytes());
        packed.extend((value.len() as u32).to_le_bytes());
        packed.extend(key.as_bytes());
        packed.extend(value);
    }
    packed
}

/// Decodes the entries of a `packed.page`. Stops at the first invalid entry.
pub(crate) fn unpacked(mut packed: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let length = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes) as usize;
    while let (Some(key_bytes), Some(value_bytes)) = (packed.get(..4), packed.get(4..8)) {
        let (key_end, end) = (8 + length(key_bytes), 8 + length(key_bytes) + length(value_bytes));
        let (Some(key), Some(value)) = (packed.get(8..key_end), packed.get(key_end..end)) else { break };
        entries.push(Entry { key: String::from_utf8_lossy(key).into_owned(), value: value.to_vec() });
        packed = packed.get(end..).unwrap_or_default();
    }
    entries
}

// Time and instances

/// Runs a scenario again if it fails with `conflict`: overlapping transactions may conflict even if
/// a serial order exists.
pub(crate) fn retrying<T>(attempt: impl Fn() -> Outcome<T>) -> Outcome<T> {
    retry(20, attempt)
}

/// The same for scenarios in which many instances contend for the same rows.
pub(crate) fn retrying_in_a_crowd<T>(attempt: impl Fn() -> Outcome<T>) -> Outcome<T> {
    retry(2_000, attempt)
}

fn retry<T>(attempts: u64, attempt: impl Fn() -> Outcome<T>) -> Outcome<T> {
    for number in 1..attempts {
        match attempt() {
            Err(Failure::Refused { error: Error::Conflict, .. }) => pause(number),
            ended => return ended,
        }
    }
    attempt()
}

/// Sleeps for a random time, which grows with the attempts.
fn pause(attempt: u64) {
    let random = RandomState::new().hash_one(attempt);
    std::thread::sleep(Duration::from_millis(random % attempt.min(16)));
}

/// Runs workers in parallel, and expects all of them to succeed.
#[track_caller]
pub(crate) fn in_parallel(worker: &str, instances: u32) -> Outcome {
    let ended = probe::parallel(worker, instances);
    expect_eq(ended.len(), instances as usize)?;
    let failed: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(wrong(format!("{} of {instances} workers failed: {}", failed.len(), shortened(&failed))))
}

/// Traps, which ends the instance.
pub(crate) fn trap() -> ! {
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::unreachable();
    #[cfg(not(target_arch = "wasm32"))]
    std::process::abort();
}

/// Counts the events with this name since the last call.
pub(crate) fn count_events(name: &str) -> usize {
    probe::events().iter().filter(|event| event.name == name).count()
}
