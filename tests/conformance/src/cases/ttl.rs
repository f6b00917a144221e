//! Times to live. Real time passes as well, so margins are seconds.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("ttl":
    a_row_is_there_before_its_time_and_gone_after,
    an_expired_row_is_gone_for_every_read,
    an_expired_row_is_absent_for_conditions,
    an_expired_row_is_not_deleted_with_its_range,
    a_put_without_a_time_to_live_makes_the_row_permanent,
    a_put_with_a_time_to_live_ends_a_permanent_row,
    the_last_time_to_live_counts,
    time_runs_from_the_commit,
    an_own_row_is_read_before_the_commit,
    a_time_to_live_of_zero_is_refused,
    the_longest_time_to_live_never_ends,
    an_increment_keeps_the_time_to_live,
    an_increment_of_an_own_put_keeps_the_time_to_live,
    an_increment_of_an_expired_counter_starts_over,
    a_version_grows_across_expiry,
    a_row_that_expires_after_its_read_is_a_conflict,
    a_range_that_expires_after_its_read_is_a_conflict,
    a_view_keeps_a_row_that_expires,
    a_clock_that_steps_back_brings_no_row_back,
    a_range_read_as_empty_stays_so_when_the_clock_steps_back,
    a_sweep_removes_what_expired_and_counts_it,
    a_sweep_is_seen_by_no_read,
);

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

fn a_row_is_there_before_its_time_and_gone_after() -> Outcome {
    put_for("a", "1", MINUTE)?;
    expect_value(get("a")?, "1")?;
    probe::advance_clock(30 * SECOND);
    expect_value(get("a")?, "1")?;
    probe::advance_clock(MINUTE);
    expect_absent(get("a")?)
}

/// Commits `a`, `b` and `c`, of which `b` has expired. Returns the version of `b`.
fn put_an_expired_row() -> Outcome<u64> {
    put_keys(&["a", "c"])?;
    let version = put_for("b", "b", 5 * SECOND)?;
    expect_keys(&scan("")?, &["a", "b", "c"])?;
    probe::advance_clock(10 * SECOND);
    Ok(version)
}

fn an_expired_row_is_gone_for_every_read() -> Outcome {
    put_an_expired_row()?;
    for mode in [Mode::View, Mode::Update] {
        let store = main()?;
        let tx = store.begin(mode)?;
        expect_absent(tx.get(NS, "b")?)?;
        expect_eq(tx.get_many(NS, &keys(&["b", "a"]))?, vec![None, Some(b"a".to_vec())])?;
        expect_eq(tx.get_versioned(NS, "b")?, None)?;
        expect_keys(&tx.scan(NS, "")?, &["a", "c"])?;
        expect_entries(&tx.scan(NS, "b")?, &[])?;
        let two = Range { limit: Some(2), ..range("") };
        let page = tx.scan_page(NS, &two, None)?;
        expect_keys(&page.entries, &["a", "c"])?;
        expect_eq(page.next, None)?;
        let reversed = Range { reverse: true, keys_only: true, ..range("") };
        expect_keys(&tx.scan_page(NS, &reversed, None)?.entries, &["c", "a"])?;
    }
    Ok(())
}

fn an_expired_row_is_absent_for_conditions() -> Outcome {
    let version = put_an_expired_row()?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put_with(NS, "b", b"new", if_version(version))?;
    expect_conflict(Tx::commit(tx))?;
    let tx = update(&store)?;
    tx.delete_if_version(NS, "b", version)?;
    expect_conflict(Tx::commit(tx))?;
    write(|tx| Ok(tx.delete_if_version(NS, "b", 0)?))?;
    put_an_expired_row()?;
    write(|tx| Ok(tx.put_with(NS, "b", b"new", if_version(0))?))?;
    expect_value(get("b")?, "new")
}

fn an_expired_row_is_not_deleted_with_its_range() -> Outcome {
    put_an_expired_row()?;
    write(|tx| {
        expect_eq(tx.delete_range(NS, &range("b"))?, 0)?;
        expect_eq(tx.delete_range(NS, &range(""))?, 2)
    })?;
    expect_entries(&scan("")?, &[])
}

