//! One store, opened by two hosts.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("two_hosts":
    a_commit_of_one_host_is_seen_by_the_other,
    what_was_read_before_is_read_anew_once_the_other_host_has_changed_it,
    a_row_changed_by_the_other_host_is_a_conflict,
    a_row_deleted_by_the_other_host_is_a_conflict,
    a_phantom_of_the_other_host_is_a_conflict,
    write_skew_between_hosts_is_a_conflict,
    a_snapshot_is_stable_while_the_other_host_commits,
    versions_grow_from_host_to_host,
    a_condition_sees_what_the_other_host_wrote,
    blind_increments_of_both_hosts_are_summed,
    updates_of_both_hosts_at_once_lose_nothing,
);

pub(crate) const WORKERS: &[Worker] = named!("two_hosts": increment_10_times_in_turns, add_one_in_turns);

/// Commits one row in the other host.
fn put_elsewhere(key: &str, value: &str) -> Outcome<u64> {
    write_in(&other()?, |tx| Ok(tx.put(NS, key, value.as_bytes())?))
}

fn a_commit_of_one_host_is_seen_by_the_other() -> Outcome {
    let elsewhere = other()?;
    put_keys(&["a", "b"])?;
    write_in(&elsewhere, |tx| {
        expect_entries(&tx.scan(NS, "")?, &[("a", "a"), ("b", "b")])?;
        tx.put(NS, "a", b"elsewhere")?;
        Ok(tx.delete(NS, "b")?)
    })?;
    expect_entries(&scan("")?, &[("a", "elsewhere")])?;
    put("a", "here")?;
    retrying(|| expect_value(view(&elsewhere)?.get(NS, "a")?, "here"))
}

/// Rows that a host has cached must not outlive a commit of another host.
fn what_was_read_before_is_read_anew_once_the_other_host_has_changed_it() -> Outcome {
    let elsewhere = other()?;
    put_keys(&["changed", "deleted", "kept"])?;
    for _ in 0..3 {
        for key in ["changed", "deleted", "kept"] {
            expect_value(get(key)?, key)?;
        }
        expect_absent(get("new")?)?;
    }
    write_in(&elsewhere, |tx| {
        tx.put(NS, "changed", b"elsewhere")?;
        tx.put(NS, "new", b"elsewhere")?;
        Ok(tx.delete(NS, "deleted")?)
    })?;
    expect_value(get("changed")?, "elsewhere")?;
    expect_value(get("new")?, "elsewhere")?;
    expect_absent(get("deleted")?)?;
    expect_value(get("kept")?, "kept")
}

fn a_row_changed_by_the_other_host_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("a", "0")?;
        let tx = update(&store)?;
        expect_value(tx.get(NS, "a")?, "0")?;
        put_elsewhere("a", "1")?;
        tx.put(NS, "a", b"2")?;
        expect_conflict(Tx::commit(tx))?;
        expect_value(get("a")?, "1")
    })
}

fn a_row_deleted_by_the_other_host_is_a_conflict() -> Outcome {
    let (store, elsewhere) = (main()?, other()?);
    retrying(|| {
        put("a", "0")?;
        let tx = update(&elsewhere)?;
        expect_value(tx.get(NS, "a")?, "0")?;
        write_in(&store, |tx| Ok(tx.delete(NS, "a")?))?;
        tx.put(NS, "a", b"2")?;
        expect_conflict(Tx::commit(tx))?;
        expect_absent(get("a")?)
    })
}

fn a_phantom_of_the_other_host_is_a_conflict() -> Outcome {
    let (store, elsewhere) = (main()?, other()?);
    retrying(|| {
        clear()?;
        put_keys(&["row/1", "row/3"])?;
        let reader = update(&store)?;
        let writer = update(&elsewhere)?;
        expect_keys(&reader.scan(NS, "row/")?, &["row/1", "row/3"])?;
        expect_absent(writer.get(NS, "mark")?)?;
        reader.put(NS, "mark", b"2 rows")?;
        writer.put(NS, "row/2", b"")?;
        Tx::commit(writer)?;
        expect_conflict(Tx::commit(reader))?;
        expect_keys(&scan("")?, &["row/1", "row/2", "row/3"])
    })
}

