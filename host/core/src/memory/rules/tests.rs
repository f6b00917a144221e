use std::time::Duration;

use proptest::prelude::{Just, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Generator;

use super::*;
use crate::memory::tokens::ByteTokens;

const CLAIM: u64 = 7;

fn options() -> MemoryOptions {
    MemoryOptions::new(Strategy::RollingSummary).window_turns(2)
}

fn rules(options: &MemoryOptions) -> Rules<'_> {
    Rules { options, tokens: &ByteTokens }
}

fn turn(text: &str) -> Turn {
    Turn { user_message: text.into(), ..Turn::default() }
}

fn texts<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> Vec<&'a str> {
    turns.into_iter().map(|turn| turn.user_message.as_str()).collect()
}

/// A record to which turns were added, one for each character.
fn record_of(options: &MemoryOptions, names: &str) -> Record {
    let mut record = Record::new(options.strategy);
    for name in names.chars() {
        rules(options).add(&mut record, turn(&name.to_string()));
    }
    record
}

fn echo(begun: &Begun) -> String {
    begun.previous_summary.clone() + &texts(&begun.turns).concat()
}

fn changed(prior: Health, new: Health, reason: &'static str) -> Effect {
    Effect::HealthChanged { prior, new, reason }
}

/// Fails summaries until the session is degraded.
fn degrade(options: &MemoryOptions, record: &mut Record) {
    while record.health != Health::Degraded {
        rules(options).begin(record, u64::MAX, CLAIM).unwrap();
        rules(options).fail(record, CLAIM, 0).unwrap();
    }
}

#[test]
fn a_window_that_is_full_lets_the_oldest_turn_go_to_the_summariser() {
    let options = options();
    let mut record = record_of(&options, "ab");
    assert_eq!(record.due_at(), None);
    rules(&options).add(&mut record, turn("c"));
    let (begun, effects) = rules(&options).begin(&mut record, 5, CLAIM).unwrap();
    assert_eq!((texts(&begun.turns), effects), (vec!["a"], vec![]));
    assert_eq!(rules(&options).succeed(&mut record, CLAIM, 6, echo(&begun)).unwrap(), []);
    assert_eq!((record.summary.as_str(), texts(&record.turns)), ("a", vec!["b", "c"]));
    assert_eq!(record.due_at(), None);
}

#[test]
fn only_one_summary_is_under_way() {
    let options = options();
    let mut record = record_of(&options, "abc");
    rules(&options).begin(&mut record, 5, CLAIM).unwrap();
    rules(&options).add(&mut record, turn("d"));
    assert_eq!(rules(&options).begin(&mut record, 6, 8), None);
    assert_eq!(texts(&record.pending), ["b"]);
    // Its host died: another claims all of the turns.
    let until = record.in_flight.as_ref().unwrap().until;
    assert_eq!(until, 5 + 2 * 30_000);
    assert_eq!(rules(&options).begin(&mut record, until - 1, 8), None);
    let (begun, _) = rules(&options).begin(&mut record, until, 8).unwrap();
    assert_eq!(texts(&begun.turns), ["a", "b"]);
    // The first claim is too late.
    assert_eq!(rules(&options).succeed(&mut record, CLAIM, 9, "late".into()), None);
    assert_eq!(rules(&options).fail(&mut record, CLAIM, 9), None);
    assert_eq!(rules(&options).abandon(&mut record, CLAIM, 9), None);
    assert!(rules(&options).succeed(&mut record, 8, 9, echo(&begun)).is_some());
    assert_eq!(record.summary, "ab");
}

