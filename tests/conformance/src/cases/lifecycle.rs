//! The lifecycle of stores and transactions, and the precedence of errors.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("lifecycle":
    a_fresh_store_answers_a_ping,
    an_unknown_store_is_named_in_the_error,
    closing_twice_does_nothing,
    every_call_after_close_is_closed,
    close_rolls_back_the_transactions_of_its_handle,
    close_leaves_other_handles_alone,
    a_store_opens_again_after_close,
    a_store_closed_by_the_host_is_closed_for_every_call,
    a_store_closed_by_the_host_keeps_what_was_committed,
    a_reopened_store_keeps_what_was_committed,
    handles_from_before_a_reopening_stay_closed,
    versions_grow_across_a_reopening,
    every_call_past_the_deadline_is_timed_out,
    a_view_past_the_deadline_is_timed_out,
    a_commit_past_the_deadline_writes_nothing,
    a_transaction_before_its_deadline_goes_on,
    a_timeout_is_reported_once,
    a_read_only_store_can_be_read,
    a_read_only_store_refuses_updates_and_reports_it,
    closed_comes_before_other_errors,
    timed_out_comes_before_errors_of_arguments,
    errors_of_arguments_come_before_read_only_and_access_denied,
    read_only_comes_before_access_denied,
    a_refusal_leaves_the_transaction_usable,
);

fn a_fresh_store_answers_a_ping() -> Outcome {
    for name in ["main", "other", "read-only"] {
        Store::open(name)?.ping()?;
    }
    Ok(())
}

fn an_unknown_store_is_named_in_the_error() -> Outcome {
    for name in ["pantry", "", "Main", "main ", "main\0", "\u{1f980}"] {
        match Store::open(name) {
            Err(Error::NoSuchStore(named)) => expect_eq(named.as_str(), name)?,
            got => return Err(wrong(format!("expected no-such-store({name:?}), got {got:?}"))),
        }
    }
    Ok(())
}

fn closing_twice_does_nothing() -> Outcome {
    let store = main()?;
    store.close();
    store.close();
    expect_closed(store.ping())?;
    store.close();
    expect_closed(store.begin(Mode::View))
}

/// Expects that every call on a handle and its transactions fails with `closed`.
fn expect_all_closed(store: &Store, view: Tx, update: Tx) -> Outcome {
    expect_closed(store.ping())?;
    expect_closed(store.begin(Mode::View))?;
    expect_closed(store.begin(Mode::Update))?;
    expect_each(read_calls(&view, NS), expect_closed)?;
    expect_each(read_calls(&update, NS), expect_closed)?;
    expect_each(write_calls(&update, NS, "key"), expect_closed)?;
    expect_closed(Tx::commit(view))?;
    expect_closed(Tx::commit(update))
}

fn every_call_after_close_is_closed() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let view = view(&store)?;
    let update = update(&store)?;
    expect_value(view.get(NS, "a")?, "1")?;
    update.put(NS, "a", b"2")?;
    store.close();
    expect_all_closed(&store, view, update)?;
    expect_entries(&scan("")?, &[("a", "1")])
}

fn close_rolls_back_the_transactions_of_its_handle() -> Outcome {
    let store = main()?;
    let open: Vec<_> = (0..3).map(|_| update(&store)).collect::<Outcome<_>>()?;
    for tx in &open {
        expect_absent(tx.get(NS, "a")?)?;
        tx.put(NS, "a", b"never")?;
    }
    store.close();
    put("a", "1")?;
    for tx in open {
        expect_closed(Tx::commit(tx))?;
    }
    expect_value(get("a")?, "1")
}

fn close_leaves_other_handles_alone() -> Outcome {
    let [closed, open] = [main()?, main()?];
    let tx = update(&open)?;
    tx.put(NS, "a", b"1")?;
    let dropped = update(&closed)?;
    closed.close();
    expect_closed(dropped.put(NS, "b", b"2"))?;
    tx.put(NS, "c", b"3")?;
    Tx::commit(tx)?;
    open.ping()?;
    write_in(&open, |tx| Ok(tx.put(NS, "d", b"4")?))?;
    expect_entries(&scan("")?, &[("a", "1"), ("c", "3"), ("d", "4")])
}

fn a_store_opens_again_after_close() -> Outcome {
    let store = main()?;
    write_in(&store, |tx| Ok(tx.put(NS, "a", b"1")?))?;
    store.close();
    let again = main()?;
    write_in(&again, |tx| expect_value(tx.get(NS, "a")?, "1"))?;
    expect_closed(store.ping())
}

