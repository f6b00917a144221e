//! Conversation memory of one session.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::raw::memory as raw;
pub use crate::raw::memory::{Health, Strategy};

/// Whose memory it is: what differs in one part is another memory.
///
/// ```
/// use larder_guest::Identity;
/// let session = Identity::session("acme", "ann", "2026-10-03");
/// let run = session.clone().with_run("nightly report");
/// assert_ne!(session, run);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Whoever must never see another's data.
    pub tenant: String,
    /// The user of the tenant.
    pub user: String,
    /// The session of the user.
    pub session: String,
    /// Empty for the whole session. A run has a memory of its own.
    pub run: String,
}

impl Identity {
    /// A whole session.
    pub fn session(tenant: impl Into<String>, user: impl Into<String>, session: impl Into<String>) -> Self {
        Self { tenant: tenant.into(), user: user.into(), session: session.into(), run: String::new() }
    }

    /// One run within the session.
    pub fn with_run(mut self, run: impl Into<String>) -> Self {
        self.run = run.into();
        self
    }
}

/// What an agent did for one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrajectoryDigest {
    /// The tools that it invoked, in order.
    pub tools_invoked: Vec<String>,
    /// What it saw.
    pub observations_summary: String,
    /// What it thought.
    pub reasoning_summary: String,
    /// References to what it made.
    pub artifact_refs: Vec<String>,
}

/// A message and its answer.
///
/// ```
/// use larder_guest::{TrajectoryDigest, Turn};
/// let trajectory = TrajectoryDigest { tools_invoked: vec!["clock".to_string()], ..TrajectoryDigest::default() };
/// let turn = Turn { trajectory: Some(trajectory), ..Turn::new("What time is it?", "Half past nine.") };
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// What the user said.
    pub user_message: String,
    /// What was answered.
    pub assistant_response: String,
    /// What the agent did for it.
    pub trajectory: Option<TrajectoryDigest>,
    /// What the user was shown: references, and their values in JSON.
    #[cfg_attr(feature = "serde", doc = "[`Turn::show_artifact`] adds a value of any type.")]
    pub artifacts_shown: Vec<(String, String)>,
    /// References to what the user was not shown.
    pub artifacts_hidden: Vec<String>,
    /// When it was, in Unix milliseconds.
    pub timestamp_ms: u64,
}

impl Turn {
    /// A turn of now. Where the target has no clock, its time is 0.
    pub fn new(user_message: impl Into<String>, assistant_response: impl Into<String>) -> Self {
        Self {
            user_message: user_message.into(),
            assistant_response: assistant_response.into(),
            timestamp_ms: now_ms(),
            ..Self::default()
        }
    }

    /// Adds a value that the user was shown, as JSON.
    ///
    /// ```
    /// # use larder_guest::{Error, Turn};
    /// # fn main() -> Result<(), Error> {
    /// let turn = Turn::new("How many are open?", "Three.").show_artifact("tickets", &[7, 12, 31])?;
    /// assert_eq!(turn.artifacts_shown, [("tickets".to_string(), "[7,12,31]".to_string())]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Encode`] for a value that JSON can't hold.
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
    // Where there is no clock, asking for the time would trap.
    if cfg!(all(target_family = "wasm", target_os = "unknown")) {
        return 0;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a model is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// How the host keeps this session.
    pub strategy: Strategy,
    /// Stands for all turns before the recent ones that were summarised.
    pub summary: String,
    /// The newest turns, in order.
    pub recent_turns: Vec<Turn>,
    /// Tokens of both, as the host counts them.
    pub tokens: u64,
    /// The newest turn alone is more than the budget leaves for it.
    pub over_budget: bool,
}

/// A session at one moment, to be kept anywhere and restored by a memory of the same strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// How the session was kept.
    pub strategy: Strategy,
    /// The session; opaque, and empty where nothing was said.
    pub bytes: Vec<u8>,
}

/// The memory of one session, kept by the strategy that the host declared for it. What a call has returned for is kept.
///
/// ```no_run
/// use larder_guest::{Error, Identity, Memory, Turn};
///
/// fn answer(question: &str) -> Result<String, Error> {
///     let memory = Memory::open(Identity::session("acme", "ann", "2026-10-03"))?;
///     let context = memory.context()?;
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
    /// Opens the memory of a session.
    ///
    /// # Errors
    /// [`Error::IdentityRequired`] where tenant, user or session is empty, [`Error::AccessDenied`] for an identity that
    /// the host did not bind to this instance, [`Error::LimitExceeded`] for one that is too long and where too many
    /// memories are open.
    pub fn open(identity: Identity) -> Result<Self, Error> {
        Ok(Self { raw: raw::Memory::open(&identity.into())? })
    }

    /// Adds a turn. It is kept once this returns; where turns leave the window, this waits for their summary, and one
    /// that fails fails no call: [`Memory::health`] tells of it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a shown artifact that is no JSON, [`Error::LimitExceeded`] for a turn that is too
    /// large, [`Error::Closed`] after [`Memory::close`], and what the backend ran into.
    pub fn add_turn(&self, turn: Turn) -> Result<(), Error> {
        Ok(self.raw.add_turn(&turn.into())?)
    }

    /// What a model is to be given of the session.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Memory::close`], [`Error::Corrupt`] where the host can't read what it kept,
    /// [`Error::InvalidSnapshot`] where another strategy kept it, and what the backend ran into.
    pub fn context(&self) -> Result<Context, Error> {
        Ok(self.raw.llm_context()?.into())
    }

    /// The tokens of [`Memory::context`], without it.
    ///
    /// # Errors
    /// As [`Memory::context`].
    pub fn estimate_tokens(&self) -> Result<u64, Error> {
        Ok(self.raw.estimate_tokens()?)
    }

    /// Forgets the session.
    ///
    /// # Errors
    /// [`Error::Closed`] after [`Memory::close`], and what the backend ran into.
    pub fn flush(&self) -> Result<(), Error> {
        Ok(self.raw.flush()?)
    }

    /// How summarising goes.
    ///
    /// # Errors
    /// As [`Memory::context`].
    pub fn health(&self) -> Result<Health, Error> {
        Ok(self.raw.health()?)
    }

    /// The session as it is now.
    ///
    /// # Errors
    /// As [`Memory::context`].
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let raw::Snapshot { strategy, bytes } = self.raw.snapshot()?;
        Ok(Snapshot { strategy, bytes })
    }

    /// Makes the session what it was.
    ///
    /// # Errors
    /// [`Error::InvalidSnapshot`] for a snapshot of another strategy and for bytes that are none,
    /// [`Error::LimitExceeded`] for one that is too large, and as [`Memory::context`].
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let Snapshot { strategy, bytes } = snapshot;
        Ok(self.raw.restore(&raw::Snapshot { strategy: *strategy, bytes: bytes.clone() })?)
    }

    /// Later calls get [`Error::Closed`]; what is kept stays.
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

impl From<raw::ContextPatch> for Context {
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
        let context = Context::from(raw::ContextPatch {
            strategy: Strategy::Truncation,
            summary: "before".to_string(),
            recent_turns: turns.clone().map(Into::into).to_vec(),
            tokens: 9,
            over_budget: true,
        });
        let expected = Context {
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
