//! Transactions: snapshots, reads of own writes, and conflicts.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("tx":
    a_dropped_transaction_is_rolled_back,
    a_rollback_forgets_every_write,
    writes_are_unseen_before_the_commit,
    many_transactions_are_open_at_once,
    own_writes_are_read_by_every_call,
    a_row_is_absent_after_its_own_delete,
    the_last_own_write_of_a_row_counts,
    a_view_refuses_every_write,
    a_view_commits_to_zero,
    a_view_shows_one_snapshot,
    an_update_shows_one_snapshot,
    a_commit_with_writes_has_a_version,
    a_commit_without_writes_is_zero,
    a_reader_commits_beside_a_writer,
    blind_writes_never_conflict,
    a_lost_update_is_a_conflict,
    a_lost_update_is_found_through_every_read,
    a_blind_put_under_a_read_and_write_is_a_conflict,
    a_blind_delete_under_a_read_and_write_is_a_conflict,
    a_row_that_was_read_as_absent_and_then_put_is_a_conflict,
    write_skew_is_a_conflict,
    write_skew_over_ranges_is_a_conflict,
    a_phantom_insert_is_a_conflict,
    a_phantom_delete_is_a_conflict,
    a_change_within_a_range_is_a_conflict,
    a_change_within_a_page_is_a_conflict,
    a_change_under_a_deleted_range_is_a_conflict,
    a_view_takes_part_in_the_order,
    a_conflict_writes_nothing_and_can_be_run_again,
    a_failed_commit_undoes_every_write,
    put_many_stages_all_or_none,
    delete_many_stages_all_or_none,
    delete_range_counts_what_it_deletes,
    delete_range_counts_own_writes,
    delete_range_keeps_to_its_limit,
    delete_range_deletes_all_or_none,
    a_transaction_outlives_its_store_handle,
    transactions_of_one_instance_are_apart,
    a_trap_rolls_back_and_frees_everything,
    a_hundred_and_twenty_eight_updates_of_one_row_lose_nothing,
    transfers_keep_their_sum_in_every_view,
);

pub(crate) const WORKERS: &[Worker] =
    named!("tx": write_then_trap, add_one_by_read_and_write, transfer_or_add_up);

/// One call on a transaction.
type Call = fn(&Tx) -> Result<(), Error>;

fn a_dropped_transaction_is_rolled_back() -> Outcome {
    put("a", "before")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"after")?;
    tx.put(NS, "b", b"new")?;
    drop(tx);
    expect_entries(&scan("")?, &[("a", "before")])
}

fn a_rollback_forgets_every_write() -> Outcome {
    put("a", "before")?;
    put("b", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    expect_each(write_calls(&tx, NS, "c"), |got| Ok(got?))?;
    tx.put(NS, "a", b"after")?;
    tx.increment(NS, "b", 1)?;
    Tx::rollback(tx);
    expect_entries(&scan("")?, &[("a", "before"), ("b", "1")])
}

fn writes_are_unseen_before_the_commit() -> Outcome {
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"1")?;
    expect_absent(get("a")?)?;
    expect_entries(&scan("")?, &[])?;
    Tx::commit(tx)?;
    expect_value(get("a")?, "1")
}

fn many_transactions_are_open_at_once() -> Outcome {
    let store = main()?;
    let names: Vec<_> =
        (0..limits().open_transactions.min(100)).map(|number| format!("{number:03}")).collect();
    let open: Vec<_> = names.iter().map(|_| update(&store)).collect::<Outcome<_>>()?;
    for (tx, name) in open.iter().zip(&names) {
        tx.put(NS, name, name.as_bytes())?;
    }
    for tx in open.into_iter().rev() {
        Tx::commit(tx)?;
    }
    expect_keys(&scan("")?, &names)
}

fn own_writes_are_read_by_every_call() -> Outcome {
    put("a", "old")?;
    write(|tx| {
        tx.put(NS, "a", b"new")?;
        tx.put_many(NS, &[entry("b", "2")])?;
        tx.put_with(NS, "c", b"3", ttl(60_000))?;
        tx.increment(NS, "d", 4)?;
        let expected = [("a", "new"), ("b", "2"), ("c", "3"), ("d", "4")];
        for (key, value) in expected {
            expect_value(tx.get(NS, key)?, value)?;
            expect_value(tx.get_versioned(NS, key)?.map(|(value, _)| value), value)?;
        }
        let values = expected.map(|(_, value)| Some(value.as_bytes().to_vec()));
        expect_eq(tx.get_many(NS, &keys(&["a", "b", "c", "d"]))?, values.to_vec())?;
        expect_entries(&tx.scan(NS, "")?, &expected)?;
        expect_entries(&tx.scan_page(NS, &range(""), None)?.entries, &expected)
    })?;
    Ok(())
}

