//! The keys of a range, by their bytes.

use larder_core::Range;

/// Keys from `start` to before `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Span {
    pub(crate) fn of(range: &Range) -> Self {
        let mut span = Self { start: range.prefix.clone().into_bytes(), end: after_prefix(&range.prefix) };
        if let Some(start) = &range.start {
            span.start_at(start.as_bytes().to_vec());
        }
        if let Some(end) = &range.end {
            span.end_before(end.as_bytes().to_vec());
        }
        span
    }

    /// Leaves out all up to a key, in the direction of the range.
    pub(crate) fn behind(mut self, last: &str, reverse: bool) -> Self {
        match reverse {
            true => self.end_before(last.as_bytes().to_vec()),
            false => self.start_at(following(last)),
        }
        self
    }

    /// Keeps what lies up to a key and the key itself, in the direction of the range.
    pub(crate) fn up_to(mut self, last: &str, reverse: bool) -> Self {
        match reverse {
            true => self.start_at(last.as_bytes().to_vec()),
            false => self.end_before(following(last)),
        }
        self
    }

    fn start_at(&mut self, start: Vec<u8>) {
        self.start = start.max(std::mem::take(&mut self.start));
    }

    fn end_before(&mut self, end: Vec<u8>) {
        self.end = Some(self.end.take().map_or(end.clone(), |before| before.min(end)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        key.as_bytes() >= self.start.as_slice()
            && self.end.as_ref().is_none_or(|end| key.as_bytes() < end.as_slice())
    }
}

/// The first text behind all with this prefix. A byte of UTF-8 is never the largest one.
fn after_prefix(prefix: &str) -> Option<Vec<u8>> {
    let mut bytes = prefix.as_bytes().to_vec();
    *bytes.last_mut()? += 1;
    Some(bytes)
}

/// The first text behind a key.
fn following(key: &str) -> Vec<u8> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
