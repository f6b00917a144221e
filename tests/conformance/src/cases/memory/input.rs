//! Invalid turns, snapshots and records.

use super::*;

pub(crate) const CASES: &[Case] = named!("memory":
    a_turn_at_the_bound_is_kept_and_one_byte_more_refused,
    many_empty_elements_of_a_turn_count,
    an_artifact_value_that_is_no_json_is_refused,
    a_snapshot_of_another_strategy_is_refused,
    a_snapshot_that_is_cut_short_is_refused,
    a_snapshot_with_a_changed_byte_is_refused_or_is_another_snapshot,
    a_snapshot_of_a_newer_release_is_refused,
    a_snapshot_that_is_no_json_is_refused,
    a_snapshot_that_is_too_large_is_refused,
    a_snapshot_that_contradicts_itself_is_refused,
    a_snapshot_with_a_turn_at_the_bound_is_restored_and_with_one_byte_more_refused,
    a_session_of_another_strategy_is_refused_and_left_as_it_is,
    a_record_that_can_not_be_read_is_corrupt_and_left_as_it_is,
    memory_counts_for_the_store_and_is_given_back,
);

fn a_turn_at_the_bound_is_kept_and_one_byte_more_refused() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    let max = limits().turn_bytes;
    let turn_of = |bytes: u64| Turn {
        user_message: "x".repeat(bytes as usize),
        assistant_response: String::new(),
        ..turn("")
    };
    memory.add_turn(&turn_of(max))?;
    expect_limit(memory.add_turn(&turn_of(max + 1)), LimitKind::TurnBytes, max, max + 1)?;
    expect_eq(memory.llm_context()?.recent_turns.len(), 1)
}

fn many_empty_elements_of_a_turn_count() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    let max = limits().turn_bytes;
    let empty = |count: u64| vec![String::new(); count as usize];
    let full = Turn { artifacts_hidden: empty(max / 16), ..turn("") };
    memory.add_turn(&full)?;
    let over = Turn { artifacts_hidden: empty(max / 16 + 1), ..turn("") };
    expect_limit(memory.add_turn(&over), LimitKind::TurnBytes, max, max + 16)
}

fn an_artifact_value_that_is_no_json_is_refused() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    let with = |value: &str| Turn {
        artifacts_shown: vec![
            ("fine".to_string(), "1".to_string()),
            ("chart".to_string(), value.to_string()),
        ],
        ..turn("a")
    };
    for value in ["", "{", "undefined", "'a'", "1 2", "{\"a\":}", &"[".repeat(4_000)] {
        expect_invalid_argument(memory.add_turn(&with(value)))?;
    }
    expect_context(&memory, &[], &[])?;
    for value in ["null", "1e400", "\"\\u0000\"", " [ ] ", "{\"a\":1,\"a\":2}"] {
        memory.add_turn(&with(value))?;
    }
    expect_eq(memory.llm_context()?.recent_turns.len(), 5)
}

/// Expects that `restore` refuses a snapshot and leaves the session unchanged.
fn expect_refused(memory: &Memory, strategy: Strategy, bytes: &[u8]) -> Outcome {
    let before = memory.snapshot()?.bytes;
    expect_invalid_snapshot(memory.restore(&Snapshot { strategy, bytes: bytes.to_vec() }))?;
    expect_eq(memory.snapshot()?.bytes, before)
}

const STRATEGIES: [Strategy; 3] = [Strategy::None, Strategy::Truncation, Strategy::RollingSummary];

fn a_snapshot_of_another_strategy_is_refused() -> Outcome {
    let mut taken = Vec::new();
    for strategy in STRATEGIES {
        let memory = memory(strategy)?;
        memory.flush()?;
        say(&memory, &["a", "b", "c"])?;
        taken.push(memory.snapshot()?);
        memory.flush()?;
    }
    for strategy in STRATEGIES {
        let memory = memory(strategy)?;
        for other in taken.iter().filter(|other| other.strategy != strategy) {
            expect_refused(&memory, other.strategy, &other.bytes)?;
            expect_refused(&memory, other.strategy, b"")?;
            // It is invalid under the session's own strategy too.
            expect_refused(&memory, strategy, &other.bytes)?;
        }
    }
    Ok(())
}

fn a_snapshot_that_is_cut_short_is_refused() -> Outcome {
    for strategy in STRATEGIES {
        let memory = memory(strategy)?;
        memory.flush()?;
        say(&memory, &["a", "b", "c"])?;
        let bytes = memory.snapshot()?.bytes;
        for length in 1..bytes.len() {
            let cut = bytes.get(..length).unwrap_or_default();
            expect_refused(&memory, strategy, cut)?;
        }
        memory.flush()?;
    }
    Ok(())
}

