//! Behaviour that all strategies share.

use super::*;

pub(crate) const CASES: &[Case] = with_each_strategy!("memory":
    a_fresh_session_is_empty,
    a_fresh_session_is_healthy,
    flushing_nothing_is_no_error,
    a_flushed_session_is_as_a_fresh_one,
    an_empty_snapshot_restores_a_fresh_session,
    a_snapshot_of_a_fresh_session_restores_it,
    a_snapshot_restores_what_it_was_taken_of,
    the_same_calls_give_the_same_snapshot_in_every_session,
    a_turn_is_given_back_whole,
    closing_again_does_nothing,
    after_close_every_call_is_closed,
    after_the_host_closed_its_memory_every_call_is_closed,
    what_is_kept_survives_the_handle_and_the_host,
    two_handles_on_one_session_see_the_same,
    dropped_handles_give_their_places_back,
    more_memories_than_allowed_are_refused,
);

fn a_fresh_session_is_empty(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    let context = memory.llm_context()?;
    expect_eq(context.strategy, strategy)?;
    expect_eq((context.summary.as_str(), context.recent_turns.len(), context.tokens), ("", 0, 0))?;
    expect(!context.over_budget, "an empty context is not over budget")?;
    expect_eq(memory.estimate_tokens()?, 0)?;
    expect_eq(probe::stored_record(&identity())?, None)
}

fn a_fresh_session_is_healthy(strategy: Strategy) -> Outcome {
    expect_eq(memory(strategy)?.health()?, Health::Healthy)
}

fn flushing_nothing_is_no_error(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    memory.flush()?;
    memory.flush()?;
    a_fresh_session_is_empty(strategy)
}

fn a_flushed_session_is_as_a_fresh_one(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    let fresh = memory.snapshot()?.bytes;
    say(&memory, &["a", "b", "c", "d"])?;
    memory.flush()?;
    expect_eq(memory.snapshot()?.bytes, fresh)?;
    expect_eq(probe::stored_record(&identity())?, None)?;
    expect_context(&memory, &[], &[])
}

fn an_empty_snapshot_restores_a_fresh_session(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    say(&memory, &["a", "b", "c", "d"])?;
    memory.restore(&Snapshot { strategy, bytes: Vec::new() })?;
    expect_context(&memory, &[], &[])
}

fn a_snapshot_of_a_fresh_session_restores_it(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    let fresh = memory.snapshot()?;
    expect_eq(fresh.strategy, strategy)?;
    expect(!fresh.bytes.is_empty(), "the snapshot of a fresh session has content")?;
    say(&memory, &["a", "b", "c", "d"])?;
    memory.restore(&fresh)?;
    expect_context(&memory, &[], &[])?;
    expect_eq(memory.snapshot()?.bytes, fresh.bytes)
}

fn a_snapshot_restores_what_it_was_taken_of(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    say(&memory, &["a", "b", "c", "d"])?;
    let taken = memory.snapshot()?;
    let before = memory.llm_context()?;
    say(&memory, &["e", "f"])?;
    memory.restore(&taken)?;
    expect_eq(memory.llm_context()?, before)?;
    expect_eq(memory.snapshot()?.bytes, taken.bytes.clone())?;
    // It restores into another session too.
    let elsewhere = open(&session("tuesday"))?;
    elsewhere.restore(&taken)?;
    expect_eq(elsewhere.snapshot()?.bytes, taken.bytes)
}

fn the_same_calls_give_the_same_snapshot_in_every_session(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let taken = |name| {
        let memory = open(&session(name))?;
        say(&memory, &["a", "b", "c", "d"])?;
        Outcome::Ok(memory.snapshot()?.bytes)
    };
    expect_eq(taken("monday")?, taken("tuesday")?)
}

fn a_turn_is_given_back_whole(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    let turn = Turn {
        user_message: "what\0is \u{1F980}?\n".to_string(),
        assistant_response: "\"a\" \\ crab".to_string(),
        trajectory: Some(TrajectoryDigest {
            tools_invoked: vec!["search".to_string(), String::new()],
            observations_summary: "Ünïcode".to_string(),
            reasoning_summary: "because".to_string(),
            artifact_refs: vec!["file://crab.png".to_string()],
        }),
        artifacts_shown: vec![
            ("chart".to_string(), r#"{"b": [1, 2.50], "a": null}"#.to_string()),
            ("chart".to_string(), " \"twice\" ".to_string()),
        ],
        artifacts_hidden: vec!["secret".to_string()],
        timestamp_ms: u64::MAX,
    };
    memory.add_turn(&turn)?;
    let expected = if strategy == Strategy::None { vec![] } else { vec![turn] };
    expect_eq(memory.llm_context()?.recent_turns, expected)
}

fn closing_again_does_nothing(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    memory.close();
    memory.close();
    expect_closed(memory.health())
}

fn after_close_every_call_is_closed(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    say(&memory, &["a"])?;
    let other = open(&identity())?;
    let before = other.snapshot()?.bytes;
    memory.close();
    expect_each(calls(&memory), expect_closed)?;
    expect_eq(other.snapshot()?.bytes, before)
}

fn after_the_host_closed_its_memory_every_call_is_closed(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    say(&memory, &["a"])?;
    probe::close_memory_from_host();
    expect_each(calls(&memory), expect_closed)?;
    // `closed` comes before `identity-required`, so the host emits no event.
    probe::events();
    expect_closed(Memory::open(&identity_of("", "", "", "")))?;
    expect_eq(probe::events().len(), 0)?;
    // The store itself is open, and so is the memory of the other host.
    main()?.ping()?;
    probe::use_memory_of(WhichHost::Other);
    open(&identity())?.health().map(drop)?;
    Ok(())
}

fn what_is_kept_survives_the_handle_and_the_host(strategy: Strategy) -> Outcome {
    let memory = memory(strategy)?;
    say(&memory, &["a", "b", "c", "d"])?;
    let before = (memory.llm_context()?, memory.snapshot()?.bytes);
    drop(memory);
    probe::reopen()?;
    let memory = open(&identity())?;
    expect_eq((memory.llm_context()?, memory.snapshot()?.bytes), before)
}

fn two_handles_on_one_session_see_the_same(strategy: Strategy) -> Outcome {
    let first = memory(strategy)?;
    let second = open(&identity())?;
    probe::use_memory_of(WhichHost::Other);
    let elsewhere = open(&identity())?;
    say(&first, &["a"])?;
    say(&second, &["b"])?;
    say(&elsewhere, &["c"])?;
    let seen = first.llm_context()?;
    for other in [second, elsewhere] {
        expect_eq(other.llm_context()?, seen.clone())?;
    }
    let (summarised, recent): (&[&str], &[&str]) = match strategy {
        Strategy::None => (&[], &[]),
        Strategy::Truncation => (&[], &["a", "b", "c"]),
        Strategy::RollingSummary => (&["a"], &["b", "c"]),
    };
    expect_context(&first, summarised, recent)
}

fn dropped_handles_give_their_places_back(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    (0..limits().open_memories * 3).try_for_each(|number| open(&session(&number.to_string())).map(drop))
}

fn more_memories_than_allowed_are_refused(strategy: Strategy) -> Outcome {
    declare(&options(strategy))?;
    let max = limits().open_memories;
    let _held = (0..max).map(|number| open(&session(&number.to_string()))).collect::<Outcome<Vec<_>>>()?;
    expect_limit(Memory::open(&identity()), LimitKind::OpenMemories, max, max + 1)
}