#[test]
fn failures_wait_longer_each_time_and_then_degrade() {
    let options = options();
    let mut record = record_of(&options, "abc");
    let mut waits = Vec::new();
    let mut effects = Vec::new();
    for now in [0, 1_000, 2_000] {
        rules(&options).begin(&mut record, now, CLAIM).unwrap();
        effects.extend(rules(&options).fail(&mut record, CLAIM, now).unwrap());
        waits.push(record.retry_at.unwrap() - now);
        assert_eq!(rules(&options).begin(&mut record, now, CLAIM), None, "too early");
    }
    assert_eq!(waits, [100, 200, 10_000]);
    let expected = [
        changed(Health::Healthy, Health::Retry, "summarizer_failed"),
        changed(Health::Retry, Health::Degraded, "retries_exhausted"),
    ];
    assert_eq!(effects, expected);
    // Degrading counts each turn once.
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["a"]]);
    assert!(record.pending.is_empty());
}

#[test]
fn one_attempt_alone_degrades_by_way_of_retry() {
    let options = options().retry_count(1);
    let mut record = record_of(&options, "abc");
    rules(&options).begin(&mut record, 0, CLAIM).unwrap();
    let effects = rules(&options).fail(&mut record, CLAIM, 0).unwrap();
    assert_eq!(
        effects,
        [
            changed(Health::Healthy, Health::Retry, "summarizer_failed"),
            changed(Health::Retry, Health::Degraded, "retries_exhausted"),
        ]
    );
}

#[test]
fn a_success_after_a_failure_is_healthy_again() {
    let options = options();
    let mut record = record_of(&options, "abc");
    rules(&options).begin(&mut record, 0, CLAIM).unwrap();
    rules(&options).fail(&mut record, CLAIM, 0).unwrap();
    let (begun, _) = rules(&options).begin(&mut record, 100, CLAIM).unwrap();
    let effects = rules(&options).succeed(&mut record, CLAIM, 100, echo(&begun)).unwrap();
    assert_eq!(effects, [changed(Health::Retry, Health::Healthy, "summarizer_succeeded")]);
    assert_eq!((record.retries, record.summary.as_str()), (0, "a"));
}

#[test]
fn recovered_batches_are_folded_one_on_the_other() {
    let options = options();
    let mut record = record_of(&options, "abc");
    degrade(&options, &mut record);
    for name in ["d", "e"] {
        rules(&options).add(&mut record, turn(name));
    }
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["a"], ["b"], ["c"]]);
    let mut effects = Vec::new();
    for _ in 0..3 {
        let (begun, begin) = rules(&options).begin(&mut record, 10_000, CLAIM).unwrap();
        effects.extend(begin);
        effects.extend(rules(&options).succeed(&mut record, CLAIM, 10_000, echo(&begun)).unwrap());
    }
    assert_eq!((record.summary.as_str(), texts(&record.turns)), ("abc", vec!["d", "e"]));
    let batch = [
        changed(Health::Degraded, Health::Recovering, "recovery_attempt"),
        changed(Health::Recovering, Health::Degraded, "recovery_batch_summarised"),
    ];
    let last = [
        changed(Health::Degraded, Health::Recovering, "recovery_attempt"),
        changed(Health::Recovering, Health::Healthy, "recovered"),
    ];
    assert_eq!(effects, [&batch[..], &batch, &last].concat());
}

#[test]
fn a_batch_that_fails_in_recovery_stays_at_the_head() {
    let options = options();
    let mut record = record_of(&options, "abc");
    degrade(&options, &mut record);
    rules(&options).add(&mut record, turn("d"));
    rules(&options).begin(&mut record, 10_000, CLAIM).unwrap();
    rules(&options).add(&mut record, turn("e"));
    let effects = rules(&options).fail(&mut record, CLAIM, 10_000).unwrap();
    assert_eq!(effects, [changed(Health::Recovering, Health::Degraded, "recovery_failed")]);
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["a"], ["b"], ["c"]]);
    assert_eq!(record.retry_at, Some(20_000));
}

