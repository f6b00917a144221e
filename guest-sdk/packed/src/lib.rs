//! The format in which larder's guests and hosts pass lists of keys and values.
//!
//! A component pays for each element of a list that it passes or receives. For a list of bytes it
//! pays once. So the functions of the WIT interface `larder:storage/packed` pass entries in one
//! list of bytes.
//!
//! # Layout
//!
//! Entries follow each other. There is nothing before, between or after them, so no bytes are no
//! entries.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | length of the key in bytes, unsigned, little-endian |
//! | 4 | length of the value in bytes, unsigned, little-endian |
//! | length of the key | the key, UTF-8 |
//! | length of the value | the value, any bytes |
//!
//! A key and a value have at most [`PART_BYTES_MAX`] bytes each. The format does not bound the
//! number of entries, require an order of the keys, or forbid equal keys.
//!
//! # Example
//!
//! ```
//! use larder_packed::{Entries, Entry};
//!
//! let mut packed = Vec::new();
//! larder_packed::push(&mut packed, b"ab", b"c")?;
//! assert_eq!(packed, b"\x02\0\0\0\x01\0\0\0abc");
//! assert_eq!(Entries::new(&packed).next(), Some(Ok(Entry { key: "ab", value: b"c" })));
//! # Ok::<(), larder_packed::TooLong>(())
//! ```
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod decode;
mod encode;
mod error;
#[cfg(test)]
mod tests;

pub use decode::{Entries, Entry, split_first};
pub use encode::push;
pub use error::{InvalidEntry, Part, TooLong};

/// The size of the two lengths before each entry, in bytes.
pub const HEADER_BYTES: usize = 8;

/// The largest size of a key or a value, in bytes: one byte less than 4 GiB.
pub const PART_BYTES_MAX: u32 = u32::MAX;

/// The program of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
