//! The checker finds each kind of violation, and accepts correct histories.

use super::*;
use crate::history::{Answer, Call, Id, LEASES, Range, Step};

/// The wall-clock time at time 0. Both clocks then run at the same rate.
const WALL: Millis = 1_000_000;

/// Builds a history. Times are in milliseconds.
struct Past {
    events: Vec<Event>,
    rows: Vec<FileRow>,
    one_clock: bool,
}

fn at(millis: u64) -> Nanos {
    millis * 1_000_000
}

fn window(from: u64, to: u64) -> Window {
    Window { from: at(from), to: at(to) }
}

fn row(key: &str) -> Row {
    Row("wide".to_string(), key.to_string())
}

fn lease() -> Row {
    Row(LEASES.to_string(), "l".to_string())
}

fn step(call: Call, answer: Answer) -> Step {
    Step { call, answer }
}

fn get(row: Row, found: Option<&str>) -> Step {
    step(Call::Get(row), Answer::Value(found.map(str::to_string)))
}

fn all(found: &[(&str, &str)]) -> Step {
    let found = found.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    step(Call::Page("wide".to_string(), Range::default(), None), Answer::Page(found, false))
}

fn put(key: &str, value: &str) -> Step {
    let call = Call::Put { row: row(key), value: value.to_string(), ttl: None, if_version: None };
    step(call, Answer::Nothing)
}

fn put_if(key: &str, value: &str, version: u64) -> Step {
    let call = Call::Put { row: row(key), value: value.to_string(), ttl: None, if_version: Some(version) };
    step(call, Answer::Nothing)
}

fn hold(ttl: Millis) -> Step {
    let call = Call::Put { row: lease(), value: "held".to_string(), ttl: Some(ttl), if_version: None };
    step(call, Answer::Nothing)
}

fn delete(key: &str) -> Step {
    step(Call::Delete { row: row(key), if_version: None }, Answer::Nothing)
}

impl Past {
    fn new() -> Self {
        Self { events: Vec::new(), rows: Vec::new(), one_clock: true }
    }

    fn transaction(task: u64, steps: Vec<Step>, taken: Option<(u64, u64)>) -> Transaction {
        let snapshot = taken.map(|(from, to)| Taken {
            window: window(from, to),
            now: Moment { earliest: WALL + from, latest: WALL + to },
        });
        Transaction { id: Id { task, number: 1 }, opening: 1, steps, snapshot }
    }

    /// Adds an update that was requested and answered at these times.
    fn update(mut self, task: u64, steps: Vec<Step>, time: (u64, u64), outcome: Option<Outcome>) -> Self {
        let id = Id { task, number: 1 };
        let mut steps = steps;
        steps.push(step(crate::calls::Calls::marker(id), Answer::Nothing));
        let transaction = Self::transaction(task, steps, None);
        self.events.push(Event::Asked { transaction, at: at(time.0), now: WALL + time.0 });
        if let Some(outcome) = outcome {
            self.events.push(Event::Answered { id, at: at(time.1), now: WALL + time.1, outcome });
        }
        self
    }

    fn committed(self, task: u64, steps: Vec<Step>, time: (u64, u64), version: u64) -> Self {
        self.update(task, steps, time, Some(Outcome::Committed(version))).marked(task, version)
    }

    fn view(mut self, task: u64, steps: Vec<Step>, taken: (u64, u64)) -> Self {
        self.events.push(Event::Looked(Self::transaction(task, steps, Some(taken))));
        self
    }

    fn stored(mut self, row: Row, value: &str, version: u64) -> Self {
        self.rows.push(FileRow { row, value: value.to_string(), version, expires_at: None });
        self
    }

    fn marked(self, task: u64, version: u64) -> Self {
        let id = Id { task, number: 1 };
        self.stored(Row(TASKS.to_string(), task.to_string()), &id.to_string(), version)
    }

    fn check(self) -> Result<Counts, String> {
        let reserved = 1_000;
        let last = Dump { window: window(90_000, 90_001), rows: self.rows, reserved };
        History::of(&self.events, last, WALL, self.one_clock).check()
    }

    #[track_caller]
    fn passes(self) -> Counts {
        self.check().unwrap()
    }

    #[track_caller]
    fn fails(self, with: &str) {
        let error = self.check().unwrap_err();
        assert!(error.contains(with), "{error}");
    }
}

