//! The events that the processes of a round report, one for each line of output.

use std::io::Write;

use serde::{Deserialize, Serialize};

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub(crate) type Nanos = u64;

/// Milliseconds since 1970, by the clock of one store.
pub(crate) type Millis = u64;

/// Namespaces of rows. Each has its own rules.
pub(crate) const HOT: &str = "hot";
pub(crate) const WIDE: &str = "wide";
pub(crate) const COUNTERS: &str = "counters";
/// Rows with a time to live. Whether one exists depends on the clock of the reading process.
pub(crate) const LEASES: &str = "leases";
/// One row for each task, into which every update of the task writes its id.
pub(crate) const TASKS: &str = "tasks";

/// A transaction of a task. A task runs its transactions one after the other, and ends after one
/// with an unknown outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Id {
    pub(crate) task: u64,
    pub(crate) number: u64,
}

impl std::fmt::Display for Id {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}-{}", self.task, self.number)
    }
}

/// The time within which something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Window {
    pub(crate) from: Nanos,
    pub(crate) to: Nanos,
}

/// Bounds of the time that a store's clock showed at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    pub(crate) earliest: Millis,
    pub(crate) latest: Millis,
}

/// A namespace and a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Row(pub(crate) String, pub(crate) String);

impl std::fmt::Display for Row {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}/{}", self.0, self.1)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) prefix: String,
    pub(crate) start: Option<String>,
    pub(crate) end: Option<String>,
    pub(crate) reverse: bool,
    pub(crate) limit: Option<u32>,
    pub(crate) keys_only: bool,
}

/// A call on a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    Get(Row),
    GetVersioned(Row),
    GetMany(String, Vec<String>),
    /// A page of a range: the first page, or the page after this key.
    Page(String, Range, Option<String>),
    Put {
        row: Row,
        value: String,
        ttl: Option<Millis>,
        if_version: Option<u64>,
    },
    Delete {
        row: Row,
        if_version: Option<u64>,
    },
    DeleteRange(String, Range),
    Increment(Row, i64),
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Nothing,
    Value(Option<String>),
    Versioned(Option<(String, u64)>),
    Values(Vec<Option<String>>),
    /// The entries, and whether more follow.
    Page(Vec<(String, String)>, bool),
    Count(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) call: Call,
    pub(crate) answer: Answer,
}

/// When a transaction took its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) window: Window,
    pub(crate) now: Moment,
}

/// The calls of a transaction up to its commit or its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) id: Id,
    /// The opening of the store in which it ran. Within one opening, time never goes back.
    pub(crate) opening: u64,
    pub(crate) steps: Vec<Step>,
    /// `None` if it read no committed state.
    pub(crate) snapshot: Option<Taken>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Committed(u64),
    Conflict,
    /// Nothing was written. The text is the error.
    Refused(String),
    /// It may have been written: the store returned `CommitUnknown`, or the task did not wait for
    /// the answer.
    Open(String),
}

/// A row in the database file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRow {
    pub(crate) row: Row,
    pub(crate) value: String,
    pub(crate) version: u64,
    pub(crate) expires_at: Option<Millis>,
}

/// All rows that one transaction of a foreign SQLite read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dump {
    pub(crate) window: Window,
    pub(crate) rows: Vec<FileRow>,
    /// The highest version that is reserved. No row may exceed it.
    pub(crate) reserved: u64,
}

/// Other actions of a process, counted for the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Deed {
    Opened,
    ClockJump,
    DiskFault,
    FileFault,
    Sweep,
    Verify,
    Backup,
    Checkpoint,
    Vacuum,
    OlderRelease,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A transaction that ended without writing.
    Looked(Transaction),
    /// A commit was requested. The store's clock showed at least `now`.
    Asked {
        transaction: Transaction,
        at: Nanos,
        now: Millis,
    },
    /// The commit was answered. The store's clock showed at most `now`.
    Answered {
        id: Id,
        at: Nanos,
        now: Millis,
        outcome: Outcome,
    },
    Dumped(Dump),
    Did(Deed),
    /// An impossible observation, for example an unexpected kind of error or a torn value.
    Broken(String),
}

/// The time of the monotonic clock.
pub(crate) fn nanos() -> Nanos {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Reports an event. Ends the process if its output is no longer read.
pub(crate) fn report(event: &Event) {
    let mut line = serde_json::to_vec(event).expect("cannot encode an event");
    line.push(b'\n');
    if std::io::stdout().lock().write_all(&line).is_err() {
        std::process::exit(1);
    }
}

/// The filler of values. The history stores only its length.
const FILLER: u8 = b'.';

/// Decodes a value: the text before `+`, followed by as many filler bytes as the number after it.
pub(crate) fn expand(text: &str) -> Vec<u8> {
    let (head, filler) =
        text.split_once('+').map_or((text, 0), |(head, count)| (head, count.parse().unwrap()));
    let mut value = head.as_bytes().to_vec();
    value.resize(head.len() + filler, FILLER);
    value
}

/// Encodes a value as the text from which [`expand`] restores it.
pub(crate) fn shorten(value: &[u8]) -> String {
    let head = value.iter().rposition(|byte| *byte != FILLER).map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&value[..head]);
    match value.len() - head {
        0 => text.into_owned(),
        filler => format!("{text}+{filler}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_after_it_was_shortened() {
        for text in ["1-2.3", "1-2.3+4000", "", "+7", "-12"] {
            assert_eq!(shorten(&expand(text)), text);
        }
    }
}
