//! Entries to and from the format of the WIT's interface `packed`, which `larder-packed` has.

use crate::error::Error;
use crate::transaction::Entry;

/// Packs entries. Fails with [`Error::InvalidArgument`] if a key or a value has 4 GiB or more.
pub(crate) fn pack(entries: impl IntoIterator<Item = Entry>) -> Result<Vec<u8>, Error> {
    let mut packed = Vec::new();
    for Entry { key, value } in entries {
        larder_packed::push(&mut packed, key.as_bytes(), &value)
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
    }
    Ok(packed)
}

/// Packed entries, unpacked one after another.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    position: usize,
}

impl Packed {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, position: 0 }
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Result<Entry, Error>> {
        let mut entries = larder_packed::Entries::new(self.bytes.get(self.position..)?);
        let entry = entries.next()?;
        self.position = self.bytes.len() - entries.rest().len();
        Some(match entry {
            Ok(larder_packed::Entry { key, value }) => {
                Ok(Entry { key: key.to_string(), value: value.to_vec() })
            }
            Err(_) => {
                Err(Error::Corrupt("the host returned a page that is not in the packed format".to_string()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpacked(bytes: Vec<u8>) -> Result<Vec<Entry>, Error> {
        let mut packed = Packed::new(bytes);
        std::iter::from_fn(|| packed.next()).collect()
    }

    #[test]
    fn the_format_is_two_lengths_and_two_texts() {
        let entry = Entry { key: "ab".to_string(), value: b"c".to_vec() };
        assert_eq!(pack([entry]).unwrap(), b"\x02\0\0\0\x01\0\0\0abc");
    }

    #[test]
    fn a_page_that_is_packed_wrongly_ends_with_an_error() {
        let mut packed = Packed::new(b"\x01\0\0\0\0\0\0\0a\x09".to_vec());
        assert_eq!(packed.next().unwrap().unwrap().key, "a");
        assert!(matches!(packed.next(), Some(Err(Error::Corrupt(_)))));
        assert!(packed.next().is_none());
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_to_the_same(
            entries in prop::collection::vec((".{0,9}", prop::collection::vec(any::<u8>(), 0..9)), 0..9)
        ) {
            let entry = |(key, value): &(String, Vec<u8>)| Entry { key: key.clone(), value: value.clone() };
            let entries: Vec<_> = entries.iter().map(entry).collect();
            prop_assert_eq!(unpacked(pack(entries.clone()).unwrap()).unwrap(), entries);
        }
    }
}
