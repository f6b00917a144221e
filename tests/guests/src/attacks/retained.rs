//! Attacks on the host's memory: staged writes, read sets, rows kept for views, small rows, and
//! conversations.

use std::thread::sleep;
use std::time::Duration;

use larder_guest::raw::memory::{Identity, Memory, Turn};
use larder_guest::raw::tx::Tx;
use larder_guest::raw::types::Error;

use super::{
    Attacker, LARGE_VALUE_BYTES, LARGE_VALUES_MAX, MUTATIONS_MAX, OPEN_MAX, ROW_COUNT, ROWS, entries, key,
    keys,
};

/// How long a full set of transactions is held: less than the transaction timeout.
const HELD: Duration = Duration::from_secs(4);

fn release_if_full(attacker: &mut Attacker) {
    if attacker.held.len() == OPEN_MAX {
        sleep(HELD);
        attacker.held.clear();
    }
}

/// Commits 10,000 new rows of 8 bytes.
pub(super) fn tiny_rows(attacker: &mut Attacker) -> Result<(), Error> {
    let tx = attacker.update()?;
    let first = attacker.steps * MUTATIONS_MAX;
    let namespace = attacker.number.to_string();
    for number in first..first + MUTATIONS_MAX {
        tx.put(&namespace, &format!("{number:07}"), b"")?;
    }
    Tx::commit(tx).map(drop)
}

/// Stages 3.75 MiB in each of as many transactions as the limits allow.
pub(super) fn staged_bytes(attacker: &mut Attacker) -> Result<(), Error> {
    release_if_full(attacker);
    let (value, tx) = (vec![7; LARGE_VALUE_BYTES], attacker.update()?);
    let outcome =
        (0..LARGE_VALUES_MAX).try_for_each(|number| tx.put(&attacker.namespace, &key(number), &value));
    attacker.held.push(tx);
    outcome
}

/// Stages 10,000 rows of 8 bytes in each of as many transactions as the limits allow.
pub(super) fn staged_rows(attacker: &mut Attacker) -> Result<(), Error> {
    release_if_full(attacker);
    let tx = attacker.update()?;
    let outcome = tx.put_many("s", &entries(0, MUTATIONS_MAX, b"v"));
    attacker.held.push(tx);
    outcome
}

/// Reads 15,000 absent rows in each of as many updates as the limits allow.
pub(super) fn read_sets(attacker: &mut Attacker) -> Result<(), Error> {
    release_if_full(attacker);
    let tx = attacker.update()?;
    let outcome = (0..5).try_for_each(|number| tx.get_many("absent", &keys(number * 3_000, 3_000)).map(drop));
    attacker.held.push(tx);
    outcome
}

/// Holds 15 views, and rewrites 3,200 rows of 1 KiB between each two.
pub(super) fn generations(attacker: &mut Attacker) -> Result<(), Error> {
    if attacker.held.len() == OPEN_MAX - 1 {
        attacker.held.remove(0);
    }
    let tx = attacker.view()?;
    let row = attacker.draw(ROW_COUNT);
    let outcome = tx.get(ROWS, &key(row));
    attacker.held.push(tx);
    outcome?;
    attacker.put(0, 3_200, &[attacker.steps as u8; 1_024])
}

/// Adds the largest turn to a conversation, takes its snapshot, and restores it.
pub(super) fn conversations(attacker: &mut Attacker) -> Result<(), Error> {
    let memory = Memory::open(&Identity {
        tenant: "acme".to_string(),
        user: attacker.identity.clone(),
        session: "session".to_string(),
        run: String::new(),
    })?;
    memory.add_turn(&Turn {
        user_message: "x".repeat(125 << 10),
        assistant_response: "y".repeat(125 << 10),
        trajectory: None,
        artifacts_shown: Vec::new(),
        artifacts_hidden: Vec::new(),
        timestamp_ms: attacker.steps,
    })?;
    let snapshot = memory.snapshot()?;
    memory.restore(&snapshot)
}