fn a_snapshot_with_a_changed_byte_is_refused_or_is_another_snapshot() -> Outcome {
    let memory = memory(Strategy::RollingSummary)?;
    say(&memory, &["a", "b", "c"])?;
    let taken = memory.snapshot()?;
    for index in 0..taken.bytes.len() {
        for flip in [0x01, 0x80] {
            let mut changed = taken.clone();
            if let Some(byte) = changed.bytes.get_mut(index) {
                *byte ^= flip;
            }
            match memory.restore(&changed) {
                Ok(()) => memory.restore(&taken)?,
                Err(Error::InvalidSnapshot(_)) => expect_eq(&memory.snapshot()?.bytes, &taken.bytes)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn a_snapshot_of_a_newer_release_is_refused() -> Outcome {
    for strategy in STRATEGIES {
        let memory = memory(strategy)?;
        let name = name(strategy);
        let newer = [
            format!(r#"{{"format":2,"strategy":"{name}"}}"#),
            format!(r#"{{"format":1,"strategy":"{name}","pinned":[]}}"#),
            format!(r#"{{"format":1,"strategy":"{name}","turns":[{{"mood":1}}]}}"#),
            format!(r#"{{"strategy":"{name}"}}"#),
        ];
        for bytes in newer {
            expect_refused(&memory, strategy, bytes.as_bytes())?;
        }
    }
    Ok(())
}

fn a_snapshot_that_is_no_json_is_refused() -> Outcome {
    for strategy in STRATEGIES {
        let memory = memory(strategy)?;
        for bytes in
            [b"\0".as_slice(), b"\xff\xfe", b"{}", b"null", b"hello", b"{\"format\":1", &[b'['; 20_000]]
        {
            expect_refused(&memory, strategy, bytes)?;
        }
    }
    Ok(())
}

fn a_snapshot_that_is_too_large_is_refused() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    let max = options(Strategy::Truncation).memory_bytes;
    let bytes = vec![b' '; max as usize + 1];
    let refused = memory.restore(&Snapshot { strategy: Strategy::Truncation, bytes });
    expect_limit(refused, LimitKind::MemoryBytes, max, max + 1)
}

fn a_snapshot_that_contradicts_itself_is_refused() -> Outcome {
    let memory = memory(Strategy::RollingSummary)?;
    let turn = r#"{"user_message":"a","assistant_response":"","timestamp_millis":0}"#;
    let contradictions = [
        r#""health":"degraded""#.to_string(),
        r#""health":"recovering""#.to_string(),
        r#""retries":2"#.to_string(),
        r#""retries":-1,"health":"retry""#.to_string(),
        format!(r#""backlog":[[{turn}]]"#),
        r#""health":"degraded","backlog":[[]]"#.to_string(),
        format!(r#""health":"degraded","backlog":[[{turn}]],"pending":[{turn}]"#),
        format!(r#""in_flight":{{"claim":1,"until":1,"turns":[{turn}]}}"#),
        r#""turns":[{"user_message":"","assistant_response":"","artifacts_shown":[["a","{"]],"timestamp_millis":0}]"#
            .to_string(),
    ];
    for contradiction in contradictions {
        let bytes = format!(r#"{{"format":1,"strategy":"rolling-summary",{contradiction}}}"#);
        expect_refused(&memory, Strategy::RollingSummary, bytes.as_bytes())?;
    }
    Ok(())
}

fn a_snapshot_with_a_turn_at_the_bound_is_restored_and_with_one_byte_more_refused() -> Outcome {
    let max = limits().turn_bytes;
    let turn_of = |bytes: u64| {
        let text = "x".repeat(bytes as usize);
        format!(r#"{{"user_message":"{text}","assistant_response":"","timestamp_millis":0}}"#)
    };
    let empty = r#"{"user_message":"","assistant_response":"","timestamp_millis":0"#;
    let elements = vec![r#""""#; max as usize / 16 + 1].join(",");
    let small = format!("{empty}}}");
    // Each field of a snapshot that holds a turn.
    let places = |turn: &str| {
        [
            (Strategy::Truncation, format!(r#""turns":[{small},{turn}]"#)),
            (Strategy::RollingSummary, format!(r#""turns":[{turn}]"#)),
            (Strategy::RollingSummary, format!(r#""pending":[{small},{turn}]"#)),
            (Strategy::RollingSummary, format!(r#""health":"degraded","backlog":[[{small}],[{turn}]]"#)),
        ]
    };
    let snapshot = |strategy: Strategy, content: &str| Snapshot {
        strategy,
        bytes: format!(r#"{{"format":1,"strategy":"{}",{content}}}"#, name(strategy)).into_bytes(),
    };
    for (strategy, content) in places(&turn_of(max)) {
        let memory = memory(strategy)?;
        memory.flush()?;
        memory.restore(&snapshot(strategy, &content))?;
    }
    let over =
        [(turn_of(max + 1), max + 1), (format!(r#"{empty},"artifacts_hidden":[{elements}]}}"#), max + 16)];
    for (turn, requested) in over {
        for (strategy, content) in places(&turn) {
            let memory = memory(strategy)?;
            memory.flush()?;
            say(&memory, &["a"])?;
            let before = memory.snapshot()?.bytes;
            let refused = memory.restore(&snapshot(strategy, &content));
            expect_limit(refused, LimitKind::TurnBytes, max, requested)?;
            expect_eq(memory.snapshot()?.bytes, before)?;
        }
    }
    Ok(())
}

fn a_session_of_another_strategy_is_refused_and_left_as_it_is() -> Outcome {
    let memory = memory(Strategy::Truncation)?;
    say(&memory, &["a", "b"])?;
    let stored = probe::stored_record(&identity())?;
    declare(&options(Strategy::RollingSummary))?;
    let other = open(&identity())?;
    expect_invalid_snapshot(other.add_turn(&turn("c")))?;
    expect_invalid_snapshot(other.llm_context())?;
    expect_invalid_snapshot(other.snapshot())?;
    expect_invalid_snapshot(other.health())?;
    let empty = Snapshot { strategy: Strategy::RollingSummary, bytes: Vec::new() };
    expect_invalid_snapshot(other.restore(&empty))?;
    expect_eq(probe::stored_record(&identity())?, stored)?;
    expect_context(&memory, &[], &["a", "b"])?;
    other.flush()?;
    say(&other, &["c"])?;
    expect_context(&other, &[], &["c"])
}

#[track_caller]
fn expect_corrupt<T: Debug>(got: Result<T, Error>) -> Outcome {
    expect_error(got, "corrupt", |error| matches!(error, Error::Corrupt(_)))
}

fn a_record_that_can_not_be_read_is_corrupt_and_left_as_it_is() -> Outcome {
    for strategy in [Strategy::Truncation, Strategy::RollingSummary] {
        for damaged in [b"".as_slice(), b"\0", b"{\"format\":7}", b"secret"] {
            let memory = memory(strategy)?;
            memory.flush()?;
            say(&memory, &["a"])?;
            probe::damage_record(&identity(), damaged)?;
            probe::events();
            expect_corrupt(memory.llm_context())?;
            let told = events_of("memory.record_corrupt");
            expect_eq(told.len(), 1)?;
            let key: Vec<_> = told.iter().flatten().skip(1).map(|(_, part)| part.as_str()).collect();
            expect_eq(key, vec!["acme", "ann", "monday", ""])?;
            expect_corrupt(memory.add_turn(&turn("b")))?;
            expect_corrupt(memory.estimate_tokens())?;
            expect_corrupt(memory.health())?;
            expect_corrupt(memory.snapshot())?;
            expect_corrupt(memory.restore(&Snapshot { strategy, bytes: Vec::new() }))?;
            run_due()?;
            expect_eq(probe::stored_record(&identity())?, Some(damaged.to_vec()))?;
            // Another session is not affected.
            let other = open(&session("tuesday"))?;
            say(&other, &["a"])?;
            other.flush()?;
            memory.flush()?;
            say(&memory, &["c"])?;
            expect_context(&memory, &[], &["c"])?;
        }
    }
    Ok(())
}

fn memory_counts_for_the_store_and_is_given_back() -> Outcome {
    let max = limits().store_bytes;
    declare(&MemoryOptions { memory_bytes: max * 2, ..options(Strategy::Truncation) })?;
    let memory = open(&identity())?;
    let large = turn(&"x".repeat(3_000));
    let mut added = 0;
    let refused = loop {
        match memory.add_turn(&large) {
            Ok(()) => added += 1,
            refused => break refused,
        }
    };
    expect_limit_passed(refused, LimitKind::StoreBytes, max)?;
    expect(
        added * 6_000 < max && added * 7_000 > max,
        format!("{added} turns are about as many as fit into the store"),
    )?;
    expect_eq(memory.llm_context()?.recent_turns.len() as u64, added)?;
    let tx = update(&main()?)?;
    tx.put(NS, "row", &[b'x'; 60_000])?;
    expect_limit_passed(Tx::commit(tx), LimitKind::StoreBytes, max)?;
    memory.flush()?;
    put("row", "x".repeat(60_000))?;
    Ok(())
}
