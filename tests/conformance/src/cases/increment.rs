//! Counters.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("increment":
    an_absent_counter_counts_from_zero,
    an_increment_adds_to_the_committed_counter,
    a_negative_delta_subtracts,
    a_delta_of_zero_makes_a_row,
    own_increments_are_summed_and_seen,
    an_increment_adds_to_an_own_put,
    a_put_replaces_own_increments,
    an_increment_after_an_own_delete_counts_from_zero,
    a_committed_value_that_is_no_counter_fails_the_commit,
    an_own_value_that_is_no_counter_is_refused_at_once,
    the_bounds_are_counters,
    a_sum_out_of_bounds_fails_the_commit,
    a_sum_out_of_bounds_of_own_writes_is_refused,
    a_counter_is_kept_as_its_decimal_text,
    overlapping_increments_are_both_made,
    an_increment_does_not_conflict_with_a_put,
    many_increments_at_once_lose_nothing_and_never_conflict,
);

pub(crate) const WORKERS: &[Worker] = named!("increment": increment_10_times);

/// Commits one increment.
fn increment(key: &str, delta: i64) -> Result<u64, Error> {
    let tx = Store::open("main")?.begin(Mode::Update)?;
    tx.increment(NS, key, delta)?;
    Tx::commit(tx)
}

fn an_absent_counter_counts_from_zero() -> Outcome {
    increment("up", 3)?;
    increment("down", -4)?;
    expect_entries(&scan("")?, &[("down", "-4"), ("up", "3")])?;
    write(|tx| Ok(tx.delete(NS, "up")?))?;
    increment("up", 5)?;
    expect_value(get("up")?, "5")
}

fn an_increment_adds_to_the_committed_counter() -> Outcome {
    put("count", "41")?;
    increment("count", 1)?;
    expect_value(get("count")?, "42")?;
    increment("count", 1_000_000_000_000)?;
    expect_value(get("count")?, "1000000000042")
}

fn a_negative_delta_subtracts() -> Outcome {
    put("count", "5")?;
    increment("count", -5)?;
    expect_value(get("count")?, "0")?;
    increment("count", -5)?;
    expect_value(get("count")?, "-5")?;
    increment("count", 7)?;
    expect_value(get("count")?, "2")
}

fn a_delta_of_zero_makes_a_row() -> Outcome {
    let version = increment("count", 0)?;
    expect(version > 0, "an increment by zero writes a row")?;
    expect_value(get("count")?, "0")
}

fn own_increments_are_summed_and_seen() -> Outcome {
    put("count", "10")?;
    write(|tx| {
        for delta in [1, 2, -5, 4] {
            tx.increment(NS, "count", delta)?;
        }
        tx.increment(NS, "fresh", 1)?;
        expect_value(tx.get(NS, "count")?, "12")?;
        expect_entries(&tx.scan(NS, "")?, &[("count", "12"), ("fresh", "1")])?;
        tx.increment(NS, "count", 1)?;
        expect_value(tx.get(NS, "count")?, "13")
    })?;
    expect_entries(&scan("")?, &[("count", "13"), ("fresh", "1")])
}

fn an_increment_adds_to_an_own_put() -> Outcome {
    put("count", "100")?;
    write(|tx| {
        tx.put(NS, "count", b"7")?;
        tx.increment(NS, "count", 2)?;
        tx.increment(NS, "count", -1)?;
        expect_value(tx.get(NS, "count")?, "8")
    })?;
    expect_value(get("count")?, "8")
}

fn a_put_replaces_own_increments() -> Outcome {
    put("count", "100")?;
    write(|tx| {
        tx.increment(NS, "count", 5)?;
        tx.put(NS, "count", b"not a number")?;
        expect_value(tx.get(NS, "count")?, "not a number")
    })?;
    expect_value(get("count")?, "not a number")
}

fn an_increment_after_an_own_delete_counts_from_zero() -> Outcome {
    put("count", "100")?;
    put("text", "no counter")?;
    write(|tx| {
        tx.delete_many(NS, &keys(&["count", "text"]))?;
        tx.increment(NS, "count", 3)?;
        tx.increment(NS, "text", 4)?;
        expect_entries(&tx.scan(NS, "")?, &[("count", "3"), ("text", "4")])
    })?;
    expect_entries(&scan("")?, &[("count", "3"), ("text", "4")])
}

