//! The encoding of a segment.

use std::io::Read;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::write_id::WriteId;

/// The format that this release writes.
const FORMAT: u8 = 1;

const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 16 + 8;
const CHECKSUM_BYTES: usize = 32;
const COMPRESSION: i32 = 1;

/// The kind of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has a payload.
    Data,
    /// It prevents earlier holders from appending.
    Seal,
}

/// The fields before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) kind: Kind,
    /// The epoch of the lease that wrote it.
    pub(crate) epoch: u64,
    pub(crate) position: u64,
    pub(crate) write_id: WriteId,
}

/// The most bytes that the segment of a payload of this size may have.
pub(crate) fn max_stored_bytes(max_payload_bytes: u64) -> u64 {
    // Incompressible data grows a little. zstd's own bound is below this one.
    max_payload_bytes + max_payload_bytes / 128 + 4096
}

/// Encodes a segment: format, kind, epoch, position, write id, length of the payload, the
/// compressed payload and a checksum. The checksum is a SHA-256 of all that and the tenant's name,
/// so that a segment of one tenant is invalid for any other.
pub(crate) fn encode(key: &TenantKey, header: &SegmentHeader, payload: &[u8]) -> std::io::Result<Bytes> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + CHECKSUM_BYTES + payload.len() / 2);
    bytes.push(FORMAT);
    bytes.push(match header.kind {
        Kind::Data => 0,
        Kind::Seal => 1,
    });
    bytes.extend_from_slice(&header.epoch.to_be_bytes());
    bytes.extend_from_slice(&header.position.to_be_bytes());
    bytes.extend_from_slice(&header.write_id.to_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    zstd::stream::copy_encode(payload, &mut bytes, COMPRESSION)?;
    let checksum = checksum(key, &bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes.into())
}

fn checksum(key: &TenantKey, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    Sha256::new().chain_update(key.to_string()).chain_update([0]).chain_update(bytes).finalize().into()
}

/// Takes fields off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

/// Decodes and verifies a segment. Decompresses at most `max_payload_bytes`.
pub(crate) fn decode(
    key: &TenantKey,
    position: u64,
    bytes: &[u8],
    max_payload_bytes: u64,
) -> Result<(SegmentHeader, Vec<u8>)> {
    let corrupt = |reason: &str| TenantError::corrupt(key, format!("segment {position} {reason}"));
    match bytes.first() {
        Some(&FORMAT) => {}
        Some(&format) if format > FORMAT => {
            let (format, supported) = (format.into(), FORMAT.into());
            return Err(TenantError::NewerFormat { key: key.to_string(), format, supported });
        }
        _ => return Err(corrupt("has an unknown format")),
    }
    let (content, stored) =
        bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| corrupt("is cut short"))?;
    if *stored != checksum(key, content) {
        return Err(corrupt("does not match its checksum"));
    }
    let mut fields = Fields(content);
    let mut header = || {
        let [_, kind] = fields.take()?;
        let (epoch, position) = (u64::from_be_bytes(fields.take()?), u64::from_be_bytes(fields.take()?));
        let (write_id, length) = (WriteId::from_bytes(fields.take()?), u64::from_be_bytes(fields.take()?));
        let kind = if kind == 0 { Kind::Data } else { Kind::Seal };
        Some((SegmentHeader { kind, epoch, position, write_id }, length))
    };
    let (header, length) = header().ok_or_else(|| corrupt("is cut short"))?;
    if header.position != position {
        return Err(corrupt("has the header of another position"));
    }
    if length > max_payload_bytes {
        return Err(corrupt(&format!("has {length} bytes, and may have at most {max_payload_bytes}")));
    }
    let payload = decompress(fields.0, length).map_err(|_| corrupt("can't be decompressed"))?;
    if payload.len() as u64 != length {
        return Err(corrupt("does not have the length in its header"));
    }
    Ok((header, payload))
}

/// Decompresses at most one byte more than `length`.
fn decompress(compressed: &[u8], length: u64) -> std::io::Result<Vec<u8>> {
    let mut payload = Vec::new();
    zstd::stream::read::Decoder::new(compressed)?.take(length.saturating_add(1)).read_to_end(&mut payload)?;
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> TenantKey {
        "acme/org".parse().unwrap()
    }

    fn header(kind: Kind) -> SegmentHeader {
        SegmentHeader { kind, epoch: 3, position: 7, write_id: WriteId::random() }
    }

    proptest! {
        #[test]
        fn a_payload_is_read_back_and_stays_below_the_bound(payload in prop::collection::vec(any::<u8>(), 0..5000)) {
            let header = header(Kind::Data);
            let bytes = encode(&key(), &header, &payload).unwrap();
            prop_assert!(bytes.len() as u64 <= max_stored_bytes(payload.len() as u64));
            prop_assert_eq!(decode(&key(), 7, &bytes, 5000).unwrap(), (header, payload));
        }

        #[test]
        fn a_segment_with_any_byte_changed_or_cut_is_refused(at in 0usize..200, flip in 1u8.., cut: bool) {
            let bytes = encode(&key(), &header(Kind::Data), b"some payload").unwrap();
            let mut changed = bytes.to_vec();
            let at = at % changed.len();
            if cut { changed.truncate(at) } else { changed[at] ^= flip }
            let error = decode(&key(), 7, &changed, 5000).unwrap_err();
            let is_typed = matches!(error, TenantError::Corrupt { .. } | TenantError::NewerFormat { .. });
            prop_assert!(is_typed, "{}", error);
        }
    }

    #[test]
    fn a_segment_of_another_tenant_or_position_is_refused() {
        let bytes = encode(&key(), &header(Kind::Seal), b"").unwrap();
        decode(&key(), 7, &bytes, 0).unwrap();
        assert!(matches!(decode(&key(), 8, &bytes, 0), Err(TenantError::Corrupt { .. })));
        let other = "acme/users/ann".parse().unwrap();
        assert!(matches!(decode(&other, 7, &bytes, 0), Err(TenantError::Corrupt { .. })));
    }

    #[test]
    fn a_payload_that_grows_beyond_what_it_says_is_refused() {
        let bomb = encode(&key(), &header(Kind::Data), &vec![0; 1 << 20]).unwrap();
        let error = decode(&key(), 7, &bomb, 1000).unwrap_err();
        assert!(
            error.to_string().ends_with("segment 7 has 1048576 bytes, and may have at most 1000"),
            "{error}"
        );
        let mut lying = bomb[..bomb.len() - CHECKSUM_BYTES].to_vec();
        lying[34..42].copy_from_slice(&10u64.to_be_bytes());
        lying.extend_from_slice(&checksum(&key(), &lying));
        let error = decode(&key(), 7, &lying, 1000).unwrap_err();
        assert!(error.to_string().ends_with("does not have the length in its header"), "{error}");
    }
}
