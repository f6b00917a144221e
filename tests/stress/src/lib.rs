//! A stress test of larder's SQLite backend: several processes use one file at once, and are killed; a foreign SQLite
//! reads it, makes checkpoints and VACUUMs; clocks jump and disks fail. Every process reports what it asked and what it was
//! answered, and a checker that shares no code with larder finds out whether a serializable, durable store can have
//! answered so. `README.md` says how to run it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "it is a test, and all that it reads comes from itself"
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

/// For how many seconds rounds are begun: the long form is any number that is larger.
const SECONDS: &str = "LARDER_STRESS_SECONDS";

/// The seed of the first round; each further round has the next number.
const SEED: &str = "LARDER_STRESS_SEED";

/// How long the short form runs: without leases, and with them.
const SHORT: [Duration; 2] = [Duration::from_secs(40), Duration::from_secs(20)];

/// How long the processes of one round run.
const ROUND: Duration = Duration::from_secs(6);

/// Runs the stress test, or the process that this program was started as. What is kept of a failure goes to `folder`.
pub fn main(folder: &str) {
    if let Ok(role) = std::env::var(ROLE) {
        match serde_json::from_str(&role).expect("a role") {
            Role::Worker(worker) => worker::run(worker),
            Role::Foreign(foreign) => foreign::run(&foreign),
        }
        return;
    }
    let mut arguments = Arguments::from_args();
    // Each of them needs the whole machine.
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

/// Runs rounds, with a fresh file each, until the time is over.
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
    text.parse().map(Some).map_err(|_| format!("{variable} is {text:?}: give a whole number"))
}
