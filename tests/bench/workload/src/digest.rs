//! A digest of what was read, by which two sides show that they read the same.

use crate::random::mix;

/// A digest of values in any order.
///
/// Each value counts by its length and its stamp only, so that adding it costs little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Adds a value.
    pub fn add(&mut self, value: &[u8]) {
        let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let index = word(value.first_chunk());
        let salt = word(value.get(8..).and_then(<[u8]>::first_chunk));
        let stamp = index
            .wrapping_add(salt.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_add((value.len() as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        self.0 = self.0.wrapping_add(mix(stamp));
    }

    /// The digest as a number.
    pub fn sum(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[&[u8]]) -> u64 {
        let mut digest = Digest::default();
        values.iter().for_each(|value| digest.add(value));
        digest.sum()
    }

    #[test]
    fn the_order_does_not_count_and_everything_else_does() {
        let (a, b) = ([1; 20], [2; 20]);
        assert_eq!(sum(&[&a, &b]), sum(&[&b, &a]));
        assert_ne!(sum(&[&a, &b]), sum(&[&a, &a]));
        assert_ne!(sum(&[&a]), sum(&[&a, &a]));
        assert_ne!(sum(&[&a]), sum(&[&a[..19]]));
        assert_ne!(sum(&[&[]]), sum(&[]));
    }
}
