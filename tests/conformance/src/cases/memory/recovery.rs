//! Failing summaries: no turn is lost, and none is summarised twice.

use super::*;

pub(crate) const CASES: &[Case] = named!("memory":
    failures_lead_by_way_of_retry_to_degraded,
    a_retry_that_succeeds_is_healthy_again,
    a_retry_waits_for_its_backoff_and_comes_without_a_guest,
    a_degraded_session_shows_its_turns_and_no_summary,
    a_degraded_session_asks_for_no_summary_until_its_interval_is_over,
    recovered_batches_are_folded_one_on_the_other,
    a_turn_is_counted_once_also_when_degrading,
    a_batch_that_fails_again_stays_at_the_head_of_the_backlog,
    a_full_backlog_drops_the_oldest_batch_and_the_host_is_told,
    a_restart_keeps_what_is_pending_and_the_retries,
    a_restart_keeps_the_backlog_and_the_health,
    another_host_recovers_what_one_left_degraded,
    a_snapshot_keeps_the_backlog_and_the_health,
    a_flush_of_a_degraded_session_leaves_nothing_to_recover,
    a_restore_over_a_degraded_session_leaves_nothing_to_recover,
    turns_added_while_a_session_recovers_are_kept,
    a_host_that_died_in_the_middle_of_a_summary_is_taken_over_from,
);

pub(crate) const WORKERS: &[Worker] = named!("memory": recover_while_others_add);

fn rolling() -> MemoryOptions {
    options(Strategy::RollingSummary)
}

/// A session that failing summaries have degraded. Its turns `a` to `c` wait in the backlog.
fn degraded(options: &MemoryOptions) -> Outcome<Memory> {
    let memory = memory_with(options)?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["a", "b", "c", "d", "e"])?;
    expect_eq(memory.health()?, Health::Degraded)?;
    expect_context(&memory, &[], &["d", "e"])?;
    Ok(memory)
}

/// Lets the recovery interval pass, and the backlog recover.
fn recover() -> Outcome {
    probe::set_summaries(Summaries::Echo);
    probe::advance_clock(10_000);
    run_due()
}

fn failures_lead_by_way_of_retry_to_degraded() -> Outcome {
    let memory = memory_with(&rolling())?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["a", "b", "c"])?;
    expect_eq(memory.health()?, Health::Retry)?;
    say(&memory, &["d"])?;
    expect_eq(memory.health()?, Health::Retry)?;
    say(&memory, &["e"])?;
    expect_eq(memory.health()?, Health::Degraded)?;
    let events = events_of("memory.health_changed");
    let expected = |prior: &str, new: &str, reason: &str| {
        [
            ("prior_health", prior),
            ("new_health", new),
            ("reason", reason),
            ("tenant", "acme"),
            ("user", "ann"),
            ("session", "monday"),
            ("run", ""),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .to_vec()
    };
    expect_eq(
        events,
        vec![
            expected("healthy", "retry", "summarizer_failed"),
            expected("retry", "degraded", "retries_exhausted"),
        ],
    )
}

fn a_retry_that_succeeds_is_healthy_again() -> Outcome {
    let memory = memory_with(&rolling())?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["a", "b", "c"])?;
    probe::set_summaries(Summaries::Echo);
    say(&memory, &["d"])?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b"], &["c", "d"])?;
    expect_texts(health_changes(), &["healthy > retry", "retry > healthy"])
}

fn a_retry_waits_for_its_backoff_and_comes_without_a_guest() -> Outcome {
    let memory = memory_with(&MemoryOptions { retry_backoff_ms: 60_000, ..rolling() })?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["a", "b", "c"])?;
    expect_eq(probe::summary_calls().len(), 1)?;
    say(&memory, &["d"])?;
    expect_eq(probe::run_due(WhichHost::Main)?, 0)?;
    expect_eq(probe::summary_calls().len(), 0)?;
    probe::advance_clock(60_000);
    expect_eq(probe::run_due(WhichHost::Main)?, 1)?;
    expect_eq(probe::summary_calls().len(), 1)?;
    // The second backoff is twice as long.
    probe::set_summaries(Summaries::Echo);
    probe::advance_clock(60_000);
    expect_eq(probe::run_due(WhichHost::Main)?, 0)?;
    probe::advance_clock(60_000);
    expect_eq(probe::run_due(WhichHost::Main)?, 1)?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b"], &["c", "d"])
}

