//! The strategies `truncation`, which keeps the newest turns within the budget, and `none`, which
//! keeps nothing.

use super::*;

pub(crate) const CASES: &[Case] = named!("memory":
    none_keeps_no_turn_and_counts_no_token,
    none_refuses_a_snapshot_with_turns_in_it,
    truncation_keeps_turns_in_order_and_counts_their_tokens,
    truncation_drops_the_oldest_turns_to_keep_its_budget,
    truncation_keeps_a_turn_that_fills_its_budget_exactly,
    truncation_keeps_a_turn_larger_than_its_budget_alone_and_marks_it,
    truncation_never_summarises,
    truncation_brings_a_restored_session_under_its_budget,
    truncation_drops_the_oldest_turns_where_the_record_is_too_large,
    a_turn_that_alone_is_too_large_for_the_record_is_refused,
);

fn none_keeps_no_turn_and_counts_no_token() -> Outcome {
    let memory = memory(Strategy::None)?;
    say(&memory, &["a", "b"])?;
    expect_context(&memory, &[], &[])?;
    expect_eq(memory.estimate_tokens()?, 0)?;
    expect_eq(probe::stored_record(&identity())?, None)
}

fn none_refuses_a_snapshot_with_turns_in_it() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    say(&memory, &["a"])?;
    let bytes = memory.snapshot()?.bytes;
    memory.flush()?;
    declare(&options(Strategy::None))?;
    let none = open(&identity())?;
    for strategy in [Strategy::None, Strategy::Truncation] {
        expect_invalid_snapshot(none.restore(&Snapshot { strategy, bytes: bytes.clone() }))?;
    }
    expect_context(&none, &[], &[])
}

/// A turn of exactly `tokens` tokens, at least 2. One of them is for the empty answer.
fn turn_of(tokens: u64, letter: &str) -> Turn {
    let user_message = letter.repeat((tokens as usize - 2) * 4);
    Turn { user_message, assistant_response: String::new(), ..turn("") }
}

fn truncation_of(budget_tokens: u64) -> Outcome<Memory> {
    memory_with(&MemoryOptions { budget_tokens, ..options(Strategy::Truncation) })
}

fn letters(context: &ContextPatch) -> String {
    context.recent_turns.iter().filter_map(|turn| turn.user_message.chars().next()).collect()
}

fn truncation_keeps_turns_in_order_and_counts_their_tokens() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    let texts = ["a", "four", "seven b"];
    say(&memory, &texts)?;
    expect_context(&memory, &[], &texts)?;
    // Each text counts one token more than its bytes divided by four, rounded down.
    expect_eq(memory.llm_context()?.tokens, 2 * (1 + 2 + 2))?;
    expect_eq(memory.estimate_tokens()?, 10)?;
    expect_eq(memory.health()?, Health::Healthy)
}

fn truncation_drops_the_oldest_turns_to_keep_its_budget() -> Outcome {
    let memory = truncation_of(64)?;
    for letter in ["a", "b", "c", "d", "e"] {
        memory.add_turn(&turn_of(20, letter))?;
    }
    let context = memory.llm_context()?;
    expect_eq((letters(&context).as_str(), context.tokens), ("cde", 60))?;
    memory.add_turn(&turn_of(5, "f"))?;
    let context = memory.llm_context()?;
    expect_eq((letters(&context).as_str(), context.tokens), ("def", 45))
}

fn truncation_keeps_a_turn_that_fills_its_budget_exactly() -> Outcome {
    let memory = truncation_of(64)?;
    memory.add_turn(&turn_of(2, "a"))?;
    memory.add_turn(&turn_of(64, "b"))?;
    let context = memory.llm_context()?;
    expect_eq((letters(&context).as_str(), context.tokens, context.over_budget), ("b", 64, false))
}

fn truncation_keeps_a_turn_larger_than_its_budget_alone_and_marks_it() -> Outcome {
    let memory = truncation_of(64)?;
    memory.add_turn(&turn_of(10, "a"))?;
    memory.add_turn(&turn_of(65, "b"))?;
    let context = memory.llm_context()?;
    expect_eq((letters(&context).as_str(), context.tokens, context.over_budget), ("b", 65, true))?;
    memory.add_turn(&turn_of(10, "c"))?;
    let context = memory.llm_context()?;
    expect_eq((letters(&context).as_str(), context.tokens, context.over_budget), ("c", 10, false))
}

fn truncation_never_summarises() -> Outcome {
    let memory = truncation_of(20)?;
    for _ in 0..20 {
        memory.add_turn(&turn_of(10, "a"))?;
    }
    expect_eq(probe::summary_calls().len(), 0)?;
    expect_eq(memory.llm_context()?.summary.as_str(), "")
}

fn truncation_brings_a_restored_session_under_its_budget() -> Outcome {
    let wide = truncation_of(0)?;
    for letter in ["a", "b", "c", "d", "e"] {
        wide.add_turn(&turn_of(20, letter))?;
    }
    let taken = wide.snapshot()?;
    let narrow = truncation_of(64)?;
    narrow.restore(&taken)?;
    expect_eq(letters(&narrow.llm_context()?).as_str(), "cde")
}

fn truncation_drops_the_oldest_turns_where_the_record_is_too_large() -> Outcome {
    let memory = memory_with(&MemoryOptions { memory_bytes: 2_000, ..options(Strategy::Truncation) })?;
    for letter in ["a", "b", "c", "d", "e", "f"] {
        memory.add_turn(&turn_of(100, letter))?;
    }
    expect_eq(letters(&memory.llm_context()?).as_str(), "cdef")?;
    let bytes = memory.snapshot()?.bytes.len();
    expect(bytes <= 2_000, format!("the snapshot has at most 2000 bytes, not {bytes}"))
}

fn a_turn_that_alone_is_too_large_for_the_record_is_refused() -> Outcome {
    for strategy in [Strategy::Truncation, Strategy::RollingSummary] {
        let memory = memory_with(&MemoryOptions { memory_bytes: 1_000, ..options(strategy) })?;
        memory.flush()?;
        say(&memory, &["a"])?;
        let refused = memory.add_turn(&turn_of(1_000, "b"));
        expect_limit_passed(refused, LimitKind::MemoryBytes, 1_000)?;
        expect_context(&memory, &[], &["a"])?;
    }
    Ok(())
}
