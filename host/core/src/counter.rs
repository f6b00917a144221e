//! Decimal counters, as [`Transaction::increment`](crate::Transaction::increment) writes them.

use crate::error::{Error, Result};

/// Adds `delta` to a stored counter. `None` counts from 0.
///
/// ```
/// use larder_core::counter;
///
/// assert_eq!(counter::add(Some(b"5"), -7)?, b"-2");
/// assert!(counter::add(Some(b"05"), 1).is_err());
/// # Ok::<(), larder_core::Error>(())
/// ```
///
/// # Errors
/// - [`Error::InvalidArgument`] if the value is not a counter, or the sum does not fit into a
///   signed 64-bit number.
pub fn add(stored: Option<&[u8]>, delta: i64) -> Result<Vec<u8>> {
    let base = stored.map_or(Ok(0), parse)?;
    let sum = add_deltas(base, delta)?;
    Ok(sum.to_string().into_bytes())
}

/// Adds two deltas.
///
/// # Errors
/// - [`Error::InvalidArgument`] if the sum does not fit into a signed 64-bit number.
pub fn add_deltas(first: i64, second: i64) -> Result<i64> {
    first.checked_add(second).ok_or_else(|| {
        Error::invalid_argument("cannot add to the counter: the sum does not fit into a signed 64-bit number")
    })
}

/// Only text that `add` itself would write is a counter, so that every backend accepts the same
/// texts.
fn parse(stored: &[u8]) -> Result<i64> {
    let number = std::str::from_utf8(stored).ok().and_then(|text| text.parse::<i64>().ok());
    match number {
        Some(number) if number.to_string().as_bytes() == stored => Ok(number),
        _ => Err(Error::invalid_argument(
            "the stored value is not a counter; a counter is the decimal text of a signed 64-bit number",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_counter_counts_from_zero() {
        assert_eq!(add(None, -7).unwrap(), b"-7");
    }

    #[test]
    fn only_canonical_text_is_a_counter() {
        for text in ["", "+5", " 5", "05", "-0", "5\n", "0x5", "1_0", "٣", "9223372036854775808"] {
            assert!(matches!(add(Some(text.as_bytes()), 1), Err(Error::InvalidArgument(_))), "{text:?}");
        }
        assert_eq!(add(Some(b"-1"), 1).unwrap(), b"0");
    }

    #[test]
    fn a_sum_out_of_bounds_is_refused() {
        let largest = i64::MAX.to_string();
        assert_eq!(add(Some(largest.as_bytes()), 0).unwrap(), largest.as_bytes());
        assert!(matches!(add(Some(largest.as_bytes()), 1), Err(Error::InvalidArgument(_))));
    }
}
