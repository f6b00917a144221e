//! Limits: a call at the limit succeeds. A call past it fails with `limit-exceeded` and all three
//! numbers, and changes nothing.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("limits":
    a_namespace_at_the_bound_passes,
    a_namespace_past_the_bound_is_refused,
    a_key_at_the_bound_passes,
    a_key_past_the_bound_is_refused,
    a_value_at_the_bound_passes,
    a_value_past_the_bound_is_refused,
    bounds_count_bytes_and_not_characters,
    get_many_at_the_bound_of_result_bytes_passes,
    get_many_past_the_bound_of_result_bytes_is_refused,
    get_many_of_too_many_keys_is_refused,
    a_transaction_at_the_bound_of_bytes_commits,
    a_transaction_past_the_bound_of_bytes_keeps_what_it_staged,
    put_many_past_the_bound_of_bytes_stages_nothing,
    a_replaced_own_write_gives_its_bytes_back,
    reads_of_an_update_count_for_transaction_bytes,
    reads_of_a_view_are_not_bounded,
    conditions_count_for_transaction_bytes,
    what_an_instance_holds_is_bounded,
    a_result_needs_room_in_the_instance,
    a_page_has_as_many_entries_as_the_instance_has_room_for,
    mutations_at_the_bound_commit,
    a_mutation_past_the_bound_keeps_what_was_staged,
    put_many_and_delete_many_past_the_bound_stage_nothing,
    writing_one_row_many_times_is_one_mutation,
    open_transactions_are_bounded,
    open_stores_are_bounded,
    a_store_at_the_bound_takes_no_byte_more,
    replaced_and_deleted_rows_give_their_bytes_back,
    expired_rows_count_until_they_are_swept,
);

/// Every call that takes a namespace and a key, and would succeed with shorter ones.
fn calls(tx: &Tx, ns: &str, key: &str) -> Vec<Result<(), Error>> {
    let reads = [
        tx.get(ns, key).map(drop),
        tx.get_many(ns, &keys(&[key])).map(drop),
        tx.get_versioned(ns, key).map(drop),
        tx.scan(ns, key).map(drop),
        tx.scan_page(ns, &range(key), None).map(drop),
    ];
    reads.into_iter().chain(write_calls(tx, ns, key).map(|(_, got)| got)).collect()
}

fn a_namespace_at_the_bound_passes() -> Outcome {
    let ns = "n".repeat(limits().namespace_bytes as usize);
    write(|tx| calls(tx, &ns, "key").into_iter().try_for_each(|got| Ok(got?)))?;
    write(|tx| Ok(tx.put(&ns, "key", b"1")?))?;
    expect_entries(&read(|tx| Ok(tx.scan(&ns, "")?))?, &[("key", "1")])
}

fn a_namespace_past_the_bound_is_refused() -> Outcome {
    let max = limits().namespace_bytes;
    let ns = "n".repeat(max as usize + 1);
    let version = write(|tx| {
        for got in calls(tx, &ns, "key") {
            expect_limit(got, LimitKind::NamespaceBytes, max, max + 1)?;
        }
        Ok(())
    })?;
    expect_eq(version, 0)
}

fn a_key_at_the_bound_passes() -> Outcome {
    let key = "k".repeat(limits().key_bytes as usize);
    write(|tx| calls(tx, NS, &key).into_iter().try_for_each(|got| Ok(got?)))?;
    put(&key, "1")?;
    expect_value(get(&key)?, "1")?;
    expect_entries(&scan(&key)?, &[(&key, "1")])
}

fn a_key_past_the_bound_is_refused() -> Outcome {
    let max = limits().key_bytes;
    let key = "k".repeat(max as usize + 1);
    let version = write(|tx| {
        for got in calls(tx, NS, &key) {
            expect_limit(got, LimitKind::KeyBytes, max, max + 1)?;
        }
        Ok(())
    })?;
    expect_eq(version, 0)
}

fn a_value_at_the_bound_passes() -> Outcome {
    let value = vec![7; limits().value_bytes as usize];
    put("by put", &value)?;
    write(|tx| Ok(tx.put_with(NS, "by put-with", &value, ttl(60_000))?))?;
    write(|tx| Ok(tx.put_many(NS, &[Entry { key: "by put-many".to_string(), value: value.clone() }])?))?;
    for key in ["by put", "by put-with", "by put-many"] {
        expect_value(get(key)?, &value)?;
    }
    Ok(())
}

