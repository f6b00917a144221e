//! Random ids that distinguish each write from every other.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// The id of a write: 128 random bits, new for each write.
///
/// A reader of an object learns from it which write the object holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(u128);

static DRAWN: AtomicU64 = AtomicU64::new(0);

impl WriteId {
    /// Draws a new id.
    ///
    /// Ids of two hosts must not collide, and a generator that is seeded by time could let them.
    /// The keys of [`RandomState`] come from the operating system, and the counter makes each draw
    /// of this process unique.
    pub(crate) fn random() -> Self {
        let drawn = (std::process::id(), DRAWN.fetch_add(1, Ordering::Relaxed));
        let halves = [RandomState::new().hash_one(drawn), RandomState::new().hash_one(drawn)];
        Self(halves.into_iter().fold(0, |bits, half| (bits << 64) | u128::from(half)))
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Parses the text form: 32 digits of `0-9a-f`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let id = Self(u128::from_str_radix(text, 16).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl std::fmt::Display for WriteId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for WriteId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "WriteId({self})")
    }
}

impl serde::Serialize for WriteId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for WriteId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a write id is 32 digits of 0-9a-f"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_ids_differ_between_draws_and_threads() {
        let draw = || std::thread::spawn(|| (0..1000).map(|_| WriteId::random()).collect::<Vec<_>>());
        let threads: Vec<_> = (0..4).map(|_| draw()).collect();
        let drawn = threads.into_iter().flat_map(|thread| thread.join().unwrap());
        assert_eq!(drawn.collect::<std::collections::BTreeSet<_>>().len(), 4000);
    }

    #[test]
    fn a_write_id_is_read_back_from_its_own_text_only() {
        let id = WriteId::random();
        assert_eq!(WriteId::parse(&id.to_string()), Some(id));
        assert_eq!(WriteId::from_bytes(id.to_bytes()), id);
        for text in ["", "0", &"A".repeat(32), &format!("+{}", "0".repeat(31)), &"0".repeat(33)] {
            assert_eq!(WriteId::parse(text), None, "{text}");
        }
    }
}
