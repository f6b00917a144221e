//! The memory options of a case, and the summariser that it controls.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use larder_host::{EchoSummarizer, MemoryOptions, Summarizer, SummaryError, SummaryRequest};
use tokio::sync::watch;

use crate::probe::bindings::larder::conformance::probe;
use crate::probe::bindings::larder::conformance::probe::{Summaries, SummaryCall};

/// Converts the options that a case declared.
pub(crate) fn options(declared: probe::MemoryOptions) -> Result<MemoryOptions> {
    Ok(MemoryOptions::new(declared.strategy.parse()?)
        .budget_tokens(declared.budget_tokens)
        .window_turns(declared.window_turns as usize)
        .backlog_max(declared.backlog_max as usize)
        .retry_count(declared.retry_count)
        .retry_backoff(Duration::from_millis(declared.retry_backoff_ms))
        .recovery_interval(Duration::from_millis(declared.recovery_interval_ms))
        .summary_timeout(Duration::from_millis(declared.summary_timeout_ms))
        .memory_bytes(declared.memory_bytes))
}

/// Behaves as the case sets it, and records its calls.
pub(crate) struct ScriptedSummarizer {
    does: Mutex<Summaries>,
    calls: Mutex<Vec<SummaryCall>>,
    called: watch::Sender<u32>,
    released: watch::Sender<bool>,
}

impl Default for ScriptedSummarizer {
    fn default() -> Self {
        Self {
            does: Mutex::new(Summaries::Echo),
            calls: Mutex::default(),
            called: watch::channel(0).0,
            released: watch::channel(false).0,
        }
    }
}

impl ScriptedSummarizer {
    pub(crate) fn set(&self, does: Summaries) {
        self.released.send_replace(false);
        *lock(&self.does) = does;
    }

    pub(crate) fn take_calls(&self) -> Vec<SummaryCall> {
        std::mem::take(&mut lock(&self.calls))
    }

    pub(crate) async fn called(&self, count: u32) {
        // Fails only if the sender is dropped, and `self` holds it.
        let _ = self.called.subscribe().wait_for(|calls| *calls >= count).await;
    }

    pub(crate) fn release(&self) {
        *lock(&self.does) = Summaries::Echo;
        self.released.send_replace(true);
    }
}

#[async_trait]
impl Summarizer for ScriptedSummarizer {
    async fn summarize(&self, request: SummaryRequest) -> Result<String, SummaryError> {
        let does = *lock(&self.does);
        lock(&self.calls).push(SummaryCall {
            session: request.identity.session().to_string(),
            previous_summary: request.previous_summary.clone(),
            user_messages: request.turns.iter().map(|turn| turn.user_message.clone()).collect(),
            max_tokens: request.max_tokens,
        });
        self.called.send_modify(|calls| *calls += 1);
        match does {
            Summaries::Echo => {}
            Summaries::Fail => return Err(SummaryError::new("the case set the summariser to fail")),
            Summaries::Panic => std::panic::resume_unwind(Box::new("the case set the summariser to panic")),
            Summaries::Empty => return Ok(String::new()),
            Summaries::Long => return Ok("x".repeat(1_000)),
            Summaries::Hang => std::future::pending().await,
            Summaries::Hold => drop(self.released.subscribe().wait_for(|released| *released).await),
        }
        EchoSummarizer.summarize(request).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