const NO_COUNTERS: [&[u8]; 22] = [
    b"",
    b"+5",
    b" 5",
    b"5 ",
    b"05",
    b"-05",
    b"00",
    b"-0",
    b"+0",
    b"-",
    b"5\n",
    b"5\0",
    b"5.0",
    b"5e0",
    b"0x5",
    b"1_0",
    b"five",
    b"9223372036854775808",
    b"-9223372036854775809",
    b"99999999999999999999999",
    "\u{665}".as_bytes(),
    &[0xff, 0x35],
];

fn a_committed_value_that_is_no_counter_fails_the_commit() -> Outcome {
    for value in NO_COUNTERS {
        put("key", value)?;
        let store = main()?;
        let tx = update(&store)?;
        tx.put(NS, "beside", b"")?;
        tx.increment(NS, "key", 1)?;
        expect_invalid_argument(Tx::commit(tx))?;
        expect_value(get("key")?, value)?;
        expect_absent(get("beside")?)?;
    }
    Ok(())
}

fn an_own_value_that_is_no_counter_is_refused_at_once() -> Outcome {
    for value in NO_COUNTERS {
        write(|tx| {
            tx.put(NS, "key", value)?;
            expect_invalid_argument(tx.increment(NS, "key", 1))?;
            expect_value(tx.get(NS, "key")?, value)
        })?;
        expect_value(get("key")?, value)?;
    }
    Ok(())
}

fn the_bounds_are_counters() -> Outcome {
    for bound in [i64::MAX, i64::MIN] {
        let text = bound.to_string();
        put("count", &text)?;
        increment("count", 0)?;
        expect_value(get("count")?, &text)?;
        increment("from zero", bound)?;
        expect_value(get("from zero")?, &text)?;
        increment("count", -bound.signum())?;
        increment("count", bound.signum())?;
        expect_value(get("count")?, &text)?;
        write(|tx| Ok(tx.delete(NS, "from zero")?))?;
    }
    put("count", "-1")?;
    increment("count", i64::MIN + 1)?;
    expect_value(get("count")?, i64::MIN.to_string())
}

fn a_sum_out_of_bounds_fails_the_commit() -> Outcome {
    for (stored, delta) in
        [(i64::MAX, 1), (i64::MIN, -1), (1, i64::MAX), (-1, i64::MIN), (i64::MIN, i64::MIN)]
    {
        put("count", stored.to_string())?;
        let store = main()?;
        let tx = update(&store)?;
        tx.put(NS, "beside", b"")?;
        tx.increment(NS, "count", delta)?;
        expect_invalid_argument(Tx::commit(tx))?;
        expect_entries(&scan("")?, &[("count", &stored.to_string())])?;
    }
    Ok(())
}

fn a_sum_out_of_bounds_of_own_writes_is_refused() -> Outcome {
    let largest = i64::MAX.to_string();
    write(|tx| {
        tx.put(NS, "own put", largest.as_bytes())?;
        expect_invalid_argument(tx.increment(NS, "own put", 1))?;
        expect_value(tx.get(NS, "own put")?, &largest)
    })?;
    expect_value(get("own put")?, &largest)?;
    let store = main()?;
    let tx = update(&store)?;
    tx.increment(NS, "own sum", i64::MAX)?;
    let refused = match tx.increment(NS, "own sum", 1) {
        Ok(()) => Tx::commit(tx).map(drop),
        refused => refused,
    };
    expect_invalid_argument(refused)?;
    expect_absent(get("own sum")?)
}

fn a_counter_is_kept_as_its_decimal_text() -> Outcome {
    for (key, delta) in [("a", 0), ("b", 7), ("c", -7), ("d", 1_000), ("e", i64::MIN)] {
        increment(key, delta)?;
        expect_value(get(key)?, delta.to_string())?;
    }
    Ok(())
}

fn overlapping_increments_are_both_made() -> Outcome {
    put("count", "1")?;
    let store = main()?;
    let first = update(&store)?;
    let second = update(&store)?;
    first.increment(NS, "count", 10)?;
    second.increment(NS, "count", 100)?;
    Tx::commit(second)?;
    Tx::commit(first)?;
    expect_value(get("count")?, "111")
}

fn an_increment_does_not_conflict_with_a_put() -> Outcome {
    put("count", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.increment(NS, "count", 10)?;
    put("count", "500")?;
    Tx::commit(tx)?;
    expect_value(get("count")?, "510")
}

fn many_increments_at_once_lose_nothing_and_never_conflict() -> Outcome {
    in_parallel("increment::increment_10_times", 32)?;
    expect_value(get("count")?, "320")
}

fn increment_10_times(_: u32) -> Outcome {
    for _ in 0..10 {
        increment("count", 1)?;
    }
    Ok(())
}
