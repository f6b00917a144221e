//! Versions, and conditional writes.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("cas":
    a_row_has_the_version_of_its_commit,
    an_absent_row_has_no_version,
    a_version_grows_with_every_write,
    a_version_grows_across_a_delete,
    a_version_is_larger_than_those_of_commits_since_the_transaction_read,
    a_write_beside_it_leaves_a_version_alone,
    an_own_write_has_the_version_that_it_replaces,
    put_at_the_right_version_writes,
    put_at_a_wrong_version_is_a_conflict,
    put_at_zero_writes_an_absent_row,
    put_at_zero_over_a_row_is_a_conflict,
    put_at_a_version_of_an_absent_row_is_a_conflict,
    delete_at_the_right_version_deletes,
    delete_at_a_wrong_version_is_a_conflict,
    delete_at_zero_asserts_absence,
    a_delete_of_an_absent_row_has_a_version_and_leaves_it_absent,
    a_condition_that_fails_undoes_the_other_writes,
    a_condition_looks_at_the_committed_row,
    two_conditions_of_which_one_fails_are_a_conflict,
    a_version_from_before_a_delete_is_never_right_again,
    of_two_writers_at_one_version_one_wins,
    of_many_puts_if_absent_exactly_one_wins,
    counting_by_versions_loses_nothing,
);

pub(crate) const WORKERS: &[Worker] = named!("cas": put_if_absent, add_one_at_a_version);

/// Commits one conditional put.
fn put_at(key: &str, value: &str, version: u64) -> Result<u64, Error> {
    let tx = Store::open("main")?.begin(Mode::Update)?;
    tx.put_with(NS, key, value.as_bytes(), if_version(version))?;
    Tx::commit(tx)
}

/// Commits one conditional delete.
fn delete_at(key: &str, version: u64) -> Result<u64, Error> {
    let tx = Store::open("main")?.begin(Mode::Update)?;
    tx.delete_if_version(NS, key, version)?;
    Tx::commit(tx)
}

fn a_row_has_the_version_of_its_commit() -> Outcome {
    let both = put_keys(&["a", "b"])?;
    let one = put("b", "again")?;
    read(|tx| {
        expect_eq(tx.get_versioned(NS, "a")?, Some((b"a".to_vec(), both)))?;
        expect_eq(tx.get_versioned(NS, "b")?, Some((b"again".to_vec(), one)))
    })?;
    let counted = write(|tx| Ok(tx.increment(NS, "count", 1)?))?;
    expect_eq(version("count")?, counted)
}

fn an_absent_row_has_no_version() -> Outcome {
    read(|tx| expect_eq(tx.get_versioned(NS, "a")?, None))?;
    put("a", "1")?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    read(|tx| expect_eq(tx.get_versioned(NS, "a")?, None))
}

fn a_version_grows_with_every_write() -> Outcome {
    let mut last = 0;
    for _ in 0..5 {
        put("a", "the same")?;
        let next = version("a")?;
        expect(next > last, format!("{next} is larger than {last}"))?;
        last = next;
    }
    Ok(())
}

fn a_version_grows_across_a_delete() -> Outcome {
    let first = put("a", "1")?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    let second = put("a", "1")?;
    expect(second > first, format!("{second} is larger than {first}"))?;
    write(|tx| expect_eq(tx.delete_range(NS, &range(""))?, 1))?;
    let third = write(|tx| Ok(tx.increment(NS, "a", 1)?))?;
    expect(third > second, format!("{third} is larger than {second}"))?;
    expect_eq(version("a")?, third)
}