fn a_value_past_the_bound_is_refused() -> Outcome {
    let max = limits().value_bytes;
    let value = vec![7; max as usize + 1];
    write(|tx| {
        tx.put(NS, "before", b"1")?;
        let entries = [entry("beside", ""), Entry { key: "large".to_string(), value: value.clone() }];
        for got in [
            tx.put(NS, "large", &value),
            tx.put_with(NS, "large", &value, ttl(60_000)),
            tx.put_many(NS, &entries),
        ] {
            expect_limit(got, LimitKind::ValueBytes, max, max + 1)?;
        }
        Ok(tx.put(NS, "later", b"2")?)
    })?;
    expect_entries(&scan("")?, &[("before", "1"), ("later", "2")])
}

fn bounds_count_bytes_and_not_characters() -> Outcome {
    let limits = limits();
    let ns = "\u{1f980}".repeat(limits.namespace_bytes as usize / 4 + 1);
    let key = "\u{e9}".repeat(limits.key_bytes as usize / 2 + 1);
    write(|tx| {
        let got = tx.put(&ns, "key", b"");
        expect_limit(got, LimitKind::NamespaceBytes, limits.namespace_bytes, ns.len() as u64)?;
        let got = tx.put(NS, &key, b"");
        expect_limit(got, LimitKind::KeyBytes, limits.key_bytes, key.len() as u64)
    })?;
    expect_entries(&scan("")?, &[])
}

/// Commits rows whose values together fill the largest answer of one `get-many`, and returns their
/// keys.
fn put_largest_result() -> Outcome<Vec<String>> {
    let limits = limits();
    let count = limits.result_bytes.div_ceil(limits.value_bytes + LIST_ENTRY_BYTES);
    let bytes = limits.result_bytes - count * LIST_ENTRY_BYTES;
    let mut names = Vec::new();
    for (number, share) in shares(bytes, limits.value_bytes).into_iter().enumerate() {
        let name = format!("a key that does not count {number:03}");
        put(&name, vec![b'x'; share as usize])?;
        names.push(name);
    }
    Ok(names)
}

fn get_many_at_the_bound_of_result_bytes_passes() -> Outcome {
    let mut names = put_largest_result()?;
    names.push("absent".to_string());
    let values = read(|tx| Ok(tx.get_many(NS, &names)?))?;
    expect_eq(values.len(), names.len())?;
    let bytes = values.iter().flatten().map(|value| value.len() as u64 + LIST_ENTRY_BYTES);
    expect_eq(bytes.sum(), limits().result_bytes)
}

fn get_many_past_the_bound_of_result_bytes_is_refused() -> Outcome {
    let max = limits().result_bytes;
    let mut names = put_largest_result()?;
    put("one byte", "1")?;
    names.push("one byte".to_string());
    for mode in [Mode::View, Mode::Update] {
        let store = main()?;
        let tx = store.begin(mode)?;
        expect_limit_passed(tx.get_many(NS, &names), LimitKind::ResultBytes, max)?;
        expect_value(tx.get(NS, "one byte")?, "1")?;
    }
    write(|tx| {
        tx.delete(NS, "one byte")?;
        expect_eq(tx.get_many(NS, &names)?.last().cloned(), Some(None))?;
        tx.put(NS, "one byte", b"2")?;
        expect_limit_passed(tx.get_many(NS, &names), LimitKind::ResultBytes, max)
    })?;
    Ok(())
}

fn get_many_of_too_many_keys_is_refused() -> Outcome {
    let max = limits().transaction_mutations;
    put("a", "1")?;
    let at_the_bound = vec!["a".to_string(); max as usize];
    let past_the_bound = vec!["a".to_string(); max as usize + 1];
    read(|tx| {
        expect_eq(tx.get_many(NS, &at_the_bound)?, vec![Some(b"1".to_vec()); max as usize])?;
        let got = tx.get_many(NS, &past_the_bound);
        expect_limit(got, LimitKind::TransactionMutations, max, max + 1)
    })
}

/// Stages rows that cost exactly `bytes`.
fn stage_bytes(tx: &Tx, prefix: &str, bytes: u64) -> Outcome {
    rows_of_cost(NS, prefix, bytes, in_transaction)
        .iter()
        .try_for_each(|(key, value)| Ok(tx.put(NS, key, value)?))
}