fn a_degraded_session_shows_its_turns_and_no_summary() -> Outcome {
    let memory = memory_with(&rolling())?;
    say(&memory, &["y", "z", "a"])?;
    expect_context(&memory, &["y"], &["z", "a"])?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["b", "c", "d"])?;
    expect_eq(memory.health()?, Health::Degraded)?;
    expect_context(&memory, &[], &["c", "d"])?;
    expect_eq(memory.estimate_tokens()?, 4)?;
    recover()?;
    expect_context(&memory, &["y", "z", "a", "b"], &["c", "d"])
}

fn a_degraded_session_asks_for_no_summary_until_its_interval_is_over() -> Outcome {
    let memory = degraded(&rolling())?;
    probe::summary_calls();
    say(&memory, &["f", "g"])?;
    probe::advance_clock(9_000);
    run_due()?;
    expect_eq(probe::summary_calls().len(), 0)?;
    probe::advance_clock(1_000);
    run_due()?;
    expect_eq(probe::summary_calls().len(), 1)
}

fn recovered_batches_are_folded_one_on_the_other() -> Outcome {
    let memory = degraded(&rolling())?;
    say(&memory, &["f", "g", "h"])?;
    probe::events();
    probe::summary_calls();
    recover()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b", "c", "d", "e", "f"], &["g", "h"])?;
    let calls = probe::summary_calls();
    expect_texts(asked(&calls), &["a b c", "d", "e", "f"])?;
    let before: Vec<_> = calls.iter().map(|call| call.previous_summary.clone()).collect();
    let folded = [&[][..], &["a", "b", "c"], &["a", "b", "c", "d"], &["a", "b", "c", "d", "e"]];
    expect_eq(before, folded.map(echoed).to_vec())?;
    let batch = ["degraded > recovering", "recovering > degraded"];
    let expected = [&batch[..], &batch, &batch, &["degraded > recovering", "recovering > healthy"]].concat();
    expect_texts(health_changes(), &expected)
}

fn a_turn_is_counted_once_also_when_degrading() -> Outcome {
    let memory = degraded(&rolling())?;
    recover()?;
    expect_context(&memory, &["a", "b", "c"], &["d", "e"])
}

fn a_batch_that_fails_again_stays_at_the_head_of_the_backlog() -> Outcome {
    let memory = degraded(&rolling())?;
    say(&memory, &["f"])?;
    for _ in 0..3 {
        probe::advance_clock(10_000);
        run_due()?;
        expect_eq(memory.health()?, Health::Degraded)?;
    }
    recover()?;
    expect_context(&memory, &["a", "b", "c", "d"], &["e", "f"])
}

fn a_full_backlog_drops_the_oldest_batch_and_the_host_is_told() -> Outcome {
    let memory = degraded(&MemoryOptions { backlog_max: 2, ..rolling() })?;
    say(&memory, &["f"])?;
    expect_eq(events_of("memory.recovery_dropped").len(), 0)?;
    say(&memory, &["g"])?;
    let dropped = events_of("memory.recovery_dropped");
    expect_eq(dropped.len(), 1)?;
    let dropped: Vec<_> = dropped.into_iter().flatten().take(3).collect();
    let expected = [("reason", "backlog_overflow"), ("turns", "3"), ("tenant", "acme")]
        .map(|(name, value)| (name.to_string(), value.to_string()));
    expect_eq(dropped, expected.to_vec())?;
    recover()?;
    expect_context(&memory, &["d", "e"], &["f", "g"])
}

fn a_restart_keeps_what_is_pending_and_the_retries() -> Outcome {
    let memory = memory_with(&rolling())?;
    probe::set_summaries(Summaries::Fail);
    say(&memory, &["a", "b", "c", "d"])?;
    probe::reopen()?;
    let memory = open(&identity())?;
    expect_eq(memory.health()?, Health::Retry)?;
    say(&memory, &["e"])?;
    expect_eq(memory.health()?, Health::Degraded)?;
    recover()?;
    expect_context(&memory, &["a", "b", "c"], &["d", "e"])
}

