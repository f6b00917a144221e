//! The schemas that a session looks for tables in.

/// The most bytes of a name. The server cuts off what is longer.
const NAME_BYTES_MAX: usize = 63;

/// The names in the setting `search_path`, whether there are schemas of these names and the role may use them or not.
/// `$user` stands for the role.
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
                // A quote within is doubled.
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

/// A name as it stands in a statement or a setting.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as it stands in a statement, whatever the server takes a backslash for.
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
