//! Paged reads of ranges.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("page":
    a_limit_bounds_each_page,
    a_limit_of_zero_gives_no_entry,
    a_limit_of_exactly_the_entries_has_no_next,
    pages_give_every_entry_once_and_in_order,
    reverse_goes_from_the_last_key_to_the_first,
    reverse_pages_give_every_entry_once,
    start_is_included_and_end_is_not,
    bounds_need_not_be_keys,
    a_range_that_ends_before_it_starts_is_empty,
    bounds_outside_the_prefix_change_nothing,
    bounds_that_miss_the_prefix_leave_nothing,
    an_empty_range_is_an_empty_page,
    keys_only_leaves_values_empty,
    keys_only_values_do_not_count_for_the_bound,
    a_page_is_cut_by_result_bytes,
    a_page_at_the_bound_is_the_last,
    each_entry_of_a_page_counts_for_result_bytes,
    a_packed_page_counts_the_lengths_of_its_entries,
    the_largest_entry_fits_a_page,
    pages_of_one_view_show_one_snapshot,
    paging_goes_on_in_another_transaction,
    own_writes_are_on_the_pages,
    own_writes_between_pages_are_seen_ahead_of_the_cursor,
    an_after_that_is_no_cursor_is_refused,
    an_after_of_another_range_is_refused,
    an_overlong_bound_is_refused,
    a_next_is_accepted_whatever_the_bound_of_keys_is,
);

/// Reads a page in both forms. They must agree, except that the list may end earlier: packed
/// entries count less.
fn scan_page(tx: &Tx, ns: &str, range: &Range, after: Option<&str>) -> Result<Page, Error> {
    let page = tx.scan_page(ns, range, after);
    let packed = packed::scan_page(tx, ns, range, after);
    let packed = packed.map(|packed::Page { entries, next }| Page { entries: unpacked(&entries), next });
    let is_cut_earlier = match (&page, &packed) {
        (Ok(page), Ok(packed)) => is_cut_earlier(page, packed),
        _ => false,
    };
    // An error, or a different order of the entries, must be the same in both forms.
    if page != packed && !is_cut_earlier {
        return Err(Error::Other(format!("the packed page is {packed:?}, and the list is {page:?}")));
    }
    page
}

/// Whether the list ends before the packed page because its next entry does not fit.
fn is_cut_earlier(list: &Page, packed: &Page) -> bool {
    let bytes = |entry: &Entry| (entry.key.len() + entry.value.len()) as u64 + LIST_ENTRY_BYTES;
    let upto = packed.entries.get(..list.entries.len() + 1).unwrap_or_default();
    list.next.is_some()
        && upto.starts_with(&list.entries)
        && upto.iter().map(bytes).sum::<u64>() > limits().result_bytes
}

/// Reads all pages of a range and returns their entries.
fn all_pages(tx: &Tx, range: &Range) -> Outcome<Vec<Entry>> {
    const PAGES_MAX: usize = 1_000;
    let mut entries = Vec::new();
    let mut after = None;
    for _ in 0..PAGES_MAX {
        let page = scan_page(tx, NS, range, after.as_deref())?;
        entries.extend(page.entries);
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(entries),
        }
    }
    Err(wrong(format!("expected at most {PAGES_MAX} pages")))
}

/// Reads one page in a view.
fn page(range: &Range, after: Option<&str>) -> Outcome<Page> {
    read(|tx| Ok(scan_page(tx, NS, range, after)?))
}

/// The cursor of a page that must not be the last.
#[track_caller]
fn next_of(page: &Page) -> Outcome<String> {
    page.next.clone().ok_or_else(|| wrong("expected another page, got none"))
}

fn limited(prefix: &str, limit: u32) -> Range {
    Range { limit: Some(limit), ..range(prefix) }
}

fn between(prefix: &str, start: &str, end: &str) -> Range {
    Range { start: Some(start.to_string()), end: Some(end.to_string()), ..range(prefix) }
}

/// Commits the rows `row00`, `row01`, … and returns their keys.
fn put_rows(count: u32) -> Outcome<Vec<String>> {
    let names: Vec<_> = (0..count).map(|number| format!("row{number:02}")).collect();
    write(|tx| names.iter().try_for_each(|name| Ok(tx.put(NS, name, name.as_bytes())?)))?;
    Ok(names)
}