fn a_row_is_absent_after_its_own_delete() -> Outcome {
    put_keys(&["a", "b", "c", "d"])?;
    write(|tx| {
        tx.delete(NS, "a")?;
        tx.delete_many(NS, &keys(&["b"]))?;
        expect_eq(tx.delete_range(NS, &range("c"))?, 1)?;
        expect_absent(tx.get(NS, "a")?)?;
        expect_eq(tx.get_versioned(NS, "b")?, None)?;
        expect_eq(tx.get_many(NS, &keys(&["a", "b", "c"]))?, vec![None, None, None])?;
        expect_keys(&tx.scan(NS, "")?, &["d"])?;
        expect_keys(&tx.scan_page(NS, &range(""), None)?.entries, &["d"])
    })?;
    expect_keys(&scan("")?, &["d"])
}

fn the_last_own_write_of_a_row_counts() -> Outcome {
    put_keys(&["a", "b"])?;
    write(|tx| {
        tx.delete(NS, "a")?;
        tx.put(NS, "a", b"back")?;
        tx.put(NS, "b", b"first")?;
        tx.delete(NS, "b")?;
        tx.increment(NS, "c", 5)?;
        tx.put(NS, "c", b"last")?;
        expect_value(tx.get(NS, "a")?, "back")?;
        expect_absent(tx.get(NS, "b")?)
    })?;
    expect_entries(&scan("")?, &[("a", "back"), ("c", "last")])
}

fn a_view_refuses_every_write() -> Outcome {
    put("key", "1")?;
    read(|tx| {
        expect_each(write_calls(tx, NS, "key"), expect_read_only)?;
        expect_entries(&tx.scan(NS, "")?, &[("key", "1")])
    })?;
    expect_entries(&scan("")?, &[("key", "1")])
}

fn a_view_commits_to_zero() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    retrying(|| {
        let view = view(&store)?;
        expect_value(view.get(NS, "a")?, "1")?;
        expect_eq(Tx::commit(view)?, 0)
    })?;
    expect_eq(Tx::commit(view(&store)?)?, 0)
}

fn a_view_shows_one_snapshot() -> Outcome {
    snapshot_is_stable(Mode::View)
}

fn an_update_shows_one_snapshot() -> Outcome {
    snapshot_is_stable(Mode::Update)
}

fn snapshot_is_stable(mode: Mode) -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        let version = put_keys(&["a", "b", "c"])?;
        let tx = store.begin(mode)?;
        expect_value(tx.get(NS, "a")?, "a")?;
        write(|tx| {
            tx.put(NS, "a", b"changed")?;
            tx.delete(NS, "b")?;
            Ok(tx.put(NS, "d", b"new")?)
        })?;
        let read_on = || {
            expect_value(tx.get(NS, "a")?, "a")?;
            let b = tx.get(NS, "b");
            if mode == Mode::Update && matches!(b, Err(Error::Conflict)) {
                // A row that it read has changed, so the update can no longer commit. A backend may
                // report that at once.
                return Ok(());
            }
            expect_value(b?, "b")?;
            expect_absent(tx.get(NS, "d")?)?;
            expect_eq(tx.get_versioned(NS, "a")?, Some((b"a".to_vec(), version)))?;
            expect_entries(&tx.scan(NS, "")?, &[("a", "a"), ("b", "b"), ("c", "c")])
        };
        read_on()?;
        drop(tx);
        expect_entries(&scan("")?, &[("a", "changed"), ("c", "c"), ("d", "new")])
    })
}

fn a_commit_with_writes_has_a_version() -> Outcome {
    let first = put("a", "1")?;
    let second = write(|tx| Ok(tx.delete(NS, "a")?))?;
    let third = write(|tx| Ok(tx.increment(NS, "a", 1)?))?;
    expect(first > 0, format!("{first} is larger than 0"))?;
    expect(second > first, format!("{second} is larger than {first}"))?;
    expect(third > second, format!("{third} is larger than {second}"))
}

