//! The packages of the catalog.

use std::fmt;

use larder_guest::Record;
use serde::{Deserialize, Serialize};

use crate::stanza::Stanza;

/// A package, one row of the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) architecture: String,
    pub(crate) version: String,
    pub(crate) summary: String,
    /// Names of all packages that it can depend on, sorted. Includes alternatives.
    pub(crate) depends: Vec<String>,
}

impl Package {
    /// The index from a package to the packages that depend on it.
    pub(crate) const NEEDS: &'static str = "needs";

    /// The index from an architecture to its packages.
    pub(crate) const ARCHITECTURE: &'static str = "architecture";

    /// Prefix of the keys of a package, for all architectures. A name has no space, and each of its
    /// characters sorts after a space, so keys are in the order of names.
    pub(crate) fn key_prefix(name: &str) -> String {
        format!("{name} ")
    }

    /// Takes the catalog's fields from a stanza.
    ///
    /// # Errors
    /// If the stanza has no package name, or a name with spaces.
    pub(crate) fn from_stanza(stanza: &Stanza) -> Result<Self, String> {
        let field = |name: &str| stanza.get(name).unwrap_or_default();
        let name = field("Package").trim();
        if name.is_empty() {
            return Err(format!("the stanza at line {} has no field `Package`", stanza.line()));
        }
        if name.contains(char::is_whitespace) {
            return Err(format!(
                "the stanza at line {} has the package name {name:?}; a name cannot have spaces",
                stanza.line()
            ));
        }
        let relations = [field("Pre-Depends"), field("Depends")];
        let mut depends: Vec<String> = relations.into_iter().flat_map(names).collect();
        depends.sort();
        depends.dedup();
        Ok(Self {
            name: name.to_string(),
            architecture: field("Architecture").trim().to_string(),
            version: field("Version").trim().to_string(),
            summary: field("Description").lines().next().unwrap_or_default().trim().to_string(),
            depends,
        })
    }

    /// Bytes of the row and its index entries, approximately. Dependencies and the architecture
    /// count twice, as both the row and an index entry hold them.
    pub(crate) fn stored_bytes(&self) -> usize {
        let Self { name, architecture, version, summary, depends } = self;
        let key = "packages".len() + name.len() + architecture.len() + 8;
        let depends: usize = depends.iter().map(|depended| 2 * depended.len() + key).sum();
        2 * key
            + architecture.len()
            + name.len()
            + architecture.len()
            + version.len()
            + summary.len()
            + depends
    }
}

impl Record for Package {
    const INDEXES: &'static [&'static str] = &[Self::NEEDS, Self::ARCHITECTURE];

    fn key(&self) -> String {
        format!("{}{}", Self::key_prefix(&self.name), self.architecture)
    }

    fn index_values(&self, index: &str) -> Vec<String> {
        if index == Self::NEEDS { self.depends.clone() } else { vec![self.architecture.clone()] }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, architecture, version, summary, depends } = self;
        writeln!(formatter, "{name} {version} ({architecture})\n    {summary}")?;
        if depends.is_empty() {
            Ok(())
        } else {
            writeln!(formatter, "    depends on: {}", depends.join(", "))
        }
    }
}

/// Extracts the package names of a relation: `a (>= 1) | b, c:any [amd64]` has a, b and c.
fn names(relation: &str) -> Vec<String> {
    let name = |alternative: &str| {
        let end = |character: char| character.is_whitespace() || "(:[<".contains(character);
        alternative.trim().split(end).next().unwrap_or_default().to_string()
    };
    relation.split([',', '|']).map(name).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stanza::Stanzas;

    fn package(text: &str) -> Result<Package, String> {
        let stanza = Stanzas::new(text.as_bytes()).next().unwrap().unwrap();
        Package::from_stanza(&stanza)
    }

    #[test]
    fn dependencies_are_names_without_versions_and_architectures() {
        let text = "Package: p\nPre-Depends: libc6 (>= 2.34)\ndepends: a (>= 1:2) | b,\n c:any, d[amd64], a <!nocheck>,\n";
        assert_eq!(package(text).unwrap().depends, ["a", "b", "c", "d", "libc6"]);
    }

    #[test]
    fn the_summary_is_the_first_line_of_the_description() {
        let package = package("Package: p\nDescription: short\n long\n .\n longer\n").unwrap();
        assert_eq!(package.summary, "short");
    }

    #[test]
    fn a_stanza_without_a_package_is_refused() {
        assert_eq!(package("\nVersion: 1\n").unwrap_err(), "the stanza at line 2 has no field `Package`");
    }

    #[test]
    fn a_name_with_spaces_is_refused() {
        let expected = "the stanza at line 1 has the package name \"two words\"; a name cannot have spaces";
        assert_eq!(package("Package: two words\n").unwrap_err(), expected);
    }
}
