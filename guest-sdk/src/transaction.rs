//! The transactions that [`Store::view`](crate::Store::view) and
//! [`Store::update`](crate::Store::update) pass to their closures.

use std::cell::Cell;
use std::ops::Deref;

use crate::error::Error;
use crate::packed::{Packed, pack};
use crate::range::Range;
use crate::raw::{packed, tx, types};
use crate::retry::Attempt;

/// The version of a row's last write.
///
/// Each later write of the row has a larger version. [`Version::ABSENT`] means that the row does
/// not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of a row that is absent.
    pub const ABSENT: Self = Self(0);
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
}

/// Options of [`Update::put_with`].
///
/// ```
/// use larder_guest::{PutOptions, Version};
///
/// let if_absent = PutOptions::default().if_version(Version::ABSENT);
/// let one_hour = PutOptions::default().ttl_ms(3_600_000);
/// # let _ = (if_absent, one_hour);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    /// The time to live in milliseconds, counted from the commit; at least 1.
    ///
    /// `None` makes the row permanent.
    pub ttl_ms: Option<u64>,
    /// Writes only if the committed row is at this version when the transaction commits.
    ///
    /// [`Version::ABSENT`] writes only if the row does not exist. A version that was read in an
    /// earlier transaction does not become right in the next run, so use a
    /// [`RetryPolicy`](crate::RetryPolicy) with one attempt for such an update.
    pub if_version: Option<Version>,
}

impl PutOptions {
    /// Sets [`ttl_ms`](#structfield.ttl_ms).
    #[must_use]
    pub fn ttl_ms(mut self, ttl_ms: impl Into<Option<u64>>) -> Self {
        self.ttl_ms = ttl_ms.into();
        self
    }

    /// Sets [`if_version`](#structfield.if_version).
    #[must_use]
    pub fn if_version(mut self, if_version: impl Into<Option<Version>>) -> Self {
        self.if_version = if_version.into();
        self
    }
}

/// A transaction that reads one snapshot.
///
/// [`Update`] dereferences to it, so that an update has these methods too.
pub struct View {
    raw: tx::Tx,
    /// Whether a call conflicted. The transaction then runs again, whatever its closure returns.
    conflict: Cell<bool>,
}

/// A transaction that reads and writes.
///
/// ```no_run
/// # use larder_guest::{Error, Store};
/// # fn example(store: &Store) -> Result<(), Error> {
/// store.update(|tx| {
///     if tx.get("users", "ann")?.is_none() {
///         tx.put("users", "ann", "new")?;
///     }
///     tx.increment("counts", "logins", 1)
/// })?;
/// # Ok(()) }
/// ```
pub struct Update {
    view: View,
}

impl View {
    pub(crate) fn new(raw: tx::Tx) -> Self {
        Self { raw, conflict: Cell::new(false) }
    }

    /// Returns the value of a row, or `None` if the row does not exist.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, the value is too large for one call, or
    ///   the transaction has read too much.
    /// - [`Error::InvalidArgument`] if this transaction increments a row that is not a counter, or
    ///   the sum is out of range.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   read fails.
    pub fn get(&self, namespace: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.note(self.raw.get(namespace, key))
    }

    /// Returns the values of several rows in one call to the host.
    ///
    /// They are in the order of `keys`; `None` for a row that does not exist.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, there are too many keys, the values are
    ///   too large for one call, or the transaction has read too much.
    /// - [`Error::InvalidArgument`] if this transaction increments a row that is not a counter, or
    ///   the sum is out of range.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   read fails.
    pub fn get_many<K: Into<String>>(
        &self,
        namespace: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        self.note(self.raw.get_many(namespace, &keys))
    }

    /// Returns the value and the version of a row, or `None` if it does not exist.
    ///
    /// A row that this transaction wrote has the version of the committed row that the write
    /// replaces, or [`Version::ABSENT`] if there is none.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, the value is too large for one call, or
    ///   the transaction has read too much.
    /// - [`Error::InvalidArgument`] if this transaction increments a row that is not a counter, or
    ///   the sum is out of range.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   read fails.
    pub fn get_versioned(&self, namespace: &str, key: &str) -> Result<Option<(Vec<u8>, Version)>, Error> {
        let found = self.note(self.raw.get_versioned(namespace, key))?;
        Ok(found.map(|(value, version)| (value, Version(version))))
    }

