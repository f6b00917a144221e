//! Entries packed into one list of bytes.
//!
//! A component pays for each element of a list that it passes or receives. For a list of bytes it
//! pays once.
//!
//! Each entry is the length of its key and the length of its value, both as unsigned 32-bit
//! little-endian numbers, then the key, then the value. There is no padding or separator.

use crate::call::Entry;
use crate::error::{Error, Result};

/// The size of the two lengths before each entry.
pub(crate) const HEADER_BYTES: usize = 8;

/// Appends an entry.
pub(crate) fn push(packed: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The limits keep each key and value far below 4 GiB.
    let lengths = [key.len() as u32, value.len() as u32].map(u32::to_le_bytes);
    packed.reserve(HEADER_BYTES + key.len() + value.len());
    packed.extend_from_slice(lengths.as_flattened());
    packed.extend_from_slice(key);
    packed.extend_from_slice(value);
}

/// Unpacks entries, up to one more than `max_entries`.
///
/// The one more shows that there are too many.
///
/// ```
/// use larder_core::packed;
///
/// let entries = packed::unpack(b"\x02\0\0\0\x01\0\0\0abc", 10)?;
/// assert_eq!((entries[0].key.as_str(), entries[0].value.as_slice()), ("ab", b"c".as_slice()));
/// # Ok::<(), larder_core::Error>(())
/// ```
///
/// # Errors
/// - [`Error::InvalidArgument`] if an entry is incomplete, or a key is not valid UTF-8.
pub fn unpack(packed: &[u8], max_entries: u64) -> Result<Vec<Entry>> {
    let at_most = usize::try_from(max_entries).unwrap_or(usize::MAX).saturating_add(1);
    Unpacking::new(packed).take(at_most).collect()
}

/// An iterator over packed entries. It ends after an error.
pub(crate) struct Unpacking<'a> {
    rest: &'a [u8],
    count: usize,
}

impl<'a> Unpacking<'a> {
    pub(crate) fn new(packed: &'a [u8]) -> Self {
        Self { rest: packed, count: 0 }
    }

    fn entry(&mut self) -> Result<Entry> {
        let (key, value, rest) = split(std::mem::take(&mut self.rest)).ok_or_else(|| {
            Error::invalid_argument(format!(
                "packed entry number {} is incomplete; an entry is the lengths of its key and its value, as two \
                 unsigned 32-bit little-endian numbers, then the key and the value",
                self.count
            ))
        })?;
        let key = std::str::from_utf8(key).map_err(|_| {
            Error::invalid_argument(format!(
                "the key of packed entry number {} is not valid UTF-8",
                self.count
            ))
        })?;
        self.rest = rest;
        Ok(Entry { key: key.to_string(), value: value.to_vec() })
    }
}

impl Iterator for Unpacking<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        if self.rest.is_empty() {
            return None;
        }
        self.count += 1;
        Some(self.entry())
    }
}

/// Splits off the first entry: its key, its value and the rest. `None` if it is incomplete.
pub(crate) fn split(packed: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, rest) = packed.split_at_checked(HEADER_BYTES)?;
    let (key_bytes, value_bytes) = header.split_first_chunk::<4>()?;
    let key_bytes = u32::from_le_bytes(*key_bytes) as usize;
    let value_bytes = u32::from_le_bytes(value_bytes.try_into().ok()?) as usize;
    let (key, rest) = rest.split_at_checked(key_bytes)?;
    let (value, rest) = rest.split_at_checked(value_bytes)?;
    Some((key, value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(entries: &[Entry]) -> Vec<u8> {
        let mut packed = Vec::new();
        entries.iter().for_each(|entry| push(&mut packed, entry.key.as_bytes(), &entry.value));
        packed
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (".{0,9}", prop::collection::vec(any::<u8>(), 0..9));
        prop::collection::vec(entry.prop_map(|(key, value)| Entry { key, value }), 0..9)
    }

    #[test]
    fn the_format_is_two_lengths_and_two_texts() {
        let entry = Entry { key: "ab".to_string(), value: b"c".to_vec() };
        assert_eq!(packed(&[entry]), b"\x02\0\0\0\x01\0\0\0abc");
    }

    #[test]
    fn what_is_not_packed_so_is_refused_with_its_position() {
        let good = b"\x01\0\0\0\0\0\0\0a";
        let cut: [&[u8]; 4] =
            [b"\x01", b"\x01\0\0\0\0\0\0\0", b"\0\0\0\0\x02\0\0\0a", b"\xff\xff\xff\xff\xff\xff\xff\xff"];
        for cut in cut {
            let error = unpack(&[good, cut].concat(), 9).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("number 2")), "{error}");
        }
        let error = unpack(b"\x01\0\0\0\0\0\0\0\xff", 9).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)));
    }

    #[test]
    fn no_more_is_unpacked_than_shows_that_it_is_too_much() {
        let entry = Entry { key: String::new(), value: Vec::new() };
        assert_eq!(unpack(&packed(&vec![entry; 9]), 3).unwrap().len(), 4);
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_to_the_same(entries in entries()) {
            prop_assert_eq!(unpack(&packed(&entries), 99).unwrap(), entries);
        }

        #[test]
        fn no_bytes_do_any_harm(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
            if let Ok(entries) = unpack(&bytes, 99) {
                prop_assert_eq!(packed(&entries), bytes);
            }
        }
    }
}
