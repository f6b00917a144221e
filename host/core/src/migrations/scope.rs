//! The component names for which a guest may declare migrations.

use std::collections::BTreeSet;

use super::declared::check_name;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// The component names for which a guest may declare migrations; the host refuses all others.
///
/// A guest that declares steps under the name of another component changes that component's ledger,
/// and the other component then gets [`Error::MigrationMismatch`]. The host therefore binds each
/// guest to names that the host chose.
///
/// ```
/// use larder_core::MigrationScope;
/// let scope = MigrationScope::only(["tasks", "search"]).unwrap();
/// assert!(scope.permits("tasks") && !scope.permits("billing"));
/// assert!(!MigrationScope::default().permits("tasks"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MigrationScope {
    /// No name.
    #[default]
    None,
    /// These names.
    Only(BTreeSet<String>),
    /// Every name, for a component that alone uses its stores.
    Any,
}

impl MigrationScope {
    /// Permits these names.
    ///
    /// They are the component's name, and those of libraries in it that declare their own steps.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if there is no name, or if a name is empty, has control
    /// characters, or is longer than a key.
    pub fn only(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        if names.is_empty() {
            return Err(Error::invalid_argument("name at least one component"));
        }
        for name in &names {
            check_name("the name of a component", name, 0, &Limits::default()).map_err(
                |error| match error {
                    Error::LimitExceeded(_) => Error::invalid_argument(error.to_string()),
                    error => error,
                },
            )?;
        }
        Ok(Self::Only(names))
    }

    /// Whether a guest may declare migrations under this component name.
    pub fn permits(&self, component: &str) -> bool {
        match self {
            Self::None => false,
            Self::Only(names) => names.contains(component),
            Self::Any => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_permits_its_names_and_no_name_that_contains_one() {
        let scope = MigrationScope::only(["tasks"]).unwrap();
        assert!(scope.permits("tasks"));
        for other in ["", "task", "tasks2", "tasks/", "Tasks", "tasks\0a"] {
            assert!(!scope.permits(other), "{other:?}");
        }
        assert!(MigrationScope::Any.permits("tasks") && !MigrationScope::None.permits("tasks"));
    }

    #[test]
    fn a_name_that_no_component_can_have_is_refused() {
        let long = "a".repeat(2_049);
        for name in ["", "a\0b", "a\nb", &long] {
            let refused = MigrationScope::only([name]).unwrap_err();
            assert!(matches!(refused, Error::InvalidArgument(_)), "{name:?}");
            assert_eq!(refused.to_string().matches("invalid argument").count(), 1, "{refused}");
        }
        assert!(matches!(MigrationScope::only([""; 0]), Err(Error::InvalidArgument(_))));
    }
}