#[test]
fn a_backlog_that_is_full_drops_the_oldest_batch_and_says_so() {
    let options = options().backlog_max(2);
    let mut record = record_of(&options, "abc");
    degrade(&options, &mut record);
    assert_eq!(rules(&options).add(&mut record, turn("d")), []);
    assert_eq!(rules(&options).add(&mut record, turn("e")), [Effect::RecoveryDropped { turns: 1 }]);
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["b"], ["c"]]);
    // A batch in flight is not dropped, and counts.
    rules(&options).begin(&mut record, 10_000, CLAIM).unwrap();
    assert_eq!(rules(&options).add(&mut record, turn("f")), [Effect::RecoveryDropped { turns: 1 }]);
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["d"]]);
    rules(&options).fail(&mut record, CLAIM, 10_000).unwrap();
    assert_eq!(record.backlog.iter().map(texts).collect::<Vec<_>>(), [["b"], ["d"]]);
}

#[test]
fn a_degraded_session_shows_its_turns_and_no_summary() {
    let options = options();
    let mut record = record_of(&options, "abc");
    record.summary = "before".into();
    assert_eq!(rules(&options).llm_context(&record).summary, "before");
    degrade(&options, &mut record);
    let context = rules(&options).llm_context(&record);
    assert_eq!((context.summary.as_str(), texts(&context.recent_turns)), ("", vec!["b", "c"]));
    assert_eq!(context.tokens, 4);
    rules(&options).begin(&mut record, 10_000, CLAIM).unwrap();
    assert_eq!(rules(&options).llm_context(&record).summary, "");
}

/// A turn of 4 tokens: 3 for the user's message and 1 for the empty response.
fn four_tokens(name: &str) -> Turn {
    turn(&name.repeat(8))
}

#[test]
fn truncation_keeps_as_many_turns_as_the_budget_holds_exactly() {
    for (budget, expected) in [(12, 3), (11, 2), (8, 2), (7, 1)] {
        let options = MemoryOptions::new(Strategy::Truncation).budget_tokens(budget);
        let mut record = Record::new(Strategy::Truncation);
        for name in ["a", "b", "c", "d", "e"] {
            rules(&options).add(&mut record, four_tokens(name));
        }
        let context = rules(&options).llm_context(&record);
        assert_eq!((context.recent_turns.len() as u64, context.tokens), (expected, expected * 4), "{budget}");
        assert_eq!(context.recent_turns.last(), Some(&four_tokens("e")));
        assert!(!context.over_budget);
    }
}

#[test]
fn a_turn_larger_than_the_budget_is_kept_alone_and_marked() {
    for strategy in [Strategy::Truncation, Strategy::RollingSummary] {
        let options = MemoryOptions::new(strategy).budget_tokens(8);
        let mut record = Record::new(strategy);
        rules(&options).add(&mut record, turn("small"));
        rules(&options).add(&mut record, turn(&"x".repeat(400)));
        let context = rules(&options).llm_context(&record);
        assert_eq!(context.recent_turns, [turn(&"x".repeat(400))]);
        assert_eq!((context.tokens, context.over_budget), (102, true));
        rules(&options).add(&mut record, turn("next"));
        let context = rules(&options).llm_context(&record);
        assert_eq!((texts(&context.recent_turns), context.over_budget), (vec!["next"], false));
        let waiting = if strategy == Strategy::RollingSummary { 2 } else { 0 };
        assert_eq!(record.pending.len(), waiting);
    }
}

#[test]
fn a_summary_takes_its_room_from_the_window() {
    let options = options().budget_tokens(16).window_turns(4);
    let mut record = Record::new(Strategy::RollingSummary);
    for name in ["a", "b", "c", "d", "e"] {
        rules(&options).add(&mut record, four_tokens(name));
    }
    assert_eq!(rules(&options).llm_context(&record).tokens, 16);
    rules(&options).begin(&mut record, 0, CLAIM).unwrap();
    rules(&options).succeed(&mut record, CLAIM, 0, "s".repeat(28)).unwrap();
    let context = rules(&options).llm_context(&record);
    assert_eq!((context.tokens, context.recent_turns.len(), record.pending.len()), (16, 2, 2));
    assert!(!context.over_budget);
}

