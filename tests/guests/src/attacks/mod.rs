//! Attacks on other guests of the process, within the default limits.
//!
//! The group `fairness` of `tests/bench` runs them beside a victim and prepares the rows that they
//! read. The program `attackers` runs one attack without end. The host counts each step as one
//! operation.

mod commits;
mod handles;
mod long_calls;
mod retained;
mod snapshots;
mod validation;

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::time::{Duration, Instant};

use larder_guest::raw::store::Store;
use larder_guest::raw::tx::{Mode, Range, Tx};
use larder_guest::raw::types::{Entry, Error};

/// The number of rows that the host prepares in the namespace [`ROWS`].
const ROW_COUNT: u64 = 20_000;
/// The namespace of rows of 100 bytes that every attacker reads.
const ROWS: &str = "rows";
/// The most rows that one transaction may write, and keys that one call may read.
const MUTATIONS_MAX: u64 = 10_000;
/// The size of the largest value.
const VALUE_BYTES_MAX: usize = 1 << 20;
/// The size of values of which 15 fit into one transaction.
const LARGE_VALUE_BYTES: usize = 256 << 10;
/// How many of them fit.
const LARGE_VALUES_MAX: u64 = 15;
/// The most transactions that one instance may have open.
const OPEN_MAX: usize = 16;

/// One step of an attack.
pub type Step = fn(&mut Attacker) -> Result<(), Error>;

/// Finds the step of an attack by its name.
pub fn find(name: &str) -> Option<Step> {
    let step: Step = match name {
        "well-behaved" => well_behaved,
        "computes" => computes,
        "held-views" | "held-read-only-views" => snapshots::held_views,
        "held-updates" => snapshots::held_updates,
        "held-scans" => snapshots::held_scans,
        "touched-views" => snapshots::touched_views,
        "staggered-views" => snapshots::staggered_views,
        "views-back-to-back" => snapshots::views_back_to_back,
        "rewrites" => snapshots::rewrites,
        "validated-ranges" => validation::ranges,
        "validated-pages" => validation::pages,
        "validated-rows" => validation::rows,
        "many-rows" => commits::many_rows,
        "many-bytes" => commits::many_bytes,
        "long-keys" => commits::long_keys,
        "absent-rows" => commits::absent_rows,
        "small-commits" => commits::small,
        "increments" => commits::increments,
        "hot-row" => commits::hot_row,
        "failing-conditions" => commits::failing_conditions,
        "short-lived-rows" => commits::short_lived_rows,
        "many-namespaces" => commits::many_namespaces,
        "tiny-rows" => retained::tiny_rows,
        "staged-bytes" => retained::staged_bytes,
        "staged-rows" => retained::staged_rows,
        "read-sets" => retained::read_sets,
        "generations" => retained::generations,
        "conversations" => retained::conversations,
        "scan-expired" => long_calls::scan_expired,
        "scan-empty-values" | "scan-tiny-rows" => long_calls::scan_tiny,
        "delete-range" => long_calls::delete_range,
        "get-many" => long_calls::get_many,
        "put-many" => long_calls::put_many,
        "largest-value" => long_calls::largest_value,
        "reverse-over-deleted" => long_calls::reverse_over_deleted,
        "migrations" => long_calls::migrations,
        "begin-and-drop" => handles::begin_and_drop,
        "open-stores" => handles::open_stores,
        "forged-cursors" => handles::forged_cursors,
        "refused-calls" => handles::refused_calls,
        "traps" => handles::traps,
        _ => return None,
    };
    Some(step)
}

/// One attacker: an instance with an open store, and its state between steps.
#[derive(Debug)]
pub struct Attacker {
    number: u64,
    store: Store,
    /// The namespace of its own rows.
    namespace: String,
    /// Its user, and the component name for which it may declare migrations.
    identity: String,
    steps: u64,
    held: Vec<Tx>,
    random: u64,
}