fn a_put_without_a_time_to_live_makes_the_row_permanent() -> Outcome {
    for key in ["by put", "by put-many", "by put-with", "in one transaction"] {
        put_for(key, "1", 5 * SECOND)?;
    }
    put("by put", "2")?;
    write(|tx| Ok(tx.put_many(NS, &[entry("by put-many", "2")])?))?;
    let no_options = PutOptions { ttl_ms: None, if_version: None };
    write(|tx| Ok(tx.put_with(NS, "by put-with", b"2", no_options)?))?;
    write(|tx| {
        tx.put_with(NS, "in one transaction", b"1", ttl(5 * SECOND))?;
        Ok(tx.put(NS, "in one transaction", b"2")?)
    })?;
    probe::advance_clock(10 * SECOND);
    expect_entries(
        &scan("")?,
        &[("by put", "2"), ("by put-many", "2"), ("by put-with", "2"), ("in one transaction", "2")],
    )
}

fn a_put_with_a_time_to_live_ends_a_permanent_row() -> Outcome {
    put("a", "permanent")?;
    put_for("a", "for a while", 5 * SECOND)?;
    expect_value(get("a")?, "for a while")?;
    probe::advance_clock(10 * SECOND);
    expect_absent(get("a")?)
}

fn the_last_time_to_live_counts() -> Outcome {
    put_for("longer", "1", 5 * SECOND)?;
    put_for("longer", "2", 10 * MINUTE)?;
    put_for("shorter", "1", 10 * MINUTE)?;
    put_for("shorter", "2", 5 * SECOND)?;
    probe::advance_clock(MINUTE);
    expect_entries(&scan("")?, &[("longer", "2")])
}

fn time_runs_from_the_commit() -> Outcome {
    let store = main()?;
    let tx = update(&store)?;
    tx.put_with(NS, "a", b"1", ttl(10 * SECOND))?;
    probe::advance_clock(20 * SECOND);
    expect_value(tx.get(NS, "a")?, "1")?;
    Tx::commit(tx)?;
    expect_value(get("a")?, "1")?;
    probe::advance_clock(20 * SECOND);
    expect_absent(get("a")?)
}

fn an_own_row_is_read_before_the_commit() -> Outcome {
    put("a", "old")?;
    write(|tx| {
        tx.put_with(NS, "a", b"new", ttl(MINUTE))?;
        tx.put_with(NS, "b", b"2", ttl(1))?;
        expect_value(tx.get(NS, "a")?, "new")?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "new"), ("b", "2")])
    })?;
    expect_value(get("a")?, "new")
}

fn a_time_to_live_of_zero_is_refused() -> Outcome {
    put("a", "before")?;
    let version = write(|tx| {
        expect_invalid_argument(tx.put_with(NS, "a", b"after", ttl(0)))?;
        expect_value(tx.get(NS, "a")?, "before")
    })?;
    expect_eq(version, 0)?;
    expect_value(get("a")?, "before")
}

fn the_longest_time_to_live_never_ends() -> Outcome {
    put_for("longest", "1", u64::MAX)?;
    put_for("nearly", "2", u64::MAX - 1)?;
    put_for("signed", "3", i64::MAX as u64)?;
    let ten_years = 10 * 365 * 24 * 60 * MINUTE;
    probe::advance_clock(ten_years);
    expect_entries(&scan("")?, &[("longest", "1"), ("nearly", "2"), ("signed", "3")])?;
    expect_eq(probe::sweep()?, 0)
}

fn an_increment_keeps_the_time_to_live() -> Outcome {
    put_for("count", "1", MINUTE)?;
    write(|tx| Ok(tx.increment(NS, "count", 1)?))?;
    probe::advance_clock(30 * SECOND);
    write(|tx| Ok(tx.increment(NS, "count", 1)?))?;
    expect_value(get("count")?, "3")?;
    probe::advance_clock(MINUTE);
    expect_absent(get("count")?)
}

fn an_increment_of_an_own_put_keeps_the_time_to_live() -> Outcome {
    write(|tx| {
        tx.put_with(NS, "count", b"1", ttl(MINUTE))?;
        Ok(tx.increment(NS, "count", 1)?)
    })?;
    expect_value(get("count")?, "2")?;
    probe::advance_clock(2 * MINUTE);
    expect_absent(get("count")?)
}

fn an_increment_of_an_expired_counter_starts_over() -> Outcome {
    put_for("count", "41", 5 * SECOND)?;
    put_for("text", "no counter", 5 * SECOND)?;
    probe::advance_clock(10 * SECOND);
    write(|tx| {
        tx.increment(NS, "count", 1)?;
        Ok(tx.increment(NS, "text", 2)?)
    })?;
    probe::advance_clock(60 * MINUTE);
    expect_entries(&scan("")?, &[("count", "1"), ("text", "2")])
}

