//! The strategy `rolling-summary`: the newest turns, and a summary of those before them.

use super::*;

pub(crate) const CASES: &[Case] = named!("memory":
    turns_that_leave_the_window_are_summarised_in_order,
    a_summary_is_asked_for_with_the_one_before_it,
    a_snapshot_keeps_the_summary,
    the_budget_makes_the_window_smaller,
    a_summary_takes_its_room_from_the_budget,
    a_turn_larger_than_the_budget_is_kept_alone_and_marked,
    a_summary_that_is_too_long_is_not_taken,
    an_empty_summary_is_not_taken,
    a_summariser_that_panics_fails,
    a_rolling_summary_without_room_for_a_turn_in_the_window_is_refused,
    an_unknown_strategy_is_refused_by_name,
    a_turn_is_there_before_its_summary_comes,
    a_turn_is_kept_where_its_summary_never_comes,
    one_summary_is_under_way_and_later_turns_wait_for_the_next,
    a_summary_that_comes_after_a_flush_is_thrown_away,
    a_summary_that_comes_after_a_restore_is_thrown_away,
    a_snapshot_in_the_middle_of_a_summary_holds_every_turn,
    closing_the_host_ends_a_summary_that_hangs_and_keeps_its_turns,
    a_summary_that_takes_too_long_fails,
    two_hosts_ask_for_one_summary_and_lose_no_turn,
);

pub(crate) const WORKERS: &[Worker] = named!("memory":
    look_in_the_middle,
    flush_in_the_middle,
    restore_in_the_middle,
    snapshot_in_the_middle,
    add_more_in_the_middle,
    close_in_the_middle,
    add_more_in_the_other_host,
);

fn rolling() -> MemoryOptions {
    options(Strategy::RollingSummary)
}

fn turns_that_leave_the_window_are_summarised_in_order() -> Outcome {
    let memory = memory_with(&rolling())?;
    say(&memory, &["a", "b"])?;
    expect_context(&memory, &[], &["a", "b"])?;
    expect_eq(probe::summary_calls().len(), 0)?;
    say(&memory, &["c", "d", "e", "f"])?;
    expect_context(&memory, &["a", "b", "c", "d"], &["e", "f"])?;
    let context = memory.llm_context()?;
    let tokens = context.summary.len() as u64 / 4 + 1 + 2 * 2;
    expect_eq((context.tokens, memory.estimate_tokens()?), (tokens, tokens))?;
    expect_eq(memory.health()?, Health::Healthy)
}

fn a_summary_is_asked_for_with_the_one_before_it() -> Outcome {
    let memory = memory_with(&MemoryOptions { budget_tokens: 400, ..rolling() })?;
    say(&memory, &["a", "b", "c", "d"])?;
    let calls = probe::summary_calls();
    let asked: Vec<_> =
        calls.iter().map(|call| (call.previous_summary.as_str(), call.user_messages.join(" "))).collect();
    let first = echoed(&["a"]);
    expect_eq(asked, vec![("", "a".to_string()), (first.as_str(), "b".to_string())])?;
    for call in &calls {
        expect_eq((call.session.as_str(), call.max_tokens), ("monday", Some(200)))?;
    }
    Ok(())
}

fn a_snapshot_keeps_the_summary() -> Outcome {
    let memory = memory_with(&rolling())?;
    say(&memory, &["a", "b", "c"])?;
    let taken = memory.snapshot()?;
    memory.flush()?;
    memory.restore(&taken)?;
    expect_context(&memory, &["a"], &["b", "c"])?;
    say(&memory, &["d"])?;
    expect_context(&memory, &["a", "b"], &["c", "d"])
}

fn the_budget_makes_the_window_smaller() -> Outcome {
    let memory = memory_with(&MemoryOptions { budget_tokens: 100, window_turns: 4, ..rolling() })?;
    let long = "x".repeat(159);
    // A long turn has 80 tokens.
    say(&memory, &[&long, "b", "c", "d"])?;
    expect_context(&memory, &[], &[&long, "b", "c", "d"])?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &[&long])?;
    let context = memory.llm_context()?;
    expect_eq(user_messages(&context.recent_turns), vec!["b", "c", "d", long.as_str()])?;
    expect(context.tokens <= 100, format!("the context has at most 100 tokens, not {}", context.tokens))
}