#[test]
fn what_a_serializable_store_answers_is_right() {
    let counts = Past::new()
        .committed(1, vec![put("a", "1")], (10, 20), 5)
        .committed(2, vec![get(row("a"), Some("1")), put("b", "2"), delete("a")], (30, 40), 6)
        .update(3, vec![put("b", "3")], (30, 41), Some(Outcome::Conflict))
        .view(4, vec![all(&[("a", "1")]), get(row("b"), None)], (25, 35))
        .view(5, vec![all(&[("b", "2")])], (35, 36))
        .view(6, vec![all(&[("b", "2")])], (50, 60))
        .stored(row("b"), "2", 6)
        .passes();
    assert_eq!((counts.acknowledged, counts.conflicts, counts.snapshots), (2, 1, 3));
}

#[test]
fn an_update_that_read_an_older_value_is_found() {
    let past = Past::new()
        .committed(1, vec![put("a", "1")], (10, 20), 5)
        .committed(2, vec![get(row("a"), None), put("a", "2")], (15, 25), 6)
        .stored(row("a"), "2", 6);
    past.fails("2-1 committed with version 6: wide/a was read as None, but is Some(\"1\")");
}

#[test]
fn an_update_that_missed_a_row_of_its_range_is_found() {
    let past = Past::new()
        .committed(1, vec![put("a", "1")], (10, 20), 5)
        .committed(2, vec![all(&[]), put("b", "2")], (15, 25), 6)
        .stored(row("a"), "1", 5)
        .stored(row("b"), "2", 6);
    past.fails("found None instead of a=1");
}

#[test]
fn a_write_whose_condition_did_not_hold_is_found() {
    let past = Past::new()
        .committed(1, vec![put("a", "1")], (10, 20), 5)
        .committed(2, vec![put_if("a", "2", 4)], (30, 40), 6)
        .stored(row("a"), "2", 6);
    past.fails("wide/a must have version 4, but has one of [5]");
}

#[test]
fn a_stale_view_and_one_of_two_states_are_found() {
    let past = || {
        Past::new()
            .committed(1, vec![put("a", "1"), put("b", "1")], (10, 20), 5)
            .committed(2, vec![put("a", "2"), put("b", "2")], (30, 40), 6)
            .stored(row("a"), "2", 6)
            .stored(row("b"), "2", 6)
    };
    past().view(3, vec![get(row("a"), Some("1"))], (50, 60)).fails("which is stale");
    past().view(3, vec![get(row("a"), Some("2"))], (21, 29)).fails("which is too new");
    let torn = vec![get(row("a"), Some("1")), get(row("b"), Some("2"))];
    past().view(3, torn, (35, 36)).fails("no single state");
}

#[test]
fn the_reads_of_an_update_that_was_refused_are_those_of_one_state() {
    let mut past = Past::new().committed(1, vec![put("a", "1")], (10, 20), 5).stored(row("a"), "1", 5);
    let transaction = Past::transaction(2, vec![get(row("a"), None), put("a", "2")], Some((30, 31)));
    past.events.push(Event::Asked { transaction, at: at(32), now: WALL + 32 });
    let id = Id { task: 2, number: 1 };
    past.events.push(Event::Answered { id, at: at(33), now: WALL + 33, outcome: Outcome::Conflict });
    past.fails("the snapshot of 2-1");
}

#[test]
fn versions_that_are_used_twice_or_out_of_order_are_found() {
    let past = |second| {
        Past::new()
            .committed(1, vec![put("a", "1")], (10, 20), 5)
            .committed(2, vec![put("b", "2")], (30, 40), second)
            .stored(row("a"), "1", 5)
            .stored(row("b"), "2", second)
    };
    past(6).passes();
    past(5).fails("1-1 and 2-1 both have version 5");
    past(4).fails("1-1 has version 5 and was acknowledged before 2-1 was requested, which has version 4");
}

#[test]
fn an_acknowledged_commit_that_is_gone_is_found() {
    let past = Past::new().update(1, vec![put("a", "1")], (10, 20), Some(Outcome::Committed(5)));
    past.fails("is missing");
    let half = Past::new().committed(1, vec![put("a", "1")], (10, 20), 5);
    half.fails("wide/a is missing");
}

#[test]
fn a_refused_write_that_is_there_is_found() {
    let refused = || Past::new().update(1, vec![put("a", "1")], (10, 20), Some(Outcome::Conflict));
    refused().passes();
    refused().marked(1, 5).fails("1-1 was answered Conflict, but is stored at version 5");
    refused().stored(row("a"), "1", 5).fails("must not be stored");
}

#[test]
fn a_commit_without_an_answer_is_made_as_a_whole_or_not_at_all() {
    let open = || Past::new().update(1, vec![put("a", "1"), put("b", "1")], (10, 20), None);
    assert_eq!(open().passes().open_and_made, 0);
    let made = || open().marked(1, 5).stored(row("a"), "1", 5);
    assert_eq!(made().stored(row("b"), "1", 5).passes().open_and_made, 1);
    made().fails("wide/b is missing");
    open().stored(row("a"), "1", 5).fails("must not be stored");
}

