//! Packed keys and values in one buffer, as guests receive them.
//!
//! Two allocations for each row would cost more than reading it.

use larder_packed::{HEADER_BYTES, TooLong, push, split_first};

/// Keys with their values, in insertion order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs {
    packed: Vec<u8>,
    count: usize,
    /// The start of the last pair.
    last: usize,
}

impl Pairs {
    /// Appends a pair. If it fails, the pairs are unchanged.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), TooLong> {
        let start = self.packed.len();
        push(&mut self.packed, key, value)?;
        self.last = start;
        self.count += 1;
        Ok(())
    }

    /// Appends a part of the pairs in `of`.
    pub(crate) fn extend(&mut self, of: &Self, part: Part) {
        let Part { start, end, count, last } = part;
        let (Some(packed), true) = (of.packed.get(start..end), count > 0) else { return };
        self.last = self.packed.len() + (last - start);
        self.count += count;
        self.packed.extend_from_slice(packed);
    }

    /// The part that holds all pairs.
    pub(crate) fn whole(&self) -> Part {
        Part { start: 0, end: self.packed.len(), count: self.count, last: self.last }
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The size of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        (self.packed.len() - HEADER_BYTES * self.count) as u64
    }

    /// The end of the last pair, where the next one will start.
    pub(crate) fn end(&self) -> usize {
        self.packed.len()
    }

    /// Iterates over the keys and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.packed.as_slice();
        std::iter::from_fn(move || {
            let (key, value, behind) = split_first(rest)?;
            rest = behind;
            Some((key, value))
        })
    }

    /// The pair that starts at this byte.
    pub(crate) fn at(&self, start: usize) -> Option<(&[u8], &[u8])> {
        let (key, value, _) = split_first(self.packed.get(start..)?)?;
        Some((key, value))
    }

    /// The last key; `None` if there are no pairs.
    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        self.at(self.last).map(|(key, _)| key)
    }

    /// The packed pairs.
    pub(crate) fn into_packed(self) -> Vec<u8> {
        self.packed
    }
}

/// Consecutive pairs, from the byte `start` to before the byte `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) count: usize,
    /// The start of the last pair.
    pub(crate) last: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: [(&str, &str); 4] = [("a", "1"), ("", ""), ("bc", ""), ("", "23")];

    fn pairs(of: &[(&str, &str)]) -> Pairs {
        let mut pairs = Pairs::default();
        of.iter().for_each(|(key, value)| pairs.push(key.as_bytes(), value.as_bytes()).unwrap());
        pairs
    }

    #[test]
    fn pairs_come_back_in_order() {
        let pairs = pairs(&OF);
        let back: Vec<_> = pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(back, OF.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())));
        assert_eq!((pairs.len(), pairs.bytes()), (4, 6));
    }

    #[test]
    fn the_last_key_is_known() {
        assert_eq!(pairs(&[]).last_key(), None);
        assert_eq!(pairs(&OF[..3]).last_key(), Some(b"bc".as_slice()));
        assert_eq!(pairs(&OF).last_key(), Some(b"".as_slice()));
    }

    #[test]
    fn what_is_added_as_a_part_is_as_if_it_were_added_one_by_one() {
        let mut both = pairs(&OF[..1]);
        both.extend(&pairs(&OF[1..3]), pairs(&OF[1..3]).whole());
        assert_eq!(both, pairs(&OF[..3]));
        both.extend(&pairs(&[]), pairs(&[]).whole());
        assert_eq!(both, pairs(&OF[..3]));
        let all = pairs(&OF);
        let (start, end) = (pairs(&OF[..1]).end(), pairs(&OF[..3]).end());
        let mut part = Pairs::default();
        part.extend(&all, Part { start, end, count: 2, last: pairs(&OF[..2]).end() });
        assert_eq!(part, pairs(&OF[1..3]));
    }
}