fn a_limit_bounds_each_page() -> Outcome {
    put_keys(&["a", "b", "c", "d", "e"])?;
    read(|tx| {
        let two = limited("", 2);
        let first = scan_page(tx, NS, &two, None)?;
        expect_entries(&first.entries, &[("a", "a"), ("b", "b")])?;
        let second = scan_page(tx, NS, &two, Some(&next_of(&first)?))?;
        expect_entries(&second.entries, &[("c", "c"), ("d", "d")])?;
        let third = scan_page(tx, NS, &two, Some(&next_of(&second)?))?;
        expect_entries(&third.entries, &[("e", "e")])?;
        expect_eq(third.next, None)
    })
}

fn a_limit_of_zero_gives_no_entry() -> Outcome {
    put_keys(&["a", "b"])?;
    expect_entries(&page(&limited("", 0), None)?.entries, &[])?;
    write(|tx| {
        stage_keys(tx, &["c"])?;
        expect_entries(&scan_page(tx, NS, &limited("", 0), None)?.entries, &[])
    })?;
    Ok(())
}

fn a_limit_of_exactly_the_entries_has_no_next() -> Outcome {
    put_keys(&["a", "b", "c", "d"])?;
    for limit in [4, 5, u32::MAX] {
        let whole = page(&limited("", limit), None)?;
        expect_keys(&whole.entries, &["a", "b", "c", "d"])?;
        expect_eq(whole.next, None)?;
    }
    let first = page(&limited("", 2), None)?;
    let second = page(&limited("", 2), Some(&next_of(&first)?))?;
    expect_keys(&second.entries, &["c", "d"])?;
    expect_eq(second.next, None)
}

fn pages_give_every_entry_once_and_in_order() -> Outcome {
    let names = put_rows(37)?;
    for limit in [1, 5, 36, 37, 38] {
        let entries = read(|tx| all_pages(tx, &limited("row", limit)))?;
        expect_keys(&entries, &names)?;
    }
    Ok(())
}

fn reverse_goes_from_the_last_key_to_the_first() -> Outcome {
    put_keys(&["a", "b1", "b2", "b3", "c"])?;
    let reversed = Range { reverse: true, ..range("b") };
    expect_entries(&page(&reversed, None)?.entries, &[("b3", "b3"), ("b2", "b2"), ("b1", "b1")])?;
    let bounded = Range { reverse: true, ..between("", "b1", "b3") };
    expect_keys(&page(&bounded, None)?.entries, &["b2", "b1"])
}

fn reverse_pages_give_every_entry_once() -> Outcome {
    let mut names = put_rows(23)?;
    names.reverse();
    for limit in [1, 4, 23] {
        let reversed = Range { reverse: true, ..limited("", limit) };
        expect_keys(&read(|tx| all_pages(tx, &reversed))?, &names)?;
    }
    Ok(())
}

fn start_is_included_and_end_is_not() -> Outcome {
    put_keys(&["a", "b", "b\0", "c", "d"])?;
    expect_keys(&page(&between("", "b", "d"), None)?.entries, &["b", "b\0", "c"])?;
    let from = Range { start: Some("b\0".to_string()), ..range("") };
    expect_keys(&page(&from, None)?.entries, &["b\0", "c", "d"])?;
    let until = Range { end: Some("b\0".to_string()), ..range("") };
    expect_keys(&page(&until, None)?.entries, &["a", "b"])
}

fn bounds_need_not_be_keys() -> Outcome {
    put_keys(&["aa", "b", "bb", "c"])?;
    expect_keys(&page(&between("", "ab", "bc"), None)?.entries, &["b", "bb"])?;
    let narrowed = Range { limit: Some(1), reverse: true, ..between("b", "a", "bb") };
    expect_keys(&page(&narrowed, None)?.entries, &["b"])
}

fn a_range_that_ends_before_it_starts_is_empty() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    for (start, end) in [("c", "a"), ("b", "b"), ("a", "")] {
        for reverse in [false, true] {
            let empty = Range { reverse, ..between("", start, end) };
            let found = page(&empty, None)?;
            expect_entries(&found.entries, &[])?;
            expect_eq(found.next, None)?;
            expect_eq(write(|tx| expect_eq(tx.delete_range(NS, &empty)?, 0))?, 0)?;
        }
    }
    Ok(())
}

