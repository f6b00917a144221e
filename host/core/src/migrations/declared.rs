//! Checks the steps that a component declares against those that were applied.

use std::collections::HashSet;

use super::entry::AppliedMigration;
use super::{LEDGER_NAMESPACE, Migration};
use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// Bytes of a SHA-256.
const CHECKSUM_BYTES: usize = 32;

/// A set of steps with valid names and checksums.
pub(crate) struct Declared {
    component: String,
    steps: Vec<Migration>,
}

impl Declared {
    /// Checks the steps that a guest passed.
    pub(crate) fn new(component: String, steps: Vec<Migration>, limits: &Limits) -> Result<Self> {
        limits.check(LimitKind::TransactionMutations, steps.len() as u64)?;
        check_name("the name of a component", &component, 0, limits)?;
        for step in &steps {
            check_name("the id of a migration", &step.id, component.len() as u64 + 1, limits)?;
            if step.checksum.len() != CHECKSUM_BYTES {
                return Err(Error::invalid_argument(format!(
                    "the checksum of the migration {:?} has {} bytes; use a SHA-256 of {CHECKSUM_BYTES} bytes",
                    step.id,
                    step.checksum.len()
                )));
            }
        }
        let mut ids = HashSet::with_capacity(steps.len());
        if let Some(twice) = steps.iter().find(|step| !ids.insert(step.id.as_str())) {
            return Err(Error::invalid_argument(format!(
                "the migration {:?} is declared twice; ids must be unique within a component",
                twice.id
            )));
        }
        Ok(Self { component, steps })
    }

