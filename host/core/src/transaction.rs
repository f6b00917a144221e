//! A transaction: a snapshot, the writes to make, and what was read.

mod ledger;
mod reading;
mod staging;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::{Mode, Version};
use crate::commit::{Commit, Mutation};
use crate::counter;
use crate::cursor;
use crate::error::{Error, LimitKind, Result};
use crate::held::Held;
use crate::limits::Limits;
use crate::name::{Key, KeyRange, Namespace, RowKey, Value, just_after};
use crate::packed;
use crate::pairs::Pairs;
use crate::read_set::ReadSet;
use crate::scan::Scan;
use crate::slice::{ROW, STORED_ROW, Slice};
use crate::stage::Stage;
use crate::store::OpenTransaction;

/// One transaction of a store; dropping it rolls back.
///
/// It holds nothing in the engine but the snapshot that its reads answer from, taken at the first of them:
/// writes are staged here and made at [`Transaction::commit`]. Names and values are given as a guest sends them
/// and are checked here, against the limits of the handle that began the transaction. What each call means, and
/// which errors it gives, is said in `larder:storage/tx`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, InMemory, Mode, Store};
///
/// let handle = Store::builder(InMemory::new()).build()?.handle(HandleOptions::default());
/// let mut transaction = handle.begin(Mode::Update)?;
/// transaction.put("fruit".into(), "apple".into(), b"red".to_vec())?;
/// transaction.commit().await?;
///
/// let mut view = handle.begin(Mode::View)?;
/// assert_eq!(view.get("fruit".into(), "apple".into()).await?, Some(b"red".to_vec()));
/// # Ok(()) }
/// ```
pub struct Transaction {
    open: OpenTransaction,
    limits: Arc<Limits>,
    mode: Mode,
    writes: BTreeMap<RowKey, Mutation>,
    conditions: BTreeMap<RowKey, Version>,
    /// Two conditions on one row that can't both hold.
    contradiction: bool,
    reads: ReadSet,
    /// What of `transaction_bytes` is used.
    held: Held,
}

/// Which keys of a namespace, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Literal; empty for the whole namespace.
    pub prefix: String,
    /// Inclusive lower bound.
    pub start: Option<String>,
    /// Exclusive upper bound.
    pub end: Option<String>,
    /// From the last key to the first.
    pub reverse: bool,
    /// At most so many entries.
    pub limit: Option<u32>,
    /// Values are left empty.
    pub keys_only: bool,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the range's order.
    pub entries: Vec<Entry>,
    /// What to pass as `after` for the next page.
    pub next: Option<String>,
}

/// A part of a range, its entries [packed](crate::packed).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedPage {
    /// In the range's order.
    pub entries: Vec<u8>,
    /// What to pass as `after` for the next page.
    pub next: Option<String>,
}

/// How a row is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// How long after its commit the row is there, in milliseconds.
    pub ttl_millis: Option<u64>,
    /// The version that the committed row must be at.
    pub if_version: Option<Version>,
}

impl Transaction {
    pub(crate) fn new(open: OpenTransaction, limits: Arc<Limits>, mode: Mode, held: Held) -> Self {
        Self {
            open,
            limits,
            mode,
            writes: BTreeMap::new(),
            conditions: BTreeMap::new(),
            contradiction: false,
            reads: ReadSet::default(),
            held,
        }
    }

