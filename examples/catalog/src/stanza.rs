//! Stanzas of fields, the format of Debian's control files.

use std::io::BufRead;

/// A group of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stanza {
    line: usize,
    fields: Vec<(String, String)>,
}

impl Stanza {
    /// The value of a field. The case of its name does not matter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The line of the first field.
    pub(crate) fn line(&self) -> usize {
        self.line
    }

    fn add(&mut self, text: &str, line: usize) -> Result<(), String> {
        if text.starts_with([' ', '\t']) {
            let (_, value) = self
                .fields
                .last_mut()
                .ok_or_else(|| format!("line {line} is indented, but continues no field"))?;
            value.push('\n');
            value.push_str(text.trim());
            return Ok(());
        }
        let (name, value) = text.split_once(':').ok_or_else(|| format!("line {line} has no colon"))?;
        if self.get(name).is_some() {
            return Err(format!("line {line} repeats the field {name:?} of its stanza"));
        }
        if self.fields.is_empty() {
            self.line = line;
        }
        self.fields.push((name.to_string(), value.trim().to_string()));
        Ok(())
    }
}

/// Reads one stanza at a time, so that memory holds one only.
pub(crate) struct Stanzas<R> {
    input: R,
    line: usize,
}

impl<R: BufRead> Stanzas<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, line: 0 }
    }

    fn read(&mut self) -> Result<Option<Stanza>, String> {
        let mut stanza = Stanza::default();
        while let Some(text) = self.read_line()? {
            match text.trim_end() {
                "" if stanza.fields.is_empty() => {}
                "" => return Ok(Some(stanza)),
                text if text.starts_with('#') => {}
                text => stanza.add(text, self.line)?,
            }
        }
        Ok(Some(stanza).filter(|stanza| !stanza.fields.is_empty()))
    }

    fn read_line(&mut self) -> Result<Option<String>, String> {
        let mut bytes = Vec::new();
        self.line += 1;
        let line = self.line;
        let count = self
            .input
            .read_until(b'\n', &mut bytes)
            .map_err(|error| format!("cannot read line {line}: {error}"))?;
        if count == 0 {
            return Ok(None);
        }
        String::from_utf8(bytes).map(Some).map_err(|_| format!("line {line} is not UTF-8"))
    }
}

impl<R: BufRead> Iterator for Stanzas<R> {
    type Item = Result<Stanza, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<Stanza>, String> {
        Stanzas::new(text).collect()
    }

    #[test]
    fn blank_lines_part_stanzas_however_many_there_are() {
        let stanzas = read(b"\n\nA: 1\r\nB: 2\n \n\n# note\nA: 3").unwrap();
        let found: Vec<_> = stanzas.iter().map(|stanza| (stanza.line(), stanza.get("a"))).collect();
        assert_eq!(found, [(3, Some("1")), (8, Some("3"))]);
    }

    #[test]
    fn a_value_goes_on_over_indented_lines_and_may_hold_colons() {
        let stanzas = read(b"A: http://x\n more\n\tand more\nB:\n").unwrap();
        assert_eq!(stanzas[0].get("A"), Some("http://x\nmore\nand more"));
        assert_eq!(stanzas[0].get("b"), Some(""));
    }

    #[test]
    fn what_is_no_stanza_is_refused_with_its_line() {
        assert_eq!(read(b"A: 1\nno colon\n").unwrap_err(), "line 2 has no colon");
        assert_eq!(read(b" indented\n").unwrap_err(), "line 1 is indented, but continues no field");
        assert_eq!(read(b"A: 1\na: 2\n").unwrap_err(), "line 2 repeats the field \"a\" of its stanza");
        assert_eq!(read(b"A: \xff\n").unwrap_err(), "line 1 is not UTF-8");
    }

    #[test]
    fn empty_input_has_no_stanza() {
        assert_eq!(read(b"").unwrap(), []);
    }
}