fn a_version_grows_across_expiry() -> Outcome {
    let first = put_for("a", "1", 5 * SECOND)?;
    probe::advance_clock(10 * SECOND);
    let second = put_for("a", "1", 5 * SECOND)?;
    expect(second > first, format!("{second} is larger than {first}"))?;
    probe::advance_clock(10 * SECOND);
    expect_eq(probe::sweep()?, 1)?;
    let third = put("a", "1")?;
    expect(third > second, format!("{third} is larger than {second}"))?;
    expect_eq(version("a")?, third)
}

fn a_row_that_expires_after_its_read_is_a_conflict() -> Outcome {
    expires_under_its_reader(|tx| expect_value(tx.get(NS, "a")?, "1"))
}

fn a_range_that_expires_after_its_read_is_a_conflict() -> Outcome {
    expires_under_its_reader(|tx| expect_entries(&tx.scan(NS, "")?, &[("a", "1")]))
}

fn expires_under_its_reader(read: fn(&Tx) -> Outcome) -> Outcome {
    put_for("a", "1", 5 * SECOND)?;
    let store = main()?;
    let tx = update(&store)?;
    read(&tx)?;
    tx.put(NS, "mark", b"because a was there")?;
    probe::advance_clock(10 * SECOND);
    expect_conflict(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[])
}

fn a_view_keeps_a_row_that_expires() -> Outcome {
    let store = main()?;
    retrying(|| {
        put_for("a", "1", 10 * SECOND)?;
        put_for("b", "2", 10 * SECOND)?;
        let view = view(&store)?;
        expect_value(view.get(NS, "a")?, "1")?;
        probe::advance_clock(20 * SECOND);
        expect_absent(get("a")?)?;
        expect_value(view.get(NS, "a")?, "1")?;
        expect_entries(&view.scan(NS, "")?, &[("a", "1"), ("b", "2")])
    })
}

fn a_clock_that_steps_back_brings_no_row_back() -> Outcome {
    put_an_expired_row()?;
    expect_absent(get("b")?)?;
    expect_keys(&scan("")?, &["a", "c"])?;
    expect_eq(probe::sweep()?, 1)?;
    probe::step_clock_back(10 * SECOND);
    expect_absent(get("b")?)?;
    expect_keys(&scan("")?, &["a", "c"])?;
    put_for("b", "new", MINUTE)?;
    expect_value(get("b")?, "new")
}

fn a_range_read_as_empty_stays_so_when_the_clock_steps_back() -> Outcome {
    let store = main()?;
    retrying(|| {
        put_for("a", "1", 5 * SECOND)?;
        probe::advance_clock(10 * SECOND);
        let tx = update(&store)?;
        expect_entries(&tx.scan(NS, "")?, &[])?;
        expect_absent(tx.get(NS, "a")?)?;
        probe::step_clock_back(10 * SECOND);
        expect_entries(&tx.scan(NS, "")?, &[])?;
        tx.put(NS, "mark", b"because it was empty")?;
        Tx::commit(tx)?;
        write(|tx| {
            tx.delete(NS, "mark")?;
            Ok(tx.delete(NS, "a")?)
        })?;
        Ok(())
    })
}

fn a_sweep_removes_what_expired_and_counts_it() -> Outcome {
    put("permanent", "")?;
    for key in ["x1", "x2", "x3"] {
        put_for(key, key, 5 * SECOND)?;
    }
    put_for("later", "", 10 * MINUTE)?;
    expect_eq(probe::sweep()?, 0)?;
    probe::advance_clock(10 * SECOND);
    expect_eq(probe::sweep()?, 3)?;
    expect_eq(probe::sweep()?, 0)?;
    expect_keys(&scan("")?, &["later", "permanent"])?;
    probe::advance_clock(20 * MINUTE);
    expect_eq(probe::sweep()?, 1)?;
    expect_keys(&scan("")?, &["permanent"])
}

fn a_sweep_is_seen_by_no_read() -> Outcome {
    let store = main()?;
    retrying(|| {
        put_for("a", "1", 10 * SECOND)?;
        let version = put("b", "2")?;
        let view = view(&store)?;
        expect_value(view.get(NS, "b")?, "2")?;
        probe::advance_clock(20 * SECOND);
        expect_eq(probe::sweep()?, 1)?;
        expect_entries(&view.scan(NS, "")?, &[("a", "1"), ("b", "2")])?;
        expect_eq(view.get_versioned(NS, "b")?, Some((b"2".to_vec(), version)))?;
        expect_entries(&scan("")?, &[("b", "2")])
    })
}
