//! The name of the table that records the applied steps of one set.

/// The name of the table that records the applied steps of one set.
///
/// Each set has a table of its own, so several sets can share a database.
///
/// ```
/// use larder_schema::Ledger;
///
/// assert_eq!(Ledger::new("platform_migrations")?.name(), "platform_migrations");
/// assert!(Ledger::new("larder_migrations").is_err());
/// # Ok::<(), larder_schema::LedgerNameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ledger(String);

impl Ledger {
    /// The longest table name in Postgres.
    const NAME_MAX: usize = 63;

    /// Prefixes of the names that belong to larder and the engines.
    const RESERVED: [&str; 3] = ["larder_", "sqlite_", "pg_"];

    /// Creates the ledger of an embedder's own steps.
    ///
    /// # Errors
    ///
    /// - [`LedgerNameError::Malformed`] unless the name starts with a lower-case ASCII letter or
    ///   `_`, continues with these and digits, and has at most 63 bytes.
    /// - [`LedgerNameError::Reserved`] if it begins with `larder_`, `sqlite_` or `pg_`.
    pub fn new(name: impl Into<String>) -> Result<Self, LedgerNameError> {
        let name = name.into();
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !begins || name.len() > Self::NAME_MAX || !name.bytes().all(is_plain) {
            return Err(LedgerNameError::Malformed);
        }
        if Self::RESERVED.iter().any(|reserved| name.starts_with(reserved)) {
            return Err(LedgerNameError::Reserved);
        }
        Ok(Self(name))
    }

    /// The ledger of larder's own tables.
    pub fn larder() -> Self {
        Self("larder_migrations".to_string())
    }

    /// The table's name. It needs no escapes within double quotes.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// The reason why a name cannot be that of a [`Ledger`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerNameError {
    /// The name would need escapes in a statement, or is too long.
    #[error(
        "a ledger's name must be a lower-case ASCII letter or `_`, then letters, digits and `_`, at most {} in all; \
         use a name like `platform_migrations`",
        Ledger::NAME_MAX
    )]
    Malformed,
    /// The name belongs to larder or to an engine.
    #[error(
        "names that begin with `larder_`, `sqlite_` or `pg_` are reserved; choose another name for the ledger"
    )]
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_has_a_plain_name_that_is_not_taken() {
        for name in ["a", "_a1", "platform_migrations", &"a".repeat(63)] {
            assert_eq!(Ledger::new(name).unwrap().name(), name);
        }
        let malformed = ["", "1a", "Mine", "a b", "a\"; DROP TABLE x", "größe", "a.b", &"a".repeat(64)];
        for name in malformed {
            assert_eq!(Ledger::new(name), Err(LedgerNameError::Malformed), "{name}");
        }
        for name in ["larder_migrations", "larder_x", "sqlite_master", "pg_class"] {
            assert_eq!(Ledger::new(name), Err(LedgerNameError::Reserved), "{name}");
        }
        assert!(Ledger::new(Ledger::larder().name()).is_err());
    }
}