    /// The value of a row.
    ///
    /// # Errors
    /// As `tx.get` of the WIT.
    pub async fn get(&mut self, namespace: String, key: String) -> Result<Option<Vec<u8>>> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        let stored = if !self.needs_committed(&row) {
            None
        } else if let Some(stored) = self.committed_now(&row)? {
            stored
        } else {
            self.committed_later(&row).await?
        };
        let value = self.on_top(&row, stored)?;
        self.limits.check(LimitKind::ResultBytes, value.as_ref().map_or(0, |value| value.len() as u64))?;
        Ok(value)
    }

    /// The values of several rows.
    ///
    /// # Errors
    /// As `tx.get-many` of the WIT.
    pub async fn get_many(&mut self, namespace: String, keys: Vec<String>) -> Result<Vec<Option<Vec<u8>>>> {
        self.check_open()?;
        self.limits.check(LimitKind::TransactionMutations, keys.len() as u64)?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let mut slice = Slice::default();
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            slice.count(STORED_ROW, key.len());
            slice.pause().await;
            rows.push(RowKey { namespace: namespace.clone(), key: Key::new(key, &self.limits)? });
        }
        let missing: Vec<Key> =
            rows.iter().filter(|row| self.needs_committed(row)).map(|row| row.key.clone()).collect();
        let mut committed = self.committed_many(&namespace, missing, &mut slice).await?.into_iter();
        let mut values = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for row in &rows {
            let stored = if self.needs_committed(row) { committed.next().flatten() } else { None };
            let value = self.on_top(row, stored)?;
            slice.count(STORED_ROW, value.as_ref().map_or(0, Vec::len));
            slice.pause().await;
            bytes += value.as_ref().map_or(0, |value| value.len() as u64 + Limits::LIST_ENTRY_BYTES);
            self.limits.check(LimitKind::ResultBytes, bytes)?;
            values.push(value);
        }
        Ok(values)
    }

    /// The value of a row and its version.
    ///
    /// # Errors
    /// As `tx.get-versioned` of the WIT.
    pub async fn get_versioned(
        &mut self,
        namespace: String,
        key: String,
    ) -> Result<Option<(Vec<u8>, Version)>> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        if self.writes.get(&row) == Some(&Mutation::Delete) {
            return Ok(None);
        }
        let stored = match self.committed_now(&row)? {
            Some(stored) => stored,
            None => self.committed_later(&row).await?,
        };
        let version = stored.as_ref().map_or(Version::ABSENT, |stored| stored.version);
        let value = self.on_top(&row, stored)?;
        self.limits.check(LimitKind::ResultBytes, value.as_ref().map_or(0, |value| value.len() as u64))?;
        Ok(value.map(|value| (value, version)))
    }

    /// Stages a value.
    ///
    /// # Errors
    /// As `tx.put` of the WIT.
    pub fn put(&mut self, namespace: String, key: String, value: Vec<u8>) -> Result<()> {
        self.put_with(namespace, key, value, PutOptions::default())
    }

    /// Stages several values, or none.
    ///
    /// # Errors
    /// As `tx.put-many` of the WIT.
    pub async fn put_many(&mut self, namespace: String, entries: Vec<Entry>) -> Result<()> {
        self.check_open()?;
        self.limits.check(LimitKind::TransactionMutations, entries.len() as u64)?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let mut slice = Slice::default();
        let mut changes = BTreeMap::new();
        for Entry { key, value } in entries {
            slice.count(STORED_ROW, key.len());
            slice.pause().await;
            let row = RowKey { namespace: namespace.clone(), key: Key::new(key, &self.limits)? };
            let value = Value::new(value, &self.limits)?;
            changes.insert(row, Mutation::Put { value, ttl_millis: None });
        }
        self.check_writable(&namespace)?;
        self.stage_all(changes, slice).await
    }

    /// Stages several values that are [packed](crate::packed), or none.
    ///
    /// # Errors
    /// As `tx.put-packed` of the WIT.
    pub async fn put_packed(&mut self, namespace: String, entries: &[u8]) -> Result<()> {
        self.check_open()?;
        // Until they are staged, they are in memory twice.
        let _copy = self.held.count().hold(entries.len() as u64)?;
        let mut slice = Slice::default();
        let mut unpacked = Vec::new();
        for entry in packed::Unpacking::new(entries) {
            let entry = entry?;
            slice.count(ROW, entry.key.len() + entry.value.len());
            slice.pause().await;
            unpacked.push(entry);
            self.limits.check(LimitKind::TransactionMutations, unpacked.len() as u64)?;
        }
        self.put_many(namespace, unpacked).await
    }

    /// Stages a value that expires, or that is written only over a certain version.
    ///
    /// # Errors
    /// As `tx.put-with` of the WIT.
    pub fn put_with(
        &mut self,
        namespace: String,
        key: String,
        value: Vec<u8>,
        options: PutOptions,
    ) -> Result<()> {
        self.check_open()?;
        if options.ttl_millis == Some(0) {
            return Err(Error::invalid_argument(
                "a time to live of 0 ms: give at least 1, or none for a permanent row",
            ));
        }
        let row = self.row(namespace, key)?;
        let value = Value::new(value, &self.limits)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Put { value, ttl_millis: options.ttl_millis }, options.if_version)
    }

    /// Stages a delete.
    ///
    /// # Errors
    /// As `tx.delete` of the WIT.
    pub fn delete(&mut self, namespace: String, key: String) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Delete, None)
    }

    /// Stages several deletes, or none.
    ///
    /// # Errors
    /// As `tx.delete-many` of the WIT.
    pub async fn delete_many(&mut self, namespace: String, keys: Vec<String>) -> Result<()> {
        self.check_open()?;
        self.limits.check(LimitKind::TransactionMutations, keys.len() as u64)?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let mut slice = Slice::default();
        let mut changes = BTreeMap::new();
        for key in keys {
            slice.count(STORED_ROW, key.len());
            slice.pause().await;
            let row = RowKey { namespace: namespace.clone(), key: Key::new(key, &self.limits)? };
            changes.insert(row, Mutation::Delete);
        }
        self.check_writable(&namespace)?;
        self.stage_all(changes, slice).await
    }

    /// Stages a delete of a row at a certain version.
    ///
    /// # Errors
    /// As `tx.delete-if-version` of the WIT.
    pub fn delete_if_version(&mut self, namespace: String, key: String, expected: Version) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Delete, Some(expected))
    }

    /// Stages the deletes of a range, and counts them.
    ///
    /// # Errors
    /// As `tx.delete-range` of the WIT.
    pub async fn delete_range(&mut self, namespace: String, range: Range) -> Result<u64> {
        self.check_open()?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let key_range = self.key_range(&namespace, &range)?;
        self.check_writable(&namespace)?;
        let at_most = self.limits.transaction_mutations.saturating_add(1);
        let wanted = range.limit.map_or(at_most, |limit| u64::from(limit).min(at_most));
        let found = self
            .find(Scan {
                range: key_range,
                reverse: range.reverse,
                keys_only: true,
                max_entries: usize::try_from(wanted).unwrap_or(usize::MAX),
                // Each of these keys will be staged, so they can't be more.
                max_bytes: self.limits.transaction_bytes,
                entry_bytes: 0,
                any_keys: false,
            })
            .await?;
        let count = found.entries.len() as u64;
        if let (Some(next), true) = (found.next_entry_bytes, count < wanted) {
            self.limits.check(LimitKind::TransactionBytes, found.entries.bytes() + next)?;
        }
        let mut slice = Slice::default();
        let mut changes = BTreeMap::new();
        for (key, _) in found.entries.iter() {
            slice.count(STORED_ROW, key.len());
            slice.pause().await;
            let row = RowKey { namespace: namespace.clone(), key: Key::from_stored(key.to_vec())? };
            changes.insert(row, Mutation::Delete);
        }
        self.stage_all(changes, slice).await?;
        Ok(count)
    }

    /// Stages an addition to a counter.
    ///
    /// # Errors
    /// As `tx.increment` of the WIT.
    pub fn increment(&mut self, namespace: String, key: String, delta: i64) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        let mutation = match self.writes.get(&row) {
            None => Mutation::Increment(delta),
            Some(Mutation::Increment(before)) => Mutation::Increment(counter::add_deltas(*before, delta)?),
            Some(Mutation::Delete) => {
                Mutation::Put { value: Value::trusted(counter::add(None, delta)?), ttl_millis: None }
            }
            Some(Mutation::Put { value, ttl_millis }) => {
                let sum = counter::add(Some(value.as_bytes()), delta)?;
                Mutation::Put { value: Value::trusted(sum), ttl_millis: *ttl_millis }
            }
        };
        self.stage_if(row, mutation, None)
    }

    /// Every entry under a prefix.
    ///
    /// # Errors
    /// As `tx.scan` of the WIT.
    pub async fn scan(&mut self, namespace: String, prefix: String) -> Result<Vec<Entry>> {
        self.check_open()?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let range = self.key_range(&namespace, &Range { prefix, ..Range::default() })?;
        let max_bytes = self.limits.result_bytes;
        let scan = Scan {
            range,
            reverse: false,
            keys_only: false,
            max_entries: usize::MAX,
            max_bytes,
            entry_bytes: Limits::LIST_ENTRY_BYTES,
            any_keys: false,
        };
        let found = self.find(scan).await?;
        if let Some(next) = found.next_entry_bytes {
            self.limits.check(LimitKind::ResultBytes, found.bytes + next)?;
        }
        Ok(list(&found.entries).await)
    }

    /// The next entries of a range.
    ///
    /// # Errors
    /// As `tx.scan-page` of the WIT.
    pub async fn scan_page(
        &mut self,
        namespace: String,
        range: Range,
        after: Option<String>,
    ) -> Result<Page> {
        let entry_bytes = Limits::LIST_ENTRY_BYTES;
        let (found, next) = self.find_page(namespace, range, after, entry_bytes).await?;
        Ok(Page { entries: list(&found).await, next })
    }

    /// The next entries of a range, [packed](crate::packed).
    ///
    /// # Errors
    /// As `tx.scan-page` of the WIT.
    pub async fn scan_page_packed(
        &mut self,
        namespace: String,
        range: Range,
        after: Option<String>,
    ) -> Result<PackedPage> {
        let entry_bytes = packed::HEADER_BYTES as u64;
        let (found, next) = self.find_page(namespace, range, after, entry_bytes).await?;
        Ok(PackedPage { entries: found.into_packed(), next })
    }

    async fn find_page(
        &mut self,
        namespace: String,
        range: Range,
        after: Option<String>,
        entry_bytes: u64,
    ) -> Result<(Pairs, Option<String>)> {
        self.check_open()?;
        let namespace = Namespace::new(namespace, &self.limits)?;
        let mut key_range = self.key_range(&namespace, &range)?;
        if let Some(after) = after {
            let last = cursor::decode(&namespace, &range, &after)?;
            key_range = if range.reverse {
                key_range.narrowed_until(&last)
            } else {
                key_range.narrowed_from(&just_after(&last))
            };
        }
        if range.limit == Some(0) {
            return Ok((Pairs::default(), None));
        }
        let scan = Scan {
            range: key_range,
            reverse: range.reverse,
            keys_only: range.keys_only,
            max_entries: range.limit.map_or(usize::MAX, |limit| limit as usize),
            max_bytes: self.limits.result_bytes,
            entry_bytes,
            any_keys: false,
        };
        let found = self.find_some(scan, 1).await?;
        if let (Some(next), true) = (found.next_entry_bytes, found.entries.is_empty()) {
            // Somebody with wider limits wrote an entry that fits on no page of this guest.
            self.limits.check(LimitKind::ResultBytes, next)?;
        }
        let last = found.entries.last_key().filter(|_| found.next_entry_bytes.is_some());
        let next = last.map(|last| cursor::encode(&namespace, &range, &text(last)));
        Ok((found.entries, next))
    }

    /// The first namespace after `after` that holds a row: for operators, guests can't ask. It is not watched for
    /// conflicts.
    ///
    /// # Errors
    /// Those of the backend.
    pub async fn next_namespace(&mut self, after: Option<Namespace>) -> Result<Option<Namespace>> {
        self.check_open()?;
        let mut lease = self.open.slot.lease()?;
        let result = match self.snapshot(&mut lease.snapshot).await {
            Ok(snapshot) => self.while_open(snapshot.next_namespace(after.as_ref())).await,
            Err(error) => Err(error),
        };
        self.settle(lease, result)
    }

    /// Makes the staged writes, all or none. Gives the version of the rows written, or
    /// [`Version::ABSENT`] where there were none.
    ///
    /// It takes no longer than the transaction may: what is not being made by then is withdrawn.
    ///
    /// # Errors
    /// As `tx.commit` of the WIT.
    pub async fn commit(mut self) -> Result<Version> {
        self.check_open()?;
        let snapshot = self.open.slot.lease()?.keep(Error::Closed)?;
        let store = self.open.store.clone();
        if self.writes.is_empty() {
            return match snapshot {
                Some(snapshot) => Ok(snapshot.commit(Arc::default()).await?.version),
                None => Ok(Version::ABSENT),
            };
        }
        if self.contradiction {
            return Err(Error::Conflict);
        }
        let commit = Commit {
            clock: store.clock().clone(),
            reads: std::mem::take(&mut self.reads),
            conditions: std::mem::take(&mut self.conditions),
            writes: std::mem::take(&mut self.writes),
            growth_max: None,
            stage: Stage::default(),
            held: Some(Arc::new(self.held.take())),
            share: self.open.slot.share.clone(),
        };
        let deadline = self.open.slot.deadline;
        Ok(store.commit(snapshot, commit, deadline).await?.version)
    }

    /// Forgets the staged writes; the same as dropping the transaction.
    pub fn rollback(self) {}

    fn check_open(&self) -> Result<()> {
        self.open.check()
    }

    fn row(&self, namespace: String, key: String) -> Result<RowKey> {
        let namespace = Namespace::new(namespace, &self.limits)?;
        Ok(RowKey { namespace, key: Key::new(key, &self.limits)? })
    }

    fn key_range(&self, namespace: &Namespace, range: &Range) -> Result<KeyRange> {
        for text in [Some(&range.prefix), range.start.as_ref(), range.end.as_ref()].into_iter().flatten() {
            self.limits.check(LimitKind::KeyBytes, text.len() as u64)?;
        }
        let mut keys = KeyRange::prefix(namespace.clone(), range.prefix.as_bytes());
        if let Some(start) = &range.start {
            keys = keys.narrowed_from(start.as_bytes());
        }
        if let Some(end) = &range.end {
            keys = keys.narrowed_until(end.as_bytes());
        }
        Ok(keys)
    }

    fn check_writable(&self, namespace: &Namespace) -> Result<()> {
        if self.mode == Mode::View {
            return Err(Error::ReadOnly);
        }
        if namespace.is_reserved() {
            return Err(Error::AccessDenied(format!(
                "namespaces that begin with {:?} are reserved",
                Namespace::RESERVED_PREFIX
            )));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Transaction").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// Pairs as a list.
async fn list(found: &Pairs) -> Vec<Entry> {
    let mut slice = Slice::default();
    let mut entries = Vec::with_capacity(found.len());
    for (key, value) in found.iter() {
        slice.count(ROW, key.len() + value.len());
        slice.pause().await;
        entries.push(Entry { key: text(key).into_owned(), value: value.to_vec() });
    }
    entries
}

/// The text of a key that was found. That it is one was made sure of when it was; lossy conversion only keeps a panic out.
fn text(key: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(key)
}
