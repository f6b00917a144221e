//! Many sessions, and many writers of one session.

use super::*;

pub(crate) const CASES: &[Case] = &[
    ("memory::none::of_128_sessions_at_once_each_keeps_its_own", || many_sessions(Strategy::None)),
    ("memory::truncation::of_128_sessions_at_once_each_keeps_its_own", || {
        many_sessions(Strategy::Truncation)
    }),
    ("memory::rolling_summary::of_128_sessions_at_once_each_keeps_its_own", || {
        many_sessions(Strategy::RollingSummary)
    }),
    ("memory::truncation::of_128_writers_of_one_session_none_loses_a_turn", || {
        many_writers(Strategy::Truncation)
    }),
    ("memory::rolling_summary::of_128_writers_of_one_session_none_loses_a_turn", || {
        many_writers(Strategy::RollingSummary)
    }),
];

pub(crate) const WORKERS: &[Worker] = named!("memory": use_a_session_of_ones_own, add_one_turn_in_turns);

const CROWD: u32 = 128;

fn crowd(strategy: Strategy) -> MemoryOptions {
    MemoryOptions { memory_bytes: 1 << 20, ..options(strategy) }
}

fn many_sessions(strategy: Strategy) -> Outcome {
    declare(&crowd(strategy))?;
    in_parallel("memory::use_a_session_of_ones_own", CROWD)
}

fn use_a_session_of_ones_own(worker: u32) -> Outcome {
    let (tenant, user) = (format!("t{}", worker % 17), format!("u{}", worker % 41));
    let memory = open(&identity_of(&tenant, &user, &format!("s{worker}"), ""))?;
    let texts: Vec<_> = (0..4).map(|number| format!("{tenant}/{user}/{worker}/{number}")).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    say(&memory, &texts)?;
    let context = memory.llm_context()?;
    let (summarised, recent): (&[&str], &[&str]) = match context.strategy {
        Strategy::None => (&[], &[]),
        Strategy::Truncation => (&[], &texts),
        Strategy::RollingSummary => texts.split_at(2),
    };
    expect_context(&memory, summarised, recent)?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_eq(memory.estimate_tokens()?, context.tokens)?;
    let taken = memory.snapshot()?;
    memory.flush()?;
    expect_context(&memory, &[], &[])?;
    memory.restore(&taken)?;
    expect_context(&memory, summarised, recent)
}

fn many_writers(strategy: Strategy) -> Outcome {
    declare(&crowd(strategy))?;
    in_parallel("memory::add_one_turn_in_turns", CROWD)?;
    run_due()?;
    let memory = open(&identity())?;
    let context = memory.llm_context()?;
    let recent = user_messages(&context.recent_turns).into_iter().map(ToString::to_string);
    let summarised = context.summary.lines().filter_map(|line| {
        line.strip_prefix("U:").and_then(|line| line.split(' ').next()).map(ToString::to_string)
    });
    let mut kept: Vec<_> = summarised.chain(recent).collect();
    kept.sort();
    let mut expected: Vec<_> = (0..CROWD).map(|worker| format!("turn-{worker}")).collect();
    expected.sort();
    expect_eq(kept, expected)
}

fn add_one_turn_in_turns(worker: u32) -> Outcome {
    if !worker.is_multiple_of(2) {
        probe::use_memory_of(WhichHost::Other);
    }
    let memory = open(&identity())?;
    // On a slow disk, the last call in the queue may time out. Then its turn was not added.
    retrying_in_a_crowd(|| say(&memory, &[&format!("turn-{worker}")]))
}
