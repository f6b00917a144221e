//! For each kind of read: which changes by another transaction conflict, and which must not.

use std::time::Duration;

use larder_core::{
    Entry, Error, Handle, HandleOptions, Limits, Mode, OpenTransactions, PutOptions, Range, Result, Store,
    Transaction, Version,
};

use crate::StandingClock;

/// The rows of each namespace. `x` has expired when the transaction reads.
const ROWS: [&str; 8] = ["a", "b", "b0", "b1", "b2", "c", "d", "x"];
const EXPIRED: &str = "x";

/// A read, and the keys that it depends on.
struct Read {
    name: &'static str,
    kind: Kind,
    /// Changes of these conflict.
    on: &'static [&'static str],
    /// Changes of these must not conflict.
    not_on: &'static [&'static str],
}

/// What a transaction does.
#[derive(Clone, Copy)]
enum Kind {
    Get(&'static str),
    GetMany(&'static [&'static str]),
    GetVersioned(&'static str),
    Scan(&'static str),
    /// A scan with own writes among the rows.
    ScanOver(&'static str, &'static [&'static str]),
    Pages(Asked, usize),
    PackedPage(Asked),
    DeleteRange(Asked),
    Put(&'static str),
    PutAndGet(&'static str),
    DeleteAndGet(&'static str),
    Increment(&'static str),
    IncrementAndGet(&'static str),
    PutAtVersion(&'static str),
    DeleteIfAbsent(&'static str),
    /// A scan that fails, as a counter in it is not a number.
    FailingScan(&'static str),
}

#[derive(Clone, Copy)]
struct Asked {
    prefix: &'static str,
    start: Option<&'static str>,
    end: Option<&'static str>,
    reverse: bool,
    limit: Option<u32>,
    keys_only: bool,
}

const ALL: Asked =
    Asked { prefix: "", start: None, end: None, reverse: false, limit: None, keys_only: false };

const READS: &[Read] = &[
    Read { name: "a row", kind: Kind::Get("b"), on: &["b"], not_on: &["a", "b0", "b\0", "", "x"] },
    Read { name: "an absent row", kind: Kind::Get("bb"), on: &["bb"], not_on: &["b", "b2", "bb\0", "c"] },
    Read { name: "an expired row", kind: Kind::Get("x"), on: &["x"], not_on: &["d", "x\0", "y"] },
    Read {
        name: "several rows",
        kind: Kind::GetMany(&["a", "zz", "a", "x"]),
        on: &["a", "zz", "x"],
        not_on: &["b", "z", "d"],
    },
    Read { name: "a row and its version", kind: Kind::GetVersioned("c"), on: &["c"], not_on: &["b2", "d"] },
    Read {
        name: "a prefix",
        kind: Kind::Scan("b"),
        on: &["b", "b0", "b2", "b\0", "b9", "b\u{10ffff}"],
        not_on: &["a", "a\u{10ffff}", "c", ""],
    },
    Read {
        name: "a prefix with own writes",
        kind: Kind::ScanOver("b", &["b", "b5"]),
        on: &["b", "b0", "b5", "b9"],
        not_on: &["a", "c"],
    },
    Read { name: "all rows", kind: Kind::Scan(""), on: &["", "a", "d", "x", "zz"], not_on: &[] },
    Read {
        name: "the first page",
        kind: Kind::Pages(Asked { limit: Some(2), ..ALL }, 1),
        on: &["", "a", "a5", "b", "b\0", "b0"],
        not_on: &["b0\0", "b1", "c", "x"],
    },
    Read {
        name: "the first two pages",
        kind: Kind::Pages(Asked { limit: Some(2), ..ALL }, 2),
        on: &["", "a", "b", "b0", "b1", "b2"],
        not_on: &["b2\0", "c"],
    },
    Read {
        name: "the first page of keys",
        kind: Kind::Pages(Asked { limit: Some(2), keys_only: true, ..ALL }, 1),
        on: &["a", "b", "b0"],
        not_on: &["b0\0", "b1"],
    },
    Read {
        name: "the last page",
        kind: Kind::Pages(Asked { limit: Some(2), reverse: true, ..ALL }, 1),
        on: &["zz", "x", "d", "c\0", "c", "b2\0", "b2"],
        not_on: &["b1\u{10ffff}", "b1", "a", ""],
    },
    Read {
        name: "a range between two rows",
        kind: Kind::Pages(Asked { start: Some("b"), end: Some("c"), ..ALL }, 1),
        on: &["b", "b2", "b\u{10ffff}"],
        not_on: &["a", "a\u{10ffff}", "c", "c\0"],
    },
    Read {
        name: "a range with as many rows as its limit",
        kind: Kind::Pages(Asked { start: Some("b0"), end: Some("b2"), limit: Some(2), ..ALL }, 1),
        on: &["b0", "b1", "b1z"],
        not_on: &["b", "b2"],
    },
    Read {
        name: "a range that is empty",
        kind: Kind::Pages(Asked { start: Some("c"), end: Some("b"), ..ALL }, 1),
        on: &[],
        not_on: &["b", "b5", "c"],
    },
    Read {
        name: "a range without rows",
        kind: Kind::Pages(Asked { start: Some("b3"), end: Some("b7"), ..ALL }, 1),
        on: &["b3", "b5"],
        not_on: &["b2", "b7", "c"],
    },
    Read {
        name: "a page of no entries",
        kind: Kind::Pages(Asked { limit: Some(0), ..ALL }, 1),
        on: &[],
        not_on: &["a", "b"],
    },
    Read {
        name: "a packed page",
        kind: Kind::PackedPage(Asked { limit: Some(3), ..ALL }),
        on: &["a", "b0", "b1"],
        not_on: &["b1\0", "b2"],
    },
    Read {
        name: "a range that is deleted",
        kind: Kind::DeleteRange(Asked { prefix: "b", limit: Some(2), ..ALL }),
        on: &["b", "b\0", "b0", "b1"],
        not_on: &["a", "b1\0", "b2", "c"],
    },
    Read { name: "no row, but a write", kind: Kind::Put("a"), on: &[], not_on: &["a", "b"] },
    Read { name: "an own write", kind: Kind::PutAndGet("a"), on: &[], not_on: &["a", "b"] },
    Read { name: "an own delete", kind: Kind::DeleteAndGet("a"), on: &[], not_on: &["a", "b"] },
    Read { name: "no row, but an increment", kind: Kind::Increment("a"), on: &[], not_on: &["a", "b"] },
    Read { name: "an own increment", kind: Kind::IncrementAndGet("a"), on: &["a"], not_on: &["b", ""] },
    Read { name: "a version", kind: Kind::PutAtVersion("c"), on: &["c"], not_on: &["b2", "d"] },
    Read { name: "an absence", kind: Kind::DeleteIfAbsent("new"), on: &["new"], not_on: &["d", "x"] },
    Read { name: "a scan that failed", kind: Kind::FailingScan("b"), on: &[], not_on: &["a", "c"] },
];

/// A change of one row by another transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Put,
    Delete,
    /// No change: the rows that have expired are removed.
    Sweep,
}

/// One read and one change, in a namespace of their own.
struct Case {
    read: &'static Read,
    key: &'static str,
    change: Change,
    conflicts: bool,
    namespace: String,
}

/// How the cases are run.
#[derive(Clone, Copy, Debug)]
pub struct Conflicts {
    /// How many transactions are open at once.
    pub at_once: usize,
    /// How many unrelated rows are written after the changes.
    pub flood: usize,
}

/// Checks all reads against all changes. The changes are made through `other`, which is the same
/// store or another host of it.
///
/// The stores have the clock and do not sweep by themselves.
///
/// # Errors
/// Each case in which a commit should have conflicted and did not, or the other way round.
pub async fn check_conflicts(
    conflicts: Conflicts,
    store: &Store,
    other: &Store,
    clock: &StandingClock,
) -> std::result::Result<(), String> {
    let mut wrong = Vec::new();
    for cases in cases().chunks(conflicts.at_once) {
        let found = check(conflicts, cases, store, other, clock).await;
        wrong.extend(found.map_err(|error| error.to_string())?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for read in READS {
        let mut add = |key, change, conflicts| {
            let namespace = format!("n{}", cases.len());
            cases.push(Case { read, key, change, conflicts, namespace });
        };
        for key in read.on {
            add(key, Change::Put, true);
            if ROWS.contains(key) && *key != EXPIRED {
                add(key, Change::Delete, true);
            }
        }
        for key in read.not_on {
            add(key, Change::Put, false);
            add(key, Change::Delete, false);
        }
        add("", Change::Sweep, false);
    }
    cases
}

async fn check(
    conflicts: Conflicts,
    cases: &[Case],
    store: &Store,
    other: &Store,
    clock: &StandingClock,
) -> Result<Vec<String>> {
    let (handle, others) = (handle(store), handle(other));
    let mut versions = Vec::new();
    for case in cases {
        versions.push(fill(&handle, &case.namespace).await?);
    }
    clock.advance(Duration::from_secs(2));
    let mut open = Vec::new();
    for (case, version) in cases.iter().zip(versions) {
        let mut transaction = handle.begin(Mode::Update)?;
        case.read.kind.make(&mut transaction, &case.namespace, version).await?;
        transaction.put(format!("{} own", case.namespace), "own".into(), Vec::new())?;
        open.push(transaction);
    }
    // A sweep removes expired rows from all namespaces, so the changes that need them come first.
    let (sweeps, changes): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.change == Change::Sweep);
    for case in changes.into_iter().chain(sweeps) {
        case.change(&others, other).await?;
    }
    flood(&others, conflicts.flood).await?;
    let mut wrong = Vec::new();
    for (case, transaction) in cases.iter().zip(open) {
        let outcome = transaction.commit().await;
        let is_right = match &outcome {
            Ok(_) => !case.conflicts,
            Err(Error::Conflict) => case.conflicts,
            Err(_) => false,
        };
        if !is_right {
            let Case { read: Read { name, .. }, key, change, .. } = case;
            wrong.push(format!("{name} was read, then {change:?} of {key:?}: {outcome:?} ({conflicts:?})"));
        }
    }
    Ok(wrong)
}

fn handle(store: &Store) -> Handle {
    let limits = Limits::default().transaction_timeout(Duration::from_secs(3_000));
    store.handle(HandleOptions::default().limits(limits).open_transactions(OpenTransactions::at_most(10_000)))
}

async fn fill(handle: &Handle, namespace: &str) -> Result<Version> {
    let mut update = handle.begin(Mode::Update)?;
    for key in ROWS {
        let ttl_ms = (key == EXPIRED).then_some(1_000);
        let options = PutOptions::default().ttl_ms(ttl_ms);
        update.put_with(namespace.to_string(), key.to_string(), b"1".to_vec(), options)?;
    }
    update.commit().await
}

/// Writes unrelated rows, so that the log of commits no longer reaches back to the snapshots.
async fn flood(handle: &Handle, rows: usize) -> Result<()> {
    let keys: Vec<_> = (0..rows).map(|row| format!("{row:06}")).collect();
    for keys in keys.chunks(5_000) {
        let mut update = handle.begin(Mode::Update)?;
        let entries = keys.iter().map(|key| Entry { key: key.clone(), value: Vec::new() });
        update.put_many("flood".to_string(), entries.collect()).await?;
        update.commit().await?;
    }
    Ok(())
}

impl Case {
    async fn change(&self, handle: &Handle, store: &Store) -> Result<()> {
        if self.change == Change::Sweep {
            return store.sweep().await.map(drop);
        }
        let mut update = handle.begin(Mode::Update)?;
        let (namespace, key) = (self.namespace.clone(), self.key.to_string());
        match self.change {
            Change::Put => update.put(namespace, key, b"2".to_vec())?,
            Change::Delete | Change::Sweep => update.delete(namespace, key)?,
        }
        update.commit().await.map(drop)
    }
}

impl Asked {
    fn range(self) -> Range {
        Range {
            prefix: self.prefix.to_string(),
            start: self.start.map(str::to_string),
            end: self.end.map(str::to_string),
            reverse: self.reverse,
            limit: self.limit,
            keys_only: self.keys_only,
        }
    }
}

impl Kind {
    /// Makes the calls. The rows of the namespace are at a version.
    async fn make(self, transaction: &mut Transaction, namespace: &str, version: Version) -> Result<()> {
        let namespace = namespace.to_string();
        match self {
            Self::Get(key) => drop(transaction.get(namespace, key.to_string()).await?),
            Self::GetMany(keys) => {
                let keys = keys.iter().map(|key| (*key).to_string()).collect();
                transaction.get_many(namespace, keys).await?;
            }
            Self::GetVersioned(key) => {
                transaction.get_versioned(namespace, key.to_string()).await?;
            }
            Self::Scan(prefix) => drop(transaction.scan(namespace, prefix.to_string()).await?),
            Self::ScanOver(prefix, own) => {
                for key in own {
                    transaction.put(namespace.clone(), (*key).to_string(), Vec::new())?;
                }
                transaction.scan(namespace, prefix.to_string()).await?;
            }
            Self::Pages(asked, pages) => {
                let mut after = None;
                for _ in 0..pages {
                    after = transaction.scan_page(namespace.clone(), asked.range(), after).await?.next;
                }
            }
            Self::PackedPage(asked) => {
                transaction.scan_page_packed(namespace, asked.range(), None).await?;
            }
            Self::DeleteRange(asked) => {
                transaction.delete_range(namespace, asked.range()).await?;
            }
            Self::Put(key) => transaction.put(namespace, key.to_string(), Vec::new())?,
            Self::PutAndGet(key) => {
                transaction.put(namespace.clone(), key.to_string(), Vec::new())?;
                transaction.get(namespace, key.to_string()).await?;
            }
            Self::DeleteAndGet(key) => {
                transaction.delete(namespace.clone(), key.to_string())?;
                transaction.get_versioned(namespace.clone(), key.to_string()).await?;
                transaction.get(namespace, key.to_string()).await?;
            }
            Self::Increment(key) => transaction.increment(namespace, key.to_string(), 1)?,
            Self::IncrementAndGet(key) => {
                transaction.increment(namespace.clone(), key.to_string(), 1)?;
                transaction.get(namespace, key.to_string()).await?;
            }
            Self::PutAtVersion(key) => {
                let options = PutOptions::default().if_version(version);
                transaction.put_with(namespace, key.to_string(), Vec::new(), options)?;
            }
            Self::DeleteIfAbsent(key) => {
                transaction.delete_if_version(namespace, key.to_string(), Version::ABSENT)?;
            }
            Self::FailingScan(prefix) => {
                let key = format!("{prefix}5");
                transaction.put(namespace.clone(), key.clone(), b"1".to_vec())?;
                transaction.increment(namespace.clone(), format!("{prefix}6"), 1)?;
                transaction.increment(namespace.clone(), format!("{prefix}0"), i64::MAX)?;
                let failed = transaction.scan(namespace.clone(), prefix.to_string()).await;
                assert!(matches!(failed, Err(Error::InvalidArgument(_))), "{failed:?}");
                // The mistake of the guest does not end the transaction.
                transaction.delete(namespace.clone(), format!("{prefix}0"))?;
                assert_eq!(transaction.get(namespace, key).await?, Some(b"1".to_vec()));
            }
        }
        Ok(())
    }
}