fn a_commit_without_writes_is_zero() -> Outcome {
    put("a", "1")?;
    expect_eq(write(|_| Ok(()))?, 0)?;
    expect_eq(write(|tx| expect_value(tx.get(NS, "a")?, "1"))?, 0)?;
    expect_eq(write(|tx| expect_eq(tx.delete_range(NS, &range("b"))?, 0))?, 0)
}

fn a_reader_commits_beside_a_writer() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("a", "before")?;
        let reader = update(&store)?;
        expect_value(reader.get(NS, "a")?, "before")?;
        put("a", "after")?;
        expect_eq(Tx::commit(reader)?, 0)
    })
}

fn blind_writes_never_conflict() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    put("count", "1")?;
    let store = main()?;
    let open: Vec<_> = (0..8).map(|_| update(&store)).collect::<Outcome<_>>()?;
    for tx in &open {
        stage_keys(tx, &["a", "new"])?;
        tx.delete(NS, "b")?;
        tx.put_many(NS, &[entry("c", "by many")])?;
        tx.increment(NS, "count", 1)?;
    }
    for tx in open {
        Tx::commit(tx)?;
    }
    expect_entries(&scan("")?, &[("a", "a"), ("c", "by many"), ("count", "9"), ("new", "new")])
}

fn a_lost_update_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("a", "0")?;
        let first = update(&store)?;
        let second = update(&store)?;
        expect_value(first.get(NS, "a")?, "0")?;
        expect_value(second.get(NS, "a")?, "0")?;
        first.put(NS, "a", b"by the first")?;
        second.put(NS, "a", b"by the second")?;
        Tx::commit(first)?;
        expect_conflict(Tx::commit(second))?;
        expect_value(get("a")?, "by the first")
    })
}

fn a_lost_update_is_found_through_every_read() -> Outcome {
    let reads: [Call; 5] = [
        |tx| tx.get(NS, "a").map(drop),
        |tx| tx.get_many(NS, &keys(&["z", "a"])).map(drop),
        |tx| tx.get_versioned(NS, "a").map(drop),
        |tx| tx.scan(NS, "").map(drop),
        |tx| tx.scan_page(NS, &Range { reverse: true, ..range("") }, None).map(drop),
    ];
    let store = main()?;
    for read in reads {
        retrying(|| {
            put("a", "0")?;
            let first = update(&store)?;
            let second = update(&store)?;
            read(&first)?;
            read(&second)?;
            first.put(NS, "a", b"by the first")?;
            second.put(NS, "a", b"by the second")?;
            Tx::commit(second)?;
            expect_conflict(Tx::commit(first))?;
            expect_value(get("a")?, "by the second")
        })?;
    }
    Ok(())
}

fn a_blind_put_under_a_read_and_write_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("a", "0")?;
        let tx = update(&store)?;
        expect_value(tx.get(NS, "a")?, "0")?;
        put("a", "1")?;
        tx.put(NS, "a", b"2")?;
        expect_conflict(Tx::commit(tx))?;
        expect_value(get("a")?, "1")
    })
}

fn a_blind_delete_under_a_read_and_write_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("a", "0")?;
        let tx = update(&store)?;
        expect_value(tx.get(NS, "a")?, "0")?;
        write(|tx| Ok(tx.delete(NS, "a")?))?;
        tx.put(NS, "a", b"2")?;
        expect_conflict(Tx::commit(tx))?;
        expect_absent(get("a")?)
    })
}

fn a_row_that_was_read_as_absent_and_then_put_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        let tx = update(&store)?;
        expect_absent(tx.get(NS, "a")?)?;
        put("a", "theirs")?;
        tx.put(NS, "a", b"mine")?;
        expect_conflict(Tx::commit(tx))?;
        expect_value(get("a")?, "theirs")
    })
}

// In the following cases, each of two transactions reads what the other one writes, so no serial
// order explains both.

fn write_skew_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        put_keys(&["a", "b"])?;
        let first = update(&store)?;
        let second = update(&store)?;
        for tx in [&first, &second] {
            expect_value(tx.get(NS, "a")?, "a")?;
            expect_value(tx.get(NS, "b")?, "b")?;
        }
        first.put(NS, "a", b"off")?;
        second.put(NS, "b", b"off")?;
        Tx::commit(first)?;
        expect_conflict(Tx::commit(second))?;
        expect_entries(&scan("")?, &[("a", "off"), ("b", "b")])
    })
}

