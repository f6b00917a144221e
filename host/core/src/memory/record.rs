//! What is kept of one session, and how it is written down.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::memory::health::Health;
use crate::memory::strategy::Strategy;
use crate::memory::turn::Turn;

/// The only format as yet. Bytes of a later one are refused as a whole: what is not understood can't be kept.
const FORMAT: u32 = 1;

/// What is kept of one session. Every turn is in one place only: waiting in the backlog, then with the summariser,
/// pending, or in the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    format: u32,
    pub(crate) strategy: Strategy,
    /// Stands for all turns that are in no list.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) summary: String,
    /// The window: the newest turns, kept in full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) turns: Vec<Turn>,
    /// Turns that left the window and are to be summarised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) pending: Vec<Turn>,
    /// Batches of turns that wait while the session is degraded.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub(crate) backlog: VecDeque<Vec<Turn>>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) health: Health,
    /// How often in a row a summary did not come.
    #[serde(default, skip_serializing_if = "is_default")]
    pub(crate) retries: u32,
    /// Before this, no summary is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retry_at: Option<UnixMillis>,
    /// Turns that a summariser has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) in_flight: Option<InFlight>,
}

/// Turns that a summariser has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InFlight {
    /// Drawn at random: whoever comes back with a summary finds it here, or has lost its right to write it.
    pub(crate) claim: u64,
    /// After this, whoever made the claim has died.
    pub(crate) until: UnixMillis,
    /// What is being summarised.
    pub(crate) turns: Vec<Turn>,
}

/// Copies of a record that exist at once while a call works with it: as it is stored, as it is parsed, and as it is written.
const COPIES: u64 = 3;

/// What the memory of a parsed record has for each quote of its JSON at most. Each text has two of them, and is no more than
/// an element of a vector with spare capacity and an allocation.
const BYTES_PER_QUOTE: u64 = 40;

/// Bytes of memory that a call takes at most which works with a record of these bytes. They need not be a valid record.
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

    /// Reads a record, and says what is wrong with bytes that are none. It names no content of the conversation.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let record: Self = serde_json::from_slice(bytes).map_err(|error| describe(bytes, &error))?;
        record.check()?;
        Ok(record)
    }

    /// Says why a record that was read is not a snapshot, if it is not.
    pub(crate) fn check_snapshot(&self) -> Result<(), String> {
        if *self != self.at_rest() {
            return Err("it has a summary under way".to_string());
        }
        if self.all_turns().any(|turn| turn.broken_artifact().is_some()) {
            return Err("the value of an artifact is not valid JSON".to_string());
        }
        Ok(())
    }

    /// The same record gives the same bytes on every host.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The record as it would be if no summary were under way and time did not matter: what a snapshot holds.
    pub(crate) fn at_rest(&self) -> Self {
        let mut record = self.clone();
        record.take_back();
        record.retry_at = None;
        record
    }

    /// Puts the turns that a summariser has back to where they were.
    pub(crate) fn take_back(&mut self) {
        let Some(in_flight) = self.in_flight.take() else { return };
        if self.health.is_behind() {
            self.backlog.push_front(in_flight.turns);
            self.health = Health::Degraded;
        } else {
            self.pending.splice(..0, in_flight.turns);
        }
    }

    /// When something is to be done that no guest waits for.
    pub(crate) fn due_at(&self) -> Option<UnixMillis> {
        if let Some(in_flight) = &self.in_flight {
            return Some(in_flight.until);
        }
        let waits = !self.pending.is_empty() || !self.backlog.is_empty();
        waits.then(|| self.retry_at.unwrap_or_default())
    }

    /// Every turn that is kept, in order.
    pub(crate) fn all_turns(&self) -> impl Iterator<Item = &Turn> {
        // While a session recovers, what the summariser has is older than the backlog; pending is then empty.
        let in_flight = self.in_flight.iter().flat_map(|in_flight| &in_flight.turns);
        in_flight.chain(self.backlog.iter().flatten()).chain(&self.pending).chain(&self.turns)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}, and this release knows {FORMAT}", self.format));
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
        Err(format!("it holds what the strategy {} does not keep", self.strategy.name()))
    }

    fn check_rolling(&self) -> Result<(), String> {
        let recovers = self.health == Health::Recovering;
        let contradictions = [
            ("a backlog, and is not degraded", !self.backlog.is_empty() && !self.health.is_behind()),
            (
                "the health degraded, and no backlog",
                self.health == Health::Degraded && self.backlog.is_empty(),
            ),
            ("pending turns, and is degraded", !self.pending.is_empty() && self.health.is_behind()),
            ("the health recovering, and no summary under way", recovers && self.in_flight.is_none()),
            (
                "the health degraded, and a summary under way",
                self.health == Health::Degraded && self.in_flight.is_some(),
            ),
            ("failed summaries, and the health healthy", self.retries > 0 && self.health == Health::Healthy),
            ("an empty batch", self.backlog.iter().any(Vec::is_empty)),
            ("an empty batch", self.in_flight.as_ref().is_some_and(|in_flight| in_flight.turns.is_empty())),
        ];
        match contradictions.into_iter().find(|(_, holds)| *holds) {
            Some((what, _)) => Err(format!("it has {what}")),
            None => Ok(()),
        }
    }
}

/// What is wrong with bytes that are no record. The words of the parser would show parts of the conversation.
fn describe(bytes: &[u8], error: &serde_json::Error) -> String {
    #[derive(Deserialize)]
    struct AnyFormat {
        format: u32,
    }
    let place = format!("line {}, column {}", error.line(), error.column());
    match serde_json::from_slice::<AnyFormat>(bytes) {
        Ok(AnyFormat { format }) if format != FORMAT => {
            format!("its format is {format}, and this release knows {FORMAT}")
        }
        Ok(_) => format!("it has what no record of format {FORMAT} has, at {place}"),
        Err(_) if error.is_eof() => format!("it is cut short, at {place}"),
        Err(_) if error.is_syntax() => format!("it is no JSON, at {place}"),
        Err(_) => format!("it is no record, at {place}"),
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
            ("", "it is cut short"),
            (r#"{"format":1,"strategy":"truncation","turns":[{"user_mess"#, "it is cut short"),
            ("secret", "it is no JSON"),
            ("1", "it is no record"),
            (r#"{"format":2,"strategy":"episodic"}"#, "its format is 2, and this release knows 1"),
            (r#"{"format":2,"strategy":"truncation"}"#, "its format is 2, and this release knows 1"),
            (r#"{"format":1,"strategy":"truncation","secret":1}"#, "it has what no record of format 1 has"),
            (r#"{"format":1,"strategy":"secret"}"#, "it has what no record of format 1 has"),
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
        assert_eq!(claimed.check_snapshot().unwrap_err(), "it has a summary under way");
        claimed.at_rest().check_snapshot().unwrap();
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let deep = "[".repeat(200_000);
        parse(&deep).unwrap_err();
        parse(&format!(r#"{{"format":1,"strategy":"truncation","turns":{deep}"#)).unwrap_err();
    }
}
