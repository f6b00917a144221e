//! Cursors, which a guest passes to read the next page of a range.

use std::hash::Hasher;

use fnv::FnvHasher;

use crate::call::Range;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::Namespace;

/// The number of hexadecimal digits of the fingerprint before the key.
const FINGERPRINT_DIGITS: usize = 16;

/// The length of the longest cursor, because no backend stores a longer key.
const CURSOR_BYTES_MAX: usize = FINGERPRINT_DIGITS + Limits::KEY_BYTES_MAX as usize;

/// Encodes the cursor after `last`, the last key of a page.
pub(crate) fn encode(namespace: &Namespace, range: &Range, last: &str) -> String {
    format!("{:016x}{last}", fingerprint(namespace, range))
}

/// Decodes the last key of the page before. The guest's own `key_bytes` does not apply, because a
/// guest with wider limits may have written that key.
///
/// # Errors
/// - [`Error::InvalidArgument`] if it is not a cursor of this range.
pub(crate) fn decode(namespace: &Namespace, range: &Range, cursor: &str) -> Result<Vec<u8>> {
    let last = match cursor.len() <= CURSOR_BYTES_MAX {
        true => cursor.strip_prefix(&format!("{:016x}", fingerprint(namespace, range))),
        false => None,
    };
    last.map(|last| last.as_bytes().to_vec()).ok_or_else(|| {
        Error::invalid_argument(
            "`after` is not a cursor of this range; pass the `next` of a page of the same range",
        )
    })
}

/// The FNV-1a hash of all that identifies a range. It detects mistakes, not attacks: with a forged
/// cursor, a guest only moves within its own range.
fn fingerprint(namespace: &Namespace, range: &Range) -> u64 {
    let mut hash = FnvHasher::default();
    let mut add = |bytes: &[u8]| {
        hash.write(&(bytes.len() as u64).to_le_bytes());
        hash.write(bytes);
    };
    add(namespace.as_bytes());
    add(range.prefix.as_bytes());
    for bound in [&range.start, &range.end] {
        add(&[u8::from(bound.is_some())]);
        add(bound.as_deref().unwrap_or_default().as_bytes());
    }
    add(&[u8::from(range.reverse)]);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_good_for_its_own_range_only() {
        let limits = Limits::default();
        let namespace = Namespace::new("n", &limits).unwrap();
        let range = Range { prefix: "a".into(), ..Default::default() };
        let cursor = encode(&namespace, &range, "a\u{0}b");
        assert_eq!(decode(&namespace, &range, &cursor).unwrap(), b"a\0b");
        let page_size = Range { limit: Some(3), keys_only: true, ..range.clone() };
        assert_eq!(decode(&namespace, &page_size, &cursor).unwrap(), b"a\0b");
        for other in [
            Range { reverse: true, ..range.clone() },
            Range { prefix: String::new(), start: Some("a".into()), ..range.clone() },
            Range { end: Some(String::new()), ..range.clone() },
        ] {
            assert!(matches!(decode(&namespace, &other, &cursor), Err(Error::InvalidArgument(_))));
        }
        assert!(matches!(decode(&namespace, &range, "ä"), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn a_cursor_is_as_long_as_a_key_can_be_and_no_longer() {
        let namespace = Namespace::new("n", &Limits::default()).unwrap();
        let range = Range::default();
        let longest = "k".repeat(Limits::KEY_BYTES_MAX as usize);
        let cursor = encode(&namespace, &range, &longest);
        assert_eq!(decode(&namespace, &range, &cursor).unwrap(), longest.as_bytes());
        let longer = decode(&namespace, &range, &format!("{cursor}k"));
        assert!(matches!(longer, Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn all_that_identifies_a_range_is_part_of_a_cursor() {
        let limits = Limits::default();
        let namespace = |name: &str| Namespace::new(name, &limits).unwrap();
        let range = |prefix: &str, start: Option<&str>, end: Option<&str>, reverse| Range {
            prefix: prefix.into(),
            start: start.map(str::to_string),
            end: end.map(str::to_string),
            reverse,
            ..Range::default()
        };
        // Some are equal if their parts are joined.
        let ranges = [
            ("n", range("ab", Some("c"), None, false)),
            ("na", range("b", Some("c"), None, false)),
            ("n", range("a", Some("bc"), None, false)),
            ("n", range("ab", Some("d"), None, false)),
            ("n", range("ab", None, Some("c"), false)),
            ("n", range("ab", None, None, false)),
            ("n", range("ab", Some(""), None, false)),
            ("n", range("ab", None, Some(""), false)),
            ("n", range("ab", Some("c"), None, true)),
            ("m", range("ab", Some("c"), None, false)),
            ("n", range("ac", Some("c"), None, false)),
        ];
        for (index, (name, made)) in ranges.iter().enumerate() {
            let cursor = encode(&namespace(name), made, "key");
            for (other, (other_name, used)) in ranges.iter().enumerate() {
                let decoded = decode(&namespace(other_name), used, &cursor);
                assert_eq!(decoded.is_ok(), index == other, "{made:?} of {name}, {used:?} of {other_name}");
            }
        }
    }
}
