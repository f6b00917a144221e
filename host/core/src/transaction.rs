//! Transactions: a snapshot, the staged writes, and the read set.

mod reading;
mod staging;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::call::{Entry, Mode, PackedPage, Page, PutOptions, Range};
use crate::clock::UnixMillis;
use crate::commit::{Commit, Mutation};
use crate::counter;
use crate::cursor;
use crate::error::{Error, LimitKind, Result};
use crate::held::Held;
use crate::limits::Limits;
use crate::name::{Key, KeyRange, Namespace, RowKey, Value, just_after};
use crate::pairs::Pairs;
use crate::read_set::ReadSet;
use crate::row::Version;
use crate::scan::Scan;
use crate::slice::{ROW, STORED_ROW, Slice};
use crate::stage::Stage;
use crate::store::OpenTransaction;

/// A transaction of a store. Dropping it rolls it back.
///
/// All reads answer from one snapshot of the store, taken at the first read, with this
/// transaction's own writes on top. Writes are staged in the transaction and reach the store in
/// [`Transaction::commit`]. Views and updates are both serializable. A transaction holds no lock in
/// the engine, only its snapshot.
///
/// Namespaces and keys are any text, the empty text and NUL included, and are compared by their
/// bytes. Each call checks its arguments against the [`Limits`] of the [`Handle`](crate::Handle)
/// that began the transaction.
///
/// An error of the caller leaves the transaction usable: [`Error::InvalidArgument`],
/// [`Error::LimitExceeded`], [`Error::ReadOnly`] and [`Error::AccessDenied`]. Every other error
/// rolls the transaction back, and later calls fail with the same error. So does a read that the
/// caller cancels.
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
    /// Whether two conditions on one row expect different versions, so that the commit must fail.
    contradiction: bool,
    reads: ReadSet,
    /// The bytes counted for [`Limits::transaction_bytes`] so far.
    held: Held,
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

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The time by the clock of the store.
    pub(crate) fn store_time(&self) -> UnixMillis {
        self.open.store.clock().now()
    }

    /// Returns the value of a row, or `None` if the row does not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the key or the value is too long, or if the
    ///   read set of an update or the instance would hold too many bytes.
    /// - [`Error::InvalidArgument`] if this transaction increments the row, and the stored value is
    ///   not a counter or the sum does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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

    /// Returns the values of several rows, in the order of `keys`.
    ///
    /// The value is `None` for each row that does not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if there are more keys than [`Limits::transaction_mutations`], if
    ///   the namespace, a key or the result is too long, or if the read set of an update or the
    ///   instance would hold too many bytes.
    /// - [`Error::InvalidArgument`] if this transaction increments a row, and the stored value is
    ///   not a counter or the sum does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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

    /// Returns the value and version of a row, or `None` if it does not exist.
    ///
    /// For a row that this transaction wrote, the version is that of the committed row, or
    /// [`Version::ABSENT`] if there is none.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the key or the value is too long, or if the
    ///   read set of an update or the instance would hold too many bytes.
    /// - [`Error::InvalidArgument`] if this transaction increments the row, and the stored value is
    ///   not a counter or the sum does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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

    /// Stages a permanent row with this value, whether or not the row exists.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the key or the value is too long, or if the
    ///   transaction or the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
    pub fn put(&mut self, namespace: String, key: String, value: Vec<u8>) -> Result<()> {
        self.put_with(namespace, key, value, PutOptions::default())
    }

    /// Stages several permanent rows: all of them, or none if the call fails.
    ///
    /// If a key occurs twice, the last entry wins.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, a key or a value is too long, or if the
    ///   transaction or the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
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
            changes.insert(row, Mutation::Put { value, ttl_ms: None });
        }
        self.check_writable(&namespace)?;
        self.stage_all(changes, slice).await
    }

    /// Stages [packed](larder_packed) entries as permanent rows: all, or none if the call fails.
    ///
    /// If a key occurs twice, the last entry wins.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::InvalidArgument`] if the bytes are not packed entries, or a key is not valid
    ///   UTF-8.
    /// - [`Error::LimitExceeded`] if the namespace, a key or a value is too long, or if the
    ///   transaction or the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
    pub async fn put_packed(&mut self, namespace: String, entries: &[u8]) -> Result<()> {
        self.check_open()?;
        // The entries are in memory twice until they are staged.
        let _copy = self.held.count().hold(entries.len() as u64)?;
        let mut slice = Slice::default();
        let mut unpacked = Vec::new();
        for entry in larder_packed::Entries::new(entries) {
            let larder_packed::Entry { key, value } =
                entry.map_err(|error| Error::invalid_argument(error.to_string()))?;
            slice.count(ROW, key.len() + value.len());
            slice.pause().await;
            unpacked.push(Entry { key: key.to_string(), value: value.to_vec() });
            self.limits.check(LimitKind::TransactionMutations, unpacked.len() as u64)?;
        }
        self.put_many(namespace, unpacked).await
    }

    /// Stages a row with a time to live, a required version, or both.
    ///
    /// A required version that the row does not have at commit makes the commit fail with
    /// [`Error::Conflict`]. The requirement stays if the transaction writes the row again without
    /// one.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::InvalidArgument`] if the time to live is 0.
    /// - [`Error::LimitExceeded`] if the namespace, the key or the value is too long, or if the
    ///   transaction or the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
    pub fn put_with(
        &mut self,
        namespace: String,
        key: String,
        value: Vec<u8>,
        options: PutOptions,
    ) -> Result<()> {
        self.check_open()?;
        if options.ttl_ms == Some(0) {
            return Err(Error::invalid_argument(
                "the time to live is 0 ms; pass at least 1 ms, or no time to live for a permanent row",
            ));
        }
        let row = self.row(namespace, key)?;
        let value = Value::new(value, &self.limits)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Put { value, ttl_ms: options.ttl_ms }, options.if_version)
    }

    /// Stages the deletion of a row.
    ///
    /// If the row does not exist, the deletion is still a write: its commit has a version, and a
    /// transaction that read the row may conflict with it.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace or the key is too long, or if the transaction or
    ///   the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
    pub fn delete(&mut self, namespace: String, key: String) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Delete, None)
    }

    /// Stages the deletion of several rows: all of them, or none if the call fails.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace or a key is too long, or if the transaction or
    ///   the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
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

    /// Stages the deletion of a row that must have the version `expected` at commit.
    ///
    /// If it has another version, the commit fails with [`Error::Conflict`]. [`Version::ABSENT`]
    /// asserts that the row does not exist.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace or the key is too long, or if the transaction or
    ///   the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - The error that ended the transaction, if an earlier call failed.
    pub fn delete_if_version(&mut self, namespace: String, key: String, expected: Version) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        self.stage_if(row, Mutation::Delete, Some(expected))
    }

    /// Stages the deletion of all entries of a range and returns their number.
    ///
    /// The entries include those that this transaction staged. The call deletes all of them, or
    /// none if it fails.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the prefix or a bound is too long, or if the
    ///   transaction or the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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
                // Each key is staged afterwards, so more bytes than this would fail anyway.
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

    /// Stages the addition of `delta` to a decimal counter, without a read.
    ///
    /// Two increments of a row never conflict. A counter is the decimal text of a signed 64-bit
    /// number. A row that does not exist counts from 0, and a row with a time to live keeps it. If
    /// the committed value is not a counter, or the sum does not fit into 64 bits, the reads of the
    /// row and the commit fail with [`Error::InvalidArgument`].
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace or the key is too long, or if the transaction or
    ///   the instance would hold too many rows or bytes.
    /// - [`Error::ReadOnly`] if the transaction is a view.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::InvalidArgument`] if the value that this transaction staged is not a counter, or
    ///   the sum does not fit into 64 bits.
    /// - The error that ended the transaction, if an earlier call failed.
    pub fn increment(&mut self, namespace: String, key: String, delta: i64) -> Result<()> {
        self.check_open()?;
        let row = self.row(namespace, key)?;
        self.check_writable(&row.namespace)?;
        let mutation = match self.writes.get(&row) {
            None => Mutation::Increment(delta),
            Some(Mutation::Increment(before)) => Mutation::Increment(counter::add_deltas(*before, delta)?),
            Some(Mutation::Delete) => {
                Mutation::Put { value: Value::trusted(counter::add(None, delta)?), ttl_ms: None }
            }
            Some(Mutation::Put { value, ttl_ms }) => {
                let sum = counter::add(Some(value.as_bytes()), delta)?;
                Mutation::Put { value: Value::trusted(sum), ttl_ms: *ttl_ms }
            }
        };
        self.stage_if(row, mutation, None)
    }

    /// Returns all entries under a prefix, in the byte order of their keys.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace or the prefix is too long, if the entries exceed
    ///   [`Limits::result_bytes`], or if the read set of an update or the instance would hold too
    ///   many bytes. Use [`Transaction::scan_page`] for large ranges.
    /// - [`Error::InvalidArgument`] if this transaction increments a row of the range, and the
    ///   stored value is not a counter or the sum does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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

    /// Returns a page of a range: its first entries, or those that follow the cursor `after`.
    ///
    /// The page holds as many entries as fit into [`Limits::result_bytes`], the rest of
    /// [`Limits::instance_bytes`] and the limit of the range. A page with a `next` cursor has at
    /// least one entry.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the prefix or a bound is too long, if the next
    ///   entry alone does not fit, or if the read set of an update or the instance would hold too
    ///   many bytes.
    /// - [`Error::InvalidArgument`] if `after` is not a cursor of this range; or if this
    ///   transaction increments a row of the page, and the stored value is not a counter or the sum
    ///   does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
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

    /// Returns a page of a range with its entries [packed](larder_packed).
    ///
    /// A page holds more entries than that of [`Transaction::scan_page`], because each counts fewer
    /// bytes for [`Limits::result_bytes`]. The cursors of both methods are interchangeable.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::LimitExceeded`] if the namespace, the prefix or a bound is too long, if the next
    ///   entry alone does not fit, or if the read set of an update or the instance would hold too
    ///   many bytes.
    /// - [`Error::InvalidArgument`] if `after` is not a cursor of this range; or if this
    ///   transaction increments a row of the page, and the stored value is not a counter or the sum
    ///   does not fit into 64 bits.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub async fn scan_page_packed(
        &mut self,
        namespace: String,
        range: Range,
        after: Option<String>,
    ) -> Result<PackedPage> {
        let entry_bytes = larder_packed::HEADER_BYTES as u64;
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
            // A guest with wider limits wrote an entry that fits on no page of this guest.
            self.limits.check(LimitKind::ResultBytes, next)?;
        }
        let last = found.entries.last_key().filter(|_| found.next_entry_bytes.is_some());
        let next = last.map(|last| cursor::encode(&namespace, &range, &text(last)));
        Ok((found.entries, next))
    }

    /// Returns the first namespace after `after` that holds a row.
    ///
    /// This is for operators; guests cannot call it. The commit does not check whether the answer
    /// still holds.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the transaction's deadline has passed.
    /// - [`Error::Conflict`] if the engine finds a conflict at the read, or the host ended the
    ///   snapshot of the idle transaction.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub async fn next_namespace(&mut self, after: Option<Namespace>) -> Result<Option<Namespace>> {
        self.check_open()?;
        let mut borrowed = self.open.transaction.borrow_snapshot()?;
        let result = match self.snapshot(&mut borrowed.snapshot).await {
            Ok(snapshot) => self.while_open(snapshot.next_namespace(after.as_ref())).await,
            Err(error) => Err(error),
        };
        self.settle(borrowed, result)
    }

    /// Commits the staged writes, all or none, and returns the version of the rows written.
    ///
    /// The version is larger than every earlier version of these rows, and [`Version::ABSENT`] if
    /// the transaction staged no write. At the transaction's deadline, a commit that has not begun
    /// is withdrawn.
    ///
    /// # Errors
    /// Nothing was written, except perhaps after [`Error::CommitUnknown`].
    ///
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::TimedOut`] if the deadline passed before the commit began.
    /// - [`Error::Conflict`] if another transaction changed what this one read, a row that it read
    ///   has expired, or a row does not have its required version. Run the whole transaction again.
    /// - [`Error::InvalidArgument`] if an incremented value is not a counter, or the sum does not
    ///   fit into 64 bits.
    /// - [`Error::LimitExceeded`] if the store would exceed its quota.
    /// - [`Error::AccessDenied`] if the backend was opened for reading only.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    /// - [`Error::CommitUnknown`] if the outcome is unknown: the connection was lost, or the
    ///   deadline passed, after the commit began.
    pub async fn commit(mut self) -> Result<Version> {
        self.check_open()?;
        let snapshot = self.open.transaction.borrow_snapshot()?.keep(Error::Closed)?;
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
            share: self.open.transaction.share.clone(),
        };
        let deadline = self.open.transaction.deadline;
        Ok(store.commit(snapshot, commit, deadline).await?.version)
    }

    /// Discards the staged writes. Same as dropping the transaction.
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
                "cannot write: namespaces that begin with {:?} are reserved",
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

/// Copies pairs into a list of entries.
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

/// The text of a key that a scan found. The scan has checked that it is UTF-8; the lossy conversion
/// only avoids a panic.
fn text(key: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(key)
}
