//! Commits whose reads are too many to be validated while others wait for the writer.

use std::sync::Arc;
use std::time::Instant;

use larder_core::backend::Committed;
use larder_core::commit::Commit;
use larder_core::validation::{Attempt, validate_in_slices};
use larder_core::{Error, Result};
use rusqlite::Connection;

use crate::cache::StateNumber;
use crate::journal::Reply;
use crate::readers::Readers;
use crate::rows;
use crate::snapshot::begin;
use crate::writer::Writer;

/// Commits, after a transaction that read a state, if it is known which one.
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

/// Finds what was read to hold in the newest state, on a connection of its own while others commit. Gives that state, if it
/// can be told which one it is; otherwise the answer is worth nothing, and nothing is looked at.
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
        // Commits wait for those who read to end.
        if writer.log_bound().is_full() {
            return Err(Error::Conflict);
        }
        let look =
            |connection: &Connection| checks.advance(&mut rows::Current { connection, now }, allowance);
        // A failed read may have ended the transaction: it is not this state any more.
        reader.read_in_transaction(look).unwrap_or(Err(Error::Conflict))
    })
    .await?;
    Ok(Some(seen.state))
}
