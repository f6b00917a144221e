//! Names and values, checked once at the edge.
//!
//! Their fields are private: what a backend is handed has been through a constructor. They own slices and not vectors, whose
//! spare capacity no limit would count.

use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// A namespace of a store: any text, compared by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Box<[u8]>);

impl Namespace {
    /// Namespaces with this beginning belong to larder: guests read them, and never write them.
    pub const RESERVED_PREFIX: &'static str = "__";

    /// Checks a namespace that a guest sent.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] where it is too long.
    pub fn new(text: impl Into<String>, limits: &Limits) -> Result<Self> {
        let bytes = text.into().into_bytes();
        limits.check(LimitKind::NamespaceBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// Takes a namespace that a backend stored.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the bytes are no text.
    pub fn from_stored(bytes: Vec<u8>) -> Result<Self> {
        stored_text("a namespace", bytes).map(|text| Self(text.into()))
    }

    /// The bytes of its UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether guests are kept from writing it.
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
    /// [`Error::LimitExceeded`] where it is too long.
    pub fn new(text: impl Into<String>, limits: &Limits) -> Result<Self> {
        let bytes = text.into().into_bytes();
        limits.check(LimitKind::KeyBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// Takes a key that a backend stored.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the bytes are no text.
    pub fn from_stored(bytes: Vec<u8>) -> Result<Self> {
        stored_text("a key", bytes).map(|text| Self(text.into()))
    }

    /// Takes a key of the ledger of migrations, which a repair removes whatever its bytes are.
    pub(crate) fn of_ledger(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }

    /// The bytes of its UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text.
    pub fn into_string(self) -> String {
        // Guests only meet keys that were checked; lossy conversion only keeps a panic out.
        String::from_utf8(self.0.into_vec())
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Where a row is: its namespace and key. The order is the order of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The key within it.
    pub key: Key,
}

impl RowKey {
    /// Bytes of both names.
    pub fn bytes(&self) -> u64 {
        (self.namespace.0.len() + self.key.0.len()) as u64
    }
}

/// A value of a row: any bytes, the empty ones too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value(Box<[u8]>);

impl Value {
    /// Checks a value that a guest sent.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] where it is too large.
    pub fn new(bytes: Vec<u8>, limits: &Limits) -> Result<Self> {
        limits.check(LimitKind::ValueBytes, bytes.len() as u64)?;
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// A value that larder itself wrote.
    pub(crate) fn trusted(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

/// A half-open range of keys in one namespace. Its bounds are bytes, as what follows the last key under a
/// prefix need not be text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRange {
    namespace: Namespace,
    start: Box<[u8]>,
    end: Option<Box<[u8]>>,
}

impl KeyRange {
    /// The keys of `namespace` from `start` on, and before `end` where one is given.
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

    /// The exclusive upper bound; none for the end of the namespace.
    pub fn end(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// Whether no key can lie within.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether the row lies within.
    pub fn contains(&self, row: &RowKey) -> bool {
        row.namespace == self.namespace && self.contains_key(row.key.as_bytes())
    }

    pub(crate) fn contains_key(&self, key: &[u8]) -> bool {
        key >= self.start() && self.end().is_none_or(|end| key < end)
    }

    /// The part at and after `start`.
    pub fn narrowed_from(mut self, start: &[u8]) -> Self {
        if start > self.start() {
            self.start = start.into();
        }
        self
    }

    /// The part before `end`.
    pub fn narrowed_until(mut self, end: &[u8]) -> Self {
        if self.end().is_none_or(|own| end < own) {
            self.end = Some(end.into());
        }
        self
    }

    /// Bounds for an ordered map of rows. The range must not be empty: an ordered map panics on bounds that
    /// cross.
    pub(crate) fn row_bounds(&self) -> (std::ops::Bound<RowKey>, std::ops::Bound<RowKey>) {
        use std::ops::Bound;
        let row = |key: &[u8]| RowKey { namespace: self.namespace.clone(), key: Key(key.into()) };
        let end = match &self.end {
            Some(end) => row(end),
            // The least row of the next namespace: no name lies between a name and the name with a NUL.
            None => RowKey {
                namespace: Namespace(just_after(&self.namespace.0).into()),
                key: Key(Box::default()),
            },
        };
        (Bound::Included(row(&self.start)), Bound::Excluded(end))
    }
}

/// The least byte string after `bytes`.
pub fn just_after(bytes: &[u8]) -> Vec<u8> {
    let mut next = Vec::with_capacity(bytes.len() + 1);
    next.extend_from_slice(bytes);
    next.push(0);
    next
}

/// The least byte string after all that begin with `prefix`; none where there is no such.
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
        Err(_) => Err(Error::Corrupt(format!("{what} is no UTF-8 text"))),
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
        let limits = Limits { namespace_bytes: 4, ..Default::default() };
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
