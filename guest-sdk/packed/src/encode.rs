//! Packs entries.

use alloc::vec::Vec;

use crate::HEADER_BYTES;
use crate::error::{Part, TooLong};

/// Appends an entry to packed entries.
///
/// The key must be UTF-8, which this function does not check: a caller that holds keys as bytes has
/// checked them. [`Entries`](crate::Entries) refuses any other key.
///
/// ```
/// let mut packed = Vec::new();
/// larder_packed::push(&mut packed, b"ab", b"c")?;
/// assert_eq!(packed, b"\x02\0\0\0\x01\0\0\0abc");
/// # Ok::<(), larder_packed::TooLong>(())
/// ```
///
/// # Errors
/// [`TooLong`] if the key or the value has more than [`PART_BYTES_MAX`](crate::PART_BYTES_MAX)
/// bytes. `packed` is then unchanged.
#[inline]
pub fn push(packed: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), TooLong> {
    let lengths = [length(Part::Key, key.len())?, length(Part::Value, value.len())?];
    packed.reserve(HEADER_BYTES + key.len() + value.len());
    packed.extend_from_slice(lengths.as_flattened());
    packed.extend_from_slice(key);
    packed.extend_from_slice(value);
    Ok(())
}

#[inline]
pub(crate) fn length(part: Part, bytes: usize) -> Result<[u8; 4], TooLong> {
    u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| TooLong { part, bytes })
}