#[test]
fn a_view_may_show_a_commit_without_an_answer_from_when_it_was_asked_for() {
    let past = || {
        let open = Past::new().update(1, vec![put("a", "1")], (10, 20), None);
        open.marked(1, 5).stored(row("a"), "1", 5)
    };
    past().view(2, vec![get(row("a"), Some("1"))], (12, 13)).passes();
    past().view(2, vec![get(row("a"), None)], (80, 90)).passes();
    past().view(2, vec![get(row("a"), Some("1"))], (5, 6)).fails("too new");
}

#[test]
fn a_lease_is_there_until_it_has_expired_and_no_longer() {
    let past = || {
        let mut past = Past::new().committed(1, vec![hold(5_000)], (10, 20), 5);
        let expires_at = Some(WALL + 5_015);
        past.rows.push(FileRow { row: lease(), value: "held".to_string(), version: 5, expires_at });
        past
    };
    past().view(2, vec![get(lease(), Some("held"))], (4_000, 4_001)).passes();
    past().view(2, vec![get(lease(), None)], (4_000, 4_001)).fails("leases/l was read as None");
    past().view(2, vec![get(lease(), None)], (5_030, 5_031)).passes();
    past().view(2, vec![get(lease(), Some("held"))], (5_030, 5_031)).fails("leases/l was read as Some");
}

#[test]
fn a_lease_that_was_found_gone_does_not_come_back() {
    let past = || Past::new().committed(1, vec![hold(5_000)], (10, 20), 5);
    let gone = vec![get(lease(), None)];
    let held = vec![get(lease(), Some("held"))];
    // Each alone is allowed, as the clock may be anywhere within its window.
    past().view(2, gone.clone(), (5_000, 5_012)).passes();
    past().view(2, held.clone(), (5_014, 5_018)).passes();
    let both = past().view(2, gone.clone(), (5_000, 5_012)).view(3, held.clone(), (5_014, 5_018));
    both.fails("2-1 found leases/l of version 5 gone, but 3-1 saw it later");
    let mut relies = held;
    relies.push(put("a", "1"));
    let relied_on =
        past().view(2, gone, (5_000, 5_012)).committed(3, relies, (5_013, 5_014), 6).stored(row("a"), "1", 6);
    relied_on.fails("but 3-1 committed after that and relied on it");
}

#[test]
fn a_lease_is_seen_on_beside_an_update_of_the_same_process_that_relies_on_it() {
    let held = vec![get(lease(), Some("held"))];
    let past = |update: bool| {
        let mut past = Past::new().committed(1, vec![hold(5_000)], (10, 20), 5);
        let elsewhere = Past::transaction(2, vec![get(lease(), None)], Some((5_000, 5_012)));
        past.events.push(Event::Looked(Transaction { opening: 2, ..elsewhere }));
        if update {
            let id = Id { task: 3, number: 1 };
            let mut steps = held.clone();
            steps.extend([put("a", "1"), step(crate::calls::Calls::marker(id), Answer::Nothing)]);
            let transaction = Past::transaction(3, steps, Some((4_980, 4_990)));
            past.events.push(Event::Asked { transaction, at: at(4_995), now: WALL + 4_995 });
            let outcome = Outcome::Committed(6);
            past.events.push(Event::Answered { id, at: at(5_020), now: WALL + 5_020, outcome });
            past = past.marked(3, 6).stored(row("a"), "1", 6);
        }
        past.view(4, held.clone(), (5_014, 5_018))
    };
    past(true).passes();
    past(false).fails("2-1 found leases/l of version 5 gone, but 4-1 saw it later");
}

#[test]
fn a_foreign_dump_is_one_state_with_its_versions() {
    let past = |version| {
        let mut past = Past::new().committed(1, vec![put("a", "1")], (10, 20), 5).committed(
            2,
            vec![delete("a")],
            (30, 40),
            6,
        );
        let marker = FileRow {
            row: Row(TASKS.to_string(), "1".to_string()),
            value: "1-1".to_string(),
            version: 5,
            expires_at: None,
        };
        let found = FileRow { row: row("a"), value: "1".to_string(), version, expires_at: None };
        past.events.push(Event::Dumped(Dump {
            window: window(21, 22),
            rows: vec![marker, found],
            reserved: 5,
        }));
        past
    };
    past(5).passes();
    past(4).fails("a read of the whole file");
    past(6).fails("a row has version 6, but the file reserves only 5");
}

#[test]
fn what_a_process_finds_broken_by_itself_is_told() {
    let mut past = Past::new();
    past.events.push(Event::Broken("a torn value".to_string()));
    past.fails("a torn value");
}