impl Attacker {
    /// Opens the store for attacker `number` of an attack.
    ///
    /// # Errors
    /// - [`Error::NoSuchStore`] if the store is not granted.
    pub fn new(attack: &str, number: u64) -> Result<Self, Error> {
        let store = crate::open()?;
        let (namespace, identity) = (format!("{attack}-{number}"), format!("attacker-{number}"));
        Ok(Self { number, store, namespace, identity, steps: 0, held: Vec::new(), random: seed() })
    }

    /// Runs the attack without end, and reports each step to the host.
    pub fn run(&mut self, step: Step) {
        let mut is_first_refusal = true;
        loop {
            let outcome = step(self);
            self.steps += 1;
            if let (Err(error), true) = (&outcome, is_first_refusal) {
                eprintln!("{error:?}");
                is_first_refusal = false;
            }
            tell(&outcome);
        }
    }

    /// A pseudo-random number below `bound`.
    fn draw(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound.max(1)
    }

    fn update(&self) -> Result<Tx, Error> {
        self.store.begin(Mode::Update)
    }

    fn view(&self) -> Result<Tx, Error> {
        self.store.begin(Mode::View)
    }

    /// Commits `count` entries under keys from `first` on.
    fn put(&self, first: u64, count: u64, value: &[u8]) -> Result<(), Error> {
        let tx = self.update()?;
        tx.put_many(&self.namespace, &entries(first, count, value))?;
        Tx::commit(tx).map(drop)
    }
}

/// A new seed for each instance, so that attackers do not read the rows that others have just read.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Reports an operation to the host: `.` if it succeeded, `x` if it failed.
fn tell<E: Debug>(outcome: &Result<(), E>) {
    let mark: &[u8] = if outcome.is_ok() { b"." } else { b"x" };
    let mut output = std::io::stdout().lock();
    // If the host does not read, it counts no operation and fails the cell.
    let _ = output.write_all(mark).and_then(|()| output.flush());
}

fn key(index: u64) -> String {
    format!("{index:06}")
}

fn keys(first: u64, count: u64) -> Vec<String> {
    (first..first + count).map(key).collect()
}

fn entries(first: u64, count: u64, value: &[u8]) -> Vec<Entry> {
    keys(first, count).into_iter().map(|key| Entry { key, value: value.to_vec() }).collect()
}

/// The range of `count` keys from `first` on, without values.
fn range(first: u64, count: u64) -> Range {
    Range {
        prefix: String::new(),
        start: Some(key(first)),
        end: Some(key(first + count)),
        reverse: false,
        limit: None,
        keys_only: true,
    }
}

/// The whole namespace, one entry for each page.
fn one_entry(reverse: bool) -> Range {
    Range { prefix: String::new(), start: None, end: None, reverse, limit: Some(1), keys_only: false }
}

/// The shortest time for which a guest computes.
const COMPUTES: Duration = Duration::from_millis(1);

/// One step of a well-behaved guest: a small view, a small update, and computation.
///
/// It computes for three times as long as its transactions took, so that it keeps the processor
/// busy on every backend, as most attacks do. Otherwise the victim would wait longer beside every
/// attack that computes, whatever the attack does with its store.
fn well_behaved(guest: &mut Attacker) -> Result<(), Error> {
    let since = Instant::now();
    let tx = guest.view()?;
    tx.get(ROWS, &key(guest.draw(ROW_COUNT)))?;
    Tx::commit(tx)?;
    let own = key(guest.draw(1_000));
    let tx = guest.update()?;
    tx.get(&guest.namespace, &own)?;
    tx.put(&guest.namespace, &own, &[7; 100])?;
    Tx::commit(tx)?;
    compute(COMPUTES.max(since.elapsed() * 3));
    Ok(())
}

/// The control: computes, and never calls its store.
///
/// The victim must be as fast beside it as beside well-behaved guests. Then the other ratios
/// measure larder.
fn computes(_guest: &mut Attacker) -> Result<(), Error> {
    compute(COMPUTES);
    Ok(())
}

fn compute(duration: Duration) {
    let since = Instant::now();
    let mut sum = 0_u64;
    while since.elapsed() < duration {
        for number in 0..1_000 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(number));
        }
    }
}
