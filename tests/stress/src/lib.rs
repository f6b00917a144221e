//! A stress test of larder's SQLite backend.
//!
//! Several processes use one file at once and are killed. A foreign SQLite reads it, makes
//! checkpoints and VACUUMs. Clocks jump and disks fail. Every process reports its calls and
//! answers, and a checker that shares no code with larder decides whether a serializable, durable
//! store could have given these answers. `README.md` describes how to run it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, which reads only its own data"
)]

mod calls;
mod check;
mod clock;
mod disk;
mod figures;
mod foreign;
mod history;
mod leases;
mod model;
mod round;
mod session;
mod worker;

use std::path::Path;
use std::time::{Duration, Instant};

use figures::Figures;
use libtest_mimic::{Arguments, Trial};
use round::{Plan, ROLE, Role};

/// How many seconds the test begins new rounds, instead of the short form.
const SECONDS: &str = "LARDER_STRESS_SECONDS";

/// The seed of the first round. Each further round uses the next number.
const SEED: &str = "LARDER_STRESS_SEED";

/// Durations of the short form, without leases and with them.
const SHORT: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(20)];

/// How long the processes of one round run.
const ROUND: Duration = Duration::from_secs(6);

/// Runs the stress test, or the role of a child process.
///
/// The events of a failed round are written to `folder`.
pub fn main(folder: &str) {
    if let Ok(role) = std::env::var(ROLE) {
        match serde_json::from_str(&role).expect("cannot decode the role") {
            Role::Worker(worker) => worker::run(worker),
            Role::Foreign(foreign) => foreign::run(&foreign),
        }
        return;
    }
    let mut arguments = Arguments::from_args();
    // Each test needs the whole machine.
    arguments.test_threads = Some(1);
    let [order, leases] = SHORT;
    let trials = vec![
        trial("a_file_that_several_processes_use_loses_nothing_and_keeps_one_order", folder, order, false),
        trial("an_expired_lease_is_not_seen_again_and_no_later_commit_relies_on_it", folder, leases, true),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial(name: &str, folder: &str, short: Duration, leases: bool) -> Trial {
    let folder = folder.to_string();
    Trial::test(name, move || Ok(rounds(folder.as_ref(), short, leases)?))
}

/// Runs rounds, each on a fresh file, until the time is over.
fn rounds(folder: &Path, short: Duration, leases: bool) -> Result<(), String> {
    let duration = number(SECONDS)?.map_or(short, Duration::from_secs);
    let first = number(SEED)?.unwrap_or_else(|| fastrand::u64(0..1 << 32));
    let (begun, mut figures) = (Instant::now(), Figures::default());
    println!("the first seed is {first}");
    for seed in first.. {
        let round = Plan::new(seed, leases).run(ROUND.min(duration), folder).map_err(|error| {
            let seconds = begun.elapsed().as_secs();
            format!("seed {seed}, after {seconds} s: {error}\nrun it again with {SEED}={seed}")
        })?;
        figures.add(&round);
        if begun.elapsed() + ROUND > duration {
            break;
        }
    }
    println!("{figures}");
    Ok(())
}

fn number(variable: &str) -> Result<Option<u64>, String> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{variable} is {text:?}; set it to a whole number"))
}
