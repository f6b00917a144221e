//! Calls: what a caller passes to a transaction, and what it gets.

#[cfg(doc)]
use crate::error::Error;
use crate::option_setters;
use crate::row::Version;
#[cfg(doc)]
use crate::transaction::Transaction;

/// Whether a transaction may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The transaction reads one snapshot.
    View,
    /// The transaction reads and writes.
    Update,
}

/// A range of keys in a namespace, and how to read it.
///
/// The range holds the keys that begin with `prefix` and are between `start` and `end`. It is empty
/// if `end` is not after `start`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder_core::Result<()> {
/// use larder_core::{HandleOptions, InMemory, Mode, Range, Store};
///
/// let handle = Store::builder(InMemory::new()).build()?.handle(HandleOptions::default());
/// let mut update = handle.begin(Mode::Update)?;
/// for key in ["a/1", "a/2", "b/1"] {
///     update.put("n".into(), key.into(), Vec::new())?;
/// }
/// let range = Range { prefix: "a/".into(), limit: Some(1), ..Range::default() };
/// let page = update.scan_page("n".into(), range.clone(), None).await?;
/// assert_eq!(page.entries[0].key, "a/1");
/// let page = update.scan_page("n".into(), range, page.next).await?;
/// assert_eq!((page.entries[0].key.as_str(), page.next), ("a/2", None));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The prefix of the keys, without wildcards. The empty prefix selects the whole namespace.
    pub prefix: String,
    /// Inclusive lower bound, compared with whole keys.
    pub start: Option<String>,
    /// Exclusive upper bound, compared with whole keys.
    pub end: Option<String>,
    /// Whether to read from the last key to the first.
    pub reverse: bool,
    /// The maximum number of entries of one call, 0 included.
    pub limit: Option<u32>,
    /// Whether to leave the values of the entries empty.
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

/// A page of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the order of the range.
    pub entries: Vec<Entry>,
    /// The cursor to pass as `after` for the next page.
    ///
    /// `None` if the range has no more entries, or the limit is 0. The cursor is valid only for the
    /// same namespace, prefix, bounds and direction.
    pub next: Option<String>,
}

/// A page of a range whose entries are [packed](larder_packed) in one list of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedPage {
    /// The packed entries, in the order of the range.
    pub entries: Vec<u8>,
    /// The cursor to pass as `after` for the next page.
    ///
    /// `None` if the range has no more entries, or the limit is 0. The cursor is valid only for the
    /// same namespace, prefix, bounds and direction.
    pub next: Option<String>,
}

/// Options of [`Transaction::put_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutOptions {
    /// The time to live of the row in milliseconds from its commit, at least 1; `None` for a
    /// permanent row.
    pub ttl_ms: Option<u64>,
    /// The version that the committed row must have at commit.
    ///
    /// [`Version::ABSENT`] requires that the row does not exist. If the row has another version,
    /// the commit fails with [`Error::Conflict`].
    pub if_version: Option<Version>,
}

option_setters!(PutOptions {
    ttl_ms: impl Into<Option<u64>>,
    if_version: impl Into<Option<Version>>,
});