fn a_restart_keeps_the_backlog_and_the_health() -> Outcome {
    degraded(&rolling())?;
    probe::reopen()?;
    let memory = open(&identity())?;
    expect_eq(memory.health()?, Health::Degraded)?;
    say(&memory, &["f"])?;
    recover()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b", "c", "d"], &["e", "f"])
}

fn another_host_recovers_what_one_left_degraded() -> Outcome {
    let memory = degraded(&rolling())?;
    probe::close_memory_from_host();
    expect_closed(memory.health())?;
    probe::set_summaries(Summaries::Echo);
    probe::advance_clock(10_000);
    expect_eq(probe::run_due(WhichHost::Other)?, 1)?;
    probe::use_memory_of(WhichHost::Other);
    expect_context(&open(&identity())?, &["a", "b", "c"], &["d", "e"])
}

fn a_snapshot_keeps_the_backlog_and_the_health() -> Outcome {
    let memory = degraded(&rolling())?;
    let taken = memory.snapshot()?;
    memory.flush()?;
    let restored = open(&session("tuesday"))?;
    restored.restore(&taken)?;
    expect_eq(restored.health()?, Health::Degraded)?;
    expect_eq(restored.snapshot()?.bytes, taken.bytes)?;
    run_due()?;
    expect_eq(restored.health()?, Health::Degraded)?;
    recover()?;
    expect_context(&restored, &["a", "b", "c"], &["d", "e"])
}

fn a_flush_of_a_degraded_session_leaves_nothing_to_recover() -> Outcome {
    let memory = degraded(&rolling())?;
    memory.flush()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    recover()?;
    expect_context(&memory, &[], &[])
}

fn a_restore_over_a_degraded_session_leaves_nothing_to_recover() -> Outcome {
    let memory = degraded(&rolling())?;
    memory.restore(&Snapshot { strategy: Strategy::RollingSummary, bytes: Vec::new() })?;
    say(&memory, &["x"])?;
    recover()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &[], &["x"])
}

fn turns_added_while_a_session_recovers_are_kept() -> Outcome {
    let memory = degraded(&rolling())?;
    probe::summary_calls();
    probe::set_summaries(Summaries::Hold);
    probe::advance_clock(10_000);
    in_parallel("memory::recover_while_others_add", 2)?;
    run_due()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b", "c", "d", "e"], &["f", "g"])?;
    // While the session recovered, no other turn was sent to the summariser.
    expect_texts(asked(&probe::summary_calls()), &["a b c", "d", "e"])
}

fn recover_while_others_add(worker: u32) -> Outcome {
    if worker == 0 {
        probe::run_due(WhichHost::Main)?;
        return Ok(());
    }
    // Three calls failed before.
    probe::await_summary_calls(4)?;
    let memory = open(&identity())?;
    let added = expect_eq(memory.health()?, Health::Recovering).and_then(|()| {
        say(&memory, &["f", "g"])?;
        expect_context(&memory, &[], &["f", "g"])
    });
    probe::release_summaries();
    added
}

fn a_host_that_died_in_the_middle_of_a_summary_is_taken_over_from() -> Outcome {
    let options = MemoryOptions { summary_timeout_ms: 30_000, ..rolling() };
    let memory = memory_with(&options)?;
    say(&memory, &["a", "b"])?;
    // The record of a host that was killed during a call of the summariser.
    let turn = |text: &str| {
        let upper = text.to_uppercase();
        format!(r#"{{"user_message":"{text}","assistant_response":"{upper}","timestamp_millis":0}}"#)
    };
    let until = 32_503_680_000_000_u64;
    let died = format!(
        r#"{{"format":1,"strategy":"rolling-summary","turns":[{},{}],"in_flight":{{"claim":1,"until":{until},"turns":[{}]}}}}"#,
        turn("b"),
        turn("c"),
        turn("a"),
    );
    probe::damage_record(&identity(), died.as_bytes())?;
    say(&memory, &["d"])?;
    expect_eq(probe::summary_calls().len(), 0)?;
    expect_context(&memory, &[], &["c", "d"])?;
    // Past the year 3000, when the claim of the killed host expires.
    probe::advance_clock(until);
    run_due()?;
    expect_eq(memory.health()?, Health::Healthy)?;
    expect_context(&memory, &["a", "b"], &["c", "d"])
}