    /// Returns every entry under a prefix, in the byte order of the keys.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, the transaction has read too much, or the
    ///   entries are too large for one call. In the last case, use [`View::iterate`].
    /// - [`Error::InvalidArgument`] if this transaction increments a row that is not a counter, or
    ///   the sum is out of range.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   read fails.
    pub fn scan(&self, namespace: &str, prefix: &str) -> Result<Vec<Entry>, Error> {
        let range = Range::prefix(prefix).into_raw();
        let page = self.note(packed::scan_page(&self.raw, namespace, &range, None))?;
        if page.next.is_some() {
            // The entries are too large for one call. This call fails with the limit and the
            // amount.
            return Ok(self.note(self.raw.scan(namespace, prefix))?.into_iter().map(Entry::from).collect());
        }
        let mut entries = Packed::new(page.entries);
        std::iter::from_fn(|| entries.next()).collect()
    }

    /// Iterates over the entries of a range, fetched page by page.
    ///
    /// Each item can be an error: those of [`View::scan`], and [`Error::LimitExceeded`] if a single
    /// entry is too large for one call.
    ///
    /// ```no_run
    /// # use larder_guest::{Error, Range, View};
    /// # fn example(view: &View) -> Result<(), Error> {
    /// for entry in view.iterate("tasks", Range::prefix("open:")) {
    ///     println!("{}", entry?.key);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn iterate(&self, namespace: &str, range: Range) -> Iter<'_> {
        Iter {
            view: self,
            namespace: namespace.to_string(),
            left: range.entries_max(),
            range: range.into_raw(),
            page: Packed::default(),
            next: Next::First,
        }
    }

    /// Returns the typed value of a row, or `None` if the row does not exist.
    ///
    /// [`Update::put_value`] writes such values.
    ///
    /// # Errors
    /// - [`Error::Decode`] if the stored value is not JSON of this type.
    /// - [`Error::LimitExceeded`] if a name is too long, the value is too large for one call, or
    ///   the transaction has read too much.
    /// - [`Error::InvalidArgument`] if this transaction increments a row that is not a counter, or
    ///   the sum is out of range.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the
    ///   read fails.
    #[cfg(feature = "serde")]
    pub fn get_value<T: serde::de::DeserializeOwned>(
        &self,
        namespace: &str,
        key: &str,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(namespace, key)? else {
            return Ok(None);
        };
        decode(namespace, key, &value).map(Some)
    }

    /// Commits a transaction whose closure succeeded.
    pub(crate) fn finish<T, E: From<Error>>(self, value: T) -> Attempt<T, E> {
        if self.conflict.get() {
            return Attempt::Conflict;
        }
        match tx::Tx::commit(self.raw) {
            Ok(_) => Attempt::Done(Ok(value)),
            Err(types::Error::Conflict) => Attempt::Conflict,
            Err(error) => Attempt::Done(Err(Error::from(error).into())),
        }
    }

    /// Rolls back a transaction whose closure failed.
    pub(crate) fn fail<T, E>(self, error: E) -> Attempt<T, E> {
        let is_conflict = self.conflict.get();
        tx::Tx::rollback(self.raw);
        if is_conflict { Attempt::Conflict } else { Attempt::Done(Err(error)) }
    }

    fn note<T>(&self, outcome: Result<T, types::Error>) -> Result<T, Error> {
        if let Err(types::Error::Conflict) = &outcome {
            self.conflict.set(true);
        }
        Ok(outcome?)
    }
}

impl Deref for Update {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Update {
    pub(crate) fn new(raw: tx::Tx) -> Self {
        Self { view: View::new(raw) }
    }

    pub(crate) fn into_view(self) -> View {
        self.view
    }

    /// Writes a row, whether it exists or not, and makes it permanent.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name or the value is too large, or the transaction writes
    ///   too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    pub fn put(&self, namespace: &str, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.note(self.raw.put(namespace, key, value.as_ref()))
    }