fn write_skew_over_ranges_is_a_conflict() -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        let first = update(&store)?;
        let second = update(&store)?;
        expect_entries(&first.scan(NS, "guest/")?, &[])?;
        expect_entries(&second.scan(NS, "guest/")?, &[])?;
        first.put(NS, "guest/1", b"")?;
        second.put(NS, "guest/2", b"")?;
        Tx::commit(first)?;
        expect_conflict(Tx::commit(second))?;
        expect_keys(&scan("")?, &["guest/1"])
    })
}

fn a_phantom_insert_is_a_conflict() -> Outcome {
    changes_a_range_under_its_reader(read_by_scan, |tx| tx.put(NS, "row/2", b""))
}

fn a_phantom_delete_is_a_conflict() -> Outcome {
    changes_a_range_under_its_reader(read_by_scan, |tx| tx.delete(NS, "row/3"))
}

fn a_change_within_a_range_is_a_conflict() -> Outcome {
    changes_a_range_under_its_reader(read_by_scan, |tx| tx.put(NS, "row/1", b"changed"))
}

fn a_change_within_a_page_is_a_conflict() -> Outcome {
    let read_page = |tx: &Tx| {
        let page = tx.scan_page(NS, &Range { limit: Some(2), keys_only: true, ..range("row/") }, None)?;
        expect_keys(&page.entries, &["row/1", "row/3"])
    };
    changes_a_range_under_its_reader(read_page, |tx| tx.put(NS, "row/2", b""))?;
    changes_a_range_under_its_reader(read_page, |tx| tx.delete(NS, "row/1"))
}

fn a_change_under_a_deleted_range_is_a_conflict() -> Outcome {
    let delete = |tx: &Tx| expect_eq(tx.delete_range(NS, &range("row/"))?, 3);
    changes_a_range_under_its_reader(delete, |tx| tx.put(NS, "row/2", b""))
}

fn read_by_scan(tx: &Tx) -> Outcome {
    expect_keys(&tx.scan(NS, "row/")?, &["row/1", "row/3", "row/5"])
}

/// The reader reads a range and writes a mark. The writer reads the mark and changes the range.
fn changes_a_range_under_its_reader(read_range: impl Fn(&Tx) -> Outcome, change: Call) -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        put_keys(&["row/1", "row/3", "row/5"])?;
        let reader = update(&store)?;
        let writer = update(&store)?;
        read_range(&reader)?;
        expect_absent(writer.get(NS, "mark")?)?;
        reader.put(NS, "mark", b"")?;
        change(&writer)?;
        Tx::commit(writer)?;
        expect_conflict(Tx::commit(reader))?;
        expect_absent(get("mark")?)
    })
}

/// The view shows the deposit and not the charge, so the charge comes later. But the charge was
/// decided before the deposit.
fn a_view_takes_part_in_the_order() -> Outcome {
    let store = main()?;
    retrying(|| {
        put("checking", "0")?;
        put("savings", "0")?;
        let charge = update(&store)?;
        expect_value(charge.get(NS, "checking")?, "0")?;
        expect_value(charge.get(NS, "savings")?, "0")?;
        put("savings", "20")?;
        let report = view(&store)?;
        expect_value(report.get(NS, "checking")?, "0")?;
        expect_value(report.get(NS, "savings")?, "20")?;
        Tx::commit(report)?;
        charge.put(NS, "checking", b"-11")?;
        expect_conflict(Tx::commit(charge))?;
        expect_value(get("checking")?, "0")
    })
}

fn a_conflict_writes_nothing_and_can_be_run_again() -> Outcome {
    let store = main()?;
    let add_one = |tx: &Tx| -> Outcome {
        let count = number(tx.get(NS, "count")?)?;
        tx.put(NS, "log", format!("counted from {count}").as_bytes())?;
        Ok(tx.put(NS, "count", (count + 1).to_string().as_bytes())?)
    };
    retrying(|| {
        clear()?;
        put("count", "1")?;
        let tx = update(&store)?;
        add_one(&tx)?;
        put("count", "7")?;
        expect_conflict(Tx::commit(tx))?;
        expect_entries(&scan("")?, &[("count", "7")])?;
        write(add_one)?;
        expect_entries(&scan("")?, &[("count", "8"), ("log", "counted from 7")])
    })
}

