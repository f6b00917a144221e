//! Namespaces, keys and values, checked once at construction.
//!
//! Their fields are private, so a backend receives only checked ones. They own boxed slices, not
//! vectors, because no limit would count the spare capacity of a vector.

use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// A namespace of a store: any text, compared by its bytes.
///
/// ```
/// use larder_core::Limits;
/// use larder_core::name::Namespace;
///
/// let namespace = Namespace::new("__larder", &Limits::default())?;
/// assert!(namespace.is_reserved());
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Box<[u8]>);

impl Namespace {
    /// The prefix of larder's own namespaces. Guests can read them, but not write them.
    pub const RESERVED_PREFIX: &'static str = "__";

    /// Checks a namespace that a guest sent.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if it is too long.
    pub fn new(text: impl Into<String>, limits: &Limits) -> Result<Self> {
        let bytes = text.into().into_bytes();
        limits.check(LimitKind::NamespaceBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// Creates a namespace from stored bytes.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if the bytes are not valid UTF-8.
    pub fn from_stored(bytes: Vec<u8>) -> Result<Self> {
        stored_text("a namespace", bytes).map(|text| Self(text.into()))
    }

    /// The bytes of its text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether the namespace is larder's own, so that guests cannot write it.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(Self::RESERVED_PREFIX.as_bytes())
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A key within a namespace: any text, compared by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Checks a key that a guest sent.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if it is too long.
    pub fn new(text: impl Into<String>, limits: &Limits) -> Result<Self> {
        let bytes = text.into().into_bytes();
        limits.check(LimitKind::KeyBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// Creates a key from stored bytes.
    ///
    /// # Errors
    /// - [`Error::Corrupt`] if the bytes are not valid UTF-8.
    pub fn from_stored(bytes: Vec<u8>) -> Result<Self> {
        stored_text("a key", bytes).map(|text| Self(text.into()))
    }

    /// Creates a key of the migration ledger. A repair deletes such a key whatever its bytes are.
    pub(crate) fn of_ledger(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes of its text. A key of the migration ledger may not be UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns its text.
    pub fn into_string(self) -> String {
        // Guests see only checked keys. The lossy conversion only avoids a panic.
        String::from_utf8(self.0.into_vec())
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// The name of a row: its namespace and key. The order is that of the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The key within it.
    pub key: Key,
}

impl RowKey {
    /// The size of both names, in bytes.
    pub fn bytes(&self) -> u64 {
        (self.namespace.0.len() + self.key.0.len()) as u64
    }
}

/// The value of a row: any bytes. An empty value is a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Box<[u8]>);

impl Value {
    /// Checks a value that a guest sent.
    ///
    /// # Errors
    /// - [`Error::LimitExceeded`] if it is too large.
    pub fn new(bytes: Vec<u8>, limits: &Limits) -> Result<Self> {
        limits.check(LimitKind::ValueBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Creates a value that larder itself wrote, without a check.
    pub(crate) fn trusted(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// A half-open range of keys in one namespace.
///
/// Its bounds are bytes, because the end of a prefix's range need not be valid UTF-8.
///
/// ```
/// use larder_core::Limits;
/// use larder_core::name::{KeyRange, Namespace};
///
/// let namespace = Namespace::new("n", &Limits::default())?;
/// let range = KeyRange::prefix(namespace, b"a");
/// assert_eq!((range.start(), range.end()), (b"a".as_slice(), Some(b"b".as_slice())));
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRange {
    namespace: Namespace,
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
}

impl KeyRange {
    /// The keys of `namespace` from `start` to before `end`, or to its last key.
    pub fn new(namespace: Namespace, start: Vec<u8>, end: Option<Vec<u8>>) -> Self {
        Self { namespace, start: start.into(), end: end.map(Into::into) }
    }

    /// The keys that begin with `prefix`.
    pub fn prefix(namespace: Namespace, prefix: &[u8]) -> Self {
        Self::new(namespace, prefix.to_vec(), successor_of_prefix(prefix))
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The inclusive lower bound.
    pub fn start(&self) -> &[u8] {
        &self.start
    }

    /// The exclusive upper bound; `None` if the range ends with the namespace.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Whether the range can hold no key.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether the range holds the row.
    pub fn contains(&self, row: &RowKey) -> bool {
        row.namespace == self.namespace && self.contains_key(row.key.as_bytes())
    }

    pub(crate) fn contains_key(&self, key: &[u8]) -> bool {
        key >= self.start() && self.end().is_none_or(|end| key < end)
    }

    /// The part of the range from `start` on.
    pub fn narrowed_from(mut self, start: &[u8]) -> Self {
        if start > self.start() {
            self.start = start.into();
        }
        self
    }

    /// The part of the range before `end`.
    pub fn narrowed_until(mut self, end: &[u8]) -> Self {
        if self.end().is_none_or(|own| end < own) {
            self.end = Some(end.into());
        }
        self
    }

    /// The bounds of the range for an ordered map of rows. The range must not be empty, because an
    /// ordered map panics on bounds that cross.
    pub(crate) fn row_bounds(&self) -> (std::ops::Bound<RowKey>, std::ops::Bound<RowKey>) {
        use std::ops::Bound;
        let row = |key: &[u8]| RowKey { namespace: self.namespace.clone(), key: Key(key.into()) };
        let end = match &self.end {
            Some(end) => row(end),
            // The first possible row of the next namespace: no name is between a name and the same
            // name with a NUL appended.
            None => RowKey {
                namespace: Namespace(just_after(&self.namespace.0).into()),
                key: Key(Box::default()),
            },
        };
        (Bound::Included(row(&self.start)), Bound::Excluded(end))
    }
}

/// The smallest byte string after `bytes`.
pub fn just_after(bytes: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(bytes.len() + 1);
    next.extend_from_slice(bytes);
    next.push(0);
    next
}

/// The smallest byte string after all that begin with `prefix`; `None` if there is no such string.
fn successor_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut successor = prefix.to_vec();
    while let Some(last) = successor.pop() {
        if last < u8::MAX {
            successor.push(last + 1);
            return Some(successor);
        }
    }
    None
}

fn stored_text(what: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    match std::str::from_utf8(&bytes) {
        Ok(_) => Ok(bytes),
        Err(_) => Err(Error::Corrupt(format!("{what} is not valid UTF-8"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_of_a_prefix_is_after_every_key_under_it() {
        assert_eq!(successor_of_prefix(b"a"), Some(b"b".to_vec()));
        assert_eq!(successor_of_prefix(&[b'a', 0xff]), Some(b"b".to_vec()));
        assert_eq!(successor_of_prefix(&[0xff, 0xff]), None);
        assert_eq!(successor_of_prefix(b""), None);
    }

    #[test]
    fn a_namespace_is_measured_in_bytes() {
        let limits = Limits::default().namespace_bytes(4);
        Namespace::new("ääa", &limits).unwrap_err();
        Namespace::new("ää", &limits).unwrap();
    }

    #[test]
    fn stored_bytes_that_are_no_text_are_corrupt() {
        assert!(matches!(Key::from_stored(vec![0xff]), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_range_without_end_stays_in_its_namespace() {
        let limits = Limits::default();
        let namespace = |text: &str| Namespace::new(text, &limits).unwrap();
        let row = |text: &str, key: &str| RowKey {
            namespace: namespace(text),
            key: Key::new(key, &limits).unwrap(),
        };
        let rows = std::collections::BTreeSet::from([row("a", "x"), row("a\0", ""), row("b", "")]);
        let range = KeyRange::prefix(namespace("a"), b"");
        let found: Vec<_> = rows.range(range.row_bounds()).cloned().collect();
        assert_eq!(found, [row("a", "x")]);
    }
}
