//! The steps that a component declares, as the user of a handle applies them.

use super::declared::Declared;
use super::{Migration, NextMigration};
use crate::call::Mode;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::handle::Handle;
#[cfg(doc)]
use crate::handle::HandleOptions;

impl Handle {
    /// Compares a component's declared steps with those applied, and returns the pending ids in
    /// order.
    ///
    /// The steps that were applied must be the beginning of `declared`. For an empty list nothing
    /// is pending, on any store.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::InvalidArgument`] if a name is empty, repeated or has control characters, or a
    ///   checksum is not a SHA-256.
    /// - [`Error::LimitExceeded`] if a name is too long, there are too many steps, or too many
    ///   transactions are open.
    /// - [`Error::AccessDenied`] if [`HandleOptions::migrations`] does not permit the component.
    ///   The handle also reports an event.
    /// - [`Error::MigrationMismatch`] if an applied step was reordered, removed or edited, or the
    ///   store has more steps than the list.
    /// - [`Error::TimedOut`] or [`Error::Conflict`] if the deadline passes or the host ends the
    ///   snapshot during the read.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub async fn pending_migrations(
        &self,
        component: String,
        declared: Vec<Migration>,
    ) -> Result<Vec<String>> {
        let declared = self.declare("pending-migrations", component, declared)?;
        if declared.is_empty() {
            return Ok(Vec::new());
        }
        let applied = self.begin(Mode::View)?.ledger(declared.component()).await?;
        let pending = declared.pending(&applied)?;
        Ok(pending.iter().map(|step| step.id.clone()).collect())
    }

    /// Begins the first pending step of a component; `None` if all steps are applied.
    ///
    /// The commit of the returned transaction also records the step. It fails with
    /// [`Error::Conflict`] if another instance has applied a step of this component in the
    /// meantime.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the store or the handle was closed.
    /// - [`Error::InvalidArgument`] if a name is empty, repeated or has control characters, or a
    ///   checksum is not a SHA-256.
    /// - [`Error::LimitExceeded`] if a name is too long, there are too many steps, or too many
    ///   transactions are open.
    /// - [`Error::AccessDenied`] if [`HandleOptions::migrations`] does not permit the component, or
    ///   the handle is read-only. The handle also reports an event.
    /// - [`Error::MigrationMismatch`] if an applied step was reordered, removed or edited, or the
    ///   store has more steps than the list.
    /// - [`Error::TimedOut`] or [`Error::Conflict`] if the deadline passes or the host ends the
    ///   snapshot during the read.
    /// - [`Error::Unavailable`], [`Error::Corrupt`] or [`Error::Other`] if the backend fails.
    pub async fn begin_migration(
        &self,
        component: String,
        declared: Vec<Migration>,
    ) -> Result<Option<NextMigration>> {
        let declared = self.declare("begin-migration", component, declared)?;
        if declared.is_empty() {
            return Ok(None);
        }
        let mut transaction = self.begin(Mode::Update)?;
        let applied = transaction.ledger(declared.component()).await?;
        let Some(step) = declared.pending(&applied)?.first() else {
            return Ok(None);
        };
        transaction.record_migration(declared.component(), step, applied.len())?;
        Ok(Some(NextMigration { id: step.id.clone(), transaction }))
    }

    /// Checks the declared steps, and that the user may declare them.
    fn declare(&self, operation: &'static str, component: String, steps: Vec<Migration>) -> Result<Declared> {
        self.check_open()?;
        let declared = Declared::new(component, steps, &self.options.limits)?;
        if self.options.migrations.permits(declared.component()) {
            return Ok(declared);
        }
        let reason = format!(
            "cannot declare migrations of the component {:?}: the host did not bind this name to the instance",
            declared.component()
        );
        Err(self.deny(operation, reason))
    }
}