fn a_failed_commit_undoes_every_write() -> Outcome {
    put("a", "before")?;
    put("text", "no counter")?;
    put("z", "before")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"after")?;
    tx.put(NS, "new", b"")?;
    tx.increment(NS, "text", 1)?;
    tx.delete(NS, "z")?;
    expect_invalid_argument(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[("a", "before"), ("text", "no counter"), ("z", "before")])
}

fn put_many_stages_all_or_none() -> Outcome {
    let limits = limits();
    let large = Entry { key: "b".to_string(), value: vec![0; limits.value_bytes as usize + 1] };
    let long = entry(&"k".repeat(limits.key_bytes as usize + 1), "");
    let version = write(|tx| {
        let with_large = [entry("a", "1"), large.clone(), entry("c", "3")];
        let refused = tx.put_many(NS, &with_large);
        expect_limit(refused, LimitKind::ValueBytes, limits.value_bytes, limits.value_bytes + 1)?;
        let refused = tx.put_many(NS, &[entry("a", "1"), long.clone()]);
        expect_limit(refused, LimitKind::KeyBytes, limits.key_bytes, limits.key_bytes + 1)?;
        expect_entries(&tx.scan(NS, "")?, &[])
    })?;
    expect_eq(version, 0)?;
    expect_entries(&scan("")?, &[])
}

fn delete_many_stages_all_or_none() -> Outcome {
    put_keys(&["a", "b"])?;
    let max = limits().key_bytes;
    let long = "k".repeat(max as usize + 1);
    let version = write(|tx| {
        let refused = tx.delete_many(NS, &keys(&["a", &long, "b"]));
        expect_limit(refused, LimitKind::KeyBytes, max, max + 1)?;
        expect_keys(&tx.scan(NS, "")?, &["a", "b"])
    })?;
    expect_eq(version, 0)?;
    expect_keys(&scan("")?, &["a", "b"])
}

fn delete_range_counts_what_it_deletes() -> Outcome {
    put_keys(&["a", "b1", "b2", "b3", "b4", "c"])?;
    write(|tx| {
        let bounds = Range { start: Some("b2".into()), end: Some("b4".into()), ..range("b") };
        expect_eq(tx.delete_range(NS, &bounds)?, 2)?;
        expect_eq(tx.delete_range(NS, &bounds)?, 0)?;
        expect_eq(tx.delete_range("another", &range(""))?, 0)?;
        expect_keys(&tx.scan(NS, "")?, &["a", "b1", "b4", "c"])
    })?;
    expect_keys(&scan("")?, &["a", "b1", "b4", "c"])?;
    write(|tx| expect_eq(tx.delete_range(NS, &range(""))?, 4))?;
    expect_entries(&scan("")?, &[])
}

fn delete_range_counts_own_writes() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    write(|tx| {
        stage_keys(tx, &["a", "aa", "d"])?;
        tx.delete(NS, "b")?;
        expect_eq(tx.delete_range(NS, &range(""))?, 4)?;
        expect_entries(&tx.scan(NS, "")?, &[])?;
        tx.put(NS, "aa", b"after")?;
        expect_entries(&tx.scan(NS, "")?, &[("aa", "after")])
    })?;
    expect_entries(&scan("")?, &[("aa", "after")])
}

fn delete_range_keeps_to_its_limit() -> Outcome {
    put_keys(&["a", "b", "c", "d", "e"])?;
    write(|tx| {
        let first = |limit| Range { limit: Some(limit), ..range("") };
        expect_eq(tx.delete_range(NS, &first(0))?, 0)?;
        expect_eq(tx.delete_range(NS, &first(2))?, 2)?;
        expect_keys(&tx.scan(NS, "")?, &["c", "d", "e"])?;
        let last = Range { reverse: true, ..first(1) };
        expect_eq(tx.delete_range(NS, &last)?, 1)?;
        expect_eq(tx.delete_range(NS, &Range { keys_only: true, ..first(1) })?, 1)
    })?;
    expect_keys(&scan("")?, &["d"])
}

fn delete_range_deletes_all_or_none() -> Outcome {
    let max = limits().transaction_mutations;
    let names: Vec<_> = (0..=max).map(|number| format!("{number:06}")).collect();
    let (last, rest) = names.split_last().ok_or_else(|| wrong("expected at least one name"))?;
    write(|tx| rest.iter().try_for_each(|name| Ok(tx.put(NS, name, b"")?)))?;
    put(last, "")?;
    let version = write(|tx| {
        let refused = tx.delete_range(NS, &range(""));
        expect_limit_passed(refused, LimitKind::TransactionMutations, max)?;
        expect_keys(&tx.scan(NS, "")?, &names)
    })?;
    expect_eq(version, 0)?;
    expect_keys(&scan("")?, &names)?;
    let all_but_one = Range { limit: Some(max as u32), ..range("") };
    write(|tx| expect_eq(tx.delete_range(NS, &all_but_one)?, max))?;
    expect_keys(&scan("")?, &[last])
}