fn bounds_outside_the_prefix_change_nothing() -> Outcome {
    put_keys(&["a", "b1", "b2", "c"])?;
    for (start, end) in [("", "z"), ("a", "c"), ("b", "b3"), ("b1", "\u{10ffff}")] {
        expect_keys(&page(&between("b", start, end), None)?.entries, &["b1", "b2"])?;
    }
    Ok(())
}

fn bounds_that_miss_the_prefix_leave_nothing() -> Outcome {
    put_keys(&["a", "b1", "b2", "c"])?;
    for (start, end) in [("c", "d"), ("", "b"), ("b3", "z")] {
        expect_entries(&page(&between("b", start, end), None)?.entries, &[])?;
    }
    Ok(())
}

fn an_empty_range_is_an_empty_page() -> Outcome {
    put_keys(&["a", "c"])?;
    for reverse in [false, true] {
        let found = page(&Range { reverse, ..range("b") }, None)?;
        expect_entries(&found.entries, &[])?;
        expect_eq(found.next, None)?;
    }
    Ok(())
}

fn keys_only_leaves_values_empty() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    let names = Range { keys_only: true, limit: Some(2), ..range("") };
    write(|tx| {
        stage_keys(tx, &["aa", "b"])?;
        tx.increment(NS, "count", 3)?;
        let entries = all_pages(tx, &names)?;
        expect_entries(&entries, &[("a", ""), ("aa", ""), ("b", ""), ("c", ""), ("count", "")])
    })?;
    Ok(())
}

fn keys_only_values_do_not_count_for_the_bound() -> Outcome {
    let limits = limits();
    let rows = limits.result_bytes / limits.value_bytes + 2;
    let large = vec![b'x'; limits.value_bytes as usize];
    for row in 0..rows {
        put(&format!("{row:02}"), &large)?;
    }
    let names = page(&Range { keys_only: true, ..range("") }, None)?;
    expect_eq(names.entries.len() as u64, rows)?;
    expect_eq(names.next, None)
}

fn a_page_is_cut_by_result_bytes() -> Outcome {
    let limits = limits();
    let value = vec![b'x'; limits.value_bytes as usize / 2];
    let in_page = (limits.result_bytes / (value.len() as u64 + 2)) as usize;
    let names: Vec<_> = (0..in_page * 2 + 1).map(|row| format!("{row:02}")).collect();
    for name in &names {
        put(name, &value)?;
    }
    read(|tx| {
        expect_keys(&all_pages(tx, &range(""))?, &names)?;
        let first = scan_page(tx, NS, &range(""), None)?;
        expect_eq(first.entries.len(), in_page)?;
        let second = scan_page(tx, NS, &range(""), Some(&next_of(&first)?))?;
        expect_eq(second.entries.len(), in_page)?;
        let third = scan_page(tx, NS, &range(""), Some(&next_of(&second)?))?;
        expect_eq(third.entries.len(), 1)?;
        expect_eq(third.next, None)
    })
}

fn a_page_at_the_bound_is_the_last() -> Outcome {
    let rows = rows_of_a_result("row", LIST_ENTRY_BYTES);
    for (key, value) in &rows {
        put(key, value)?;
    }
    let whole = page(&range(""), None)?;
    expect_eq(whole.entries.len(), rows.len())?;
    expect_eq(whole.next, None)?;
    put("z", "")?;
    let first = page(&range(""), None)?;
    expect_eq(first.entries.len(), rows.len())?;
    let second = page(&range(""), Some(&next_of(&first)?))?;
    expect_entries(&second.entries, &[("z", "")])?;
    expect_eq(second.next, None)
}

fn each_entry_of_a_page_counts_for_result_bytes() -> Outcome {
    let max = limits().result_bytes;
    let small = |from: usize, count: u64| -> Outcome<Vec<String>> {
        let names: Vec<_> = (from..from + count as usize).map(|row| format!("{row:06}")).collect();
        for part in names.chunks(limits().transaction_mutations as usize) {
            write(|tx| part.iter().try_for_each(|name| Ok(tx.put(NS, name, b"")?)))?;
        }
        Ok(names)
    };
    let in_list = max / (6 + LIST_ENTRY_BYTES);
    let names = small(0, in_list + 1)?;
    let first = page(&range(""), None)?;
    expect_eq(first.entries.len() as u64, in_list)?;
    expect_keys(&read(|tx| all_pages(tx, &range("")))?, &names)?;
    read(|tx| expect_limit_passed(tx.scan(NS, ""), LimitKind::ResultBytes, max))?;
    // A page of keys counts the same, and its cursor continues the scan in both forms.
    let keys_only = Range { keys_only: true, ..range("") };
    expect_eq(page(&keys_only, None)?.entries.len() as u64, in_list)?;
    let rest = read(|tx| Ok(packed::scan_page(tx, NS, &range(""), first.next.as_deref())?))?;
    expect_keys(&unpacked(&rest.entries), names.get(in_list as usize..).unwrap_or_default())
}

