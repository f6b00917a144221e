//! The environment that completes a data-source name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Environment variables, home directory and user name that complete a data-source name.
///
/// [`Environment::of_process`] holds what libpq reads. An embedder that must not depend on its own
/// environment passes [`Environment::empty`], or builds an environment:
///
/// ```
/// use larder_postgres::{Environment, PostgresOptions};
///
/// let environment = Environment::empty().user("ann").variable("PGHOST", "db.internal");
/// let options = PostgresOptions::parse_with("dbname=plugins", &environment)?;
/// # drop(options); Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    user: Option<String>,
}

/// The prefix of the variables that larder reads.
const PREFIX: &str = "PG";

impl Environment {
    /// Returns a copy of the environment of this process.
    ///
    /// Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with(PREFIX));
        Self { variables: variables.collect(), home: std::env::home_dir(), user: whoami::username().ok() }
    }

    /// Returns an environment without variables, home directory and user name.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Sets an environment variable, such as `PGHOST`.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets the home directory, which holds `.pgpass`, `.pg_service.conf` and `.postgresql/`.
    #[must_use]
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Sets the user name to log in with if no option names a user.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Returns a variable. An empty one counts as unset, as in libpq.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns the path of a file in the home directory.
    pub(crate) fn at_home(&self, path: &str) -> Option<PathBuf> {
        self.home.as_deref().filter(|home| !home.as_os_str().is_empty()).map(|home: &Path| home.join(path))
    }

    pub(crate) fn user_name(&self) -> Option<&str> {
        self.user.as_deref()
    }
}

impl std::fmt::Debug for Environment {
    /// Omits the values, because one may be a password.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        formatter.debug_struct("Environment").field("variables", &names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_missing_and_no_value_is_shown() {
        let environment = Environment::empty().variable("PGHOST", "").variable("PGPASSWORD", "hunter2");
        assert_eq!(environment.get("PGHOST"), None);
        assert_eq!(environment.get("PGPASSWORD"), Some("hunter2"));
        assert!(!format!("{environment:?}").contains("hunter2"));
    }

    #[test]
    fn without_a_home_directory_no_file_is_looked_for() {
        assert_eq!(Environment::empty().at_home(".pgpass"), None);
        assert_eq!(Environment::empty().home("").at_home(".pgpass"), None);
        assert_eq!(Environment::empty().home("/h").at_home(".pgpass"), Some(PathBuf::from("/h/.pgpass")));
    }
}