fn a_transaction_at_the_bound_of_bytes_commits() -> Outcome {
    let max = limits().transaction_bytes;
    write(|tx| stage_bytes(tx, "row", max))?;
    expect_eq(stored_bytes(in_transaction)?, max)
}

fn a_transaction_past_the_bound_of_bytes_keeps_what_it_staged() -> Outcome {
    let max = limits().transaction_bytes;
    write(|tx| {
        stage_bytes(tx, "row", max)?;
        expect_limit_passed(tx.put(NS, "z", b"z"), LimitKind::TransactionBytes, max)?;
        expect_limit_passed(tx.put_with(NS, "z", b"", ttl(60_000)), LimitKind::TransactionBytes, max)?;
        expect_limit_passed(tx.delete(NS, "z"), LimitKind::TransactionBytes, max)?;
        expect_limit_passed(tx.increment(NS, "z", 1), LimitKind::TransactionBytes, max)
    })?;
    expect_eq(stored_bytes(in_transaction)?, max)?;
    expect_absent(get("z")?)
}

fn put_many_past_the_bound_of_bytes_stages_nothing() -> Outcome {
    let max = limits().transaction_bytes;
    let entries: Vec<_> = rows_of_cost(NS, "row", max, in_transaction)
        .into_iter()
        .map(|(key, value)| Entry { key, value })
        .collect();
    write(|tx| {
        tx.put(NS, "a", b"1")?;
        expect_limit_passed(tx.put_many(NS, &entries), LimitKind::TransactionBytes, max)?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "1")])
    })?;
    expect_entries(&scan("")?, &[("a", "1")])
}

fn a_replaced_own_write_gives_its_bytes_back() -> Outcome {
    let limits = limits();
    let value = vec![b'x'; limits.value_bytes as usize];
    write(|tx| {
        for _ in 0..limits.transaction_bytes / limits.value_bytes + 2 {
            tx.put(NS, "a", &value)?;
        }
        tx.delete(NS, "a")?;
        stage_bytes(tx, "row", limits.transaction_bytes - in_transaction(NS.len() as u64 + 1))
    })?;
    let rest = limits.transaction_bytes - in_transaction(NS.len() as u64 + 1);
    expect_eq(stored_bytes(in_transaction)?, rest)
}

/// How many absent rows with keys of the maximum length one update may read, and a function from
/// number to key.
fn reads_at_most() -> (u64, impl Fn(u64) -> String) {
    let limits = limits();
    let key_bytes = limits.key_bytes as usize;
    let cost = in_transaction(NS.len() as u64 + limits.key_bytes);
    (limits.transaction_bytes / cost, move |number| format!("{number:0key_bytes$}"))
}

fn reads_of_an_update_count_for_transaction_bytes() -> Outcome {
    let max = limits().transaction_bytes;
    let (reads, key) = reads_at_most();
    write(|tx| {
        for number in 0..reads {
            expect_absent(tx.get(NS, &key(number))?)?;
        }
        expect_limit_passed(tx.get(NS, &key(reads)), LimitKind::TransactionBytes, max)?;
        expect_limit_passed(tx.get_versioned(NS, &key(reads)), LimitKind::TransactionBytes, max)?;
        expect_limit_passed(tx.get_many(NS, &[key(reads)]), LimitKind::TransactionBytes, max)?;
        // A row that was read before costs nothing again.
        expect_absent(tx.get(NS, &key(0))?)
    })?;
    Ok(())
}

fn reads_of_a_view_are_not_bounded() -> Outcome {
    put("a", "1")?;
    let (reads, key) = reads_at_most();
    read(|tx| {
        for number in 0..reads + 10 {
            expect_absent(tx.get(NS, &key(number))?)?;
        }
        expect_value(tx.get(NS, "a")?, "1")
    })
}

fn conditions_count_for_transaction_bytes() -> Outcome {
    let max = limits().transaction_bytes;
    let row = in_transaction(NS.len() as u64 + 1);
    write(|tx| {
        tx.delete_if_version(NS, "a", 0)?;
        stage_bytes(tx, "row", max - 3 * row)?;
        // The row is already staged, so its condition is one more entry. Repeating a condition adds
        // none.
        tx.delete(NS, "b")?;
        expect_limit(tx.delete_if_version(NS, "b", 0), LimitKind::TransactionBytes, max, max + row)?;
        Ok(tx.delete_if_version(NS, "a", 0)?)
    })?;
    Ok(())
}

