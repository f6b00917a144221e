//! Loading packages into the store, in batches.

use std::fmt;
use std::io::BufRead;
use std::time::{Duration, Instant};

use larder_guest::{Error, Store, Table};

use crate::package::Package;
use crate::stanza::Stanzas;

/// Rows and index entries of one transaction, about; the host's default allows 10,000.
const BATCH_ROWS: usize = 2_000;

/// What was loaded.
pub(crate) struct Loaded {
    packages: usize,
    dependencies: usize,
    transactions: usize,
    time: Duration,
}

impl fmt::Display for Loaded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packages, dependencies, transactions, time } = self;
        let seconds = time.as_secs_f64();
        let rate = *packages as f64 / seconds.max(f64::MIN_POSITIVE);
        write!(
            formatter,
            "stored {packages} packages with {dependencies} dependencies in {transactions} transactions: \
             {seconds:.3} s, {rate:.0} packages a second"
        )
    }
}

/// Stores every package of `input`, in the place of those of the same name and architecture. A batch is stored
/// whole or not at all; those before it stay.
pub(crate) fn load(
    store: &Store,
    table: &Table<Package>,
    input: impl BufRead,
) -> Result<Loaded, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let mut loaded = Loaded { packages: 0, dependencies: 0, transactions: 0, time: Duration::ZERO };
    let mut batch = Vec::new();
    let mut rows = 0;
    for stanza in Stanzas::new(input) {
        let package = Package::from_stanza(&stanza?)?;
        rows += 1 + package.depends.len();
        batch.push(package);
        if rows >= BATCH_ROWS {
            loaded.add(store, table, &batch)?;
            batch.clear();
            rows = 0;
        }
    }
    if !batch.is_empty() {
        loaded.add(store, table, &batch)?;
    }
    loaded.time = start.elapsed();
    Ok(loaded)
}

impl Loaded {
    fn add(&mut self, store: &Store, table: &Table<Package>, batch: &[Package]) -> Result<(), Error> {
        store.update(|tx| table.put_many(tx, batch))?;
        self.packages += batch.len();
        self.dependencies += batch.iter().map(|package| package.depends.len()).sum::<usize>();
        self.transactions += 1;
        Ok(())
    }
}