    pub(crate) fn component(&self) -> &str {
        &self.component
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps after the applied ones, which must be the first of the set, in order and with
    /// equal checksums.
    pub(super) fn pending(&self, applied: &[AppliedMigration]) -> Result<&[Migration]> {
        for (index, entry) in applied.iter().enumerate() {
            match self.steps.get(index) {
                Some(step) if step.id == entry.id => self.check_unedited(step, entry)?,
                found => return Err(self.mismatch(entry, found)),
            }
        }
        Ok(self.steps.get(applied.len()..).unwrap_or_default())
    }

    fn check_unedited(&self, step: &Migration, entry: &AppliedMigration) -> Result<()> {
        if hex::encode(&step.checksum) == entry.checksum {
            return Ok(());
        }
        Err(Error::MigrationMismatch(format!(
            "the migration {:?} of {:?} was edited after it was applied; restore it and append a new one",
            step.id, self.component
        )))
    }

    /// The error for an applied step that is not at its position in the set. `found` is the step
    /// there.
    fn mismatch(&self, entry: &AppliedMigration, found: Option<&Migration>) -> Error {
        let (id, component, ordinal) = (&entry.id, &self.component, entry.ordinal);
        let declared = self.steps.iter().position(|step| step.id == *id);
        Error::MigrationMismatch(match (declared, found) {
            (Some(index), _) => format!(
                "the migration {id:?} of {component:?} was reordered: it was applied as number {ordinal} but is \
                 declared as number {}",
                index + 1
            ),
            (None, Some(found)) => format!(
                "the migration {id:?} of {component:?}, applied as number {ordinal}, was removed: {:?} is declared in \
                 its place",
                found.id
            ),
            (None, None) => format!(
                "the store is newer than this set: it has the migration {id:?} of {component:?}, number {ordinal}, but \
                 only {} are declared",
                self.steps.len()
            ),
        })
    }
}

/// Checks a name, which becomes part of a row's key, after `before` bytes, and of error messages.
pub(super) fn check_name(what: &str, name: &str, before: u64, limits: &Limits) -> Result<()> {
    limits.check(LimitKind::KeyBytes, before + name.len() as u64)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Error::invalid_argument(format!(
            "{what} is {}; use a text without control characters, because it is part of a key in {LEDGER_NAMESPACE:?}",
            if name.is_empty() { "empty".to_string() } else { format!("{name:?}") }
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str) -> Migration {
        Migration { id: id.to_string(), checksum: vec![id.len() as u8; 32] }
    }

    fn declared(ids: &[&str]) -> Result<Declared> {
        let steps = ids.iter().map(|id| step(id)).collect();
        Declared::new("tasks".to_string(), steps, &Limits::default())
    }

    fn applied(ids: &[&str]) -> Vec<AppliedMigration> {
        let entry = |(id, ordinal): (&&str, u64)| AppliedMigration {
            component: "tasks".to_string(),
            id: id.to_string(),
            ordinal,
            checksum: hex::encode(step(id).checksum),
            applied_at: 1,
            larder: String::new(),
        };
        ids.iter().zip(1..).map(entry).collect()
    }

    fn pending(ids: &[&str], of: &[&str]) -> Result<Vec<String>> {
        let declared = declared(ids)?;
        Ok(declared.pending(&applied(of))?.iter().map(|step| step.id.clone()).collect())
    }

    fn mismatch(ids: &[&str], of: &[&str]) -> String {
        match pending(ids, of) {
            Err(Error::MigrationMismatch(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_follows_the_applied_steps_is_pending() {
        assert_eq!(pending(&["a", "b", "c"], &[]).unwrap(), ["a", "b", "c"]);
        assert_eq!(pending(&["a", "b", "c"], &["a"]).unwrap(), ["b", "c"]);
        assert!(pending(&["a", "b"], &["a", "b"]).unwrap().is_empty());
    }

    #[test]
    fn a_mismatch_says_which_step_and_how() {
        assert_eq!(
            mismatch(&["b", "a"], &["a", "b"]),
            "the migration \"a\" of \"tasks\" was reordered: it was applied as number 1 but is declared as number 2"
        );
        assert_eq!(
            mismatch(&["a", "c"], &["a", "b"]),
            "the migration \"b\" of \"tasks\", applied as number 2, was removed: \"c\" is declared in its place"
        );
        assert_eq!(
            mismatch(&["a"], &["a", "b"]),
            "the store is newer than this set: it has the migration \"b\" of \"tasks\", number 2, but only 1 are declared"
        );
        let mut edited = applied(&["a"]);
        edited[0].checksum = "00".repeat(32);
        let error = declared(&["a"]).unwrap().pending(&edited).unwrap_err();
        assert_eq!(
            error.to_string(),
            "migrations do not match: the migration \"a\" of \"tasks\" was edited after it was applied; restore it and \
             append a new one"
        );
    }

    #[test]
    fn a_step_put_in_the_middle_is_found() {
        assert!(mismatch(&["a", "new", "b"], &["a", "b"]).contains("\"b\" of \"tasks\" was reordered"));
    }

    #[test]
    fn a_set_that_is_none_is_refused() {
        assert!(
            matches!(declared(&["a", "b", "a"]), Err(Error::InvalidArgument(text)) if text.contains("\"a\""))
        );
        assert!(matches!(declared(&[""]), Err(Error::InvalidArgument(_))));
        assert!(matches!(declared(&["a\0b"]), Err(Error::InvalidArgument(_))));
        let short = Migration { id: "a".to_string(), checksum: vec![0; 31] };
        let refused = Declared::new("tasks".to_string(), vec![short], &Limits::default());
        assert!(matches!(refused, Err(Error::InvalidArgument(text)) if text.contains("31")));
        assert!(Declared::new(String::new(), Vec::new(), &Limits::default()).is_err());
    }

    #[test]
    fn component_and_id_together_are_a_key() {
        let limits = Limits::default().key_bytes(10);
        let fits = |id: &str| Declared::new("tasks".to_string(), vec![step(id)], &limits);
        fits("1234").map(drop).unwrap();
        let Err(Error::LimitExceeded(exceeded)) = fits("12345") else { panic!("it fits") };
        assert_eq!((exceeded.kind, exceeded.max, exceeded.requested), (LimitKind::KeyBytes, 10, 11));
    }
}
