//! Row names: a namespace and a key as one byte string.
//!
//! One string takes one comparison and one allocation instead of two. The order of names is the
//! order of rows. A name is the namespace, with each NUL written as 0x00 0xff, then 0x00 0x00, then
//! the key as it is. The separator sorts before everything that can follow in a longer namespace.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::name::{KeyRange, Namespace, just_after};

const NUL: u8 = 0;
const NUL_WITHIN: u8 = 0xff;
const END: [u8; 2] = [NUL, NUL];

/// Replaces the contents of `name` with the name of a row.
pub(super) fn write(name: &mut Vec<u8>, namespace: &Namespace, key: &[u8]) {
    name.clear();
    write_namespace(name, namespace.as_bytes());
    name.extend_from_slice(key);
}

fn within(namespace: &Namespace, key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(namespace.as_bytes().len() + END.len() + key.len());
    write(&mut name, namespace, key);
    name
}

fn write_namespace(name: &mut Vec<u8>, namespace: &[u8]) {
    for (index, part) in namespace.split(|byte| *byte == NUL).enumerate() {
        if index > 0 {
            name.extend_from_slice(&[NUL, NUL_WITHIN]);
        }
        name.extend_from_slice(part);
    }
    name.extend_from_slice(&END);
}

/// The bounds of the names in a range.
pub(super) fn bounds(range: &KeyRange) -> Range<Vec<u8>> {
    let namespace = range.namespace();
    let end = match range.end() {
        Some(end) => within(namespace, end),
        None => after_namespace(namespace),
    };
    within(namespace, range.start())..end
}

/// The least name after all names of a namespace. No other namespace sorts between it and the one
/// with a NUL appended.
pub(super) fn after_namespace(namespace: &Namespace) -> Vec<u8> {
    let mut name = Vec::new();
    write_namespace(&mut name, &just_after(namespace.as_bytes()));
    name
}

/// The namespace, still escaped, and the key of a name.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let rest = name.get(from..)?;
        let nul = from + rest.iter().position(|byte| *byte == NUL)?;
        if name.get(nul + 1) == Some(&NUL) {
            return Some((name.get(..nul)?, name.get(nul + END.len()..)?));
        }
        from = nul + END.len();
    }
}

/// The key of a row.
pub(super) fn key(name: &[u8]) -> Result<&[u8]> {
    split(name).map(|(_, key)| key).ok_or_else(unreadable)
}

/// The namespace of a row.
pub(super) fn namespace(name: &[u8]) -> Result<Namespace> {
    let mut written = split(name).ok_or_else(unreadable)?.0.iter();
    let mut bytes = Vec::with_capacity(written.len());
    while let Some(byte) = written.next() {
        bytes.push(*byte);
        if *byte == NUL {
            written.next();
        }
    }
    Namespace::from_stored(bytes)
}

/// The bytes of the namespace and the key.
pub(super) fn bytes(name: &[u8]) -> u64 {
    let nuls = split(name).map_or(0, |(namespace, _)| namespace.iter().filter(|byte| **byte == NUL).count());
    name.len().saturating_sub(END.len() + nuls) as u64
}

fn unreadable() -> Error {
    Error::Corrupt("the name of an in-memory row is invalid".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::name::{Key, RowKey};

    fn row(namespace: &str, key: &str) -> RowKey {
        let limits = Limits::default();
        RowKey {
            namespace: Namespace::new(namespace, &limits).unwrap(),
            key: Key::new(key, &limits).unwrap(),
        }
    }

    fn of(row: &RowKey) -> Vec<u8> {
        within(&row.namespace, row.key.as_bytes())
    }

    fn rows() -> Vec<RowKey> {
        let texts =
            ["", "\0", "\0\0", "\0a", "\u{1}", "a", "a\0", "a\0\0", "a\0b", "a\u{1}", "ab", "b", "\u{7ff}"];
        texts.iter().flat_map(|namespace| texts.iter().map(|key| row(namespace, key))).collect()
    }

    #[test]
    fn names_are_in_the_order_of_rows() {
        for one in rows() {
            for other in rows() {
                assert_eq!(of(&one).cmp(&of(&other)), one.cmp(&other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_name_gives_back_what_it_was_made_of() {
        for row in rows() {
            let name = of(&row);
            assert_eq!(namespace(&name).unwrap(), row.namespace);
            assert_eq!(key(&name).unwrap(), row.key.as_bytes());
            assert_eq!(bytes(&name), row.bytes());
        }
    }

    #[test]
    fn a_range_holds_its_namespace_and_no_other() {
        for one in rows() {
            let range = KeyRange::prefix(one.namespace.clone(), b"");
            for other in rows() {
                assert_eq!(bounds(&range).contains(&of(&other)), one.namespace == other.namespace);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_name_are_corrupt() {
        assert!(matches!(key(b"a"), Err(Error::Corrupt(_))));
        assert!(matches!(namespace(b"a\0\xff"), Err(Error::Corrupt(_))));
    }
}