fn a_store_closed_by_the_host_is_closed_for_every_call() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let view = view(&store)?;
    let update = update(&store)?;
    expect_value(view.get(NS, "a")?, "1")?;
    expect_value(update.get(NS, "a")?, "1")?;
    update.put(NS, "a", b"2")?;
    probe::close_from_host();
    expect_all_closed(&store, view, update)
}

fn a_store_closed_by_the_host_keeps_what_was_committed() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"2")?;
    probe::close_from_host();
    expect_closed(Tx::commit(tx))?;
    let elsewhere = other()?;
    retrying(|| expect_value(view(&elsewhere)?.get(NS, "a")?, "1"))?;
    probe::reopen()?;
    expect_value(get("a")?, "1")
}

fn a_reopened_store_keeps_what_was_committed() -> Outcome {
    put_keys(&["a", "b"])?;
    put("count", "1")?;
    write(|tx| {
        tx.delete(NS, "b")?;
        tx.increment(NS, "count", 1)?;
        tx.put("\0", "\0", b"\0")?;
        Ok(tx.put(NS, "empty", b"")?)
    })?;
    let version = version("a")?;
    let store = main()?;
    let unfinished = update(&store)?;
    unfinished.put(NS, "a", b"never")?;
    probe::reopen()?;
    expect_entries(&scan("")?, &[("a", "a"), ("count", "2"), ("empty", "")])?;
    read(|tx| {
        expect_eq(tx.get_versioned(NS, "a")?, Some((b"a".to_vec(), version)))?;
        expect_value(tx.get("\0", "\0")?, "\0")
    })
}

fn handles_from_before_a_reopening_stay_closed() -> Outcome {
    let store = main()?;
    let view = view(&store)?;
    let update = update(&store)?;
    update.put(NS, "a", b"never")?;
    probe::reopen()?;
    put("b", "1")?;
    expect_all_closed(&store, view, update)?;
    expect_entries(&scan("")?, &[("b", "1")])
}

fn versions_grow_across_a_reopening() -> Outcome {
    let first = put("a", "1")?;
    put("b", "1")?;
    let second = write(|tx| Ok(tx.delete(NS, "b")?))?;
    probe::reopen()?;
    let third = put("a", "2")?;
    expect(third > first, format!("{third} is larger than {first}"))?;
    let fourth = put("b", "2")?;
    expect(fourth > second, format!("{fourth} is larger than {second}"))
}

/// Moves the clock past the deadline of every open transaction.
fn pass_the_deadline() {
    probe::advance_clock(limits().transaction_timeout_ms + 1_000);
}

fn every_call_past_the_deadline_is_timed_out() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    expect_value(tx.get(NS, "a")?, "1")?;
    tx.put(NS, "a", b"2")?;
    pass_the_deadline();
    for _ in 0..2 {
        expect_each(read_calls(&tx, NS), expect_timed_out)?;
        expect_each(write_calls(&tx, NS, "key"), expect_timed_out)?;
    }
    expect_timed_out(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[("a", "1")])?;
    write_in(&store, |tx| Ok(tx.put(NS, "a", b"3")?))?;
    expect_value(get("a")?, "3")
}

fn a_view_past_the_deadline_is_timed_out() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let tx = view(&store)?;
    expect_value(tx.get(NS, "a")?, "1")?;
    pass_the_deadline();
    expect_each(read_calls(&tx, NS), expect_timed_out)?;
    expect_timed_out(Tx::commit(tx))?;
    Ok(store.ping()?)
}

fn a_commit_past_the_deadline_writes_nothing() -> Outcome {
    put("count", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"never")?;
    tx.increment(NS, "count", 1)?;
    pass_the_deadline();
    expect_timed_out(Tx::commit(tx))?;
    expect_entries(&scan("")?, &[("count", "1")])
}

fn a_transaction_before_its_deadline_goes_on() -> Outcome {
    put("a", "1")?;
    let store = main()?;
    let tx = update(&store)?;
    expect_value(tx.get(NS, "a")?, "1")?;
    probe::advance_clock(limits().transaction_timeout_ms / 2);
    expect_value(tx.get(NS, "a")?, "1")?;
    tx.put(NS, "a", b"2")?;
    Tx::commit(tx)?;
    expect_value(get("a")?, "2")
}

fn a_timeout_is_reported_once() -> Outcome {
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "a", b"never")?;
    expect_eq(count_events("transaction.timed_out"), 0)?;
    pass_the_deadline();
    expect_timed_out(tx.get(NS, "a"))?;
    expect_timed_out(tx.put(NS, "a", b"1"))?;
    expect_timed_out(Tx::commit(tx))?;
    expect_eq(count_events("transaction.timed_out"), 1)?;
    put("a", "1")?;
    expect_eq(count_events("transaction.timed_out"), 0)
}

