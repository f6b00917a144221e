//! Why entries cannot be packed or unpacked.

use core::error::Error;
use core::fmt;

use crate::PART_BYTES_MAX;

/// A part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The key.
    Key,
    /// The value.
    Value,
}

/// A key or a value is too long to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The part that is too long.
    pub part: Part,
    /// Its size in bytes, more than [`PART_BYTES_MAX`].
    pub bytes: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Key => "key",
            Part::Value => "value",
        };
        write!(formatter, "a {part} has {} bytes; a packed entry holds at most {PART_BYTES_MAX}", self.bytes)
    }
}

impl Error for TooLong {}

/// The bytes are not packed entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// The bytes end before the entry does.
    Incomplete {
        /// The number of the entry, from 1.
        number: u64,
    },
    /// The key of the entry is not UTF-8.
    KeyNotUtf8 {
        /// The number of the entry, from 1.
        number: u64,
    },
}

impl fmt::Display for InvalidEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete { number } => write!(
                formatter,
                "packed entry number {number} is incomplete; an entry is the lengths of its key and its value, as \
                 two unsigned 32-bit little-endian numbers, then the key and the value"
            ),
            Self::KeyNotUtf8 { number } => {
                write!(formatter, "the key of packed entry number {number} is not valid UTF-8")
            }
        }
    }
}

impl Error for InvalidEntry {}
