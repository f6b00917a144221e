//! Transactions, as a closure has them.

use std::cell::Cell;
use std::ops::Deref;

use crate::error::Error;
use crate::packed::{Packed, pack};
use crate::range::Range;
use crate::raw::{tx, types};
use crate::retry::Attempt;

/// When a row was last written: larger for every later write of the row. [`Version::ABSENT`] stands for no row.
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

/// How a row is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The row is gone so many milliseconds after its commit; at least 1.
    pub ttl_ms: Option<u64>,
    /// Write only if the committed row is at this version when the transaction commits. [`Version::ABSENT`]: only if
    /// there is none. A version that was read in an earlier transaction is still wrong in the next run, so such an update
    /// is for a store whose [`RetryPolicy`](crate::RetryPolicy) allows one attempt.
    pub if_version: Option<Version>,
}

/// A transaction that reads. [`Update`] derefs to it.
pub struct View {
    raw: tx::Tx,
    /// A call met a conflict: then the transaction is run again, whatever its closure makes of the error.
    conflict: Cell<bool>,
}

/// A transaction that reads and writes.
pub struct Update {
    view: View,
}

impl View {
    pub(crate) fn new(raw: tx::Tx) -> Self {
        Self { raw, conflict: Cell::new(false) }
    }

    /// The value of a row. An empty value is not an absent row.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for names that are too long and for a value that is larger than one call may return, and
    /// what the backend ran into.
    pub fn get(&self, namespace: &str, key: &str) -> Result<Option<Vec<u8>>, Error> {
        self.note(self.raw.get(namespace, key))
    }

    /// The values of several rows, in the order of `keys`, in one call to the host.
    ///
    /// # Errors
    /// As [`View::get`], and [`Error::LimitExceeded`] for too many keys or too large a result.
    pub fn get_many<K: Into<String>>(
        &self,
        namespace: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let keys: Vec<String> = keys.into_iter().map(Into::into).collect();
        self.note(self.raw.get_many(namespace, &keys))
    }

    /// The value of a row with its version.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn get_versioned(&self, namespace: &str, key: &str) -> Result<Option<(Vec<u8>, Version)>, Error> {
        let found = self.note(self.raw.get_versioned(namespace, key))?;
        Ok(found.map(|(value, version)| (value, Version(version))))
    }

    /// Every entry under a prefix, in the byte order of the keys.
    ///
    /// # Errors
    /// As [`View::get`], and [`Error::LimitExceeded`] for too large a result: then [`View::iterate`].
    pub fn scan(&self, namespace: &str, prefix: &str) -> Result<Vec<Entry>, Error> {
        let range = Range::prefix(prefix).into_raw();
        let page = self.note(self.raw.scan_page_packed(namespace, &range, None))?;
        if page.next.is_some() {
            // It is more than one call may return, and this one says by how much.
            return Ok(self.note(self.raw.scan(namespace, prefix))?.into_iter().map(Entry::from).collect());
        }
        let mut entries = Packed::new(page.entries);
        std::iter::from_fn(|| entries.next()).collect()
    }

    /// The entries of a range, fetched page by page.
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

    /// A typed value, as [`Update::put_value`] stores it.
    ///
    /// # Errors
    /// As [`View::get`], and [`Error::Decode`] where the stored value is of another type.
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

    /// Ends a transaction whose closure is content.
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

    /// Ends a transaction whose closure failed.
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

    /// Writes a row, whether or not it is there, and makes it permanent.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] for names and values that are too large, [`Error::AccessDenied`] for a reserved
    /// namespace.
    pub fn put(&self, namespace: &str, key: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.note(self.raw.put(namespace, key, value.as_ref()))
    }

    /// Writes several rows in one call to the host, all or none.
    ///
    /// # Errors
    /// As [`Update::put`].
    pub fn put_many(&self, namespace: &str, entries: impl IntoIterator<Item = Entry>) -> Result<(), Error> {
        self.note(self.raw.put_packed(namespace, &pack(entries)?))
    }

    /// Writes a row that expires, or that is written only over a certain version.
    ///
    /// # Errors
    /// As [`Update::put`].
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

    /// Deletes a row; nothing happens where it is absent.
    ///
    /// # Errors
    /// As [`Update::put`].
    pub fn delete(&self, namespace: &str, key: &str) -> Result<(), Error> {
        self.note(self.raw.delete(namespace, key))
    }

    /// Deletes several rows in one call to the host, all or none.
    ///
    /// # Errors
    /// As [`Update::put`].
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
    /// # Errors
    /// As [`Update::put`].
    pub fn delete_if_version(&self, namespace: &str, key: &str, expected: Version) -> Result<(), Error> {
        self.note(self.raw.delete_if_version(namespace, key, expected.0))
    }

    /// Deletes a range, and says how many rows that were.
    ///
    /// # Errors
    /// As [`Update::put`], and [`Error::LimitExceeded`] for more rows than a transaction may write.
    pub fn delete_range(&self, namespace: &str, range: Range) -> Result<u64, Error> {
        self.note(self.raw.delete_range(namespace, &range.into_raw()))
    }

    /// Adds to a decimal counter without reading it, so that two increments never conflict.
    ///
    /// # Errors
    /// As [`Update::put`]; a row that is no counter gives [`Error::InvalidArgument`], here or at the commit.
    pub fn increment(&self, namespace: &str, key: &str, delta: i64) -> Result<(), Error> {
        self.note(self.raw.increment(namespace, key, delta))
    }

    /// Writes a typed value, as JSON.
    ///
    /// # Errors
    /// As [`Update::put`], and [`Error::Encode`] for a value that JSON can't hold.
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

/// The entries of a range; see [`View::iterate`].
#[derive(Debug)]
pub struct Iter<'a> {
    view: &'a View,
    namespace: String,
    range: tx::Range,
    page: Packed,
    next: Next,
    /// Entries that the range's limit still allows.
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
        let page = self.view.note(raw.scan_page_packed(&self.namespace, &self.range, after.as_deref()))?;
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
