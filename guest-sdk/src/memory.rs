//! The conversation of one session.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::raw::memory as raw;
pub use crate::raw::memory::{Health, Strategy};

/// The identity to which a conversation belongs.
///
/// Identities that differ in one part have different conversations.
///
/// ```
/// use larder_guest::Identity;
/// let session = Identity::session("acme", "ann", "2026-10-03");
/// let run = session.clone().with_run("nightly report");
/// assert_ne!(session, run);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The customer. One tenant must never see the data of another.
    pub tenant: String,
    /// The user of the tenant.
    pub user: String,
    /// The session of the user.
    pub session: String,
    /// Empty for the whole session. Each run has a conversation of its own.
    pub run: String,
}

impl Identity {
    /// Identifies a whole session.
    pub fn session(tenant: impl Into<String>, user: impl Into<String>, session: impl Into<String>) -> Self {
        Self { tenant: tenant.into(), user: user.into(), session: session.into(), run: String::new() }
    }

    /// Identifies one run of the session.
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = run.into();
        self
    }
}

/// What an agent did to produce one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrajectoryDigest {
    /// The tools that the agent invoked, in order.
    pub tools_invoked: Vec<String>,
    /// A summary of the agent's observations.
    pub observations_summary: String,
    /// A summary of the agent's reasoning.
    pub reasoning_summary: String,
    /// References to the artifacts that the agent made.
    pub artifact_refs: Vec<String>,
}

/// One exchange of a conversation: a message and its answer.
///
/// ```
/// use larder_guest::{TrajectoryDigest, Turn};
/// let tools_invoked = vec!["clock".to_string()];
/// let trajectory = TrajectoryDigest { tools_invoked, ..TrajectoryDigest::default() };
/// let turn = Turn::new("What time is it?", "Half past nine.");
/// let turn = Turn { trajectory: Some(trajectory), ..turn };
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The user's message.
    pub user_message: String,
    /// The assistant's answer.
    pub assistant_response: String,
    /// What the agent did to produce the answer.
    pub trajectory: Option<TrajectoryDigest>,
    /// The artifacts that the user was shown: references and JSON values.
    ///
    #[cfg_attr(feature = "serde", doc = "[`Turn::show_artifact`] adds a value of any type.")]
    pub artifacts_shown: Vec<(String, String)>,
    /// References to the artifacts that the user was not shown.
    pub artifacts_hidden: Vec<String>,
    /// Unix time in milliseconds.
    pub timestamp_ms: u64,
}

impl Turn {
    /// Makes a turn with the current time.
    ///
    /// If the target has no clock, the time is 0.
    pub fn new(user_message: impl Into<String>, assistant_response: impl Into<String>) -> Self {
        Self {
            user_message: user_message.into(),
            assistant_response: assistant_response.into(),
            timestamp_ms: now_ms(),
            ..Self::default()
        }
    }

    /// Adds an artifact that the user was shown; its value is stored as JSON.
    ///
    /// ```
    /// # use larder_guest::{Error, Turn};
    /// # fn main() -> Result<(), Error> {
    /// let turn = Turn::new("Which are open?", "These.").show_artifact("tickets", &[7, 12, 31])?;
    /// assert_eq!(turn.artifacts_shown, [("tickets".to_string(), "[7,12,31]".to_string())]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Encode`] if the value cannot be represented in JSON.
    #[cfg(feature = "serde")]
    pub fn show_artifact<T: serde::Serialize + ?Sized>(
        mut self,
        reference: impl Into<String>,
        value: &T,
    ) -> Result<Self, Error> {
        let value = serde_json::to_string(value).map_err(|error| Error::Encode(error.to_string()))?;
        self.artifacts_shown.push((reference.into(), value));
        Ok(self)
    }
}

