//! The record of one session and its encoding as JSON.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::memory::health::Health;
use crate::memory::strategy::Strategy;
use crate::memory::turn::Turn;

/// The only format so far. A record of a later format is refused as a whole, because writing it
/// back would lose what this release does not understand.
const FORMAT: u32 = 1;

/// The record of one session. Each turn is in exactly one of `backlog`, `in_flight`, `pending` and
/// `turns`, or is part of the summary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    format: u32,
    pub(crate) strategy: Strategy,
    /// Summarises all turns that are in no list.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) summary: String,
    /// The window: the newest turns, kept in full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) turns: Vec<Turn>,
    /// Turns that left the window and wait for a summary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<Turn>,
    /// Batches of turns that wait while the session is degraded.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub(crate) backlog: VecDeque<Vec<Turn>>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) health: Health,
    /// The number of failed summaries in a row.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) retries: u32,
    /// No summary is started before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_at: Option<UnixMillis>,
    /// Turns that a summarizer is working on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<InFlight>,
}

/// Turns that a summarizer is working on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InFlight {
    /// Random. A summary is written only if the record still has its claim.
    pub(crate) claim: u64,
    /// After this time, another host may take the turns: the host that made the claim counts as
    /// dead.
    pub(crate) until: UnixMillis,
    /// The turns.
    pub(crate) turns: Vec<Turn>,
}

/// The copies of a record that exist at once during a call: as stored, as parsed, and as written.
const COPIES: u64 = 3;

/// The most bytes of memory that a parsed record needs for each quote of its JSON. A string has two
/// quotes, and needs at most an element of a vector with spare capacity, and an allocation.
const BYTES_PER_QUOTE: u64 = 40;

/// The most bytes of memory that a call with a record of these bytes needs. The bytes need not be a
/// valid record.
pub(crate) fn memory_of(bytes: &[u8]) -> u64 {
    let quotes = bytes.iter().filter(|byte| **byte == b'"').count() as u64;
    COPIES * (bytes.len() as u64 + BYTES_PER_QUOTE * quotes)
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Record {
    pub(crate) fn new(strategy: Strategy) -> Self {
        Self { format: FORMAT, strategy, ..Self::default() }
    }

    /// Parses a record. The error names no content of the conversation.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| describe(bytes, &error))?;
        record.check()?;
        Ok(record)
    }

    /// Refuses a parsed record that is not a valid snapshot.
    pub(crate) fn check_snapshot(&self) -> Result<(), String> {
        if *self != self.at_rest() {
            return Err("it has a running summary".to_string());
        }
        if self.all_turns().any(|turn| turn.broken_artifact().is_some()) {
            return Err("the value of an artifact is not valid JSON".to_string());
        }
        Ok(())
    }

    /// Encodes the record. The same record gives the same bytes on every host.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The record without a running summary and without times: the content of a snapshot.
    pub(crate) fn at_rest(&self) -> Self {
        let mut record = self.clone();
        record.take_back();
        record.retry_at = None;
        record
    }

    /// Returns the turns in flight to the list that they came from.
    pub(crate) fn take_back(&mut self) {
        let Some(in_flight) = self.in_flight.take() else { return };
        if self.health.is_behind() {
            self.backlog.push_front(in_flight.turns);
            self.health = Health::Degraded;
        } else {
            self.pending.splice(..0, in_flight.turns);
        }
    }

    /// When background work on the record is due; `None` if there is none.
    pub(crate) fn due_at(&self) -> Option<UnixMillis> {
        if let Some(in_flight) = &self.in_flight {
            return Some(in_flight.until);
        }
        let waits = !self.pending.is_empty() || !self.backlog.is_empty();
        waits.then(|| self.retry_at.unwrap_or_default())
    }

    /// Every turn that is kept, oldest first.
    pub(crate) fn all_turns(&self) -> impl Iterator<Item = &Turn> {
        // While a session recovers, the turns in flight are older than the backlog, and pending is
        // empty.
        let in_flight = self.in_flight.iter().flat_map(|in_flight| &in_flight.turns);
        in_flight.chain(self.backlog.iter().flatten()).chain(&self.pending).chain(&self.turns)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("unknown format {}; this release reads format {FORMAT}", self.format));
        }
        match self.strategy {
            Strategy::None => self.check_is(&Self::new(Strategy::None)),
            Strategy::Truncation => {
                self.check_is(&Self { turns: self.turns.clone(), ..Self::new(Strategy::Truncation) })
            }
            Strategy::RollingSummary => self.check_rolling(),
        }
    }

    fn check_is(&self, expected: &Self) -> Result<(), String> {
        if self == expected {
            return Ok(());
        }
        Err(format!("it has contents that the strategy {} does not keep", self.strategy.name()))
    }

    fn check_rolling(&self) -> Result<(), String> {
        let recovers = self.health == Health::Recovering;
        let contradictions = [
            ("a backlog but is not degraded", !self.backlog.is_empty() && !self.health.is_behind()),
            (
                "the health degraded but no backlog",
                self.health == Health::Degraded && self.backlog.is_empty(),
            ),
            ("pending turns but is degraded", !self.pending.is_empty() && self.health.is_behind()),
            ("the health recovering but no running summary", recovers && self.in_flight.is_none()),
            (
                "the health degraded and a running summary",
                self.health == Health::Degraded && self.in_flight.is_some(),
            ),
            ("failed summaries but the health healthy", self.retries > 0 && self.health == Health::Healthy),
            ("an empty batch", self.backlog.iter().any(Vec::is_empty)),
            ("an empty batch", self.in_flight.as_ref().is_some_and(|in_flight| in_flight.turns.is_empty())),
        ];
        match contradictions.into_iter().find(|(_, holds)| *holds) {
            Some((what, _)) => Err(format!("it has {what}")),
            None => Ok(()),
        }
    }
}