fn a_summary_takes_its_room_from_the_budget() -> Outcome {
    let memory = memory_with(&MemoryOptions { budget_tokens: 40, window_turns: 4, ..rolling() })?;
    let eight_tokens = |letter: &str| letter.repeat(15);
    let texts = ["a", "b", "c", "d", "e", "f", "g"].map(eight_tokens);
    for text in &texts {
        let _ = memory.add_turn(&turn(text));
        let context = memory.llm_context()?;
        expect(context.tokens <= 40, format!("the context has at most 40 tokens, not {}", context.tokens))?;
        expect_eq(context.recent_turns.last().map(|turn| turn.user_message.clone()), Some(text.clone()))?;
        expect(!context.over_budget, "the context is not over budget")?;
    }
    Ok(())
}

fn a_turn_larger_than_the_budget_is_kept_alone_and_marked() -> Outcome {
    let memory = memory_with(&MemoryOptions { budget_tokens: 40, ..rolling() })?;
    let large = "x".repeat(400);
    say(&memory, &["a", &large])?;
    let context = memory.llm_context()?;
    expect_eq(user_messages(&context.recent_turns), vec![large.as_str()])?;
    expect(
        context.over_budget && context.tokens > 40,
        "the context is marked as over budget and counts the turn",
    )?;
    expect_eq(context.summary, echoed(&["a"]))
}

fn a_summary_that_is_too_long_is_not_taken() -> Outcome {
    let memory = memory_with(&MemoryOptions { budget_tokens: 400, ..rolling() })?;
    probe::set_summaries(Summaries::Long);
    say(&memory, &["a", "b", "c"])?;
    expect_eq(memory.health()?, Health::Retry)?;
    expect_context(&memory, &[], &["b", "c"])?;
    probe::set_summaries(Summaries::Echo);
    say(&memory, &["d"])?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b"], &["c", "d"])
}

fn an_empty_summary_is_not_taken() -> Outcome {
    let memory = memory_with(&rolling())?;
    probe::set_summaries(Summaries::Empty);
    say(&memory, &["a", "b", "c"])?;
    expect_eq(memory.health()?, Health::Retry)
}

fn a_summariser_that_panics_fails() -> Outcome {
    let memory = memory_with(&rolling())?;
    probe::set_summaries(Summaries::Panic);
    say(&memory, &["a", "b", "c"])?;
    expect_eq(memory.health()?, Health::Retry)?;
    probe::set_summaries(Summaries::Echo);
    say(&memory, &["d"])?;
    expect_context(&memory, &["a", "b"], &["c", "d"])
}

fn a_rolling_summary_without_room_for_a_turn_in_the_window_is_refused() -> Outcome {
    let refused = probe::declare_memory(&MemoryOptions { window_turns: 0, ..rolling() });
    let Err(reason) = refused else { return Err(wrong("expected a refusal")) };
    expect(reason.contains("window_turns must be at least 1"), format!("{reason:?} names the invalid option"))
}

fn an_unknown_strategy_is_refused_by_name() -> Outcome {
    let options = MemoryOptions { strategy: "episodic".to_string(), ..rolling() };
    let Err(reason) = probe::declare_memory(&options) else { return Err(wrong("expected a refusal")) };
    for word in ["\"episodic\"", "none", "truncation", "rolling-summary"] {
        expect(reason.contains(word), format!("{reason:?} contains {word}"))?;
    }
    Ok(())
}

fn a_turn_is_there_before_its_summary_comes() -> Outcome {
    let memory = in_the_middle("memory::look_in_the_middle")?;
    expect_context(&memory, &["a"], &["b", "c"])
}

fn look_in_the_middle(worker: u32) -> Outcome {
    with_a_summary_held(worker, |memory| expect_context(memory, &[], &["b", "c"]))
}

fn a_turn_is_kept_where_its_summary_never_comes() -> Outcome {
    let memory = memory_with(&MemoryOptions { summary_timeout_ms: 200, ..rolling() })?;
    probe::set_summaries(Summaries::Hang);
    say(&memory, &["a", "b", "c"])?;
    expect_context(&memory, &[], &["b", "c"])?;
    expect_eq(memory.health()?, Health::Retry)?;
    probe::reopen()?;
    let memory = open(&identity())?;
    expect_eq(memory.health()?, Health::Retry)?;
    probe::set_summaries(Summaries::Echo);
    run_due()?;
    expect_context(&memory, &["a"], &["b", "c"])
}

fn a_summary_that_takes_too_long_fails() -> Outcome {
    let memory = memory_with(&MemoryOptions { summary_timeout_ms: 50, ..rolling() })?;
    probe::set_summaries(Summaries::Hang);
    for text in ["a", "b", "c", "d", "e"] {
        say(&memory, &[text])?;
    }
    expect_eq(memory.health()?, Health::Degraded)?;
    expect_texts(health_changes(), &["healthy > retry", "retry > degraded"])
}