fn what_an_instance_holds_is_bounded() -> Outcome {
    let limits = limits();
    let (max, full) = (limits.instance_bytes, limits.transaction_bytes);
    let (store, elsewhere) = (main()?, other()?);
    let mut open = Vec::new();
    for number in 0..max / full {
        let tx = update(if number.is_multiple_of(2) { &store } else { &elsewhere })?;
        stage_bytes(&tx, "row", full)?;
        open.push(tx);
    }
    let more = update(&store)?;
    let row = in_transaction(NS.len() as u64 + 1);
    expect_limit(more.put(NS, "a", b""), LimitKind::InstanceBytes, max, max + row)?;
    expect_limit(more.delete(NS, "a"), LimitKind::InstanceBytes, max, max + row)?;
    expect_limit(more.get(NS, "a"), LimitKind::InstanceBytes, max, max + row)?;
    for ended in 0..2 {
        let Some(last) = open.pop() else { return Err(wrong("expected an open transaction")) };
        if ended == 0 {
            Tx::commit(last)?;
        } else {
            Tx::rollback(last);
        }
        stage_bytes(&more, &format!("{ended}"), full / 2)?;
    }
    drop(open);
    Tx::commit(more)?;
    write(|tx| stage_bytes(tx, "other", full))?;
    Ok(())
}

fn a_result_needs_room_in_the_instance() -> Outcome {
    let limits = limits();
    let value = vec![b'x'; limits.value_bytes as usize];
    put("large", &value)?;
    let store = main()?;
    let view = store.begin(Mode::View)?;
    expect_value(view.get(NS, "large")?, &value)?;
    let mut open = Vec::new();
    // Leaves room for a result, but not for the copies that a call makes of it.
    let room = limits.value_bytes * 2;
    for share in shares(limits.instance_bytes - room, limits.transaction_bytes) {
        let tx = update(&store)?;
        stage_bytes(&tx, "row", share)?;
        open.push(tx);
    }
    let max = limits.instance_bytes;
    expect_limit_passed(view.get(NS, "large"), LimitKind::InstanceBytes, max)?;
    expect_limit_passed(view.get_versioned(NS, "large"), LimitKind::InstanceBytes, max)?;
    expect_limit_passed(view.get_many(NS, &keys(&["large"])), LimitKind::InstanceBytes, max)?;
    expect_limit_passed(view.scan(NS, "large"), LimitKind::InstanceBytes, max)?;
    expect_limit_passed(view.scan_page(NS, &range("large"), None), LimitKind::InstanceBytes, max)?;
    expect_absent(view.get(NS, "absent")?)?;
    drop(open.pop());
    expect_value(view.get(NS, "large")?, &value)?;
    expect_eq(view.scan(NS, "large")?.len(), 1)
}

fn a_page_has_as_many_entries_as_the_instance_has_room_for() -> Outcome {
    let limits = limits();
    let value = vec![b'x'; limits.value_bytes as usize / 8];
    let names = short_keys(7);
    write(|tx| names.iter().try_for_each(|name| Ok(tx.put(NS, name, &value)?)))?;
    let store = main()?;
    let view = store.begin(Mode::View)?;
    expect_eq(view.scan_page(NS, &range(""), None)?.entries.len(), names.len())?;
    let mut open = Vec::new();
    // A call makes three copies of a result, so two entries fit.
    let room = 3 * (2 * value.len() as u64 + 1_000);
    for share in shares(limits.instance_bytes - room, limits.transaction_bytes) {
        let tx = update(&store)?;
        stage_bytes(&tx, "row", share)?;
        open.push(tx);
    }
    let first = view.scan_page(NS, &range(""), None)?;
    expect_keys(&first.entries, names.get(..2).unwrap_or_default())?;
    let second = packed::scan_page(&view, NS, &range(""), first.next.as_deref())?;
    expect_eq(second.next.is_some(), true)?;
    drop(open);
    let rest = view.scan_page(NS, &range(""), second.next.as_deref())?;
    expect_keys(&rest.entries, names.get(4..).unwrap_or_default())
}