fn a_read_only_store_can_be_read() -> Outcome {
    let version = put("a", "1")?;
    let store = Store::open("read-only")?;
    store.ping()?;
    retrying(|| {
        let tx = view(&store)?;
        expect_eq(tx.get_versioned(NS, "a")?, Some((b"1".to_vec(), version)))?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "1")])?;
        expect_each(write_calls(&tx, NS, "a"), expect_read_only)?;
        expect_eq(Tx::commit(tx)?, 0)
    })?;
    put("a", "2")?;
    retrying(|| expect_value(view(&store)?.get(NS, "a")?, "2"))
}

fn a_read_only_store_refuses_updates_and_reports_it() -> Outcome {
    let store = Store::open("read-only")?;
    retrying(|| expect_absent(view(&store)?.get(NS, "a")?))?;
    expect_eq(count_events("store.access_denied"), 0)?;
    expect_access_denied(store.begin(Mode::Update))?;
    expect_eq(count_events("store.access_denied"), 1)?;
    retrying(|| expect_absent(view(&store)?.get(NS, "a")?))?;
    expect_eq(count_events("store.access_denied"), 0)
}

// Precedence of errors. The arguments of `wrong_puts` are invalid.

fn wrong_puts(tx: &Tx) -> [Result<(), Error>; 3] {
    let limits = limits();
    [
        tx.put(NS, &"k".repeat(limits.key_bytes as usize + 1), b""),
        tx.put(NS, "a", &vec![0; limits.value_bytes as usize + 1]),
        tx.put_with(NS, "a", b"", ttl(0)),
    ]
}

fn closed_comes_before_other_errors() -> Outcome {
    let store = main()?;
    let (view, update) = (view(&store)?, update(&store)?);
    store.close();
    for got in wrong_puts(&update).into_iter().chain(wrong_puts(&view)) {
        expect_closed(got)?;
    }
    expect_closed(view.put(NS, "a", b""))?;
    expect_closed(update.put("__reserved", "a", b""))?;
    expect_closed(update.scan_page(NS, &range(""), Some("no cursor")))?;
    pass_the_deadline();
    expect_closed(update.get(NS, "a"))?;
    let read_only = Store::open("read-only")?;
    read_only.close();
    expect_closed(read_only.begin(Mode::Update))
}

fn timed_out_comes_before_errors_of_arguments() -> Outcome {
    let store = main()?;
    let (view, update) = (view(&store)?, update(&store)?);
    pass_the_deadline();
    for got in wrong_puts(&update).into_iter().chain(wrong_puts(&view)) {
        expect_timed_out(got)?;
    }
    expect_timed_out(view.put(NS, "a", b""))?;
    expect_timed_out(update.put("__reserved", "a", b""))
}

fn errors_of_arguments_come_before_read_only_and_access_denied() -> Outcome {
    let limits = limits();
    let long = "k".repeat(limits.key_bytes as usize + 1);
    let large = vec![0; limits.value_bytes as usize + 1];
    let store = main()?;
    let (view, update) = (view(&store)?, update(&store)?);
    for (tx, ns) in [(&view, NS), (&view, "__reserved"), (&update, "__reserved")] {
        expect_limit(tx.put(ns, &long, b""), LimitKind::KeyBytes, limits.key_bytes, limits.key_bytes + 1)?;
        let got = tx.put(ns, "a", &large);
        expect_limit(got, LimitKind::ValueBytes, limits.value_bytes, limits.value_bytes + 1)?;
        expect_limit(tx.delete(ns, &long), LimitKind::KeyBytes, limits.key_bytes, limits.key_bytes + 1)?;
        expect_limit(
            tx.increment(ns, &long, 1),
            LimitKind::KeyBytes,
            limits.key_bytes,
            limits.key_bytes + 1,
        )?;
        expect_invalid_argument(tx.put_with(ns, "a", b"", ttl(0)))?;
    }
    Ok(())
}

fn read_only_comes_before_access_denied() -> Outcome {
    let store = main()?;
    let view = view(&store)?;
    expect_each(write_calls(&view, "__reserved", "key"), expect_read_only)
}

fn a_refusal_leaves_the_transaction_usable() -> Outcome {
    write(|tx| {
        tx.put(NS, "a", b"1")?;
        for got in wrong_puts(tx) {
            expect(got.is_err(), "an invalid argument is refused")?;
        }
        expect_access_denied(tx.put("__reserved", "a", b""))?;
        expect_invalid_argument(tx.scan_page(NS, &range(""), Some("no cursor")))?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "1")])?;
        Ok(tx.put(NS, "b", b"2")?)
    })?;
    expect_entries(&scan("")?, &[("a", "1"), ("b", "2")])
}
