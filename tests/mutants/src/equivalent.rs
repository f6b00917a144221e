//! The defects that change nothing a test could see.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::tree::Mutant;

/// The list of `equivalent.txt`: a line with a reason after `#`, and then the defects it holds for,
/// as the tool prints them without the line number.
pub(crate) struct Equivalent(BTreeSet<String>);

impl Equivalent {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut keys, mut has_reason) = (BTreeSet::new(), false);
        for line in text.lines().map(str::trim) {
            match line {
                "" => has_reason = false,
                reason if reason.starts_with('#') => has_reason = true,
                key => {
                    ensure!(has_reason, "no reason is given for {key:?}; put a line with # before it");
                    keys.insert(key.to_string());
                }
            }
        }
        Ok(Self(keys))
    }

    /// The listed defects of these files that no longer exist.
    pub(crate) fn stale<'a>(&'a self, mutants: &'a [Mutant]) -> impl Iterator<Item = &'a String> {
        let files: BTreeSet<_> = mutants.iter().map(|mutant| mutant.file.as_str()).collect();
        let keys: BTreeSet<_> = mutants.iter().map(|mutant| mutant.key.as_str()).collect();
        let of_files = move |key: &&String| key.split(' ').next().is_some_and(|file| files.contains(file));
        self.0.iter().filter(of_files).filter(move |key| !keys.contains(key.as_str()))
    }

    pub(crate) fn contains(&self, mutant: &Mutant) -> bool {
        self.0.contains(&mutant.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_without_a_reason_is_refused() {
        assert!(Equivalent::parse("# faster only\na b: `c` becomes `d`\n").is_ok());
        assert!(Equivalent::parse("# faster only\n\na b: `c` becomes `d`\n").is_err());
    }
}