fn write_skew_between_hosts_is_a_conflict() -> Outcome {
    let (store, elsewhere) = (main()?, other()?);
    retrying(|| {
        put_keys(&["a", "b"])?;
        let first = update(&store)?;
        let second = update(&elsewhere)?;
        for tx in [&first, &second] {
            expect_keys(&tx.scan(NS, "")?, &["a", "b"])?;
        }
        first.put(NS, "a", b"off")?;
        second.put(NS, "b", b"off")?;
        Tx::commit(second)?;
        expect_conflict(Tx::commit(first))?;
        expect_entries(&scan("")?, &[("a", "a"), ("b", "off")])
    })
}

fn a_snapshot_is_stable_while_the_other_host_commits() -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        put_keys(&["a", "b"])?;
        let view = view(&store)?;
        expect_value(view.get(NS, "a")?, "a")?;
        put_elsewhere("a", "changed")?;
        put_elsewhere("c", "new")?;
        expect_entries(&view.scan(NS, "")?, &[("a", "a"), ("b", "b")])?;
        drop(view);
        expect_entries(&scan("")?, &[("a", "changed"), ("b", "b"), ("c", "new")])
    })
}

fn versions_grow_from_host_to_host() -> Outcome {
    let mut last = 0;
    for round in 0..6 {
        let next = if round % 2 == 0 { put("a", "here")? } else { put_elsewhere("a", "elsewhere")? };
        expect(next > last, format!("{next} is larger than {last}"))?;
        expect_eq(version("a")?, next)?;
        last = next;
    }
    let beside = put_elsewhere("b", "1")?;
    expect(beside != last, format!("{beside} differs from {last}"))
}

fn a_condition_sees_what_the_other_host_wrote() -> Outcome {
    let store = main()?;
    let first = put("a", "1")?;
    let second = put_elsewhere("a", "2")?;
    let tx = update(&store)?;
    tx.put_with(NS, "a", b"3", if_version(first))?;
    expect_conflict(Tx::commit(tx))?;
    write_in(&store, |tx| Ok(tx.put_with(NS, "a", b"4", if_version(second))?))?;
    expect_value(get("a")?, "4")
}

fn blind_increments_of_both_hosts_are_summed() -> Outcome {
    let (store, elsewhere) = (main()?, other()?);
    let first = update(&store)?;
    let second = update(&elsewhere)?;
    first.increment(NS, "count", 1)?;
    second.increment(NS, "count", 10)?;
    Tx::commit(first)?;
    Tx::commit(second)?;
    expect_value(get("count")?, "11")?;
    in_parallel("two_hosts::increment_10_times_in_turns", 12)?;
    expect_value(get("count")?, "131")
}

/// The host that a worker uses.
fn host_of(worker: u32) -> Outcome<Store> {
    if worker.is_multiple_of(2) { main() } else { other() }
}

fn increment_10_times_in_turns(worker: u32) -> Outcome {
    let store = host_of(worker)?;
    for _ in 0..10 {
        write_in(&store, |tx| Ok(tx.increment(NS, "count", 1)?))?;
    }
    Ok(())
}

fn updates_of_both_hosts_at_once_lose_nothing() -> Outcome {
    put("sum", "")?;
    in_parallel("two_hosts::add_one_in_turns", 16)?;
    expect_value(get("sum")?, "x".repeat(16))
}

fn add_one_in_turns(worker: u32) -> Outcome {
    let store = host_of(worker)?;
    retrying_in_a_crowd(|| {
        write_in(&store, |tx| {
            let mut sum = tx.get(NS, "sum")?.ok_or_else(|| wrong("expected a row `sum`, got none"))?;
            sum.push(b'x');
            Ok(tx.put(NS, "sum", &sum)?)
        })
    })?;
    Ok(())
}
