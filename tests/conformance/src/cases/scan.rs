//! Scans of a prefix.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("scan":
    entries_come_in_order_with_their_values,
    an_empty_prefix_gives_the_whole_namespace_and_no_other,
    a_prefix_that_is_a_key_is_included,
    nothing_found_is_an_empty_list,
    the_case_of_letters_matters,
    wildcards_are_literal,
    a_prefix_may_hold_nul,
    a_namespace_may_hold_nul,
    order_is_by_bytes,
    a_prefix_may_end_in_the_last_character,
    a_prefix_may_end_in_the_last_one_byte_character,
    characters_that_share_bytes_are_apart,
    a_prefix_of_100_kb_is_refused,
    own_puts_are_merged_in,
    own_overwrites_and_deletes_are_merged_in,
    own_writes_outside_the_prefix_stay_out,
    a_row_put_again_after_its_delete_is_there_once,
    a_result_at_the_bound_passes,
    a_result_over_the_bound_is_refused,
    own_writes_count_for_the_bound,
);

fn entries_come_in_order_with_their_values() -> Outcome {
    for (key, value) in [("task:c", "3"), ("obs:x", "9"), ("task:a", "1"), ("task:b", "2")] {
        put(key, value)?;
    }
    expect_entries(&scan("task:")?, &[("task:a", "1"), ("task:b", "2"), ("task:c", "3")])?;
    expect_keys(&scan("")?, &["obs:x", "task:a", "task:b", "task:c"])
}

fn an_empty_prefix_gives_the_whole_namespace_and_no_other() -> Outcome {
    write(|tx| {
        for ns in ["", "m", "n", "n\0", "n\u{10ffff}", "na", "o"] {
            tx.put(ns, "", ns.as_bytes())?;
            tx.put(ns, "\u{10ffff}", ns.as_bytes())?;
        }
        Ok(())
    })?;
    for ns in ["", "n", "o"] {
        expect_entries(&read(|tx| Ok(tx.scan(ns, "")?))?, &[("", ns), ("\u{10ffff}", ns)])?;
    }
    Ok(())
}

fn a_prefix_that_is_a_key_is_included() -> Outcome {
    put_keys(&["ab", "abc", "a", "ac"])?;
    expect_keys(&scan("ab")?, &["ab", "abc"])
}

fn nothing_found_is_an_empty_list() -> Outcome {
    expect_entries(&scan("")?, &[])?;
    put_keys(&["a", "c"])?;
    expect_entries(&scan("b")?, &[])?;
    expect_entries(&scan("ab")?, &[])?;
    expect_entries(&read(|tx| Ok(tx.scan("another", "")?))?, &[])
}

fn the_case_of_letters_matters() -> Outcome {
    put_keys(&["task:a", "Task:b", "TASK:c", "\u{e4}", "\u{c4}"])?;
    expect_keys(&scan("task:")?, &["task:a"])?;
    expect_keys(&scan("T")?, &["TASK:c", "Task:b"])?;
    expect_keys(&scan("\u{e4}")?, &["\u{e4}"])
}

fn wildcards_are_literal() -> Outcome {
    let wildcards = ["%", "_", "\\", "*", "?", "[", "]", ".", "^", "$", "#", "+"];
    write(|tx| {
        stage_keys(tx, &["axb", "ab", "a"])?;
        wildcards.iter().try_for_each(|wildcard| Ok(tx.put(NS, &format!("a{wildcard}b"), b"")?))
    })?;
    for wildcard in wildcards {
        expect_keys(&scan(&format!("a{wildcard}"))?, &[format!("a{wildcard}b")])?;
        expect_keys::<&str>(&scan(wildcard)?, &[])?;
    }
    Ok(())
}

fn a_prefix_may_hold_nul() -> Outcome {
    put_keys(&["a", "a\0", "a\0b", "a\0\0", "a\u{1}", "ab", "\0"])?;
    expect_keys(&scan("a\0")?, &["a\0", "a\0\0", "a\0b"])?;
    expect_keys(&scan("\0")?, &["\0"])?;
    expect_keys(&scan("a")?, &["a", "a\0", "a\0\0", "a\0b", "a\u{1}", "ab"])
}

fn a_namespace_may_hold_nul() -> Outcome {
    write(|tx| {
        tx.put("n", "key", b"short")?;
        tx.put("n\0", "key", b"with nul")?;
        Ok(tx.put("n\0o", "key", b"long")?)
    })?;
    for (ns, value) in [("n", "short"), ("n\0", "with nul"), ("n\0o", "long")] {
        expect_entries(&read(|tx| Ok(tx.scan(ns, "")?))?, &[("key", value)])?;
    }
    Ok(())
}

fn order_is_by_bytes() -> Outcome {
    // U+FFFF sorts before U+10000 by UTF-8 bytes, and after it by UTF-16 units.
    let ordered = [
        "",
        "\0",
        "\n",
        " ",
        "-",
        "10",
        "9",
        "A",
        "Z",
        "_",
        "a",
        "aa",
        "a\u{e4}",
        "b",
        "z",
        "\u{7f}",
        "\u{80}",
        "\u{c4}",
        "\u{df}",
        "\u{e4}",
        "\u{7ff}",
        "\u{800}",
        "\u{d7ff}",
        "\u{e000}",
        "\u{ff21}",
        "\u{ffff}",
        "\u{10000}",
        "\u{1f980}",
        "\u{10ffff}",
    ];
    let mut shuffled = ordered;
    shuffled.reverse();
    shuffled.rotate_left(11);
    put_keys(&shuffled)?;
    expect_keys(&scan("")?, &ordered)
}

