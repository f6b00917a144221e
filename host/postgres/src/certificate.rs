//! Parser for the few X.509 fields that larder needs and rustls does not expose.
//!
//! It checks every length, because the certificate comes from a server that is not yet trusted.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// The fields of an X.509 certificate that larder needs.
#[derive(Debug)]
pub(crate) struct Certificate<'a> {
    der: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    /// `notBefore` and `notAfter`, in seconds since 1970. Both are inclusive.
    validity: (i64, i64),
    /// `SubjectPublicKeyInfo`, including its DER tag and length.
    public_key: &'a [u8],
    /// The contents of `signatureAlgorithm`.
    algorithm: &'a [u8],
}

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The tag `[0]`: the version of a certificate, or the hash function in the parameters of
/// RSASSA-PSS.
const CONTEXT_0: u8 = 0xa0;

impl<'a> Certificate<'a> {
    /// Parses a DER certificate. Returns `None` if the bytes are not one.
    pub(crate) fn read(der: &'a [u8]) -> Option<Self> {
        let (whole, _) = take(der, SEQUENCE)?;
        let (signed, rest) = take(whole.contents, SEQUENCE)?;
        let (algorithm, _) = take(rest, SEQUENCE)?;
        let rest = take(signed.contents, CONTEXT_0).map_or(signed.contents, |(_, rest)| rest);
        let (_serial, rest) = take(rest, INTEGER)?;
        let (_algorithm, rest) = take(rest, SEQUENCE)?;
        let (issuer, rest) = take(rest, SEQUENCE)?;
        let (validity, rest) = take(rest, SEQUENCE)?;
        let (subject, rest) = take(rest, SEQUENCE)?;
        let (public_key, _) = take(rest, SEQUENCE)?;
        let (begin, behind) = time(validity.contents)?;
        let (end, _) = time(behind)?;
        Some(Self {
            der,
            issuer: issuer.contents,
            subject: subject.contents,
            validity: (begin, end),
            public_key: public_key.whole,
            algorithm: algorithm.contents,
        })
    }

    /// Whether issuer and subject are equal.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether the certificate has not expired at `second`, counted since 1970. `Err` if it is not
    /// valid yet.
    pub(crate) fn is_valid_at(&self, second: i64) -> Result<bool, NotYet> {
        let (begin, end) = self.validity;
        if second < begin { Err(NotYet) } else { Ok(second <= end) }
    }

    pub(crate) fn public_key(&self) -> &'a [u8] {
        self.public_key
    }

    /// Returns the `tls-server-end-point` channel binding of RFC 5929.
    ///
    /// It is the hash of the certificate, with the hash function of its signature, or SHA-256
    /// instead of MD5 and SHA-1. `None` if RFC 5929 defines no hash function for the signature.
    pub(crate) fn channel_binding(&self) -> Option<Vec<u8>> {
        Some(match self.signature_hash()? {
            Hash::Sha256 => Sha256::digest(self.der).to_vec(),
            Hash::Sha384 => Sha384::digest(self.der).to_vec(),
            Hash::Sha512 => Sha512::digest(self.der).to_vec(),
        })
    }

    fn signature_hash(&self) -> Option<Hash> {
        let (identifier, parameters) = take(self.algorithm, OBJECT_IDENTIFIER)?;
        match identifier.contents {
            // RSA PKCS #1 with MD5, SHA-1 or SHA-2: 1.2.840.113549.1.1.
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last] => match last {
                0x04 | 0x05 | 0x0b => Some(Hash::Sha256),
                0x0c => Some(Hash::Sha384),
                0x0d => Some(Hash::Sha512),
                // RSASSA-PSS. Its parameters name the hash function. The default is SHA-1.
                0x0a => {
                    let (parameters, _) = take(parameters, SEQUENCE)?;
                    let Some((hash, _)) = take(parameters.contents, CONTEXT_0) else {
                        return Some(Hash::Sha256);
                    };
                    let (hash, _) = take(hash.contents, SEQUENCE)?;
                    let (hash, _) = take(hash.contents, OBJECT_IDENTIFIER)?;
                    match hash.contents {
                        // SHA-2: 2.16.840.1.101.3.4.2.
                        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01] => Some(Hash::Sha256),
                        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02] => Some(Hash::Sha384),
                        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03] => Some(Hash::Sha512),
                        _ => None,
                    }
                }
                _ => None,
            },
            // ECDSA with SHA-1 or SHA-2: 1.2.840.10045.4.
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(Hash::Sha256),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, last] => match last {
                0x02 => Some(Hash::Sha256),
                0x03 => Some(Hash::Sha384),
                0x04 => Some(Hash::Sha512),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The certificate is not valid yet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotYet;

enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// A DER element.
struct Value<'a> {
    whole: &'a [u8],
    contents: &'a [u8],
}

