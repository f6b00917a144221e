//! Rules for changing a record: pure functions, without a backend, a clock or a summarizer.
//!
//! With a rolling summary, a turn moves from the window to `pending`, to the summarizer, and into
//! the summary. While summarising keeps failing, the turn waits in the backlog. Each step takes a
//! turn out of one list and puts it into the next in the same write, so it is counted exactly once
//! wherever a host stops.

use crate::backoff::doubled;
use crate::clock::UnixMillis;
use crate::memory::health::Health;
use crate::memory::record::{InFlight, Record};
use crate::memory::strategy::{MemoryOptions, Strategy};
use crate::memory::tokens::{TokenEstimator, summary_tokens, turn_tokens};
use crate::memory::turn::Turn;

/// An event to emit once the step is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    HealthChanged {
        prior: Health,
        new: Health,
        reason: &'static str,
    },
    /// The oldest batch of the backlog was dropped; it had this many turns.
    RecoveryDropped {
        turns: usize,
    },
}

/// The context for a model: the summary and the newest turns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextPatch {
    /// How the conversation is kept.
    pub strategy: Strategy,
    /// The summary of all turns before the recent ones.
    ///
    /// Empty if there are no such turns, and while turns wait in the backlog.
    pub summary: String,
    /// The newest turns, oldest first.
    pub recent_turns: Vec<Turn>,
    /// The tokens of the summary and the turns.
    pub tokens: u64,
    /// Whether the newest turn exceeds the budget that the summary leaves.
    ///
    /// Such a turn is kept alone.
    pub over_budget: bool,
}

/// The options that the host declared, and how it counts tokens.
#[derive(Clone, Copy)]
pub(crate) struct Rules<'a> {
    pub(crate) options: &'a MemoryOptions,
    pub(crate) tokens: &'a dyn TokenEstimator,
}

/// A summary to make.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Begun {
    pub(crate) claim: u64,
    pub(crate) previous_summary: String,
    pub(crate) turns: Vec<Turn>,
}

