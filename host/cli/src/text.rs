//! Escaping of text for the terminal, and parsing of sizes, durations and times.

use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// Escapes non-printable characters and the backslash: `\n`, `\u{0}`, `\\`.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' | '"' => escaped.push(character),
            character => escaped.extend(character.escape_debug()),
        }
    }
    escaped
}

/// Decodes a text that [`escape`] encoded.
///
/// # Errors
/// Fails if a backslash does not begin an escape that [`escape`] writes.
pub(crate) fn unescape(text: &str) -> Result<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        let unescaped = match character {
            '\\' => match rest.next() {
                Some('\\') => '\\',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('0') => '\0',
                Some('u') => code_point(&mut rest)?,
                _ => bail!(
                    "{text:?} has a backslash that does not begin an escape; write a literal backslash as `\\\\`"
                ),
            },
            character => character,
        };
        plain.push(unescaped);
    }
    Ok(plain)
}

fn code_point(rest: &mut std::str::Chars<'_>) -> Result<char> {
    let behind = rest.as_str().strip_prefix('{').context("expected `{` after the escape `\\u`")?;
    let (digits, behind) = behind.split_once('}').context("expected `}` at the end of the escape `\\u{`")?;
    *rest = behind.chars();
    // Rust's parser would accept a sign.
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        bail!("`{digits}` is not a hexadecimal number");
    }
    let number = u32::from_str_radix(digits, 16)
        .with_context(|| format!("`{digits}` is not the number of a character"))?;
    char::from_u32(number).with_context(|| format!("`{digits}` is not the number of a character"))
}

/// Returns bytes as text. Non-printable characters are escaped, and invalid UTF-8 is written as
/// `\x..`.
pub(crate) fn escape_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::new();
    for chunk in bytes.utf8_chunks() {
        escaped.push_str(&escape(chunk.valid()));
        for byte in chunk.invalid() {
            escaped.push_str(&format!("\\x{byte:02x}"));
        }
    }
    escaped
}

/// Whether a terminal interprets a character instead of showing it: control characters, and
/// characters that change the direction of the text.
pub(crate) fn is_acted_on(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Returns bytes as text for a terminal. Newlines and tabs are kept, and characters that a terminal
/// interprets are escaped. Different values may look the same; use this only for a terminal.
pub(crate) fn escape_for_terminal(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' | '\t' => shown.push(character),
                character if is_acted_on(character) => shown.extend(character.escape_debug()),
                character => shown.push(character),
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// Returns a value as a member of a JSON object: `value` if it is UTF-8, otherwise `value_hex`.
pub(crate) fn json_value(bytes: Vec<u8>) -> (&'static str, String) {
    match String::from_utf8(bytes) {
        Ok(text) => ("value", text),
        Err(error) => ("value_hex", hex::encode(error.as_bytes())),
    }
}

/// Formats a time in RFC 3339.
pub(crate) fn time(unix_millis: u64) -> String {
    // The last millisecond of the year 9999, the latest time that RFC 3339 can represent.
    const LAST: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(unix_millis.min(LAST));
    humantime::format_rfc3339_millis(time).to_string()
}

/// Parses a time in RFC 3339 or in milliseconds since 1970.
///
/// # Errors
/// Fails if the text is neither.
pub(crate) fn moment(text: &str) -> Result<u64, String> {
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    let wrong = |_| "expected a time such as 2026-01-31T12:00:00Z, or in milliseconds since 1970".to_string();
    let time = humantime::parse_rfc3339_weak(text).map_err(wrong)?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "the time is before 1970".to_string())?;
    u64::try_from(since.as_millis()).map_err(|_| "the time is too far in the future".to_string())
}

/// Parses a number of bytes: `4096`, `64KiB`, `512MiB`, `1GiB`.
///
/// # Errors
/// Fails if the text is not a size, or the size exceeds `u64`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u32); 7] =
        [("KiB", 10), ("MiB", 20), ("GiB", 30), ("K", 10), ("M", 20), ("G", 30), ("B", 0)];
    let unit = UNITS.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let number: Option<u64> = number.trim_end().parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("{text:?} is not a size; write for example 4096, 64KiB, 512MiB or 1GiB"))
}

/// Parses a duration: `500ms`, `90s`, `10m`, `1h 30m`, or `0`.
///
/// # Errors
/// Fails if the text is not a duration.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration; write for example 500ms, 90s, 10m or 1h"))
}

/// Formats a number of bytes with a unit.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        1 => "1 byte".to_string(),
        ..1024 => format!("{count} bytes"),
        _ => indicatif::BinaryBytes(count).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_is_unescaped_to_the_same_text() {
        for text in ["plain", "it's \"quoted\"", "a\\b", "\0\n\t\r\u{1b}", "é\u{301}\u{200b}", "😀", ""] {
            assert_eq!(unescape(&escape(text)).unwrap(), text, "{}", escape(text));
        }
        assert_eq!(escape("a\0b\\"), "a\\0b\\\\");
    }

    #[test]
    fn a_moment_is_read_as_it_is_printed_or_in_milliseconds() {
        let printed = time(1_700_000_000_123);
        assert_eq!(moment(&printed), Ok(1_700_000_000_123));
        assert_eq!(moment("1700000000123"), Ok(1_700_000_000_123));
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000));
        for wrong in ["", "yesterday", "-1", "1969-12-31T23:59:59Z", "99999999999999999999"] {
            moment(wrong).unwrap_err();
        }
    }

    #[test]
    fn sizes_and_durations_are_read() {
        let sizes = [("0", 0), ("4096", 4096), ("64KiB", 64 << 10), ("512MiB", 512 << 20), ("2G", 2 << 30)];
        for (text, size) in sizes {
            assert_eq!(parse_bytes(text), Ok(size));
        }
        for wrong in ["", "-1", "1.5GiB", "GiB", "18446744073709551615K", "1TB", "1 2"] {
            parse_bytes(wrong).unwrap_err();
        }
        assert_eq!(parse_duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        parse_duration("90").unwrap_err();
    }

    #[test]
    fn sizes_are_said_in_words() {
        assert_eq!([0, 1, 512].map(bytes), ["0 bytes", "1 byte", "512 bytes"]);
        assert_eq!(bytes(3 << 20), "3.00 MiB");
    }

    #[test]
    fn an_escape_that_is_none_is_refused() {
        for text in [
            "\\",
            "\\x41",
            "\\u41",
            "\\u{zz}",
            "\\u{110000}",
            "\\u{41",
            "\\u{+41}",
            "\\u{-1}",
            "\\u{}",
            "\\u{",
            "\\u",
            "\\u{ 41}",
            "\\u{d800}",
        ] {
            unescape(text).unwrap_err();
        }
    }

    #[test]
    fn a_terminal_gets_lines_and_nothing_that_it_acts_on() {
        let value = "two\nlines\tand \\ \u{1b}]0;title\u{7}\u{9b}2J\u{202e}é".as_bytes();
        let shown = escape_for_terminal(&[value, b"\xff\r"].concat());
        assert_eq!(shown, "two\nlines\tand \\ \\u{1b}]0;title\\u{7}\\u{9b}2J\\u{202e}é\\xff\\r");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_in_hexadecimal() {
        assert_eq!(escape_bytes(b"a\xffb\n"), "a\\xffb\\n");
        assert_eq!(json_value(vec![0xff, 0x01]), ("value_hex", "ff01".to_string()));
        assert_eq!(json_value(b"a".to_vec()), ("value", "a".to_string()));
    }
}
