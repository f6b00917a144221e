//! The turns of a conversation.

use serde::{Deserialize, Serialize};

use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// One exchange of a conversation: the user's message and the response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The user's message.
    pub user_message: String,
    /// The response.
    pub assistant_response: String,
    /// What the agent did between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trajectory: Option<TrajectoryDigest>,
    /// References of the artifacts that the user saw, each with its JSON value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts_shown: Vec<(String, String)>,
    /// References of the artifacts that the user did not see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts_hidden: Vec<String>,
    /// The time of the turn, in milliseconds since 1970.
    pub timestamp_millis: u64,
}

/// What an agent did for one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrajectoryDigest {
    /// The tools that the agent called, in order.
    pub tools_invoked: Vec<String>,
    /// A summary of what the tools returned.
    pub observations_summary: String,
    /// A summary of the agent's reasons.
    pub reasoning_summary: String,
    /// References of the artifacts that resulted.
    pub artifact_refs: Vec<String>,
}

/// The bytes that an element of a list counts beside its text.
const ELEMENT_BYTES: usize = 16;

/// The copies of a turn that exist at once while a call adds it: the caller's, the record's, and
/// two of the encoded bytes.
const COPIES: u64 = 4;

/// The bytes of memory that a text of a list takes beside its own: the `String`s, and the
/// allocation.
const TEXT_OVERHEAD: usize = 56;

impl Turn {
    /// Returns the bytes of all texts, plus 16 for each element of a list.
    pub fn bytes(&self) -> u64 {
        let list = |texts: &[String]| texts.iter().map(|text| text.len() + ELEMENT_BYTES).sum::<usize>();
        let trajectory = self.trajectory.as_ref().map_or(0, |digest| {
            list(&digest.tools_invoked)
                + digest.observations_summary.len()
                + digest.reasoning_summary.len()
                + list(&digest.artifact_refs)
        });
        let shown = self.artifacts_shown.iter().map(|(name, value)| name.len() + value.len() + ELEMENT_BYTES);
        let texts = self.user_message.len() + self.assistant_response.len();
        (texts + trajectory + shown.sum::<usize>() + list(&self.artifacts_hidden)) as u64
    }

    /// The most bytes of memory that a call needs to add the turn.
    pub(crate) fn memory(&self) -> u64 {
        let trajectory = self.trajectory.as_ref();
        let texts = self.artifacts_shown.len() * 2
            + self.artifacts_hidden.len()
            + trajectory.map_or(0, |digest| digest.tools_invoked.len() + digest.artifact_refs.len());
        COPIES * (self.bytes() + (size_of::<Self>() + texts * TEXT_OVERHEAD) as u64)
    }

    /// Refuses a turn that is too large, or that has an artifact whose value is not valid JSON.
    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        limits.check(LimitKind::TurnBytes, self.bytes())?;
        match self.broken_artifact() {
            Some((reference, error)) => Err(Error::invalid_argument(format!(
                "the value of artifact {reference:?} is not valid JSON: {error}"
            ))),
            None => Ok(()),
        }
    }

    /// The first artifact whose value is not valid JSON.
    pub(crate) fn broken_artifact(&self) -> Option<(&str, serde_json::Error)> {
        self.artifacts_shown.iter().find_map(|(reference, value)| {
            let error = serde_json::from_str::<serde::de::IgnoredAny>(value).err()?;
            Some((reference.get(..100).unwrap_or(reference), error))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_and_element_of_a_turn_counts() {
        let turn = Turn {
            user_message: "ab".into(),
            assistant_response: "c".into(),
            trajectory: Some(TrajectoryDigest {
                tools_invoked: vec!["".into(), "x".into()],
                observations_summary: "yy".into(),
                reasoning_summary: "z".into(),
                artifact_refs: vec!["r".into()],
            }),
            artifacts_shown: vec![("a".into(), "1".into())],
            artifacts_hidden: vec!["".into()],
            timestamp_millis: 7,
        };
        assert_eq!(turn.bytes(), 3 + 33 + 3 + 17 + 18 + 16);
    }

    #[test]
    fn an_artifact_that_is_no_json_is_named() {
        let turn = |value: &str| Turn {
            artifacts_shown: vec![("chart".into(), value.into())],
            ..Default::default()
        };
        turn(r#"{"a": [1, null]}"#).check(&Limits::default()).unwrap();
        for broken in ["", "{", "nan", "1 2", &"[".repeat(10_000)] {
            let Err(Error::InvalidArgument(reason)) = turn(broken).check(&Limits::default()) else {
                panic!("{broken:?} was accepted")
            };
            assert!(reason.starts_with("the value of artifact \"chart\" is not valid JSON"), "{reason}");
        }
    }
}