impl Rules<'_> {
    /// Adds a turn to the window.
    pub(crate) fn add(self, record: &mut Record, turn: Turn) -> Vec<Effect> {
        record.turns.push(turn);
        self.fit(record)
    }

    /// Adjusts a record that was written under other options.
    pub(crate) fn fit(self, record: &mut Record) -> Vec<Effect> {
        let spilled = self.spill(record);
        match record.strategy {
            Strategy::None | Strategy::Truncation => Vec::new(),
            Strategy::RollingSummary => {
                record.pending.extend(spilled);
                if record.health.is_behind() { self.queue_pending(record) } else { Vec::new() }
            }
        }
    }

    /// The context for a model.
    pub(crate) fn llm_context(self, record: &Record) -> ContextPatch {
        let is_shown = !record.health.is_behind();
        let summary = if is_shown { record.summary.clone() } else { String::new() };
        let tokens = summary_tokens(self.tokens, &summary) + self.window_tokens(record);
        let over_budget = self.options.budget_tokens > 0 && tokens > self.options.budget_tokens;
        let recent_turns = record.turns.clone();
        ContextPatch { strategy: record.strategy, summary, recent_turns, tokens, over_budget }
    }

    /// Claims turns for a summarizer, if some are due and no other summarizer has any.
    pub(crate) fn begin(
        self,
        record: &mut Record,
        now: UnixMillis,
        claim: u64,
    ) -> Option<(Begun, Vec<Effect>)> {
        if record.due_at().is_none_or(|due_at| due_at > now) {
            return None;
        }
        let mut effects = Vec::new();
        // The host that had the turns died: this is not a failure of the summarizer.
        if record.health == Health::Recovering {
            become_(record, Health::Degraded, "host_lost", &mut effects);
        }
        record.take_back();
        let turns = if record.health == Health::Degraded {
            become_(record, Health::Recovering, "recovery_attempt", &mut effects);
            record.backlog.pop_front()?
        } else {
            std::mem::take(&mut record.pending)
        };
        let until = now.saturating_add(millis(self.options.summary_timeout * 2));
        record.in_flight = Some(InFlight { claim, until, turns: turns.clone() });
        Some((Begun { claim, previous_summary: record.summary.clone(), turns }, effects))
    }

    /// Stores a summary. Returns `None` and changes nothing if the claim is gone: the session was
    /// flushed or restored, or another host took over.
    pub(crate) fn succeed(
        self,
        record: &mut Record,
        claim: u64,
        now: UnixMillis,
        summary: String,
    ) -> Option<Vec<Effect>> {
        if !holds(record, claim) {
            return None;
        }
        let mut effects = Vec::new();
        record.in_flight = None;
        record.summary = summary;
        record.retry_at = None;
        match record.health {
            Health::Recovering if record.backlog.is_empty() => {
                record.retries = 0;
                become_(record, Health::Healthy, "recovered", &mut effects);
            }
            Health::Recovering => {
                record.retry_at = Some(now);
                become_(record, Health::Degraded, "recovery_batch_summarised", &mut effects);
            }
            _ => {
                record.retries = 0;
                become_(record, Health::Healthy, "summarizer_succeeded", &mut effects);
            }
        }
        // The new summary may leave less of the budget for turns.
        effects.extend(self.fit(record));
        Some(effects)
    }

    /// Counts a failed summary. Returns `None` and changes nothing if the claim is gone.
    pub(crate) fn fail(self, record: &mut Record, claim: u64, now: UnixMillis) -> Option<Vec<Effect>> {
        if !holds(record, claim) {
            return None;
        }
        let mut effects = Vec::new();
        let recovers = record.health == Health::Recovering;
        // `take_back` sets the same health. Set here first, so that the event has a reason.
        if recovers {
            become_(record, Health::Degraded, "recovery_failed", &mut effects);
        }
        record.take_back();
        if recovers {
            record.retry_at = Some(self.recovery_at(now));
            return Some(effects);
        }
        record.retries = record.retries.saturating_add(1);
        become_(record, Health::Retry, "summarizer_failed", &mut effects);
        let wait = doubled(self.options.retry_backoff, record.retries.saturating_sub(1));
        record.retry_at = Some(now.saturating_add(millis(wait)));
        if record.retries >= self.options.retry_count {
            become_(record, Health::Degraded, "retries_exhausted", &mut effects);
            effects.extend(self.queue_pending(record));
            record.retry_at = Some(self.recovery_at(now));
        }
        Some(effects)
    }

    /// Returns the turns of a summary that was stopped, without counting a failure. Returns `None`
    /// and changes nothing if the claim is gone.
    pub(crate) fn abandon(self, record: &mut Record, claim: u64, now: UnixMillis) -> Option<Vec<Effect>> {
        if !holds(record, claim) {
            return None;
        }
        let mut effects = Vec::new();
        if record.health == Health::Recovering {
            become_(record, Health::Degraded, "host_closed", &mut effects);
        }
        record.take_back();
        record.retry_at = Some(now);
        Some(effects)
    }

    /// When to retry a session that becomes degraded now.
    pub(crate) fn recovery_at(self, now: UnixMillis) -> UnixMillis {
        now.saturating_add(millis(self.options.recovery_interval))
    }

    /// Takes the oldest turns out of the window until the rest fits. The newest stays in any case.
    fn spill(self, record: &mut Record) -> Vec<Turn> {
        let window = match record.strategy {
            Strategy::None => 0,
            Strategy::Truncation => usize::MAX,
            Strategy::RollingSummary => self.options.window_turns,
        };
        let budget = match self.options.budget_tokens {
            0 => u64::MAX,
            tokens => tokens.saturating_sub(summary_tokens(self.tokens, &record.summary)),
        };
        let mut left: u64 = self.window_tokens(record);
        let mut count = 0;
        for turn in &record.turns {
            let rest = record.turns.len() - count;
            let is_newest = rest == 1 && window > 0;
            if is_newest || (rest <= window && left <= budget) {
                break;
            }
            left -= turn_tokens(self.tokens, turn);
            count += 1;
        }
        record.turns.drain(..count).collect()
    }

    fn window_tokens(self, record: &Record) -> u64 {
        record.turns.iter().map(|turn| turn_tokens(self.tokens, turn)).sum()
    }

    /// Moves the pending turns to the end of the backlog, and drops its oldest batches if it is too
    /// long. Turns in flight count as a batch and are not dropped.
    fn queue_pending(self, record: &mut Record) -> Vec<Effect> {
        let pending = std::mem::take(&mut record.pending);
        if !pending.is_empty() {
            record.backlog.push_back(pending);
        }
        let in_flight = usize::from(record.in_flight.is_some());
        let mut effects = Vec::new();
        while record.backlog.len() + in_flight > self.options.backlog_max {
            let Some(dropped) = record.backlog.pop_front() else { break };
            effects.push(Effect::RecoveryDropped { turns: dropped.len() });
        }
        effects
    }
}

fn holds(record: &Record, claim: u64) -> bool {
    record.in_flight.as_ref().is_some_and(|in_flight| in_flight.claim == claim)
}

fn become_(record: &mut Record, new: Health, reason: &'static str, effects: &mut Vec<Effect>) {
    let prior = record.health;
    debug_assert!(prior.can_become(new), "{prior:?} can't become {new:?}");
    if prior != new {
        effects.push(Effect::HealthChanged { prior, new, reason });
    }
    record.health = new;
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