/// `count` short keys.
fn short_keys(count: u64) -> Vec<String> {
    (0..count).map(|number| format!("{number:06}")).collect()
}

fn mutations_at_the_bound_commit() -> Outcome {
    let names = short_keys(limits().transaction_mutations);
    write(|tx| names.iter().try_for_each(|name| Ok(tx.put(NS, name, b"")?)))?;
    expect_keys(&scan("")?, &names)?;
    write(|tx| Ok(tx.delete_many(NS, &names)?))?;
    expect_entries(&scan("")?, &[])?;
    let entries: Vec<_> = names.iter().map(|name| entry(name, "")).collect();
    write(|tx| Ok(tx.put_many(NS, &entries)?))?;
    expect_keys(&scan("")?, &names)
}

fn a_mutation_past_the_bound_keeps_what_was_staged() -> Outcome {
    let max = limits().transaction_mutations;
    let names = short_keys(max);
    write(|tx| {
        for name in &names {
            tx.put(NS, name, b"")?;
        }
        for got in [
            tx.put(NS, "z", b""),
            tx.put_with(NS, "z", b"", ttl(60_000)),
            tx.put_many(NS, &[entry("z", "")]),
            tx.delete(NS, "z"),
            tx.delete_many(NS, &keys(&["z"])),
            tx.delete_if_version(NS, "z", 0),
            tx.increment(NS, "z", 1),
        ] {
            expect_limit(got, LimitKind::TransactionMutations, max, max + 1)?;
        }
        // A row with a staged write counts once.
        Ok(tx.put(NS, "000000", b"again")?)
    })?;
    expect_keys(&scan("")?, &names)?;
    expect_value(get("000000")?, "again")
}

fn put_many_and_delete_many_past_the_bound_stage_nothing() -> Outcome {
    let max = limits().transaction_mutations;
    put_keys(&["000000", "000001"])?;
    let names = short_keys(max + 1);
    let entries: Vec<_> = names.iter().map(|name| entry(name, "")).collect();
    write(|tx| {
        tx.put(NS, "a", b"1")?;
        expect_limit_passed(tx.put_many(NS, &entries), LimitKind::TransactionMutations, max)?;
        expect_limit_passed(tx.delete_many(NS, &names), LimitKind::TransactionMutations, max)?;
        expect_entries(&tx.scan(NS, "")?, &[("000000", "000000"), ("000001", "000001"), ("a", "1")])
    })?;
    expect_keys(&scan("")?, &["000000", "000001", "a"])
}

fn writing_one_row_many_times_is_one_mutation() -> Outcome {
    let more_than_may = limits().transaction_mutations + 10;
    write(|tx| {
        for _ in 0..more_than_may {
            tx.increment(NS, "count", 1)?;
            tx.put(NS, "a", b"1")?;
            tx.delete(NS, "b")?;
        }
        Ok(())
    })?;
    expect_entries(&scan("")?, &[("a", "1"), ("count", &more_than_may.to_string())])
}

fn open_transactions_are_bounded() -> Outcome {
    let max = limits().open_transactions;
    let store = main()?;
    let modes = [Mode::View, Mode::Update].into_iter().cycle();
    let mut open =
        (0..max).zip(modes).map(|(_, mode)| Ok(store.begin(mode)?)).collect::<Outcome<Vec<_>>>()?;
    for mode in [Mode::View, Mode::Update] {
        expect_limit(store.begin(mode), LimitKind::OpenTransactions, max, max + 1)?;
    }
    let elsewhere = other()?;
    expect_limit(elsewhere.begin(Mode::View), LimitKind::OpenTransactions, max, max + 1)?;
    let last = open.pop().ok_or_else(|| wrong("expected an open transaction"))?;
    last.put(NS, "a", b"1")?;
    Tx::commit(last)?;
    open.push(update(&store)?);
    expect_limit(store.begin(Mode::Update), LimitKind::OpenTransactions, max, max + 1)?;
    drop(open.pop());
    open.push(update(&store)?);
    if let Some(last) = open.pop() {
        Tx::rollback(last);
    }
    expect_value(get("a")?, "1")
}

fn open_stores_are_bounded() -> Outcome {
    let max = limits().open_stores;
    let mut open = (0..max).map(|_| main()).collect::<Outcome<Vec<_>>>()?;
    for name in ["main", "other", "read-only"] {
        expect_limit(Store::open(name), LimitKind::OpenStores, max, max + 1)?;
    }
    drop(open.pop());
    open.push(other()?);
    expect_limit(Store::open("main"), LimitKind::OpenStores, max, max + 1)?;
    for store in &open {
        store.ping()?;
    }
    Ok(())
}

