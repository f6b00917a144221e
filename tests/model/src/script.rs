//! Random arguments, small enough that transactions meet.

use fastrand::Rng;
use larder_core::{Entry, Range};

/// The namespaces that can be written.
pub(crate) const NAMESPACES: [&str; 4] = ["", "n", "n\0", "o"];

/// One in sixteen is reserved, some are too long, and most are the same.
pub(crate) fn namespace(random: &mut Rng) -> String {
    match random.u8(..16) {
        0 => "__n".to_string(),
        1 if random.u8(..4) == 0 => "too long".to_string(),
        1..9 => "n".to_string(),
        _ => random.choice(NAMESPACES).unwrap_or_default().to_string(),
    }
}

pub(crate) fn key(random: &mut Rng) -> String {
    let characters = ['a', 'b', 'b', 'c', '\0', 'ä', '\u{10ffff}'];
    let length = if random.u8(..64) == 0 { 9 } else { random.usize(..3) };
    (0..length).map(|_| *random.choice(&characters).unwrap_or(&'a')).collect()
}

pub(crate) fn keys(random: &mut Rng) -> Vec<String> {
    let count = if random.u8(..32) == 0 { random.usize(8..14) } else { random.usize(..4) };
    (0..count).map(|_| key(random)).collect()
}

pub(crate) fn entries(random: &mut Rng) -> Vec<Entry> {
    keys(random).into_iter().map(|key| Entry { key, value: value(random) }).collect()
}

/// Often a counter, sometimes other bytes, and now and then too long.
pub(crate) fn value(random: &mut Rng) -> Vec<u8> {
    match random.u8(..20) {
        0..10 => random.i64(-5..100).to_string().into_bytes(),
        10 => i64::MAX.to_string().into_bytes(),
        11 => b"+7".to_vec(),
        12 => Vec::new(),
        13 => vec![b'x'; 41],
        _ => (0..random.usize(..40)).map(|_| random.u8(..)).collect(),
    }
}

pub(crate) fn delta(random: &mut Rng) -> i64 {
    match random.u8(..32) {
        0 => i64::MAX,
        1 => i64::MIN,
        _ => random.i64(-3..4),
    }
}

pub(crate) fn prefix(random: &mut Rng) -> String {
    if random.bool() { String::new() } else { key(random) }
}

pub(crate) fn range(random: &mut Rng) -> Range {
    Range {
        prefix: prefix(random),
        start: (random.u8(..) < 80).then(|| key(random)),
        end: (random.u8(..) < 80).then(|| key(random)),
        reverse: random.bool(),
        limit: (random.u8(..) < 130).then(|| random.u32(..4)),
        keys_only: random.u8(..) < 60,
    }
}
