//! Uses all of the guest SDK, and fails with the first thing that is not as it says.

use std::cell::Cell;
use std::time::Duration;

use larder_guest::{
    Entry, Error, Health, Identity, Memory, PutOptions, Range, Record, RetryPolicy, Store, Strategy, Table,
    Turn, Version,
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
    let context = memory.context()?;
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
    expect("flushed", memory.context()?.recent_turns, vec![])?;
    memory.restore(&taken)?;
    expect("restored", memory.context()?, context)?;
    memory.close();
    expect("after close", memory.health(), Err(Error::Closed))?;
    let missing = Memory::open(Identity::session("acme", "", "monday")).map(drop);
    expect("no user", missing, Err(Error::IdentityRequired("user empty".to_string())))
}

/// Compares, and says what was looked at.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: {found:?} instead of {expected:?}").into())
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
        tx.put_with(
            "n",
            "expires",
            "soon",
            PutOptions { ttl_ms: Some(600_000), if_version: Some(Version::ABSENT) },
        )
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
    expect("what it had written", get(store, "kept")?, Some(b"before".to_vec()))
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
    let policy =
        RetryPolicy { attempts: 3, first_pause: Duration::from_micros(10), ..RetryPolicy::default() };
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
    expect("none", keys(Range::all().limit(0))?, String::new())?;
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
    expect("a number is no text", is_named, true)
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
    expect("under b and what begins with it", under("b")?, "1222".to_string())?;
    expect("under b and NUL", under("b\0")?, "22".to_string())?;
    let slip = store.view(|tx| tasks.find(tx, "lable", "b"));
    expect("no such index", matches!(slip, Err(Error::InvalidArgument(_))), true)?;
    store.update(|tx| tasks.put(tx, &task("1", &["c"])))?;
    expect("none under a any more", find("a")?, Vec::new())?;
    expect("the record", store.view(|tx| tasks.find(tx, "label", "c"))?, vec![task("1", &["c"])])?;
    let twice = [task("3", &["old"]), task("3", &["new"])];
    store.update(|tx| tasks.put_many(tx, &twice))?;
    expect("the first of equal keys leaves no entry", find("old")?, Vec::new())?;
    expect("deleted", store.update(|tx| tasks.delete(tx, "2"))?, true)?;
    expect("not there to delete", store.update(|tx| tasks.delete(tx, "2"))?, false)?;
    expect("its entry went with it", find("b")?, Vec::new())?;
    let left =
        store.view(|tx| tasks.iterate(tx, "").map(|task| Ok(task?.id)).collect::<Result<Vec<_>, Error>>())?;
    expect("what is left", left, ["1", "22", "3"].map(String::from).to_vec())
}