/// The cost of all rows in [`NS`].
fn stored_bytes(cost: fn(u64) -> u64) -> Outcome<u64> {
    read(|tx| {
        let (mut bytes, mut after) = (0, None);
        loop {
            let page = tx.scan_page(NS, &range(""), after.as_deref())?;
            let of = |row: &Entry| cost((NS.len() + row.key.len()) as u64) + row.value.len() as u64;
            bytes += page.entries.iter().map(of).sum::<u64>();
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(bytes),
            }
        }
    })
}

/// Fills the store up to its quota, in few transactions.
fn fill_store(put: fn(&Tx, &str, &[u8]) -> Result<(), Error>) -> Outcome {
    let limits = limits();
    // The cost of a row in a transaction differs from its cost in the store.
    for (number, share) in shares(limits.store_bytes, limits.transaction_bytes / 2).into_iter().enumerate() {
        let rows = rows_of_cost(NS, &format!("{number:03}/"), share, in_store);
        write(|tx| rows.iter().try_for_each(|(key, value)| Ok(put(tx, key, value)?)))?;
    }
    Ok(())
}

/// Commits one row.
fn try_put(key: &str, value: &[u8]) -> Result<u64, Error> {
    let tx = Store::open("main")?.begin(Mode::Update)?;
    tx.put(NS, key, value)?;
    Tx::commit(tx)
}

fn a_store_at_the_bound_takes_no_byte_more() -> Outcome {
    let max = limits().store_bytes;
    fill_store(|tx, key, value| tx.put(NS, key, value))?;
    expect_eq(stored_bytes(in_store)?, max)?;
    let row = in_store(NS.len() as u64 + 1);
    expect_limit(try_put("z", b""), LimitKind::StoreBytes, max, max + row)?;
    expect_limit(try_put("z", b"12345"), LimitKind::StoreBytes, max, max + row + 5)?;
    expect_eq(stored_bytes(in_store)?, max)?;
    expect_absent(get("z")?)
}

fn replaced_and_deleted_rows_give_their_bytes_back() -> Outcome {
    let max = limits().store_bytes;
    fill_store(|tx, key, value| tx.put(NS, key, value))?;
    let two = Range { limit: Some(2), keys_only: true, ..range("") };
    let mut first = read(|tx| Ok(tx.scan_page(NS, &two, None)?))?.entries;
    for row in &mut first {
        row.value = get(&row.key)?.ok_or_else(|| wrong("expected a row"))?;
    }
    let [replaced, deleted] = first.as_slice() else {
        return Err(wrong("expected two rows"));
    };
    try_put(&replaced.key, b"")?;
    let freed = replaced.value.len();
    try_put("z", &vec![0; freed - in_store(NS.len() as u64 + 1) as usize])?;
    expect_eq(stored_bytes(in_store)?, max)?;
    expect_limit_passed(try_put("y", b""), LimitKind::StoreBytes, max)?;
    let store = main()?;
    let tx = update(&store)?;
    tx.delete(NS, &deleted.key)?;
    tx.put(NS, &format!("{}!", deleted.key), &deleted.value)?;
    expect_limit_passed(Tx::commit(tx), LimitKind::StoreBytes, max)?;
    write(|tx| {
        tx.delete(NS, &deleted.key)?;
        Ok(tx.put(NS, &deleted.key.replace('/', ":"), &deleted.value)?)
    })?;
    expect_eq(stored_bytes(in_store)?, max)?;
    expect_absent(get(&deleted.key)?)
}

fn expired_rows_count_until_they_are_swept() -> Outcome {
    let max = limits().store_bytes;
    fill_store(|tx, key, value| tx.put_with(NS, key, value, ttl(60_000)))?;
    probe::advance_clock(120_000);
    expect_entries(&scan("")?, &[])?;
    expect_limit_passed(try_put("z", b""), LimitKind::StoreBytes, max)?;
    let swept = probe::sweep()?;
    expect(swept > 0, "the sweep removed rows")?;
    try_put("z", b"1")?;
    expect_entries(&scan("")?, &[("z", "1")])
}
