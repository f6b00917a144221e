//! Uses the whole guest SDK, and fails at the first behaviour that differs from its documentation.

use std::cell::Cell;
use std::time::Duration;

use larder_guest::{
    Entry, Error, Health, Identity, Memory, MigrateError, Migration, MigrationSet, PutOptions, Range, Record,
    RetryPolicy, Store, Strategy, Table, Turn, Version, migration,
};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let store = Store::open("default")?;
    store.ping()?;
    rows_are_written_and_read(&store)?;
    an_error_of_the_closure_rolls_back_and_comes_back_as_it_was(&store)?;
    a_conflict_runs_the_closure_again(&store)?;
    a_conflict_that_stays_is_given_up(&store)?;
    pages_are_fetched_as_they_are_needed(&store)?;
    typed_values_say_where_they_do_not_fit(&store)?;
    an_index_follows_its_records(&store)?;
    steps_are_applied_once_in_their_order(&store)?;
    a_step_that_fails_leaves_those_before_it(&store)?;
    a_step_that_meets_a_conflict_is_run_again(&store)?;
    an_index_is_built_for_records_that_are_there(&store)?;
    a_conversation_is_kept()?;
    store.close();
    expect("after close", store.ping(), Err(Error::Closed))?;
    println!("the SDK does what it says");
    Ok(())
}

fn a_conversation_is_kept() -> Outcome {
    let memory = Memory::open(Identity::session("acme", "ann", "monday").with_run("first"))?;
    for text in ["a", "b", "c"] {
        memory.add_turn(Turn::new(text, text).show_artifact("chart", &[1, 2])?)?;
    }
    let context = memory.llm_context()?;
    let recent: Vec<_> = context.recent_turns.iter().map(|turn| turn.user_message.as_str()).collect();
    expect("the recent turns", recent, vec!["b", "c"])?;
    expect(
        "the summary",
        (context.summary.as_str(), context.strategy),
        ("U:a A:a", Strategy::RollingSummary),
    )?;
    let shown = context.recent_turns.first().map(|turn| turn.artifacts_shown.clone());
    expect("the artifact", shown, Some(vec![("chart".to_string(), "[1,2]".to_string())]))?;
    expect("the tokens", (memory.estimate_tokens()?, context.over_budget), (context.tokens, false))?;
    expect("the health", memory.health()?, Health::Healthy)?;
    let taken = memory.snapshot()?;
    memory.flush()?;
    expect("flushed", memory.llm_context()?.recent_turns, vec![])?;
    memory.restore(&taken)?;
    expect("restored", memory.llm_context()?, context)?;
    memory.close();
    expect("after close", memory.health(), Err(Error::Closed))?;
    let missing = Memory::open(Identity::session("acme", "", "monday")).map(drop);
    expect("no user", missing, Err(Error::IdentityRequired("user empty".to_string())))
}

/// Compares two values. `what` names them in the error.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: got {found:?}, expected {expected:?}").into())
}

fn get(store: &Store, key: &str) -> Result<Option<Vec<u8>>, Error> {
    store.view(|tx| tx.get("n", key))
}

fn put(store: &Store, key: &str, value: &str) -> Result<(), Error> {
    store.update(|tx| tx.put("n", key, value))
}

fn rows_are_written_and_read(store: &Store) -> Outcome {
    store.update(|tx| {
        tx.put("n", "a", "1")?;
        let entry = |key: &str| Entry { key: key.to_string(), value: key.as_bytes().to_vec() };
        tx.put_many("n", ["b", "c", "d", "e"].map(entry))?;
        tx.delete("n", "b")?;
        tx.delete_many("n", ["c", "absent"])?;
        tx.increment("n", "count", 2)?;
        tx.put_with("n", "expires", "soon", PutOptions::default().ttl_ms(600_000).if_version(Version::ABSENT))
    })?;
    let (many, versioned) =
        store.view(|tx| Ok::<_, Error>((tx.get_many("n", ["a", "b", "e"])?, tx.get_versioned("n", "e")?)))?;
    expect("get_many", many, vec![Some(b"1".to_vec()), None, Some(b"e".to_vec())])?;
    let (_, version) = versioned.ok_or("a row has no version")?;
    store.update(|tx| tx.delete_if_version("n", "e", version))?;
    let keys = store.view(|tx| {
        Ok::<_, Error>(tx.scan("n", "")?.into_iter().map(|entry| entry.key).collect::<Vec<_>>())
    })?;
    expect("scan", keys, ["a", "count", "d", "expires"].map(String::from).to_vec())?;
    let deleted = store.update(|tx| tx.delete_range("n", Range::all().from("count").until("e")))?;
    expect("delete_range", deleted, 2)
}