#[test]
fn without_a_budget_truncation_keeps_every_turn() {
    let options = MemoryOptions::new(Strategy::Truncation);
    assert_eq!(record_of(&options, "abcdefgh").turns.len(), 8);
}

#[test]
fn a_record_of_a_wider_host_is_brought_under_these_options() {
    let wide = options().window_turns(8);
    let mut record = record_of(&wide, "abcdef");
    let narrow = options();
    rules(&narrow).fit(&mut record);
    assert_eq!((texts(&record.pending), texts(&record.turns)), (vec!["a", "b", "c", "d"], vec!["e", "f"]));
}

#[derive(Clone, Debug)]
enum Step {
    Add,
    Begin,
    Succeed,
    Fail,
    Abandon,
    Wait(u64),
    Store,
    Snapshot,
}

fn steps() -> impl Generator<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => Just(Step::Add),
        4 => Just(Step::Begin),
        2 => Just(Step::Succeed),
        3 => Just(Step::Fail),
        1 => Just(Step::Abandon),
        2 => (0..40_000_u64).prop_map(Step::Wait),
        1 => Just(Step::Store),
        1 => Just(Step::Snapshot),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// After any sequence of steps, each turn is in one list, in order, or its drop was reported.
    #[test]
    fn no_turn_is_lost_doubled_or_moved(steps in steps(), budget in 0..60_u64, backlog_max in 1..4_usize) {
        let options = options().budget_tokens(budget).backlog_max(backlog_max).retry_backoff(Duration::from_millis(100));
        let rules = rules(&options);
        let mut record = Record::new(Strategy::RollingSummary);
        let (mut now, mut claim, mut added, mut dropped) = (0, 0, 0_u32, 0);
        let mut begun: Option<Begun> = None;
        for step in steps {
            let mut effects = Vec::new();
            match step {
                Step::Add => {
                    added += 1;
                    effects.extend(rules.add(&mut record, turn(&format!("{added} "))));
                }
                Step::Begin => {
                    if let Some((next, more)) = rules.begin(&mut record, now, claim + 1) {
                        claim += 1;
                        effects.extend(more);
                        begun = Some(next);
                    }
                }
                Step::Succeed => {
                    if let Some(done) = begun.take() {
                        effects.extend(rules.succeed(&mut record, done.claim, now, echo(&done)).into_iter().flatten());
                    }
                }
                Step::Fail => {
                    if let Some(done) = begun.take() {
                        effects.extend(rules.fail(&mut record, done.claim, now).into_iter().flatten());
                    }
                }
                Step::Abandon => {
                    if let Some(done) = begun.take() {
                        effects.extend(rules.abandon(&mut record, done.claim, now).into_iter().flatten());
                    }
                }
                Step::Wait(millis) => now += millis,
                Step::Store => record = Record::parse(&record.to_bytes().unwrap()).unwrap(),
                Step::Snapshot => {
                    record = Record::parse(&record.at_rest().to_bytes().unwrap()).unwrap();
                    record.check_snapshot().unwrap();
                    rules.fit(&mut record);
                }
            }
            for effect in effects {
                match effect {
                    Effect::RecoveryDropped { turns } => dropped += turns,
                    Effect::HealthChanged { prior, new, .. } => {
                        prop_assert!(prior != new && prior.can_become(new))
                    }
                }
            }
            let kept = record.summary.clone() + &texts(record.all_turns()).concat();
            let kept: Vec<u32> = kept.split_whitespace().map(|number| number.parse().unwrap()).collect();
            prop_assert!(kept.is_sorted_by(|a, b| a < b), "{:?}", kept);
            prop_assert_eq!(kept.len() + dropped, added as usize);
            prop_assert!(record.turns.len() <= 2);
            prop_assert!(record.backlog.len() <= backlog_max);
            let context = rules.llm_context(&record);
            prop_assert!(!context.over_budget || context.recent_turns.len() == 1);
        }
    }
}
