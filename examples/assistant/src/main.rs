//! Holds a conversation: reads a transcript from standard input and adds its turns to the memory of
//! a session.
//!
//! After each turn it prints the context that a model would get for the next one: the health of the
//! memory, its tokens, the summary, and the recent turns, shortened.
//!
//! ```text
//! larder run assistant.wasm --store default=sqlite:assistant.db --memory sqlite:assistant.db \
//!     --memory-strategy rolling-summary --summarizer component:keyword_summarizer.wasm \
//!     --tenant acme --user ann -- acme ann ticket-4711 < sample/transcript.txt
//! ```
//!
//! Each run continues where the last one stopped, so a transcript may grow. `--reset` forgets the
//! session. A transcript is plain text:
//!
//! ```text
//! user: The printer blinks.
//! assistant: Which of its lights?
//! Is the tray closed?
//! user: The red one.
//! assistant: Then it is out of paper.
//! ```
//!
//! A line that names no speaker continues the message before it. An error in the transcript ends
//! the program with the line's number. The turns before that line stay in the memory; the turn with
//! the error is not added.
//!
//! # Progress
//!
//! The memory cannot tell how many turns it was given, because a summary replaces old turns. So the
//! program counts the turns that it added in the store, in the namespace `assistant` under the
//! identity of the session, and writes the count after each turn.
//!
//! The memory and the store do not share a transaction. If the program is killed between the two
//! writes, the memory has a turn that the count lacks. To find such a turn, the program also stores
//! the time of the last counted turn, and gives each turn a later time than the one before it. It
//! compares the first uncounted turn with the newest turn in the memory: if both have the same text
//! and the one in the memory is later than the last counted turn, the program only counts it. The
//! newest turn is always a recent one, so a summary never hides it. A memory that keeps nothing has
//! no newest turn; there, adding the turn again does no harm.

mod progress;
mod report;
mod transcript;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use larder_guest::{Identity, Memory, Store};
use progress::Progress;
use transcript::{Exchange, Transcript};

const USAGE: &str = "\
Holds a conversation in the memory of a session, and counts its turns in the store `default`.

  assistant TENANT USER SESSION          adds the new turns of the transcript on standard input
  assistant --reset TENANT USER SESSION  forgets the session
  assistant --help                       prints this help

A transcript has lines `user: …` and `assistant: …`; any other line continues the message before it.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["--help" | "-h"] => print(USAGE),
        ["--reset", tenant, user, session] => reset(Identity::session(*tenant, *user, *session)),
        [option, ..] if option.starts_with('-') => return misused(),
        [tenant, user, session] => converse(Identity::session(*tenant, *user, *session), io::stdin().lock()),
        _ => return misused(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assistant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn misused() -> ExitCode {
    eprintln!("assistant: expected TENANT USER SESSION, or --reset TENANT USER SESSION; see --help");
    // A WASI 0.2 guest reports only success or failure, so its host exits with 1 instead of 2.
    ExitCode::from(2)
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Forgets the session and then its progress.
///
/// If the program is killed in between, its turns still count as added, and a second reset
/// completes the work. In the other order, turns would be added to a memory that already has them.
fn reset(identity: Identity) -> Outcome {
    let store = Store::open("default")?;
    Memory::open(identity.clone())?.flush()?;
    Progress::forget(&store, &identity)?;
    print("the session is forgotten\n")
}

fn converse(identity: Identity, transcript: impl BufRead) -> Outcome {
    let store = Store::open("default")?;
    let memory = Memory::open(identity.clone())?;
    let mut progress = Progress::load(&store, &identity)?;
    let before = progress.turns;
    // Only the first uncounted turn can be in the memory already.
    let mut newest = memory.llm_context()?.recent_turns.pop();
    for (number, exchange) in (1..).zip(Transcript::new(transcript)) {
        let exchange = exchange?;
        if number <= before {
            continue;
        }
        let missed = newest.take().filter(|newest| progress.has_missed(newest, &exchange));
        let timestamp_ms = match missed {
            Some(turn) => turn.timestamp_ms,
            None => add(&memory, &progress, exchange)?,
        };
        progress.count(timestamp_ms);
        progress.save(&store, &identity)?;
        show(&memory, &format!("turn {number} is stored"))?;
    }
    if progress.turns == before {
        show(&memory, &format!("no new turns; {before} turns are stored"))?;
    }
    Ok(())
}

/// Adds a turn and returns its time.
fn add(memory: &Memory, progress: &Progress, exchange: Exchange) -> Result<u64, String> {
    let line = exchange.line;
    let turn = progress.turn(exchange);
    let timestamp_ms = turn.timestamp_ms;
    memory.add_turn(turn).map_err(|error| format!("cannot store the turn at line {line}: {error}"))?;
    Ok(timestamp_ms)
}

fn show(memory: &Memory, what: &str) -> Outcome {
    print(&format!("{what}\n{}", report::report(&memory.llm_context()?, memory.health()?)))
}

fn print(text: &str) -> Outcome {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