fn a_prefix_may_end_in_the_last_character() -> Outcome {
    put_keys(&["a\u{10fffe}", "a\u{10ffff}", "a\u{10ffff}b", "b", "\u{10ffff}", "\u{10ffff}\u{10ffff}"])?;
    expect_keys(&scan("a\u{10ffff}")?, &["a\u{10ffff}", "a\u{10ffff}b"])?;
    expect_keys(&scan("\u{10ffff}")?, &["\u{10ffff}", "\u{10ffff}\u{10ffff}"])?;
    expect_keys(&scan("\u{10ffff}\u{10ffff}")?, &["\u{10ffff}\u{10ffff}"])
}

fn a_prefix_may_end_in_the_last_one_byte_character() -> Outcome {
    put_keys(&["a~", "a\u{7f}", "a\u{7f}\u{7f}", "a\u{7f}\u{10ffff}", "a\u{80}", "b"])?;
    expect_keys(&scan("a\u{7f}")?, &["a\u{7f}", "a\u{7f}\u{7f}", "a\u{7f}\u{10ffff}"])
}

fn characters_that_share_bytes_are_apart() -> Outcome {
    // Both begin with the byte C3. U+00FF is the last character that does.
    put_keys(&["\u{e8}1", "\u{e9}1", "\u{e9}2", "\u{ea}1", "\u{ff}1", "\u{100}1"])?;
    expect_keys(&scan("\u{e9}")?, &["\u{e9}1", "\u{e9}2"])?;
    expect_keys(&scan("\u{ff}")?, &["\u{ff}1"])
}

fn a_prefix_of_100_kb_is_refused() -> Outcome {
    let prefix = "a".repeat(100_000);
    read(|tx| expect_limit(tx.scan(NS, &prefix), LimitKind::KeyBytes, limits().key_bytes, 100_000))
}

fn own_puts_are_merged_in() -> Outcome {
    put_keys(&["b", "d"])?;
    write(|tx| {
        stage_keys(tx, &["e", "c", "a"])?;
        expect_keys(&tx.scan(NS, "")?, &["a", "b", "c", "d", "e"])
    })?;
    expect_keys(&scan("")?, &["a", "b", "c", "d", "e"])
}

fn own_overwrites_and_deletes_are_merged_in() -> Outcome {
    put_keys(&["a", "b", "c"])?;
    put("count", "5")?;
    write(|tx| {
        tx.put(NS, "a", b"new")?;
        tx.delete(NS, "b")?;
        tx.increment(NS, "count", 2)?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "new"), ("c", "c"), ("count", "7")])
    })?;
    expect_entries(&scan("")?, &[("a", "new"), ("c", "c"), ("count", "7")])
}

fn own_writes_outside_the_prefix_stay_out() -> Outcome {
    put_keys(&["b1", "b2"])?;
    write(|tx| {
        stage_keys(tx, &["a", "b", "c", "b3"])?;
        tx.put("another", "b4", b"")?;
        expect_keys(&tx.scan(NS, "b")?, &["b", "b1", "b2", "b3"])?;
        expect_keys(&tx.scan("another", "")?, &["b4"])
    })?;
    Ok(())
}

fn a_row_put_again_after_its_delete_is_there_once() -> Outcome {
    put_keys(&["a", "b"])?;
    write(|tx| {
        tx.delete(NS, "a")?;
        tx.put(NS, "a", b"again")?;
        expect_entries(&tx.scan(NS, "")?, &[("a", "again"), ("b", "b")])
    })?;
    expect_entries(&scan("")?, &[("a", "again"), ("b", "b")])
}

/// Commits rows that fill the largest list exactly, and returns their count.
fn put_largest_result() -> Outcome<usize> {
    let rows = rows_of_a_result("row", LIST_ENTRY_BYTES);
    for (key, value) in &rows {
        put(key, value)?;
    }
    Ok(rows.len())
}

fn a_result_at_the_bound_passes() -> Outcome {
    let count = put_largest_result()?;
    let found = scan("")?;
    let bytes: usize = found.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
    expect_eq(bytes as u64 + LIST_ENTRY_BYTES * count as u64, limits().result_bytes)?;
    expect_eq(found.len(), count)
}

fn a_result_over_the_bound_is_refused() -> Outcome {
    let max = limits().result_bytes;
    put_largest_result()?;
    put("z", "")?;
    read(|tx| {
        expect_limit_passed(tx.scan(NS, ""), LimitKind::ResultBytes, max)?;
        expect_entries(&tx.scan(NS, "z")?, &[("z", "")])
    })
}

fn own_writes_count_for_the_bound() -> Outcome {
    let max = limits().result_bytes;
    put_largest_result()?;
    write(|tx| {
        tx.put(NS, "a", b"")?;
        expect_limit_passed(tx.scan(NS, ""), LimitKind::ResultBytes, max)?;
        tx.delete(NS, "a")?;
        tx.delete(NS, "row000")?;
        tx.put(NS, "b", b"fits again")?;
        expect_value(tx.scan(NS, "")?.into_iter().next().map(|first| first.value), "fits again")
    })?;
    Ok(())
}