/// Describes bytes that are not a record. The parser's own message would show parts of the
/// conversation.
fn describe(bytes: &[u8], error: &serde_json::Error) -> String {
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let position = format!("line {}, column {}", error.line(), error.column());
    match serde_json::from_slice::<AnyFormat>(bytes) {
        Ok(AnyFormat { format }) if format != FORMAT => {
            format!("unknown format {format}; this release reads format {FORMAT}")
        }
        Ok(_) => format!("it is not a valid record of format {FORMAT}, at {position}"),
        Err(_) if error.is_eof() => format!("it is truncated, at {position}"),
        Err(_) if error.is_syntax() => format!("it is not valid JSON, at {position}"),
        Err(_) => format!("it is not a record, at {position}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(text: &str) -> Turn {
        Turn { user_message: text.into(), ..Turn::default() }
    }

    fn parse(text: &str) -> Result<Record, String> {
        Record::parse(text.as_bytes())
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = Record {
            summary: "so far".into(),
            turns: vec![turn("d")],
            backlog: [vec![turn("b")], vec![turn("c")]].into(),
            health: Health::Recovering,
            retries: 3,
            retry_at: Some(17),
            in_flight: Some(InFlight { claim: 1, until: 2, turns: vec![turn("a")] }),
            ..Record::new(Strategy::RollingSummary)
        };
        let bytes = record.to_bytes().unwrap();
        assert_eq!(Record::parse(&bytes).unwrap(), record);
        let texts: Vec<_> = record.all_turns().map(|turn| turn.user_message.as_str()).collect();
        assert_eq!(texts, ["a", "b", "c", "d"]);
        let resting = record.at_rest();
        assert_eq!((resting.health, resting.backlog.len(), resting.in_flight), (Health::Degraded, 3, None));
    }

    #[test]
    fn a_fresh_record_is_short() {
        let bytes = Record::new(Strategy::Truncation).to_bytes().unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), r#"{"format":1,"strategy":"truncation"}"#);
    }

    #[test]
    fn what_is_no_record_is_refused_with_a_reason_that_shows_no_content() {
        let refused = [
            ("", "it is truncated"),
            (r#"{"format":1,"strategy":"truncation","turns":[{"user_mess"#, "it is truncated"),
            ("secret", "it is not valid JSON"),
            ("1", "it is not a record"),
            (r#"{"format":2,"strategy":"episodic"}"#, "unknown format 2; this release reads format 1"),
            (r#"{"format":2,"strategy":"truncation"}"#, "unknown format 2; this release reads format 1"),
            (r#"{"format":1,"strategy":"truncation","secret":1}"#, "it is not a valid record of format 1"),
            (r#"{"format":1,"strategy":"secret"}"#, "it is not a valid record of format 1"),
            (r#"{"format":1,"strategy":"truncation","summary":"x"}"#, "does not keep"),
            (r#"{"format":1,"strategy":"none","turns":[]  ,"retries":1}"#, "does not keep"),
            (r#"{"format":1,"strategy":"rolling-summary","health":"degraded"}"#, "no backlog"),
            (r#"{"format":1,"strategy":"rolling-summary","retries":1}"#, "failed summaries"),
            (
                r#"{"format":1,"strategy":"rolling-summary","backlog":[[]],"health":"degraded"}"#,
                "an empty batch",
            ),
        ];
        for (text, expected) in refused {
            let reason = parse(text).unwrap_err();
            assert!(reason.contains(expected) && !reason.contains("secret"), "{text}: {reason}");
        }
    }

    #[test]
    fn a_snapshot_is_a_record_at_rest_with_artifacts_that_are_json() {
        let turn = |value: &str| {
            format!(
                r#"{{"format":1,"strategy":"truncation","turns":[{{"user_message":"","assistant_response":"",
                "artifacts_shown":[["chart",{value:?}]],"timestamp_millis":0}}]}}"#
            )
        };
        parse(&turn("{}")).unwrap().check_snapshot().unwrap();
        parse(&turn("{")).unwrap().check_snapshot().unwrap_err();
        let claimed = Record {
            in_flight: Some(InFlight { claim: 1, until: 2, turns: vec![Turn::default()] }),
            ..Record::new(Strategy::RollingSummary)
        };
        assert_eq!(claimed.check_snapshot().unwrap_err(), "it has a running summary");
        claimed.at_rest().check_snapshot().unwrap();
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = "[".repeat(200_000);
        parse(&deep).unwrap_err();
        parse(&format!(r#"{{"format":1,"strategy":"truncation","turns":{deep}"#)).unwrap_err();
    }
}
