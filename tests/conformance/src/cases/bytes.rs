//! Values of any bytes, and names of any text.

use super::Case;
use crate::check::*;

pub(crate) const CASES: &[Case] = named!("bytes":
    a_value_holds_all_256_bytes,
    a_value_of_zeros_keeps_its_length,
    names_hold_nul,
    names_hold_what_other_languages_quote,
    characters_are_not_normalised,
    a_namespace_and_a_key_do_not_run_together,
    an_empty_namespace_and_an_empty_key_are_names,
    the_longest_names_can_be_four_byte_characters,
);

fn a_value_holds_all_256_bytes() -> Outcome {
    let all: Vec<u8> = (0..=u8::MAX).chain((0..=u8::MAX).rev()).collect();
    put("all", &all)?;
    expect_value(get("all")?, &all)?;
    let entries = scan("all")?;
    expect_eq(entries.into_iter().map(|entry| entry.value).collect(), vec![all])
}

fn a_value_of_zeros_keeps_its_length() -> Outcome {
    put("zeros", [0; 1000])?;
    expect_value(get("zeros")?, [0; 1000])
}

fn names_hold_nul() -> Outcome {
    let names = ["\0", "\0\0", "a", "a\0", "a\0b", "a\0\0b"];
    each_name_is_a_row_of_its_own(&names)
}

fn names_hold_what_other_languages_quote() -> Outcome {
    let names = [
        "'",
        "''",
        "\"",
        "`",
        "\\",
        "\\'",
        "'; DROP TABLE rows; --",
        "$1",
        "?1",
        ":key",
        "%s",
        "{}",
        "\\x00",
        "\r\n",
        "\t",
        " ",
        "../../etc/passwd",
        "\u{1f980}",
        "\u{1f469}\u{200d}\u{1f680}",
        "\u{202e}abc",
        "NULL",
        "null",
    ];
    each_name_is_a_row_of_its_own(&names)
}

/// Puts a row for each pair of names. Expects each row to have its own value, and no other row to
/// exist.
fn each_name_is_a_row_of_its_own(names: &[&str]) -> Outcome {
    let value = |ns: &str, key: &str| format!("{ns:?} / {key:?}");
    for ns in names {
        write(|tx| names.iter().try_for_each(|key| Ok(tx.put(ns, key, value(ns, key).as_bytes())?)))?;
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    read(|tx| {
        for ns in names {
            for key in names {
                expect_value(tx.get(ns, key)?, value(ns, key))?;
            }
            expect_keys(&tx.scan(ns, "")?, &sorted)?;
        }
        Ok(())
    })
}

fn characters_are_not_normalised() -> Outcome {
    let (composed, combined) = ("caf\u{e9}", "cafe\u{301}");
    write(|tx| {
        tx.put(NS, composed, b"composed")?;
        Ok(tx.put(NS, combined, b"combined")?)
    })?;
    expect_entries(&scan("")?, &[(combined, "combined"), (composed, "composed")])?;
    expect_keys(&scan("caf\u{e9}")?, &[composed])?;
    expect_keys(&scan("cafe")?, &[combined])
}

fn a_namespace_and_a_key_do_not_run_together() -> Outcome {
    let places = [
        ("a", "bc"),
        ("ab", "c"),
        ("abc", ""),
        ("", "abc"),
        ("a/b", "c"),
        ("a", "b/c"),
        ("a\0", "bc"),
        ("a", "\0bc"),
    ];
    write(|tx| {
        for (ns, key) in places {
            tx.put(ns, key, format!("{ns:?}, {key:?}").as_bytes())?;
        }
        Ok(())
    })?;
    read(|tx| {
        for (ns, key) in places {
            expect_value(tx.get(ns, key)?, format!("{ns:?}, {key:?}"))?;
        }
        expect_keys(&tx.scan("a", "")?, &["\0bc", "b/c", "bc"])?;
        expect_keys(&tx.scan("ab", "")?, &["c"])?;
        expect_keys(&tx.scan("", "")?, &["abc"])
    })
}

fn an_empty_namespace_and_an_empty_key_are_names() -> Outcome {
    write(|tx| {
        tx.put("", "", b"both empty")?;
        tx.put("", "key", b"namespace empty")?;
        Ok(tx.put(NS, "", b"key empty")?)
    })?;
    read(|tx| {
        expect_value(tx.get("", "")?, "both empty")?;
        expect_entries(&tx.scan("", "")?, &[("", "both empty"), ("key", "namespace empty")])?;
        expect_entries(&tx.scan(NS, "")?, &[("", "key empty")])
    })?;
    write(|tx| Ok(tx.delete("", "")?))?;
    expect_keys(&read(|tx| Ok(tx.scan("", "")?))?, &["key"])
}

fn the_longest_names_can_be_four_byte_characters() -> Outcome {
    let limits = limits();
    let longest = |bytes: u64, last: char| {
        let mut name = "\u{1d11e}".repeat(bytes as usize / 4 - 1);
        name.push(last);
        name
    };
    let ns = longest(limits.namespace_bytes, '\u{1f980}');
    let [first, second] = ['\u{1f980}', '\u{1f981}'].map(|last| longest(limits.key_bytes, last));
    write(|tx| {
        tx.put(&ns, &second, b"second")?;
        Ok(tx.put(&ns, &first, b"first")?)
    })?;
    read(|tx| {
        expect_value(tx.get(&ns, &first)?, "first")?;
        expect_entries(&tx.scan(&ns, &second)?, &[(&second, "second")])?;
        expect_keys(&tx.scan(&ns, "\u{1d11e}")?, &[&first, &second])
    })
}
