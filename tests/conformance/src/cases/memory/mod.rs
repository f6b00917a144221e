//! Conversations.

use std::fmt::Debug;

use super::{Case, Worker};
pub(super) use crate::bindings::larder::storage::memory::{
    ContextPatch, Health, Identity, Memory, Snapshot, Strategy, TrajectoryDigest, Turn,
};
pub(super) use crate::check::probe::{MemoryOptions, Summaries, WhichHost};
use crate::check::*;

/// Lists functions once for each strategy, under the names `group::strategy::sentence_in_words`.
macro_rules! with_each_strategy {
    ($group:literal: $($function:ident),* $(,)?) => {
        &[$(
            (concat!($group, "::none::", stringify!($function)), || $function(Strategy::None)),
            (concat!($group, "::truncation::", stringify!($function)), || $function(Strategy::Truncation)),
            (concat!($group, "::rolling_summary::", stringify!($function)), || $function(Strategy::RollingSummary)),
        )*]
    };
}

mod common;
mod crowd;
mod identity;
mod input;
mod recovery;
mod rolling_summary;
mod truncation;

pub(crate) const CASES: &[&[Case]] = &[
    common::CASES,
    identity::CASES,
    truncation::CASES,
    rolling_summary::CASES,
    recovery::CASES,
    input::CASES,
    crowd::CASES,
];

pub(crate) const WORKERS: &[&[Worker]] = &[rolling_summary::WORKERS, recovery::WORKERS, crowd::WORKERS];

/// The options of most cases: no budget, a window of two turns, and no backoff between retries.
pub(super) fn options(strategy: Strategy) -> MemoryOptions {
    MemoryOptions {
        strategy: name(strategy).to_string(),
        budget_tokens: 0,
        window_turns: 2,
        backlog_max: 16,
        retry_count: 3,
        retry_backoff_ms: 0,
        recovery_interval_ms: 10_000,
        summary_timeout_ms: 60_000,
        memory_bytes: 64 << 10,
    }
}

pub(super) fn name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::None => "none",
        Strategy::Truncation => "truncation",
        Strategy::RollingSummary => "rolling-summary",
    }
}

pub(super) fn declare(options: &MemoryOptions) -> Outcome {
    Ok(probe::declare_memory(options)?)
}

pub(super) fn identity() -> Identity {
    session("monday")
}

pub(super) fn session(session: &str) -> Identity {
    identity_of("acme", "ann", session, "")
}

pub(super) fn identity_of(tenant: &str, user: &str, session: &str, run: &str) -> Identity {
    Identity {
        tenant: tenant.to_string(),
        user: user.to_string(),
        session: session.to_string(),
        run: run.to_string(),
    }
}

/// Declares a strategy and opens a session.
pub(super) fn memory(strategy: Strategy) -> Outcome<Memory> {
    memory_with(&options(strategy))
}

pub(super) fn memory_with(options: &MemoryOptions) -> Outcome<Memory> {
    declare(options)?;
    open(&identity())
}

#[track_caller]
pub(super) fn open(identity: &Identity) -> Outcome<Memory> {
    Ok(Memory::open(identity)?)
}

pub(super) fn turn(text: &str) -> Turn {
    Turn {
        user_message: text.to_string(),
        assistant_response: text.to_uppercase(),
        trajectory: None,
        artifacts_shown: Vec::new(),
        artifacts_hidden: Vec::new(),
        timestamp_ms: 1_700_000_000_000,
    }
}

/// Adds a turn for each text.
#[track_caller]
pub(super) fn say(memory: &Memory, texts: &[&str]) -> Outcome {
    texts.iter().try_for_each(|text| Ok(memory.add_turn(&turn(text))?))
}

/// The summary that the echoing summariser makes of turns.
pub(super) fn echoed(texts: &[&str]) -> String {
    texts.iter().map(|text| format!("U:{text} A:{}", text.to_uppercase())).collect::<Vec<_>>().join("\n")
}

/// Expects a summary of some turns, followed by recent turns.
#[track_caller]
pub(super) fn expect_context(memory: &Memory, summarised: &[&str], recent: &[&str]) -> Outcome {
    let context = memory.llm_context()?;
    expect_eq(context.summary, echoed(summarised))?;
    expect_eq(user_messages(&context.recent_turns), recent.to_vec())
}

pub(super) fn user_messages(turns: &[Turn]) -> Vec<&str> {
    turns.iter().map(|turn| turn.user_message.as_str()).collect()
}

#[track_caller]
pub(super) fn expect_invalid_snapshot<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "invalid-snapshot", |error| matches!(error, Error::InvalidSnapshot(_)))
}

/// Expects texts in order.
#[track_caller]
pub(super) fn expect_texts<T: AsRef<str>>(got: impl IntoIterator<Item = T>, expected: &[&str]) -> Outcome {
    let got: Vec<_> = got.into_iter().map(|text| text.as_ref().to_string()).collect();
    expect_eq(got, expected.iter().map(ToString::to_string).collect())
}

/// The turns of each summariser call, joined.
pub(super) fn asked(calls: &[probe::SummaryCall]) -> Vec<String> {
    calls.iter().map(|call| call.user_messages.join(" ")).collect()
}

/// Calls every method of an open memory; ends with a flush.
pub(super) fn calls(memory: &Memory) -> [(&'static str, Result<(), Error>); 7] {
    let empty = Snapshot { strategy: Strategy::Truncation, bytes: Vec::new() };
    [
        ("add-turn", memory.add_turn(&turn("more"))),
        ("llm-context", memory.llm_context().map(drop)),
        ("estimate-tokens", memory.estimate_tokens().map(drop)),
        ("health", memory.health().map(drop)),
        ("snapshot", memory.snapshot().map(drop)),
        ("restore", memory.restore(&empty)),
        ("flush", memory.flush()),
    ]
}

/// The fields of each event with this name since the last call.
pub(super) fn events_of(name: &str) -> Vec<Vec<(String, String)>> {
    probe::events().into_iter().filter(|event| event.name == name).map(|event| event.fields).collect()
}

/// The changes of health since the last call, in the form `healthy > retry`.
pub(super) fn health_changes() -> Vec<String> {
    let field = |fields: &[(String, String)], name: &str| {
        fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let change =
        |fields: Vec<_>| format!("{} > {}", field(&fields, "prior_health"), field(&fields, "new_health"));
    events_of("memory.health_changed").into_iter().map(change).collect()
}

/// Lets the host do due work until none is left.
pub(super) fn run_due() -> Outcome {
    for _ in 0..100 {
        if probe::run_due(WhichHost::Main)? == 0 {
            return Ok(());
        }
    }
    Err(wrong("expected that no more work is due after 100 rounds"))
}