/// Splits off an element, which must have this tag. Returns it and the remaining bytes.
fn take(bytes: &[u8], tag: u8) -> Option<(Value<'_>, &[u8])> {
    let (first, behind) = bytes.split_first()?;
    if *first != tag {
        return None;
    }
    let (length, behind) = behind.split_first()?;
    let (length, behind) = match length {
        0..=0x7f => (usize::from(*length), behind),
        // Three length bytes are enough for a certificate. DER forbids the indefinite length, 0x80.
        0x81..=0x83 => {
            let (length, behind) = behind.split_at_checked(usize::from(length & 0x7f))?;
            (length.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)), behind)
        }
        _ => return None,
    };
    let (contents, rest) = behind.split_at_checked(length)?;
    let whole = bytes.get(..bytes.len() - rest.len())?;
    Some((Value { whole, contents }, rest))
}

/// Splits off a time, in seconds since 1970.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest) = match bytes.first()? {
        &UTC_TIME => take(bytes, UTC_TIME)?,
        _ => take(bytes, GENERALIZED_TIME)?,
    };
    let text = std::str::from_utf8(text.contents).ok()?.strip_suffix('Z')?;
    let is_short = text.len() == 12;
    if !(is_short || text.len() == 14) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, text) = text.split_at_checked(if is_short { 2 } else { 4 })?;
    let year: i64 = year.parse().ok()?;
    // RFC 5280: two-digit years stand for 1950 to 2049.
    let year = match is_short {
        true if year < 50 => 2000 + year,
        true => 1900 + year,
        false => year,
    };
    let part = |at: usize| text.get(at..at + 2)?.parse::<i64>().ok();
    let days = days_since_1970(year, part(0)?, part(2)?);
    Some((((days * 24 + part(4)?) * 60 + part(6)?) * 60 + part(8)?, rest))
}

/// Computes the days since 1970-01-01 in the Gregorian calendar.
///
/// Years begin in March here, so that a leap day is the last day of its year.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    fn made(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(["localhost".to_string()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2096, 2, 29);
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_bound_by_the_hash_of_its_signature() {
        let der = made(&PKCS_ECDSA_P256_SHA256);
        let binding = Certificate::read(&der).unwrap().channel_binding().unwrap();
        assert_eq!(binding, Sha256::digest(&der).to_vec());
        let der = made(&PKCS_ECDSA_P384_SHA384);
        let binding = Certificate::read(&der).unwrap().channel_binding().unwrap();
        assert_eq!(binding, Sha384::digest(&der).to_vec());
        // Ed25519 signs without a separate hash function.
        assert_eq!(Certificate::read(&made(&PKCS_ED25519)).unwrap().channel_binding(), None);
    }

    #[test]
    fn the_hash_of_rsassa_pss_is_among_its_parameters() {
        let of = |parameters: &[u8]| {
            let mut algorithm = vec![0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
            algorithm.extend_from_slice(parameters);
            let certificate = Certificate {
                der: b"der",
                issuer: &[],
                subject: &[],
                validity: (0, 0),
                public_key: &[],
                algorithm: &algorithm,
            };
            certificate.channel_binding()
        };
        let hash = |last| {
            [0x30, 15, 0xa0, 13, 0x30, 11, 0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last]
        };
        assert_eq!(of(&hash(3)), Some(Sha512::digest(b"der").to_vec()));
        assert_eq!(of(&hash(1)), Some(Sha256::digest(b"der").to_vec()));
        assert_eq!(of(&[0x30, 0]), Some(Sha256::digest(b"der").to_vec()));
        assert_eq!(of(&hash(9)), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_certificate_is_valid_from_its_first_to_its_last_second() {
        let der = made(&PKCS_ECDSA_P256_SHA256);
        let certificate = Certificate::read(&der).unwrap();
        assert!(certificate.is_self_issued());
        // Computed by `date -u -d DATE +%s`.
        let (begin, end) = (981_158_400, 3_981_312_000);
        assert_eq!(certificate.validity, (begin, end));
        assert_eq!(certificate.is_valid_at(begin - 1), Err(NotYet));
        assert_eq!(
            [begin, end, end + 1].map(|second| certificate.is_valid_at(second).unwrap()),
            [true, true, false]
        );
    }

    #[test]
    fn damaged_bytes_are_no_certificate_and_no_panic() {
        let der = made(&PKCS_ECDSA_P256_SHA256);
        for length in 0..der.len() {
            assert!(Certificate::read(&der[..length]).is_none(), "{length}");
        }
        for at in 0..der.len() {
            for byte in [0x00, 0x30, 0x7f, 0x80, 0x83, 0x84, 0xff] {
                let mut damaged = der.clone();
                damaged[at] = byte;
                if let Some(certificate) = Certificate::read(&damaged) {
                    certificate.channel_binding();
                }
            }
        }
    }
}