fn a_transaction_outlives_its_store_handle() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    let view = view(&store)?;
    drop(store);
    expect_value(view.get(NS, "a")?, "1")?;
    drop(view);
    tx.put(NS, "a", b"2")?;
    Tx::commit(tx)?;
    expect_value(get("a")?, "2")
}

fn transactions_of_one_instance_are_apart() -> Outcome {
    let store = main()?;
    let first = update(&store)?;
    let second = update(&store)?;
    first.put(NS, "a", b"first")?;
    expect_absent(second.get(NS, "a")?)?;
    Tx::rollback(second);
    Tx::commit(first)?;
    expect_value(get("a")?, "first")
}

fn a_trap_rolls_back_and_frees_everything() -> Outcome {
    put("a", "before")?;
    // More than the connections of a host. If a trap leaked one, later transactions would fail.
    let instances = 40;
    expect_eq(probe::parallel_traps("tx::write_then_trap", instances), vec![true; instances as usize])?;
    expect_entries(&scan("")?, &[("a", "before")])?;
    write(|tx| {
        expect_value(tx.get(NS, "a")?, "before")?;
        Ok(tx.put(NS, "a", b"after")?)
    })?;
    expect_entries(&scan("")?, &[("a", "after")])
}

fn write_then_trap(_: u32) -> Outcome {
    let store = main()?;
    let tx = update(&store)?;
    expect_value(tx.get(NS, "a")?, "before")?;
    tx.put(NS, "a", b"by a trap")?;
    tx.put(NS, "b", b"by a trap")?;
    trap()
}

fn a_hundred_and_twenty_eight_updates_of_one_row_lose_nothing() -> Outcome {
    put("count", "0")?;
    in_parallel("tx::add_one_by_read_and_write", 128)?;
    expect_value(get("count")?, "128")
}

fn add_one_by_read_and_write(_: u32) -> Outcome {
    retrying_in_a_crowd(|| {
        write(|tx| {
            let count = number(tx.get(NS, "count")?)?;
            Ok(tx.put(NS, "count", (count + 1).to_string().as_bytes())?)
        })
    })?;
    Ok(())
}

fn transfers_keep_their_sum_in_every_view() -> Outcome {
    let accounts = accounts();
    write(|tx| accounts.iter().try_for_each(|account| Ok(tx.put(NS, account, b"100")?)))?;
    in_parallel("tx::transfer_or_add_up", 16)?;
    expect_eq(read(sum)?, 500)
}

/// Every fourth worker reads the sum. The others move money between two accounts.
fn transfer_or_add_up(index: u32) -> Outcome {
    let accounts = accounts();
    let account = |place: u32| accounts.get(place as usize % accounts.len()).map_or("", String::as_str);
    for turn in 0..8 {
        if index.is_multiple_of(4) {
            expect_eq(retrying_in_a_crowd(|| read(sum))?, 500)?;
            continue;
        }
        let (from, to) = (account(index + turn), account(index + 2 * turn + 1));
        retrying_in_a_crowd(|| {
            write(|tx| {
                let (give, take) = (number(tx.get(NS, from)?)?, number(tx.get(NS, to)?)?);
                if from == to || give < 7 {
                    return Ok(());
                }
                tx.put(NS, from, (give - 7).to_string().as_bytes())?;
                Ok(tx.put(NS, to, (take + 7).to_string().as_bytes())?)
            })
        })?;
    }
    Ok(())
}

fn accounts() -> Vec<String> {
    (0..5).map(|number| format!("account:{number}")).collect()
}

fn sum(tx: &Tx) -> Outcome<u64> {
    let accounts = tx.scan(NS, "account:")?;
    accounts.into_iter().map(|entry| number(Some(entry.value))).sum()
}

/// The number that a row holds.
fn number(value: Option<Vec<u8>>) -> Outcome<u64> {
    let text = value.and_then(|value| String::from_utf8(value).ok());
    text.as_deref()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| wrong(format!("expected a number, got {text:?}")))
}