#[derive(Debug, PartialEq)]
enum Own {
    Refused(u32),
    Store(Error),
}

impl From<Error> for Own {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn an_error_of_the_closure_rolls_back_and_comes_back_as_it_was(store: &Store) -> Outcome {
    put(store, "kept", "before")?;
    let outcome: Result<(), Own> = store.update(|tx| {
        tx.put("n", "kept", "after")?;
        Err(Own::Refused(7))
    });
    expect("the closure's error", outcome, Err(Own::Refused(7)))?;
    expect("the row that it wrote", get(store, "kept")?, Some(b"before".to_vec()))
}

fn a_conflict_runs_the_closure_again(store: &Store) -> Outcome {
    put(store, "fought over", "0")?;
    let runs = Cell::new(0);
    store.update(|tx| {
        let seen = tx.get("n", "fought over")?.unwrap_or_default();
        runs.set(runs.get() + 1);
        if runs.get() < 3 {
            put(store, "fought over", &format!("other {}", runs.get()))?;
        }
        tx.put("n", "fought over", [seen.as_slice(), b" and mine"].concat())
    })?;
    expect("runs", runs.get(), 3)?;
    expect("the last run's write", get(store, "fought over")?, Some(b"other 2 and mine".to_vec()))
}

fn a_conflict_that_stays_is_given_up(store: &Store) -> Outcome {
    let policy = RetryPolicy::default().attempts(3).first_pause(Duration::from_micros(10));
    let impatient = Store::open("default")?.with_retry_policy(policy);
    let runs = Cell::new(0);
    let outcome: Result<(), Error> = impatient.update(|tx| {
        runs.set(runs.get() + 1);
        tx.get("n", "never")?;
        put(store, "never", &runs.get().to_string())?;
        tx.put("n", "never", "mine")
    });
    expect("the outcome", outcome, Err(Error::Conflict))?;
    expect("runs", runs.get(), 3)
}

fn pages_are_fetched_as_they_are_needed(store: &Store) -> Outcome {
    let value = vec![b'x'; 1 << 20];
    for number in 0..6 {
        store.update(|tx| tx.put("large", &number.to_string(), &value))?;
    }
    let keys = |range: Range| {
        store.view(|tx| {
            tx.iterate("large", range.clone()).map(|entry| Ok(entry?.key)).collect::<Result<String, Error>>()
        })
    };
    expect("six entries of 1 MiB, over several pages", keys(Range::all())?, "012345".to_string())?;
    expect("a limit is of the whole range", keys(Range::all().limit(5))?, "01234".to_string())?;
    expect("in reverse", keys(Range::all().reversed().limit(4))?, "5432".to_string())?;
    expect("a limit of zero", keys(Range::all().limit(0))?, String::new())?;
    expect("keys only", keys(Range::prefix("3").keys_only())?, "3".to_string())?;
    let too_large = store.view(|tx| tx.scan("large", ""));
    let is_refused = matches!(too_large, Err(Error::LimitExceeded { max: 4_194_304, .. }));
    expect("one scan of 6 MiB is refused", is_refused, true)
}

fn typed_values_say_where_they_do_not_fit(store: &Store) -> Outcome {
    store.update(|tx| tx.put_value("n", "number", &7_u32))?;
    expect("a number", store.view(|tx| tx.get_value::<u32>("n", "number"))?, Some(7))?;
    let outcome = store.view(|tx| tx.get_value::<String>("n", "number"));
    let is_named =
        matches!(&outcome, Err(Error::Decode { namespace, key, .. }) if namespace == "n" && key == "number");
    expect("a number does not decode as a string", is_named, true)
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Task {
    id: String,
    labels: Vec<String>,
}

impl Record for Task {
    const INDEXES: &'static [&'static str] = &["label"];

    fn key(&self) -> String {
        self.id.clone()
    }

    fn index_values(&self, _label: &str) -> Vec<String> {
        self.labels.clone()
    }
}

fn task(id: &str, labels: &[&str]) -> Task {
    Task { id: id.to_string(), labels: labels.iter().map(|label| label.to_string()).collect() }
}

fn an_index_follows_its_records(store: &Store) -> Outcome {
    let tasks = Table::<Task>::new("tasks");
    let find = |label: &str| store.view(|tx| tasks.find_keys(tx, "label", label));
    store.update(|tx| {
        tasks.put_many(tx, &[task("1", &["a", "b"]), task("2", &["b"]), task("22", &["b\0"])])
    })?;
    expect("two under b", find("b")?, vec!["1".to_string(), "2".to_string()])?;
    expect("one under b and NUL", find("b\0")?, vec!["22".to_string()])?;
    let under = |prefix: &str| {
        let found = store.view(|tx| tasks.find_prefix(tx, "label", prefix))?;
        Ok::<_, Error>(found.into_iter().map(|task| task.id).collect::<String>())
    };
    expect("all, each once, by label and then by key", under("")?, "1222".to_string())?;
    expect("under labels that begin with b", under("b")?, "1222".to_string())?;
    expect("under b and NUL", under("b\0")?, "22".to_string())?;
    let slip = store.view(|tx| tasks.find(tx, "lable", "b"));
    expect("no such index", matches!(slip, Err(Error::InvalidArgument(_))), true)?;
    store.update(|tx| tasks.put(tx, &task("1", &["c"])))?;
    expect("no record under a", find("a")?, Vec::new())?;
    expect("the record", store.view(|tx| tasks.find(tx, "label", "c"))?, vec![task("1", &["c"])])?;
    let twice = [task("3", &["old"]), task("3", &["new"])];
    store.update(|tx| tasks.put_many(tx, &twice))?;
    expect("the first of two equal keys leaves no entry", find("old")?, Vec::new())?;
    expect("deleted", store.update(|tx| tasks.delete(tx, "2"))?, true)?;
    expect("deleting an absent record", store.update(|tx| tasks.delete(tx, "2"))?, false)?;
    expect("the index entry of a deleted record", find("b")?, Vec::new())?;
    let left =
        store.view(|tx| tasks.iterate(tx, "").map(|task| Ok(task?.id)).collect::<Result<Vec<_>, Error>>())?;
    expect("the remaining records", left, ["1", "22", "3"].map(String::from).to_vec())
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// Migrates, with the error as text.
fn migrate(store: &Store, set: &MigrationSet) -> Result<Vec<String>, String> {
    store.migrate(set).map_err(|error| error.to_string())
}

fn first_tasks() -> Result<MigrationSet, Error> {
    let mut set = MigrationSet::new("tasks");
    set.add(migration!("0001_one", |tx| {
        tx.increment("steps", "one", 1)?;
        Ok(())
    }))?;
    Ok(set)
}

fn search() -> Result<MigrationSet, Error> {
    let mut set = MigrationSet::new("search");
    set.add(Migration::with_checksum("0001_one", [7; 32], |tx| Ok(tx.increment("steps", "search", 1)?)))?;
    Ok(set)
}

fn steps_are_applied_once_in_their_order(store: &Store) -> Outcome {
    let mut set = first_tasks()?;
    set.extend(search()?)?;
    let pair = |component: &str| (component.to_string(), "0001_one".to_string());
    expect("pending", store.pending_migrations(&set)?, vec![pair("tasks"), pair("search")])?;
    expect("both are applied", migrate(store, &set), Ok(texts(&["0001_one", "0001_one"])))?;
    expect("pending after the migration", store.pending_migrations(&set)?, vec![])?;
    expect("nothing is applied again", migrate(store, &set), Ok(vec![]))?;
    expect("the empty set", migrate(store, &MigrationSet::new("tasks")), Ok(vec![]))?;

    // The first component of a composed set adds a step.
    let mut grown = first_tasks()?;
    grown.add(migration!("0002_two", |tx| {
        let one = tx.get("steps", "one")?.unwrap_or_default();
        tx.put("steps", "two", [one.as_slice(), b" and one"].concat())?;
        Ok(())
    }))?;
    grown.extend(search()?)?;
    expect("the new one is applied", migrate(store, &grown), Ok(texts(&["0002_two"])))?;
    let steps = store.view(|tx| tx.scan("steps", ""))?;
    let steps: Vec<_> =
        steps.into_iter().map(|entry| String::from_utf8_lossy(&entry.value).into_owned()).collect();
    expect("each step ran once", steps, texts(&["1", "1", "1 and one"]))?;

    let mut edited = MigrationSet::new("tasks");
    edited.add(migration!("0001_one", |tx| {
        tx.increment("steps", "one", 2)?;
        Ok(())
    }))?;
    let refused = store.migrate(&edited);
    let is_named = |text: &String| text.contains("\"0001_one\"") && text.contains("edited");
    let is_mismatch =
        matches!(&refused, Err(MigrateError::Store(Error::MigrationMismatch(text))) if is_named(text));
    expect("an edited step is refused by name", is_mismatch, true)?;
    let older = store.migrate(&first_tasks()?);
    let is_newer =
        matches!(&older, Err(MigrateError::Store(Error::MigrationMismatch(text))) if text.contains("newer"));
    expect("an older set is refused", is_newer, true)
}

fn a_step_that_fails_leaves_those_before_it(store: &Store) -> Outcome {
    let set = |fails: bool| {
        let mut set = MigrationSet::new("failing");
        set.add(migration!("a", |tx| Ok(tx.put("failing", "a", "1")?)))?;
        set.add(Migration::with_checksum("b", [1; 32], move |tx| {
            tx.put("failing", "b", "1")?;
            if fails { Err("the row is broken".into()) } else { Ok(()) }
        }))?;
        Ok::<_, Error>(set)
    };
    let failed = migrate(store, &set(true)?);
    let reason = "the migration \"b\" of \"failing\" failed and was rolled back: the row is broken";
    expect("the failure", failed, Err(reason.to_string()))?;
    let keys = || store.view(|tx| Ok::<_, Error>(tx.scan("failing", "")?.len()));
    expect("the first step stays, and the second leaves nothing", keys()?, 1)?;
    expect("the next run continues", migrate(store, &set(false)?), Ok(texts(&["b"])))?;
    expect("the rows of both steps", keys()?, 2)
}

fn a_step_that_meets_a_conflict_is_run_again(store: &Store) -> Outcome {
    put(store, "moved", "0")?;
    let runs = std::rc::Rc::new(Cell::new(0));
    let mut set = MigrationSet::new("crowded");
    let (counted, elsewhere) = (runs.clone(), Store::open("default")?);
    set.add(Migration::with_checksum("a", [0; 32], move |tx| {
        tx.get("n", "moved")?;
        counted.set(counted.get() + 1);
        if counted.get() < 3 {
            put(&elsewhere, "moved", &counted.get().to_string())?;
        }
        Ok(tx.put("n", "moved", "by the step")?)
    }))?;
    expect("it is applied", migrate(store, &set), Ok(texts(&["a"])))?;
    expect("runs", runs.get(), 3)?;
    expect("the last run's write", get(store, "moved")?, Some(b"by the step".to_vec()))
}

/// The records of [`Task`] before it had an index.
#[derive(serde::Serialize, serde::Deserialize)]
struct OldTask {
    id: String,
    labels: Vec<String>,
}

impl Record for OldTask {
    fn key(&self) -> String {
        self.id.clone()
    }
}

fn an_index_is_built_for_records_that_are_there(store: &Store) -> Outcome {
    let old = Table::<OldTask>::new("old tasks");
    let records: Vec<_> =
        (0..130).map(|number| OldTask { id: format!("{number:03}"), labels: texts(&["a", "b"]) }).collect();
    store.update(|tx| old.put_many(tx, &records))?;
    let tasks = Table::<Task>::new("old tasks");
    expect("the records without index entries", store.view(|tx| tasks.find_keys(tx, "label", "a"))?, vec![])?;
    for _ in 0..2 {
        expect("entries", store.update(|tx| tasks.build_index(tx, "label"))?, 260)?;
        expect(
            "the records with index entries",
            store.view(|tx| tasks.find_keys(tx, "label", "b"))?.len(),
            130,
        )?;
    }
    let slip = store.update(|tx| tasks.build_index(tx, "lable"));
    expect("no such index", matches!(slip, Err(Error::InvalidArgument(_))), true)
}
