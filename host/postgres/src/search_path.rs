//! Parser for the setting `search_path`, and quoting of identifiers and literals.

/// The maximum length of an identifier in bytes. The server truncates longer ones.
const NAME_BYTES_MAX: usize = 63;

/// Returns the names in the setting `search_path`, with `$user` replaced by the role.
///
/// The schemas need not exist, and the role need not have access to them.
pub(crate) fn names(setting: &str, role: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = setting.chars().peekable();
    loop {
        while rest.next_if(|next| next.is_whitespace() || *next == ',').is_some() {}
        let Some(first) = rest.peek().copied() else { return names };
        let mut name = String::new();
        if first == '"' {
            rest.next();
            while let Some(next) = rest.next() {
                // A quote inside a name is doubled.
                if next == '"' && rest.next_if_eq(&'"').is_none() {
                    break;
                }
                name.push(next);
            }
        } else {
            while let Some(next) = rest.next_if(|next| *next != ',' && !next.is_whitespace()) {
                name.push(next.to_ascii_lowercase());
            }
        }
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        names.push(if name == "$user" { role.to_string() } else { name });
    }
}

/// Quotes an identifier for a statement or a setting.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string literal. The result does not depend on `standard_conforming_strings`.
pub(crate) fn literal(text: &str) -> String {
    let quoted = format!("'{}'", text.replace('\'', "''").replace('\\', "\\\\"));
    if text.contains('\\') { format!("E{quoted}") } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_path_is_read_as_the_server_reads_it() {
        let read = |setting| names(setting, "ann");
        assert_eq!(read("\"$user\", public"), ["ann", "public"]);
        assert_eq!(read("$user,Public , \"Größe\"\" ,x\""), ["ann", "public", "Größe\" ,x"]);
        assert_eq!(read("\"\""), [""]);
        assert_eq!(read(" "), [""; 0]);
        assert_eq!(read("\"open"), ["open"]);
    }

    #[test]
    fn a_name_is_cut_off_at_a_character_as_the_server_does() {
        let names = |name: &str| names(name, "ann").pop().unwrap();
        assert_eq!([63, 64, 200].map(|length| names(&"a".repeat(length)).len()), [63; 3]);
        assert_eq!(names(&quoted(&"é".repeat(32))), "é".repeat(31));
    }

    #[test]
    fn a_quoted_name_is_read_as_itself() {
        for name in ["a", "A b", "a\"b,c", "größe"] {
            assert_eq!(names(&quoted(name), "ann"), [name]);
        }
    }
}
