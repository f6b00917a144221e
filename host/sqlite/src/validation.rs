//! Validation of large read sets before their commits enter the writer's queue.

use std::sync::Arc;
use std::time::Instant;

use larder_core::commit::{Commit, Committed};
use larder_core::validation::{Attempt, validate_in_slices};
use larder_core::{Error, Result};
use rusqlite::Connection;

use crate::journal::Reply;
use crate::readers::Readers;
use crate::rows;
use crate::snapshot::begin;
use crate::state_number::StateNumber;
use crate::writer::Writer;

/// Makes a commit of a transaction that read `state`; `None` if that state has no known number.
pub(crate) async fn commit(
    readers: &Arc<Readers>,
    writer: &Arc<Writer>,
    commit: Arc<Commit>,
    state: Option<StateNumber>,
    deadline: Instant,
) -> Result<Committed> {
    let mut attempt = Attempt::first(state.map(StateNumber::as_version));
    loop {
        if let Reply::Made(committed) = writer.commit(commit.clone(), attempt).await? {
            return Ok(committed);
        }
        let state = validate(readers, writer, &commit, deadline).await?;
        attempt = attempt.next(state.map(StateNumber::as_version));
    }
}

/// Validates what was read against the newest state, on a reader while others commit, and returns
/// that state.
///
/// `None` if the state has no known number. The validation would be useless then, so it is skipped.
async fn validate(
    readers: &Arc<Readers>,
    writer: &Arc<Writer>,
    commit: &Commit,
    deadline: Instant,
) -> Result<Option<StateNumber>> {
    let (reader, seen, now) = begin(readers, writer, &commit.clock, &commit.share, deadline).await?;
    let Some(seen) = seen else { return Ok(None) };
    let writer = writer.clone();
    validate_in_slices(commit, move |checks, allowance| {
        // A long validation would keep the log from restarting, for which all commits wait.
        if writer.log_bound().is_full() {
            return Err(Error::Conflict);
        }
        let look =
            |connection: &Connection| checks.advance(&mut rows::Current { connection, now }, allowance);
        // A failed read may have ended SQLite's transaction, so the connection may no longer show
        // this state.
        reader.read_in_transaction(look).unwrap_or(Err(Error::Conflict))
    })
    .await?;
    Ok(Some(seen.state))
}
