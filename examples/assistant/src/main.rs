//! An assistant that holds a conversation: it reads a transcript from standard input, adds its turns to the memory of a
//! session, and prints after each one what a model would be given for the next: the health of the memory, its tokens,
//! the summary and the recent turns, shortened.
//!
//! ```text
//! larder run assistant.wasm --store default=sqlite:assistant.db --memory sqlite:assistant.db \
//!     --memory-strategy rolling-summary --summarizer component:keyword_summarizer.wasm \
//!     --tenant acme --user ann -- acme ann ticket-4711 < sample/transcript.txt
//! ```
//!
//! Run again, it goes on where it stopped, so a transcript may grow; with
//! `--reset` it forgets the session. A transcript is plain text:
//!
//! ```text
//! user: The printer blinks.
//! assistant: Which of its lights?
//! Is the tray closed?
//! user: The red one.
//! assistant: Then it is out of paper.
//! ```
//!
//! Lines that name no speaker go on with what was said before. A mistake ends the program with the line's number; the
//! turns before it are kept, and nothing of its own turn is.
//!
//! # Where it stopped
//!
//! The memory can't tell how many turns it was given: a summary hides that. So the number of turns that were added is
//! kept in the store, in the namespace `assistant` under the identity of the session, and written after each turn. The
//! memory and the store are no one transaction: killed between both, the program finds the turn in the memory and not
//! in the number. Therefore the time of the last counted turn is kept with the number, each turn is later than the one
//! before it, and the first turn that is not counted is compared with the newest one of the memory: if that says the
//! same and is later than the last counted one, it is only counted. The newest turn is always a recent one, so no
//! summary hides it; a memory that keeps nothing has none, and there adding it again does no harm.

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

  assistant TENANT USER SESSION          adds the turns of the transcript on standard input that are not yet added
  assistant --reset TENANT USER SESSION  forgets the session
  assistant --help                       prints this

A transcript has lines `user: …` and `assistant: …`; other lines go on with what was said before.
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
    eprintln!(
        "assistant: it takes TENANT USER SESSION, after `--reset` to forget the session; `--help` tells more"
    );
    // WASI 0.2 tells its host success or failure and no number: there this comes out as 1.
    ExitCode::from(2)
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Killed between both, the session is forgotten and its turns still count as added: resetting again forgets them too.
/// The other way round, they would be added to a memory that has them.
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
    // Only the first turn that is not counted can be there already.
    let mut newest = memory.context()?.recent_turns.pop();
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
        show(&memory, &format!("turn {number} is kept"))?;
    }
    if progress.turns == before {
        show(&memory, &format!("nothing is new; {before} turns are kept"))?;
    }
    Ok(())
}

/// Adds a turn, and gives its time.
fn add(memory: &Memory, progress: &Progress, exchange: Exchange) -> Result<u64, String> {
    let line = exchange.line;
    let turn = progress.turn(exchange);
    let timestamp_ms = turn.timestamp_ms;
    memory.add_turn(turn).map_err(|error| format!("the turn of line {line} can't be kept: {error}"))?;
    Ok(timestamp_ms)
}

fn show(memory: &Memory, what: &str) -> Outcome {
    print(&format!("{what}\n{}", report::report(&memory.context()?, memory.health()?)))
}

fn print(text: &str) -> Outcome {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
