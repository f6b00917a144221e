//! Unpacks entries.

use crate::error::InvalidEntry;

/// A key and its value, within the bytes from which they were unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The key.
    pub key: &'a str,
    /// The value.
    pub value: &'a [u8],
}

/// An iterator over packed entries.
///
/// It copies nothing and allocates nothing. It looks at an entry only when the entry is asked for,
/// so a caller bounds the work by the number of entries that it takes. It ends after an error.
///
/// ```
/// use larder_packed::{Entries, Entry, InvalidEntry};
///
/// let mut entries = Entries::new(b"\x01\0\0\0\0\0\0\0a\x09");
/// assert_eq!(entries.next(), Some(Ok(Entry { key: "a", value: b"" })));
/// assert_eq!(entries.next(), Some(Err(InvalidEntry::Incomplete { number: 2 })));
/// assert_eq!(entries.next(), None);
/// ```
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    /// The number of entries so far, the invalid one included.
    count: u64,
}

impl<'a> Entries<'a> {
    /// Creates an iterator over packed entries.
    pub fn new(packed: &'a [u8]) -> Self {
        Self { rest: packed, count: 0 }
    }

    /// The packed entries that follow. Empty at the end and after an error.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn entry(&mut self) -> Result<Entry<'a>, InvalidEntry> {
        let number = self.count;
        let (key, value, rest) =
            split_first(core::mem::take(&mut self.rest)).ok_or(InvalidEntry::Incomplete { number })?;
        let key = core::str::from_utf8(key).map_err(|_| InvalidEntry::KeyNotUtf8 { number })?;
        self.rest = rest;
        Ok(Entry { key, value })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, InvalidEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        self.count += 1;
        Some(self.entry())
    }
}

impl core::iter::FusedIterator for Entries<'_> {}

/// Splits off the first entry: its key, its value, and the entries that follow.
///
/// `None` if the bytes are empty or the entry is incomplete. The key is any bytes. [`Entries`] also
/// checks that keys are UTF-8.
///
/// ```
/// let (key, value, rest) = larder_packed::split_first(b"\x02\0\0\0\x01\0\0\0abc").unwrap();
/// assert_eq!((key, value, rest), (b"ab".as_slice(), b"c".as_slice(), b"".as_slice()));
/// ```
#[inline]
pub fn split_first(packed: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (key_bytes, rest) = packed.split_first_chunk()?;
    let (value_bytes, rest) = rest.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(length(*key_bytes)?)?;
    let (value, rest) = rest.split_at_checked(length(*value_bytes)?)?;
    Some((key, value, rest))
}

#[inline]
fn length(bytes: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}
