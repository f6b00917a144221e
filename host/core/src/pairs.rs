//! Keys and values, one behind the other in one piece of memory: two allocations for each row cost more than reading it.

/// Keys with their values, in the order in which they were added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs {
    bytes: Vec<u8>,
    ends: Vec<Ends>,
}

/// Where a key ends, and the value behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    key: usize,
    value: usize,
}

impl Pairs {
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push(Ends { key, value: self.bytes.len() });
    }

    /// Removes the last one.
    pub(crate) fn pop(&mut self) {
        self.ends.pop();
        self.bytes.truncate(self.ends.last().map_or(0, |ends| ends.value));
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The keys with their values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.bytes.as_slice();
        let mut start = 0;
        self.ends.iter().map(move |ends| {
            // The ends lie in order and within the bytes: none of these is ever cut short.
            let (key, behind) = rest.split_at_checked(ends.key - start).unwrap_or_default();
            let (value, behind) = behind.split_at_checked(ends.value - ends.key).unwrap_or_default();
            (rest, start) = (behind, ends.value);
            (key, value)
        })
    }

    /// The last key.
    pub(crate) fn last_key(&self) -> Option<&[u8]> {
        let last = self.ends.last()?;
        let before = self.ends.len().checked_sub(2).and_then(|place| self.ends.get(place));
        self.bytes.get(before.map_or(0, |ends| ends.value)..last.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> Pairs {
        let mut pairs = Pairs::default();
        of.iter().for_each(|(key, value)| pairs.push(key.as_bytes(), value.as_bytes()));
        pairs
    }

    #[test]
    fn pairs_come_back_in_order() {
        let of = [("a", "1"), ("", ""), ("bc", ""), ("", "23")];
        let pairs = pairs(&of);
        let back: Vec<_> = pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
        assert_eq!(back, of.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())));
        assert_eq!((pairs.len(), pairs.bytes()), (4, 6));
    }

    #[test]
    fn the_last_one_can_be_looked_at_and_removed() {
        let mut some = pairs(&[("a", "1"), ("bc", "2")]);
        assert_eq!(some.last_key(), Some(b"bc".as_slice()));
        some.pop();
        assert_eq!(some, pairs(&[("a", "1")]));
        some.pop();
        assert!(some.is_empty() && some.last_key().is_none());
        some.pop();
        assert_eq!(some, Pairs::default());
    }
}