fn a_packed_page_counts_the_lengths_of_its_entries() -> Outcome {
    let rows = rows_of_a_result("row", PACKED_ENTRY_BYTES);
    for (key, value) in &rows {
        put(key, value)?;
    }
    let packed_page = |after: Option<&str>| read(|tx| Ok(packed::scan_page(tx, NS, &range(""), after)?));
    let whole = packed_page(None)?;
    expect_eq((whole.entries.len() as u64, whole.next), (limits().result_bytes, None))?;
    put("z", "")?;
    let first = packed_page(None)?;
    expect_eq(first.entries.len() as u64, limits().result_bytes)?;
    let second = packed_page(first.next.as_deref())?;
    expect_entries(&unpacked(&second.entries), &[("z", "")])?;
    expect_eq(second.next, None)
}

fn the_largest_entry_fits_a_page() -> Outcome {
    let limits = limits();
    let key = "k".repeat(limits.key_bytes as usize);
    let value = vec![b'x'; limits.value_bytes as usize];
    put(&key, &value)?;
    let found = page(&range(""), None)?;
    expect_keys(&found.entries, &[key])?;
    expect_eq(found.entries.into_iter().map(|entry| entry.value.len()).collect(), vec![value.len()])?;
    expect_eq(found.next, None)
}

fn pages_of_one_view_show_one_snapshot() -> Outcome {
    let store = main()?;
    retrying(|| {
        clear()?;
        put_keys(&["a", "b", "c", "d", "e"])?;
        let view = view(&store)?;
        let two = limited("", 2);
        let first = scan_page(&view, NS, &two, None)?;
        expect_keys(&first.entries, &["a", "b"])?;
        write(|tx| {
            stage_keys(tx, &["aa", "bb", "f"])?;
            tx.put(NS, "d", b"changed")?;
            Ok(tx.delete_many(NS, &keys(&["b", "c", "e"]))?)
        })?;
        let second = scan_page(&view, NS, &two, Some(&next_of(&first)?))?;
        expect_entries(&second.entries, &[("c", "c"), ("d", "d")])?;
        let third = scan_page(&view, NS, &two, Some(&next_of(&second)?))?;
        expect_entries(&third.entries, &[("e", "e")])?;
        expect_eq(third.next, None)?;
        expect_keys(&scan("")?, &["a", "aa", "bb", "d", "f"])
    })
}

fn paging_goes_on_in_another_transaction() -> Outcome {
    put_keys(&["a", "b", "c", "d", "e"])?;
    let two = limited("", 2);
    let next = next_of(&page(&two, None)?)?;
    write(|tx| {
        tx.delete_many(NS, &keys(&["a", "b", "d"]))?;
        stage_keys(tx, &["aa", "bb"])
    })?;
    let second = page(&two, Some(&next))?;
    expect_keys(&second.entries, &["bb", "c"])?;
    let third = page(&two, Some(&next_of(&second)?))?;
    expect_keys(&third.entries, &["e"])?;
    expect_eq(third.next, None)?;
    clear()?;
    expect_entries(&page(&two, Some(&next))?.entries, &[])
}

fn own_writes_are_on_the_pages() -> Outcome {
    put_keys(&["a", "b", "c", "d"])?;
    let staged = ["a", "aa", "c", "cc", "e"];
    write(|tx| {
        stage_keys(tx, &["e", "cc", "aa"])?;
        tx.delete_many(NS, &keys(&["b", "d"]))?;
        for limit in 1..=6 {
            expect_keys(&all_pages(tx, &limited("", limit))?, &staged)?;
            let reversed = Range { reverse: true, ..limited("", limit) };
            let mut entries = all_pages(tx, &reversed)?;
            entries.reverse();
            expect_keys(&entries, &staged)?;
        }
        let whole = scan_page(tx, NS, &limited("", 5), None)?;
        expect_eq(whole.next, None)
    })?;
    expect_keys(&scan("")?, &staged)
}

