//! Entries packed into one byte list. Every case that reads a page compares both forms of it.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("packed":
    packed_entries_are_put_as_a_list_of_them_is,
    the_last_of_equal_packed_keys_wins,
    no_bytes_put_nothing,
    empty_keys_and_values_are_packed_too,
    a_packed_page_has_own_writes_on_it,
    bytes_that_are_cut_short_are_refused_and_put_nothing,
    lengths_past_the_end_are_refused,
    a_packed_key_that_is_no_text_is_refused,
    a_packed_entry_at_the_bounds_is_put_and_one_past_them_refused,
    more_packed_entries_than_the_bound_are_refused,
    a_packed_entry_that_can_not_be_put_keeps_the_others_out,
);

/// Packed entries whose values are their keys.
fn packed_keys(keys: &[&str]) -> Vec<u8> {
    pack(&keys.iter().map(|key| entry(key, key)).collect::<Vec<_>>())
}

fn packed_entries_are_put_as_a_list_of_them_is() -> Outcome {
    let keys = ["a", "b\0", "z", "ü", "\u{1f980}"];
    write(|tx| Ok(packed::put_many(tx, NS, &packed_keys(&keys))?))?;
    write(|tx| Ok(tx.put_many("list", &keys.map(|key| entry(key, key)))?))?;
    expect_eq(scan("")?, read(|tx| Ok(tx.scan("list", "")?))?)?;
    expect_keys(&scan("")?, &keys)
}

fn the_last_of_equal_packed_keys_wins() -> Outcome {
    let entries = [entry("a", "1"), entry("b", "1"), entry("a", "2")];
    write(|tx| Ok(packed::put_many(tx, NS, &pack(&entries))?))?;
    expect_entries(&scan("")?, &[("a", "2"), ("b", "1")])
}

fn no_bytes_put_nothing() -> Outcome {
    expect_eq(write(|tx| Ok(packed::put_many(tx, NS, &[])?))?, 0)?;
    expect_entries(&scan("")?, &[])
}

fn empty_keys_and_values_are_packed_too() -> Outcome {
    write(|tx| Ok(packed::put_many(tx, NS, &[0; 8])?))?;
    expect_value(get("")?, "")?;
    let page = read(|tx| Ok(packed::scan_page(tx, NS, &range(""), None)?))?;
    expect_eq((page.entries, page.next), (vec![0; 8], None))
}

fn a_packed_page_has_own_writes_on_it() -> Outcome {
    put_keys(&["a", "b"])?;
    let store = main()?;
    let tx = update(&store)?;
    packed::put_many(&tx, NS, &packed_keys(&["c"]))?;
    tx.delete(NS, "a")?;
    let page = packed::scan_page(&tx, NS, &range(""), None)?;
    expect_entries(&unpacked(&page.entries), &[("b", "b"), ("c", "c")])
}

/// Expects that the bytes are refused, and that the transaction commits without them.
#[track_caller]
fn expect_refused(bytes: &[u8]) -> Outcome {
    let store = main()?;
    let tx = update(&store)?;
    tx.put(NS, "before", b"1")?;
    expect_invalid_argument(packed::put_many(&tx, NS, bytes))?;
    tx.put(NS, "after", b"1")?;
    Tx::commit(tx)?;
    expect_entries(&scan("")?, &[("after", "1"), ("before", "1")])?;
    clear().map(drop)
}

fn bytes_that_are_cut_short_are_refused_and_put_nothing() -> Outcome {
    let whole = packed_keys(&["first", "second"]);
    let first = packed_keys(&["first"]).len();
    for length in (1..whole.len()).filter(|length| *length != first) {
        expect_refused(whole.get(..length).unwrap_or_default())?;
    }
    Ok(())
}

fn lengths_past_the_end_are_refused() -> Outcome {
    for (key_bytes, value_bytes) in
        [(2, 0), (1, 1), (0, 2), (u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)]
    {
        let header = [key_bytes.to_le_bytes(), value_bytes.to_le_bytes()].concat();
        expect_refused(&[header.as_slice(), b"k"].concat())?;
    }
    Ok(())
}

fn a_packed_key_that_is_no_text_is_refused() -> Outcome {
    for key in [&b"\xff"[..], b"a\xc3", b"\xed\xa0\x80"] {
        let header = [(key.len() as u32).to_le_bytes(), [0; 4]].concat();
        expect_refused(&[header.as_slice(), key].concat())?;
    }
    Ok(())
}

fn a_packed_entry_at_the_bounds_is_put_and_one_past_them_refused() -> Outcome {
    let bounds = limits();
    let key = |over: u64| "k".repeat((bounds.key_bytes + over) as usize);
    let value = |over: u64| "v".repeat((bounds.value_bytes + over) as usize);
    write(|tx| {
        let too_long = packed::put_many(tx, NS, &pack(&[entry(&key(1), "")]));
        expect_limit(too_long, LimitKind::KeyBytes, bounds.key_bytes, bounds.key_bytes + 1)?;
        let too_large = packed::put_many(tx, NS, &pack(&[entry("k", &value(1))]));
        expect_limit(too_large, LimitKind::ValueBytes, bounds.value_bytes, bounds.value_bytes + 1)?;
        Ok(packed::put_many(tx, NS, &pack(&[entry(&key(0), &value(0))]))?)
    })?;
    expect_value(get(&key(0))?, value(0))
}

fn more_packed_entries_than_the_bound_are_refused() -> Outcome {
    let max = limits().transaction_mutations;
    let entries: Vec<_> = (0..=max).map(|number| entry(&format!("{number:04}"), "")).collect();
    let store = main()?;
    let tx = update(&store)?;
    let got = packed::put_many(&tx, NS, &pack(&entries));
    expect_limit_passed(got, LimitKind::TransactionMutations, max)?;
    packed::put_many(&tx, NS, &pack(entries.get(1..).unwrap_or_default()))?;
    Tx::commit(tx)?;
    expect_eq(scan("")?.len() as u64, max)
}

fn a_packed_entry_that_can_not_be_put_keeps_the_others_out() -> Outcome {
    let long = "k".repeat(limits().key_bytes as usize + 1);
    let store = main()?;
    let tx = update(&store)?;
    let got = packed::put_many(&tx, NS, &pack(&[entry("a", "1"), entry(&long, "1"), entry("b", "1")]));
    expect_limit_passed(got, LimitKind::KeyBytes, limits().key_bytes)?;
    expect_entries(&tx.scan(NS, "")?, &[])?;
    drop(tx);
    let reserved = update(&store)?;
    expect_access_denied(packed::put_many(&reserved, "__x", &packed_keys(&["a"])))?;
    let view = view(&store)?;
    expect_read_only(packed::put_many(&view, NS, &packed_keys(&["a"])))
}