    /// Writes several rows in one call to the host: all, or none if it fails.
    ///
    /// If a key occurs twice, the last entry wins.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name or a value is too large, there are too many entries, or
    ///   the transaction writes too much.
    /// - [`Error::InvalidArgument`] if a key or a value has 4 GiB or more.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    pub fn put_many(&self, namespace: &str, entries: impl IntoIterator<Item = Entry>) -> Result<(), Error> {
        self.note(packed::put_many(&self.raw, namespace, &pack(entries)?))
    }

    /// Writes a row with a time to live, or with a condition on its version.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name or the value is too large, or the transaction writes
    ///   too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::InvalidArgument`] if the time to live is 0 ms.
    pub fn put_with(
        &self,
        namespace: &str,
        key: &str,
        value: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<(), Error> {
        let if_version = options.if_version.map(|version| version.0);
        let options = tx::PutOptions { ttl_ms: options.ttl_ms, if_version };
        self.note(self.raw.put_with(namespace, key, value.as_ref(), options))
    }

    /// Deletes a row. Deleting a row that does not exist succeeds.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction writes too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    pub fn delete(&self, namespace: &str, key: &str) -> Result<(), Error> {
        self.note(self.raw.delete(namespace, key))
    }

    /// Deletes several rows in one call to the host: all, or none if it fails.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, there are too many keys, or the
    ///   transaction writes too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    pub fn delete_many<K: Into<String>>(
        &self,
        namespace: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<(), Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        self.note(self.raw.delete_many(namespace, &keys))
    }

    /// Deletes a row if it is at version `expected` when the transaction commits.
    ///
    /// Otherwise the commit conflicts.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction writes too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    pub fn delete_if_version(&self, namespace: &str, key: &str, expected: Version) -> Result<(), Error> {
        self.note(self.raw.delete_if_version(namespace, key, expected.0))
    }

    /// Deletes the rows of a range and returns their number.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, or the range has more rows than a
    ///   transaction may write.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::Conflict`], [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if
    ///   reading the range fails.
    pub fn delete_range(&self, namespace: &str, range: Range) -> Result<u64, Error> {
        self.note(self.raw.delete_range(namespace, &range.into_raw()))
    }

    /// Adds to a decimal counter without reading it, so that two increments never conflict.
    ///
    /// A counter is the decimal text of a signed 64-bit number. A row that does not exist counts
    /// from 0.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if a name is too long, or the transaction writes too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    /// - [`Error::InvalidArgument`] if this transaction wrote a value that is not a counter, or the
    ///   sum is out of range. If the value was committed before, a later read of the row or the
    ///   commit fails with this error.
    pub fn increment(&self, namespace: &str, key: &str, delta: i64) -> Result<(), Error> {
        self.note(self.raw.increment(namespace, key, delta))
    }

    /// Writes a typed value as JSON, and makes the row permanent.
    ///
    /// # Errors
    /// - [`Error::Encode`] if the value cannot be represented in JSON.
    /// - [`Error::LimitExceeded`] if a name or the value is too large, or the transaction writes
    ///   too much.
    /// - [`Error::AccessDenied`] if the namespace is reserved.
    /// - [`Error::Closed`] or [`Error::TimedOut`], or the error that ended the transaction.
    #[cfg(feature = "serde")]
    pub fn put_value<T: serde::Serialize + ?Sized>(
        &self,
        namespace: &str,
        key: &str,
        value: &T,
    ) -> Result<(), Error> {
        self.put(namespace, key, encode(value)?)
    }
}

#[cfg(feature = "serde")]
pub(crate) fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Encode(error.to_string()))
}

#[cfg(feature = "serde")]
pub(crate) fn decode<T: serde::de::DeserializeOwned>(
    namespace: &str,
    key: &str,
    value: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|error| Error::Decode {
        namespace: namespace.to_string(),
        key: key.to_string(),
        reason: error.to_string(),
    })
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        Self { key: entry.key, value: entry.value }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("View").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Update {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Update").finish_non_exhaustive()
    }
}

/// An iterator over the entries of a range; returned by [`View::iterate`].
#[derive(Debug)]
pub struct Iter<'a> {
    view: &'a View,
    namespace: String,
    range: tx::Range,
    page: Packed,
    next: Next,
    /// The number of entries that the range's limit still allows; `None` without a limit.
    left: Option<u32>,
}

#[derive(Debug)]
enum Next {
    First,
    After(String),
    End,
}

impl Iter<'_> {
    fn fetch(&mut self) -> Result<(), Error> {
        let after = match std::mem::replace(&mut self.next, Next::End) {
            Next::End => return Ok(()),
            Next::First => None,
            Next::After(cursor) => Some(cursor),
        };
        if self.left == Some(0) {
            return Ok(());
        }
        self.range.limit = self.left;
        let raw = &self.view.raw;
        let page = self.view.note(packed::scan_page(raw, &self.namespace, &self.range, after.as_deref()))?;
        self.page = Packed::new(page.entries);
        if let Some(cursor) = page.next {
            self.next = Next::After(cursor);
        }
        Ok(())
    }
}

impl Iterator for Iter<'_> {
    type Item = Result<Entry, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.next() {
                self.left = self.left.map(|left| left.saturating_sub(1));
                return Some(entry);
            }
            if matches!(self.next, Next::End) {
                return None;
            }
            if let Err(error) = self.fetch() {
                return Some(Err(error));
            }
        }
    }
}