fn own_writes_between_pages_are_seen_ahead_of_the_cursor() -> Outcome {
    put_keys(&["a", "b", "c", "d"])?;
    write(|tx| {
        let first = scan_page(tx, NS, &limited("", 2), None)?;
        expect_keys(&first.entries, &["a", "b"])?;
        stage_keys(tx, &["aa", "bb"])?;
        tx.delete(NS, "c")?;
        let second = scan_page(tx, NS, &limited("", 2), Some(&next_of(&first)?))?;
        expect_keys(&second.entries, &["bb", "d"])?;
        expect_eq(second.next, None)
    })?;
    Ok(())
}

fn an_after_that_is_no_cursor_is_refused() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    let mut garbage = keys(&["", "a", "garbage", "0000000000000000a", "\0", "\u{1f980}\u{1f980}\u{1f980}"]);
    let next = next_of(&page(&limited("", 1), None)?)?;
    garbage.push(format!(" {next}"));
    read(|tx| {
        for after in &garbage {
            expect_invalid_argument(scan_page(tx, NS, &limited("", 1), Some(after)))?;
        }
        expect_keys(&scan_page(tx, NS, &limited("", 1), Some(&next))?.entries, &["b"])
    })
}

fn an_after_of_another_range_is_refused() -> Outcome {
    put_keys(&["k1", "k2", "k3"])?;
    let one = limited("k", 1);
    let next = next_of(&page(&one, None)?)?;
    let others = [
        limited("", 1),
        limited("k1", 1),
        Range { reverse: true, ..one.clone() },
        Range { start: Some("k1".to_string()), ..one.clone() },
        Range { end: Some("k3".to_string()), ..one.clone() },
    ];
    read(|tx| {
        for other in &others {
            expect_invalid_argument(scan_page(tx, NS, other, Some(&next)))?;
        }
        expect_keys(&scan_page(tx, NS, &one, Some(&next))?.entries, &["k2"])
    })
}

fn an_overlong_bound_is_refused() -> Outcome {
    let max = limits().key_bytes;
    let long = "k".repeat(max as usize + 1);
    let overlong = [
        range(&long),
        Range { start: Some(long.clone()), ..range("") },
        Range { end: Some(long.clone()), ..range("") },
    ];
    write(|tx| {
        for range in &overlong {
            expect_limit(scan_page(tx, NS, range, None), LimitKind::KeyBytes, max, max + 1)?;
            expect_limit(tx.delete_range(NS, range), LimitKind::KeyBytes, max, max + 1)?;
        }
        Ok(())
    })?;
    Ok(())
}

fn a_next_is_accepted_whatever_the_bound_of_keys_is() -> Outcome {
    let max = limits().key_bytes;
    let [long, longest] = [201, max].map(|bytes| "k".repeat(bytes as usize));
    let all = ["a", &long, &longest, "z"];
    put_keys(&all)?;
    probe::limit_keys(100)?;
    read(|tx| {
        expect_keys(&all_pages(tx, &limited("", 1))?, &all)?;
        let mut backwards = all_pages(tx, &Range { reverse: true, ..limited("", 1) })?;
        backwards.reverse();
        expect_keys(&backwards, &all)?;
        let keys_only = all_pages(tx, &Range { keys_only: true, ..limited("k", 1) })?;
        expect_keys(&keys_only, &[&long, &longest])?;
        expect_limit(tx.get(NS, &long), LimitKind::KeyBytes, 100, 201)
    })?;
    // The part after the fingerprint cannot be longer than the longest key.
    let forged = format!("{}{}", next_of(&page(&limited("", 1), None)?)?, "k".repeat(4_096));
    read(|tx| expect_invalid_argument(scan_page(tx, NS, &limited("", 1), Some(&forged))))?;
    write(|tx| {
        expect_limit(tx.delete(NS, &long), LimitKind::KeyBytes, 100, 201)?;
        expect_eq(tx.delete_range(NS, &range("k"))?, 2)
    })?;
    expect_keys(&scan("")?, &["a", "z"])
}