/// Fills the window, and runs two workers at once. One of them adds a turn whose summary is held.
fn in_the_middle(worker: &str) -> Outcome<Memory> {
    let memory = memory_with(&rolling())?;
    say(&memory, &["a", "b"])?;
    probe::set_summaries(Summaries::Hold);
    in_parallel(worker, 2)?;
    Ok(memory)
}

/// Worker 0 adds a turn. The other worker acts while the summary of that turn is held.
fn with_a_summary_held(worker: u32, act: impl FnOnce(&Memory) -> Outcome) -> Outcome {
    let memory = open(&identity())?;
    if worker == 0 {
        return say(&memory, &["c"]);
    }
    probe::await_summary_calls(1)?;
    let acted = act(&memory);
    probe::release_summaries();
    acted
}

fn one_summary_is_under_way_and_later_turns_wait_for_the_next() -> Outcome {
    let memory = in_the_middle("memory::add_more_in_the_middle")?;
    expect_eq(probe::summary_calls().len(), 1)?;
    run_due()?;
    expect_context(&memory, &["a", "b", "c"], &["d", "e"])?;
    expect_texts(asked(&probe::summary_calls()), &["b c"])
}

fn add_more_in_the_middle(worker: u32) -> Outcome {
    with_a_summary_held(worker, |memory| {
        say(memory, &["d", "e"])?;
        expect_eq(memory.health()?, Health::Healthy)?;
        expect_context(memory, &[], &["d", "e"])
    })
}

fn a_summary_that_comes_after_a_flush_is_thrown_away() -> Outcome {
    let memory = in_the_middle("memory::flush_in_the_middle")?;
    expect_context(&memory, &[], &[])?;
    expect_eq(probe::stored_record(&identity())?, None)
}

fn flush_in_the_middle(worker: u32) -> Outcome {
    with_a_summary_held(worker, |memory| Ok(memory.flush()?))
}

fn a_summary_that_comes_after_a_restore_is_thrown_away() -> Outcome {
    let memory = in_the_middle("memory::restore_in_the_middle")?;
    expect_context(&memory, &[], &["x"])?;
    run_due()?;
    expect_context(&memory, &[], &["x"])
}

fn restore_in_the_middle(worker: u32) -> Outcome {
    with_a_summary_held(worker, |memory| {
        let other = open(&session("tuesday"))?;
        say(&other, &["x"])?;
        Ok(memory.restore(&other.snapshot()?)?)
    })
}

fn a_snapshot_in_the_middle_of_a_summary_holds_every_turn() -> Outcome {
    in_the_middle("memory::snapshot_in_the_middle")?;
    let restored = open(&session("tuesday"))?;
    expect_context(&restored, &[], &["b", "c"])?;
    run_due()?;
    expect_context(&restored, &["a"], &["b", "c"])
}

fn snapshot_in_the_middle(worker: u32) -> Outcome {
    with_a_summary_held(worker, |memory| {
        let other = open(&session("tuesday"))?;
        Ok(other.restore(&memory.snapshot()?)?)
    })
}

fn closing_the_host_ends_a_summary_that_hangs_and_keeps_its_turns() -> Outcome {
    in_the_middle("memory::close_in_the_middle")?;
    probe::set_summaries(Summaries::Echo);
    probe::use_memory_of(WhichHost::Other);
    let memory = open(&identity())?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &[], &["b", "c"])?;
    expect_eq(probe::run_due(WhichHost::Other)?, 1)?;
    expect_context(&memory, &["a"], &["b", "c"])
}

fn close_in_the_middle(worker: u32) -> Outcome {
    let memory = open(&identity())?;
    if worker == 0 {
        return say(&memory, &["c"]);
    }
    probe::await_summary_calls(1)?;
    probe::close_memory_from_host();
    expect_closed(memory.health())
}

fn two_hosts_ask_for_one_summary_and_lose_no_turn() -> Outcome {
    let memory = in_the_middle("memory::add_more_in_the_other_host")?;
    expect_eq(probe::summary_calls().len(), 1)?;
    run_due()?;
    expect_context(&memory, &["a", "b", "c"], &["d", "e"])
}

fn add_more_in_the_other_host(worker: u32) -> Outcome {
    with_a_summary_held(worker, |_| {
        probe::use_memory_of(WhichHost::Other);
        let elsewhere = open(&identity())?;
        say(&elsewhere, &["d", "e"])?;
        expect_eq(probe::run_due(WhichHost::Other)?, 0)
    })
}
