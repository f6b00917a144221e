//! Keys of 16 to 24 bytes.

use crate::random::mix;

/// The shortest key.
pub const KEY_BYTES_MIN: usize = 16;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 24;

/// The key of one row, stored inline.
///
/// A loop that allocated memory for every key would measure that as well.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    length: usize,
}

impl Key {
    /// The key of row `index`.
    ///
    /// Keys of neighbouring rows are far apart in the order of keys.
    pub fn of(index: u64) -> Self {
        let spread = mix(index);
        let length = KEY_BYTES_MIN + (spread % (KEY_BYTES_MAX - KEY_BYTES_MIN + 1) as u64) as usize;
        Self { length, ..Self::at(spread) }
    }

    /// The shortest key at `position` in the order of all keys. A scan starts there.
    pub fn at(position: u64) -> Self {
        let mut bytes = [b'k'; KEY_BYTES_MAX];
        let mut rest = position;
        for byte in bytes.iter_mut().take(KEY_BYTES_MIN) {
            let digit = (rest >> 60) as u8;
            *byte = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
            rest <<= 4;
        }
        Self { bytes, length: KEY_BYTES_MIN }
    }

    /// The key as ASCII bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_differ_and_have_every_allowed_length() {
        let keys: BTreeSet<String> = (0..10_000).map(|index| Key::of(index).as_str().to_string()).collect();
        assert_eq!(keys.len(), 10_000);
        let lengths: BTreeSet<usize> = keys.iter().map(String::len).collect();
        assert_eq!(lengths, (KEY_BYTES_MIN..=KEY_BYTES_MAX).collect());
    }

    #[test]
    fn positions_are_in_the_order_of_keys() {
        assert_eq!(Key::at(0).as_str(), "0000000000000000");
        assert_eq!(Key::at(0xabcd << 48).as_str(), "abcd000000000000");
        assert!(Key::at(u64::MAX / 2).as_bytes() < Key::at(u64::MAX).as_bytes());
    }
}