fn now_ms() -> u64 {
    // Reading the time traps on a target without a clock.
    if cfg!(all(target_family = "wasm", target_os = "unknown")) {
        return 0;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The part of a conversation to give to a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextPatch {
    /// The strategy by which the host keeps this session.
    pub strategy: Strategy,
    /// Replaces all summarised turns, which are those before the recent ones.
    pub summary: String,
    /// The newest turns, in order.
    pub recent_turns: Vec<Turn>,
    /// The number of tokens of the summary and the recent turns.
    ///
    /// The host counts them.
    pub tokens: u64,
    /// Whether the newest turn alone does not fit in the budget beside the summary.
    pub over_budget: bool,
}

/// A session at one moment.
///
/// It can be stored anywhere and restored under the same strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The strategy by which the session was kept.
    pub strategy: Strategy,
    /// The session: opaque, and empty if it has no turns.
    pub bytes: Vec<u8>,
}

/// The conversation of one session, kept by the strategy that the host declared for it.
///
/// Once a call has returned, its effect is durable.
///
/// ```no_run
/// use larder_guest::{Error, Identity, Memory, Turn};
///
/// fn answer(question: &str) -> Result<String, Error> {
///     let memory = Memory::open(Identity::session("acme", "ann", "2026-10-03"))?;
///     let context = memory.llm_context()?;
///     let answer = ask_model(&context.summary, &context.recent_turns, question);
///     memory.add_turn(Turn::new(question, &answer))?;
///     Ok(answer)
/// }
/// # fn ask_model(_: &str, _: &[Turn], _: &str) -> String { String::new() }
/// ```
pub struct Memory {
    raw: raw::Memory,
}

impl Memory {
    /// Opens the conversation of a session.
    ///
    /// # Errors
    /// - [`Error::IdentityRequired`] if the tenant, the user or the session is empty.
    /// - [`Error::LimitExceeded`] if a part of the identity is too long, or too many conversations
    ///   are open.
    /// - [`Error::AccessDenied`] if the host did not bind this identity to the component, or
    ///   granted no conversations to it.
    /// - [`Error::Closed`] if the host has closed its store.
    pub fn open(identity: Identity) -> Result<Self, Error> {
        Ok(Self { raw: raw::Memory::open(&identity.into())? })
    }

    /// Adds a turn. The turn is durable once this returns.
    ///
    /// If the turn makes a summary due, the call waits for that summary. A summary that fails does
    /// not fail the call; [`Memory::health`] shows it.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the turn, the session or the store is too large, or the host's
    ///   memory for this component is used up.
    /// - [`Error::InvalidArgument`] if the value of a shown artifact is not valid JSON.
    /// - [`Error::InvalidSnapshot`] if the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Conflict`] if other callers kept changing the session.
    /// - [`Error::CommitUnknown`] if it is not known whether the turn was stored.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn add_turn(&self, turn: Turn) -> Result<(), Error> {
        Ok(self.raw.add_turn(&turn.into())?)
    }

    /// Returns the part of the conversation to give to a model.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the host's memory for this component is used up.
    /// - [`Error::InvalidSnapshot`] if the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn llm_context(&self) -> Result<ContextPatch, Error> {
        Ok(self.raw.llm_context()?.into())
    }

    /// Returns the number of tokens of [`Memory::llm_context`], without the context.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the host's memory for this component is used up.
    /// - [`Error::InvalidSnapshot`] if the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn estimate_tokens(&self) -> Result<u64, Error> {
        Ok(self.raw.estimate_tokens()?)
    }

    /// Deletes the session, even if its record cannot be read.
    ///
    /// Deleting a session that does not exist succeeds.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the host's memory for this component is used up.
    /// - [`Error::Conflict`] if other callers kept changing the session.
    /// - [`Error::CommitUnknown`] if it is not known whether the session was deleted.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn flush(&self) -> Result<(), Error> {
        Ok(self.raw.flush()?)
    }

    /// Returns the state of summarising.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the host's memory for this component is used up.
    /// - [`Error::InvalidSnapshot`] if the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn health(&self) -> Result<Health, Error> {
        Ok(self.raw.health()?)
    }

    /// Returns a snapshot of the session.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the host's memory for this component is used up.
    /// - [`Error::InvalidSnapshot`] if the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let raw::Snapshot { strategy, bytes } = self.raw.snapshot()?;
        Ok(Snapshot { strategy, bytes })
    }

    /// Replaces the session with a snapshot. If the call fails, the session is unchanged.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the conversation or its store is closed.
    /// - [`Error::LimitExceeded`] if the snapshot, one of its turns or the store is too large, or
    ///   the host's memory for this component is used up.
    /// - [`Error::InvalidSnapshot`] if the snapshot belongs to another strategy or is not valid, or
    ///   the session was stored with another strategy.
    /// - [`Error::Corrupt`] if the session's record cannot be read.
    /// - [`Error::Conflict`] if other callers kept changing the session.
    /// - [`Error::CommitUnknown`] if it is not known whether the snapshot was stored.
    /// - [`Error::Unavailable`] or [`Error::Other`] if the backend fails.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { strategy, bytes } = snapshot;
        Ok(self.raw.restore(&raw::Snapshot { strategy: *strategy, bytes: bytes.clone() })?)
    }

    /// Closes the handle. The stored conversation is unchanged.
    ///
    /// Later calls fail with [`Error::Closed`].
    pub fn close(&self) {
        self.raw.close();
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl From<Identity> for raw::Identity {
    fn from(identity: Identity) -> Self {
        let Identity { tenant, user, session, run } = identity;
        Self { tenant, user, session, run }
    }
}

impl From<raw::Identity> for Identity {
    fn from(identity: raw::Identity) -> Self {
        let raw::Identity { tenant, user, session, run } = identity;
        Self { tenant, user, session, run }
    }
}

impl From<TrajectoryDigest> for raw::TrajectoryDigest {
    fn from(digest: TrajectoryDigest) -> Self {
        let TrajectoryDigest { tools_invoked, observations_summary, reasoning_summary, artifact_refs } =
            digest;
        Self { tools_invoked, observations_summary, reasoning_summary, artifact_refs }
    }
}

impl From<raw::TrajectoryDigest> for TrajectoryDigest {
    fn from(digest: raw::TrajectoryDigest) -> Self {
        let raw::TrajectoryDigest { tools_invoked, observations_summary, reasoning_summary, artifact_refs } =
            digest;
        Self { tools_invoked, observations_summary, reasoning_summary, artifact_refs }
    }
}

impl From<Turn> for raw::Turn {
    fn from(turn: Turn) -> Self {
        Self {
            user_message: turn.user_message,
            assistant_response: turn.assistant_response,
            trajectory: turn.trajectory.map(Into::into),
            artifacts_shown: turn.artifacts_shown,
            artifacts_hidden: turn.artifacts_hidden,
            timestamp_ms: turn.timestamp_ms,
        }
    }
}

impl From<raw::Turn> for Turn {
    fn from(turn: raw::Turn) -> Self {
        Self {
            user_message: turn.user_message,
            assistant_response: turn.assistant_response,
            trajectory: turn.trajectory.map(Into::into),
            artifacts_shown: turn.artifacts_shown,
            artifacts_hidden: turn.artifacts_hidden,
            timestamp_ms: turn.timestamp_ms,
        }
    }
}

impl From<raw::ContextPatch> for ContextPatch {
    fn from(context: raw::ContextPatch) -> Self {
        let raw::ContextPatch { strategy, summary, recent_turns, tokens, over_budget } = context;
        let recent_turns = recent_turns.into_iter().map(Turn::from).collect();
        Self { strategy, summary, recent_turns, tokens, over_budget }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full_turn() -> Turn {
        Turn {
            trajectory: Some(TrajectoryDigest {
                tools_invoked: vec!["search".to_string()],
                observations_summary: "three hits".to_string(),
                reasoning_summary: "the second fits".to_string(),
                artifact_refs: vec!["hit:2".to_string()],
            }),
            artifacts_shown: vec![("hit:2".to_string(), "{}".to_string())],
            artifacts_hidden: vec!["hit:1".to_string()],
            timestamp_ms: 7,
            ..Turn::new("question", "answer")
        }
    }

    #[test]
    fn a_turn_crosses_to_the_host_and_back_as_it_was() {
        assert_eq!(Turn::from(raw::Turn::from(full_turn())), full_turn());
    }

    #[test]
    fn an_identity_crosses_to_the_host_and_back_as_it_was() {
        let identity = Identity::session("t", "u", "s").with_run("r");
        assert_eq!(Identity::from(raw::Identity::from(identity.clone())), identity);
    }

    #[test]
    fn a_context_keeps_the_order_of_its_turns() {
        let turns = [Turn::new("first", ""), full_turn()];
        let context = ContextPatch::from(raw::ContextPatch {
            strategy: Strategy::Truncation,
            summary: "before".to_string(),
            recent_turns: turns.clone().map(Into::into).to_vec(),
            tokens: 9,
            over_budget: true,
        });
        let expected = ContextPatch {
            strategy: Strategy::Truncation,
            summary: "before".to_string(),
            recent_turns: turns.to_vec(),
            tokens: 9,
            over_budget: true,
        };
        assert_eq!(context, expected);
    }

    #[test]
    fn a_new_turn_is_of_now() {
        let before = now_ms();
        let turn = Turn::new("question", "answer");
        assert!(before > 0 && (before..=now_ms()).contains(&turn.timestamp_ms));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn an_artifact_that_json_can_not_hold_is_refused() {
        let no_text_as_key = std::collections::BTreeMap::from([((1, 2), 3)]);
        let outcome = Turn::new("question", "answer").show_artifact("map", &no_text_as_key);
        assert_eq!(outcome, Err(Error::Encode("key must be a string".to_string())));
    }
}
