//! Tests of the format: what is packed, what is unpacked, and both together.

use std::string::{String, ToString};
use std::vec::Vec;
use std::{assert_eq, vec};

use proptest::prelude::*;

use crate::encode::length;
use crate::{Entries, Entry, HEADER_BYTES, InvalidEntry, PART_BYTES_MAX, Part, TooLong, push, split_first};

type Owned = (String, Vec<u8>);

fn packed(entries: &[Owned]) -> Vec<u8> {
    let mut packed = Vec::new();
    for (key, value) in entries {
        push(&mut packed, key.as_bytes(), value).unwrap();
    }
    packed
}

fn unpacked(bytes: &[u8]) -> Result<Vec<Owned>, InvalidEntry> {
    Entries::new(bytes)
        .map(|entry| entry.map(|Entry { key, value }| (key.to_string(), value.to_vec())))
        .collect()
}

fn entries() -> impl Strategy<Value = Vec<Owned>> {
    prop::collection::vec((".{0,9}", prop::collection::vec(any::<u8>(), 0..9)), 0..9)
}

#[test]
fn the_format_is_two_lengths_and_two_texts() {
    assert_eq!(packed(&[("ab".to_string(), b"c".to_vec())]), b"\x02\0\0\0\x01\0\0\0abc");
    let long = packed(&[(String::new(), vec![7; 0x1_02_03])]);
    assert_eq!(
        long.split_at(HEADER_BYTES),
        (b"\0\0\0\0\x03\x02\x01\0".as_slice(), [7; 0x1_02_03].as_slice())
    );
}

#[test]
fn what_is_not_packed_so_is_refused_with_its_position() {
    let good = b"\x01\0\0\0\0\0\0\0a";
    let cut: [&[u8]; 4] =
        [b"\x01", b"\x01\0\0\0\0\0\0\0", b"\0\0\0\0\x02\0\0\0a", b"\xff\xff\xff\xff\xff\xff\xff\xff"];
    for cut in cut {
        let error = unpacked(&[good, cut].concat()).unwrap_err();
        assert_eq!(error, InvalidEntry::Incomplete { number: 2 });
        assert!(error.to_string().contains("number 2"), "{error}");
        assert_eq!(split_first(cut), None);
    }
    let error = unpacked(b"\x01\0\0\0\0\0\0\0\xff").unwrap_err();
    assert_eq!(error, InvalidEntry::KeyNotUtf8 { number: 1 });
    assert_eq!(error.to_string(), "the key of packed entry number 1 is not valid UTF-8");
}

#[test]
fn entries_that_are_packed_wrongly_end_with_an_error() {
    for wrong in [b"\x09".as_slice(), b"\x01\0\0\0\0\0\0\0\xff\0\0\0\0\0\0\0\0"] {
        let bytes = [b"\x01\0\0\0\0\0\0\0a", wrong].concat();
        let mut entries = Entries::new(&bytes);
        assert_eq!(entries.next(), Some(Ok(Entry { key: "a", value: b"" })));
        assert_eq!(entries.rest(), wrong);
        assert!(entries.next().unwrap().is_err());
        assert_eq!((entries.rest(), entries.next()), (b"".as_slice(), None));
    }
}

#[test]
fn no_more_is_unpacked_than_is_taken() {
    let bytes = [packed(&vec![(String::new(), Vec::new()); 4]), b"not packed".to_vec()].concat();
    let taken: Result<Vec<_>, _> = Entries::new(&bytes).take(4).collect();
    assert_eq!(taken.unwrap().len(), 4);
}

#[test]
fn a_length_has_four_bytes() {
    assert_eq!(length(Part::Key, 0x0403_0201), Ok([1, 2, 3, 4]));
    let max = PART_BYTES_MAX as usize;
    assert_eq!(length(Part::Value, max), Ok([255; 4]));
    if let Some(bytes) = max.checked_add(1) {
        let error = length(Part::Value, bytes).unwrap_err();
        assert_eq!(error, TooLong { part: Part::Value, bytes });
        let text = "a value has 4294967296 bytes; a packed entry holds at most 4294967295";
        assert_eq!(error.to_string(), text);
        let text = "a key has 4294967296 bytes; a packed entry holds at most 4294967295";
        assert_eq!(length(Part::Key, bytes).unwrap_err().to_string(), text);
    }
}

proptest! {
    #[test]
    fn what_is_packed_is_unpacked_to_the_same(entries in entries()) {
        prop_assert_eq!(unpacked(&packed(&entries)).unwrap(), entries);
    }

    #[test]
    fn no_bytes_do_any_harm(bytes in prop::collection::vec(any::<u8>(), 0..99)) {
        if let Ok(entries) = unpacked(&bytes) {
            prop_assert_eq!(packed(&entries), bytes);
        }
    }
}
