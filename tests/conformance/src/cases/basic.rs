//! Puts, reads and deletes of rows.

use super::{Case, Worker};
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("basic":
    a_row_reads_back_as_it_was_put,
    an_absent_row_is_none,
    the_second_put_wins,
    a_deleted_row_is_gone,
    deleting_an_absent_row_is_no_error,
    an_empty_value_is_present,
    one_key_in_two_namespaces_is_two_rows,
    values_are_copies,
    get_many_answers_in_the_order_of_its_keys,
    put_many_puts_every_entry,
    put_many_lets_the_last_of_equal_keys_win,
    delete_many_deletes_every_key,
    empty_lists_write_nothing,
    a_reserved_namespace_can_be_read,
    a_reserved_namespace_refuses_every_write,
    a_namespace_that_only_resembles_a_reserved_one_can_be_written,
    eight_workers_write_and_read_at_once,
);

pub(crate) const WORKERS: &[Worker] = named!("basic": write_and_read_25_rows);

fn a_row_reads_back_as_it_was_put() -> Outcome {
    put("key", "value")?;
    expect_value(get("key")?, "value")
}

fn an_absent_row_is_none() -> Outcome {
    put("key", "value")?;
    expect_absent(get("kex")?)?;
    expect_absent(get("key ")?)?;
    expect_absent(read(|tx| Ok(tx.get("another", "key")?))?)
}

fn the_second_put_wins() -> Outcome {
    put("key", "a longer first value")?;
    put("key", "second")?;
    expect_value(get("key")?, "second")
}

fn a_deleted_row_is_gone() -> Outcome {
    put_keys(&["gone", "stays"])?;
    write(|tx| Ok(tx.delete(NS, "gone")?))?;
    expect_absent(get("gone")?)?;
    expect_value(get("stays")?, "stays")
}

fn deleting_an_absent_row_is_no_error() -> Outcome {
    write(|tx| Ok(tx.delete(NS, "never")?))?;
    expect_absent(get("never")?)
}

fn an_empty_value_is_present() -> Outcome {
    put("empty", "")?;
    expect_value(get("empty")?, "")?;
    expect_entries(&scan("")?, &[("empty", "")])?;
    expect_eq(read(|tx| Ok(tx.get_many(NS, &keys(&["empty"]))?))?, vec![Some(Vec::new())])
}

fn one_key_in_two_namespaces_is_two_rows() -> Outcome {
    write(|tx| {
        tx.put("left", "key", b"in left")?;
        Ok(tx.put("right", "key", b"in right")?)
    })?;
    expect_value(read(|tx| Ok(tx.get("left", "key")?))?, "in left")?;
    write(|tx| Ok(tx.delete("left", "key")?))?;
    expect_absent(read(|tx| Ok(tx.get("left", "key")?))?)?;
    expect_value(read(|tx| Ok(tx.get("right", "key")?))?, "in right")
}

fn values_are_copies() -> Outcome {
    let mut buffer = b"as put".to_vec();
    write(|tx| {
        tx.put(NS, "key", &buffer)?;
        buffer.fill(b'-');
        let mut own = tx.get(NS, "key")?.unwrap_or_default();
        own.fill(b'*');
        expect_value(tx.get(NS, "key")?, "as put")
    })?;
    let mut got = get("key")?.unwrap_or_default();
    expect_eq(got.as_slice(), b"as put".as_slice())?;
    got.fill(b'+');
    expect_value(get("key")?, "as put")
}

fn get_many_answers_in_the_order_of_its_keys() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    let asked = keys(&["c", "absent", "a", "c", "b"]);
    let found = read(|tx| Ok(tx.get_many(NS, &asked)?))?;
    let expected = ["c", "", "a", "c", "b"].map(|key| (!key.is_empty()).then(|| key.as_bytes().to_vec()));
    expect_eq(found, expected.to_vec())
}

fn put_many_puts_every_entry() -> Outcome {
    put("b", "before")?;
    write(|tx| Ok(tx.put_many(NS, &[entry("c", "3"), entry("a", "1"), entry("b", "2")])?))?;
    expect_entries(&scan("")?, &[("a", "1"), ("b", "2"), ("c", "3")])
}

fn put_many_lets_the_last_of_equal_keys_win() -> Outcome {
    write(|tx| Ok(tx.put_many(NS, &[entry("a", "first"), entry("b", "2"), entry("a", "last")])?))?;
    expect_entries(&scan("")?, &[("a", "last"), ("b", "2")])
}

fn delete_many_deletes_every_key() -> Outcome {
    put_keys(&["a", "b", "c", "d"])?;
    write(|tx| Ok(tx.delete_many(NS, &keys(&["d", "absent", "b", "d"]))?))?;
    expect_keys(&scan("")?, &["a", "c"])
}

fn empty_lists_write_nothing() -> Outcome {
    let version = write(|tx| {
        tx.put_many(NS, &[])?;
        tx.delete_many(NS, &[])?;
        expect_eq(tx.get_many(NS, &[])?, Vec::new())
    })?;
    expect_eq(version, 0)
}

fn a_reserved_namespace_can_be_read() -> Outcome {
    read(|tx| {
        let entries = tx.scan("__store_migrations__", "")?;
        let page = tx.scan_page("__store_migrations__", &range(""), None)?;
        expect_eq(page.entries, entries)?;
        expect_absent(tx.get("__store_migrations__", "no such key")?)?;
        expect_eq(tx.get_versioned("__reserved", "key")?, None)?;
        expect_eq(tx.get_many("__", &keys(&["key"]))?, vec![None])
    })
}

fn a_reserved_namespace_refuses_every_write() -> Outcome {
    for ns in ["__store_migrations__", "__reserved", "__"] {
        let before = read(|tx| Ok(tx.scan(ns, "")?))?;
        let version = write(|tx| {
            expect_each(write_calls(tx, ns, "key"), expect_access_denied)?;
            expect_eq(tx.scan(ns, "")?, before.clone())
        })?;
        expect_eq(version, 0)?;
        expect_eq(read(|tx| Ok(tx.scan(ns, "")?))?, before)?;
    }
    Ok(())
}

fn a_namespace_that_only_resembles_a_reserved_one_can_be_written() -> Outcome {
    for ns in ["_", "_a_", "a__", " __", "\u{ff3f}\u{ff3f}"] {
        write(|tx| Ok(tx.put(ns, "key", ns.as_bytes())?))?;
        expect_value(read(|tx| Ok(tx.get(ns, "key")?))?, ns)?;
    }
    Ok(())
}

fn eight_workers_write_and_read_at_once() -> Outcome {
    in_parallel("basic::write_and_read_25_rows", 8)?;
    let mut expected: Vec<_> =
        (0..8).flat_map(|worker| (0..25).map(move |row| format!("{worker}/{row:02}"))).collect();
    expected.sort();
    expect_keys(&scan("")?, &expected)
}

fn write_and_read_25_rows(worker: u32) -> Outcome {
    let prefix = format!("{worker}/");
    for row in 0..25 {
        let key = format!("{prefix}{row:02}");
        put(&key, &key)?;
        expect_value(get(&key)?, &key)?;
        expect_eq(scan(&prefix)?.len(), row + 1)?;
    }
    Ok(())
}
