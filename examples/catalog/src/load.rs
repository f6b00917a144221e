//! Loading packages into the store, in batches.

use std::fmt;
use std::io::BufRead;
use std::time::{Duration, Instant};

use larder_guest::{Error, LimitKind, Store, Table};

use crate::package::Package;
use crate::stanza::Stanzas;

/// Rows and index entries of one transaction, approximately. The host allows 10,000 by default.
const BATCH_ROWS: usize = 2_000;

/// Bytes of one transaction, approximately. The host allows 4 MiB by default.
const BATCH_BYTES: usize = 2 << 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Totals of a load.
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

/// Stores every package of `input` and replaces packages of the same name and architecture. Each
/// batch is atomic; if one fails, the batches before it stay.
pub(crate) fn load(store: &Store, table: &Table<Package>, input: impl BufRead) -> Outcome<Loaded> {
    let start = Instant::now();
    let mut loaded = Loaded { packages: 0, dependencies: 0, transactions: 0, time: Duration::ZERO };
    let mut put = |packages: &[Package]| store.update(|tx| table.put_many(tx, packages));
    let mut batch = Batch::default();
    for stanza in Stanzas::new(input) {
        batch.push(Package::from_stanza(&stanza?)?);
        if batch.is_full() {
            loaded.add(&std::mem::take(&mut batch).packages, &mut put)?;
        }
    }
    loaded.add(&batch.packages, &mut put)?;
    loaded.time = start.elapsed();
    Ok(loaded)
}

/// Packages for one transaction.
#[derive(Default)]
struct Batch {
    packages: Vec<Package>,
    rows: usize,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, package: Package) {
        self.rows += 2 + package.depends.len();
        self.bytes += package.stored_bytes();
        self.packages.push(package);
    }

    fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }
}

impl Loaded {
    /// Puts packages in one transaction, or in several if one cannot hold them. A batch may exceed
    /// the limits: only the put finds out which index entries of replaced rows it has to delete,
    /// and a host may have smaller limits than the default.
    fn add(
        &mut self,
        packages: &[Package],
        put: &mut impl FnMut(&[Package]) -> Result<(), Error>,
    ) -> Outcome<()> {
        let Some(first) = packages.first() else { return Ok(()) };
        match put(packages) {
            Ok(()) => self.count(packages),
            Err(error) if !is_too_much(&error) => return Err(error.into()),
            Err(error) if packages.len() == 1 => {
                return Err(format!("cannot store the package {:?}: {error}", first.name).into());
            }
            Err(_) => {
                let (front, back) = packages.split_at(packages.len() / 2);
                self.add(front, put)?;
                self.add(back, put)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, packages: &[Package]) {
        self.packages += packages.len();
        self.dependencies += packages.iter().map(|package| package.depends.len()).sum::<usize>();
        self.transactions += 1;
    }
}

fn is_too_much(error: &Error) -> bool {
    use LimitKind::{TransactionBytes, TransactionMutations};
    matches!(error, Error::LimitExceeded { kind: TransactionBytes | TransactionMutations, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, summary: &str, dependencies: usize) -> Package {
        Package {
            name: name.to_string(),
            architecture: String::new(),
            version: String::new(),
            summary: summary.to_string(),
            depends: (0..dependencies).map(|number| number.to_string()).collect(),
        }
    }

    fn batch(packages: impl IntoIterator<Item = Package>) -> Batch {
        let mut batch = Batch::default();
        packages.into_iter().for_each(|package| batch.push(package));
        batch
    }

    #[test]
    fn a_batch_is_full_by_rows_or_by_bytes() {
        assert!(!batch([package("a", "", 1_997)]).is_full());
        assert!(batch([package("a", "", 1_998)]).is_full());
        let large = "x".repeat(1 << 20);
        assert!(!batch([package("a", &large, 0)]).is_full());
        assert!(batch((0..4).map(|_| package("a", &large, 0))).is_full());
    }

    fn too_many() -> Error {
        Error::LimitExceeded { kind: LimitKind::TransactionMutations, max: 2, requested: 3 }
    }

    fn loaded() -> Loaded {
        Loaded { packages: 0, dependencies: 0, transactions: 0, time: Duration::ZERO }
    }

    #[test]
    fn what_one_transaction_can_not_hold_goes_into_several() {
        let packages = ["a", "b", "c", "d", "e"].map(|name| package(name, "", 1));
        let mut stored = Vec::new();
        let mut put = |packages: &[Package]| {
            if packages.len() > 2 {
                return Err(too_many());
            }
            stored.push(packages.iter().map(|package| package.name.as_str()).collect::<String>());
            Ok(())
        };
        let mut loaded = loaded();
        loaded.add(&packages, &mut put).unwrap();
        assert_eq!(stored, ["ab", "c", "de"]);
        assert_eq!((loaded.packages, loaded.dependencies, loaded.transactions), (5, 5, 3));
    }

    #[test]
    fn a_package_that_no_transaction_can_hold_is_named() {
        let packages = ["a", "b"].map(|name| package(name, "", 0));
        let mut put = |packages: &[Package]| {
            if packages.iter().any(|package| package.name == "b") { Err(too_many()) } else { Ok(()) }
        };
        let error = loaded().add(&packages, &mut put).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot store the package \"b\": limit exceeded: transaction-mutations is at most 2, 3 were asked for"
        );
    }

    #[test]
    fn another_error_is_given_at_once() {
        let packages = ["a", "b"].map(|name| package(name, "", 0));
        let mut calls = 0;
        let mut put = |_: &[Package]| {
            calls += 1;
            Err(Error::TimedOut)
        };
        let error = loaded().add(&packages, &mut put).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&Error::TimedOut));
        assert_eq!(calls, 1);
    }
}