fn a_version_is_larger_than_those_of_commits_since_the_transaction_read() -> Outcome {
    let before = put("read", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    expect_value(tx.get(NS, "read")?, "1")?;
    let other = put("other", "1")?;
    tx.put(NS, "other", b"2")?;
    let committed = Tx::commit(tx)?;
    expect_eq(version("other")?, committed)?;
    expect(committed > other, format!("{committed} is larger than {other}"))?;
    let tx = update(&store)?;
    expect_value(tx.get(NS, "read")?, "1")?;
    let other = put("other", "3")?;
    tx.put(NS, "read", b"2")?;
    let committed = Tx::commit(tx)?;
    expect_eq(version("read")?, committed)?;
    expect(committed > before, format!("{committed} is larger than {before}"))?;
    expect(committed != other, "no two commits have the same version")
}

fn a_write_beside_it_leaves_a_version_alone() -> Outcome {
    let first = put("a", "1")?;
    put("b", "1")?;
    write(|tx| Ok(tx.put("another", "a", b"")?))?;
    expect_eq(version("a")?, first)
}

fn an_own_write_has_the_version_that_it_replaces() -> Outcome {
    let version = put("a", "committed")?;
    put("count", "1")?;
    write(|tx| {
        tx.put(NS, "a", b"staged")?;
        expect_eq(tx.get_versioned(NS, "a")?, Some((b"staged".to_vec(), version)))?;
        tx.delete(NS, "a")?;
        expect_eq(tx.get_versioned(NS, "a")?, None)?;
        tx.put(NS, "a", b"again")?;
        expect_eq(tx.get_versioned(NS, "a")?, Some((b"again".to_vec(), version)))?;
        tx.put(NS, "new", b"staged")?;
        expect_eq(tx.get_versioned(NS, "new")?, Some((b"staged".to_vec(), 0)))?;
        tx.increment(NS, "fresh", 5)?;
        expect_eq(tx.get_versioned(NS, "fresh")?, Some((b"5".to_vec(), 0)))
    })?;
    Ok(())
}

fn put_at_the_right_version_writes() -> Outcome {
    let first = put("a", "1")?;
    let second = put_at("a", "2", first)?;
    expect(second > first, format!("{second} is larger than {first}"))?;
    put_at("a", "3", second)?;
    expect_value(get("a")?, "3")
}

fn put_at_a_wrong_version_is_a_conflict() -> Outcome {
    let first = put("a", "1")?;
    let second = put("a", "2")?;
    for wrong in [first, second + 1, u64::MAX] {
        expect_conflict(put_at("a", "3", wrong))?;
    }
    expect_value(get("a")?, "2")?;
    expect_eq(version("a")?, second)
}

fn put_at_zero_writes_an_absent_row() -> Outcome {
    put_at("a", "1", 0)?;
    expect_value(get("a")?, "1")?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    put_at("a", "2", 0)?;
    expect_value(get("a")?, "2")
}

fn put_at_zero_over_a_row_is_a_conflict() -> Outcome {
    put("a", "1")?;
    put("empty", "")?;
    expect_conflict(put_at("a", "2", 0))?;
    expect_conflict(put_at("empty", "2", 0))?;
    expect_entries(&scan("")?, &[("a", "1"), ("empty", "")])
}

fn put_at_a_version_of_an_absent_row_is_a_conflict() -> Outcome {
    let version = put("a", "1")?;
    expect_conflict(put_at("b", "2", version))?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    expect_conflict(put_at("a", "2", version))?;
    expect_entries(&scan("")?, &[])
}

fn delete_at_the_right_version_deletes() -> Outcome {
    let version = put("a", "1")?;
    delete_at("a", version)?;
    expect_absent(get("a")?)
}

fn delete_at_a_wrong_version_is_a_conflict() -> Outcome {
    let first = put("a", "1")?;
    let second = put("a", "2")?;
    for wrong in [0, first, second + 1] {
        expect_conflict(delete_at("a", wrong))?;
    }
    expect_conflict(delete_at("absent", second))?;
    expect_entries(&scan("")?, &[("a", "2")])
}

fn a_delete_of_an_absent_row_has_a_version_and_leaves_it_absent() -> Outcome {
    let store = main()?;
    type Delete = fn(&Tx) -> Result<(), Error>;
    let deletes: [Delete; 3] = [
        |tx| tx.delete(NS, "absent"),
        |tx| tx.delete_many(NS, &keys(&["absent", "also absent"])),
        |tx| tx.delete_if_version(NS, "absent", 0),
    ];
    let mut last = 0;
    for delete in deletes {
        let tx = update(&store)?;
        delete(&tx)?;
        let deleted = Tx::commit(tx)?;
        expect(deleted > last, format!("the delete at {deleted} is later than the one at {last}"))?;
        last = deleted;
        expect_eq(read(|tx| Ok(tx.get_versioned(NS, "absent")?))?, None)?;
        expect_conflict(delete_at("absent", deleted))?;
    }
    // An empty range stages no write.
    let tx = update(&store)?;
    expect_eq(tx.delete_range(NS, &range("absent"))?, 0)?;
    expect_eq(Tx::commit(tx)?, 0)?;
    // A later write of the row has a larger version than any delete of it.
    let after = put("absent", "there now")?;
    expect(after > last, format!("the put at {after} is later than the delete at {last}"))
}

fn delete_at_zero_asserts_absence() -> Outcome {
    delete_at("a", 0)?;
    let store = main()?;
    let tx = update(&store)?;
    tx.delete_if_version(NS, "a", 0)?;
    tx.put(NS, "b", b"if a is absent")?;
    put("a", "1")?;
    expect_conflict(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[("a", "1")])
}

fn a_condition_that_fails_undoes_the_other_writes() -> Outcome {
    put("a", "1")?;
    put("z", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"2")?;
    tx.increment(NS, "count", 1)?;
    tx.put_with(NS, "b", b"2", if_version(1_000_000))?;
    tx.delete(NS, "z")?;
    expect_conflict(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[("a", "1"), ("z", "1")])
}

fn a_condition_looks_at_the_committed_row() -> Outcome {
    let version = put("a", "committed")?;
    write(|tx| {
        tx.delete(NS, "a")?;
        tx.put_with(NS, "a", b"at its version", if_version(version))?;
        tx.put(NS, "new", b"staged")?;
        Ok(tx.put_with(NS, "new", b"at zero", if_version(0))?)
    })?;
    expect_entries(&scan("")?, &[("a", "at its version"), ("new", "at zero")])
}

fn two_conditions_of_which_one_fails_are_a_conflict() -> Outcome {
    let version = put("a", "1")?;
    for [first, second] in [[0, version], [version, 0], [version, version + 1]] {
        let store = main()?;
        let tx = update(&store)?;
        tx.put_with(NS, "a", b"2", if_version(first))?;
        tx.put_with(NS, "a", b"3", if_version(second))?;
        expect_conflict(Tx::commit(tx))?;
        let tx = update(&store)?;
        tx.put_with(NS, "a", b"2", if_version(first))?;
        tx.delete_if_version(NS, "a", second)?;
        expect_conflict(Tx::commit(tx))?;
    }
    expect_entries(&scan("")?, &[("a", "1")])?;
    write(|tx| {
        tx.put_with(NS, "a", b"2", if_version(version))?;
        Ok(tx.put_with(NS, "a", b"3", if_version(version))?)
    })?;
    expect_value(get("a")?, "3")
}

fn a_version_from_before_a_delete_is_never_right_again() -> Outcome {
    let old = put("a", "1")?;
    write(|tx| Ok(tx.delete(NS, "a")?))?;
    put("a", "1")?;
    expect_conflict(put_at("a", "2", old))?;
    expect_conflict(delete_at("a", old))?;
    expect_value(get("a")?, "1")
}

fn of_two_writers_at_one_version_one_wins() -> Outcome {
    let version = put("a", "0")?;
    let store = main()?;
    let first = update(&store)?;
    let second = update(&store)?;
    first.put_with(NS, "a", b"first", if_version(version))?;
    second.put_with(NS, "a", b"second", if_version(version))?;
    Tx::commit(second)?;
    expect_conflict(Tx::commit(first))?;
    expect_value(get("a")?, "second")
}

fn of_many_puts_if_absent_exactly_one_wins() -> Outcome {
    in_parallel("cas::put_if_absent", 24)?;
    let winners = scan("winner/")?;
    expect_eq(winners.len(), 1)?;
    let seat = get("seat")?.unwrap_or_default();
    expect_value(winners.into_iter().next().map(|winner| winner.value), seat)?;
    expect_eq(scan("loser/")?.len(), 23)
}

fn put_if_absent(index: u32) -> Outcome {
    let name = index.to_string();
    let store = main()?;
    let tx = update(&store)?;
    tx.put_with(NS, "seat", name.as_bytes(), if_version(0))?;
    tx.put(NS, &format!("winner/{name}"), name.as_bytes())?;
    match Tx::commit(tx) {
        Ok(_) => Ok(()),
        lost => {
            expect_conflict(lost)?;
            put(&format!("loser/{name}"), &name)?;
            Ok(())
        }
    }
}

fn counting_by_versions_loses_nothing() -> Outcome {
    put("count", "0")?;
    in_parallel("cas::add_one_at_a_version", 16)?;
    expect_value(get("count")?, "16")
}

/// Reads the count in one transaction, and writes it in another if its version has not changed.
fn add_one_at_a_version(_: u32) -> Outcome {
    retrying_in_a_crowd(|| {
        let row = read(|tx| Ok(tx.get_versioned(NS, "count")?))?;
        let (value, version) = row.ok_or_else(|| wrong("expected a row `count`, got none"))?;
        let count: u32 = String::from_utf8_lossy(&value).parse().map_err(wrong)?;
        put_at("count", &(count + 1).to_string(), version)?;
        Ok(())
    })
}
