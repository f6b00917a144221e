//! Guest migrations: forward-only steps, each applied once.

use std::collections::HashSet;
use std::fmt;

use crate::error::Error;
use crate::raw;
use crate::raw::types;
use crate::retry::Attempt;
use crate::store::Store;
use crate::transaction::Update;

/// The error that a step's closure returns.
pub type StepError = Box<dyn std::error::Error + Send + Sync>;

/// One forward-only step of a [`MigrationSet`].
///
/// [`migration!`](crate::migration) makes a step whose checksum is that of its closure's tokens.
pub struct Migration {
    id: String,
    checksum: [u8; 32],
    up: Up,
}

type Up = Box<dyn Fn(&Update) -> Result<(), StepError>>;

impl Migration {
    /// Makes a step with an explicit checksum.
    ///
    /// Use it if the tokens of the closure do not determine what the step does, for example if it
    /// runs a script or depends on helper functions. The checksum must change if the effect of the
    /// step changes, and only then. It is usually the SHA-256 of a file.
    pub fn with_checksum(
        id: impl Into<String>,
        checksum: [u8; 32],
        up: impl Fn(&Update) -> Result<(), StepError> + 'static,
    ) -> Self {
        Self { id: id.into(), checksum, up: Box::new(up) }
    }

    /// The step's id, unique within its component.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The step's checksum, by which a store detects an edited step.
    pub fn checksum(&self) -> [u8; 32] {
        self.checksum
    }
}

impl fmt::Debug for Migration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Migration").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Declares a step: an id, and a closure that takes an [`Update`].
///
/// The checksum is the SHA-256 of the closure's tokens, computed at compile time. With it, a store
/// detects a step that was edited after it was applied.
///
/// The checksum depends on every name, literal, punctuation character and bracket in the closure.
/// `1_000` and `1000` are different literals, and renaming a variable changes the checksum.
///
/// The checksum does not depend on formatting, comments, documentation, the id, the compiler's
/// release, or on anything outside the closure: **the body of a function that it calls, the value
/// of a constant that it names, the expansion of a macro**. Write everything that a step depends on
/// in its closure, or give it a checksum with [`Migration::with_checksum`].
///
/// ```
/// use larder_guest::migration;
///
/// let step = migration!("0001_greet", |tx| {
///     tx.put("greetings", "en", "hello")?;
///     Ok(())
/// });
/// let formatted = migration!("0001_greet", |tx| {
///     /* politely */ tx.put("greetings", "en", "hello")?; Ok(())
/// });
/// let edited = migration!("0001_greet", |tx| { tx.put("greetings", "en", "hi")?; Ok(()) });
/// assert_eq!(step.checksum(), formatted.checksum());
/// assert_ne!(step.checksum(), edited.checksum());
/// ```
#[macro_export]
macro_rules! migration {
    ($id:expr, $($up:tt)+) => {
        $crate::Migration::with_checksum($id, $crate::__checksum!($($up)+), $($up)+)
    };
}

/// The migrations of a component, in order.
///
/// A set can include the steps of other components of which the component is composed. Only append
/// to a set. The steps that a store has applied must be the beginning of the set:
/// [`Store::migrate`] detects a step that was reordered, removed or edited, and a store that is
/// newer than the set. Steps are never undone; correct a step with another one.
///
/// The steps of each component are ordered independently. Two components in one store can append to
/// their sets without affecting each other, however they are composed.
///
/// ```no_run
/// use larder_guest::{Error, Migration, MigrationSet, Range, Store, migration};
///
/// fn migrations() -> Result<MigrationSet, Error> {
///     let mut set = MigrationSet::new("tasks");
///     // A step whose checksum is that of the closure's tokens.
///     set.add(migration!("0001_first_list", |tx| {
///         tx.put("lists", "inbox", "")?;
///         Ok(())
///     }))?;
///     // A step that rewrites the existing rows.
///     set.add(migration!("0002_states", |tx| {
///         for entry in tx.iterate("tasks", Range::all()) {
///             let entry = entry?;
///             tx.put("tasks", &entry.key, [b"open ", entry.value.as_slice()].concat())?;
///         }
///         Ok(())
///     }))?;
///     // A step with an explicit checksum: the tokens of a call do not determine its effect.
///     set.add(Migration::with_checksum("0003_defaults", DEFAULTS_SHA256, |tx| {
///         load(tx, DEFAULTS)
///     }))?;
///     // The steps of a library that keeps its own rows in the same store.
///     set.extend(search_index())?;
///     Ok(set)
/// }
///
/// fn search_index() -> MigrationSet {
///     MigrationSet::new("search")
/// }
/// # const DEFAULTS: &str = "";
/// # const DEFAULTS_SHA256: [u8; 32] = [0; 32];
/// # fn load(_: &larder_guest::Update, _: &str) -> Result<(), larder_guest::StepError> { Ok(()) }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let store = Store::open("default")?;
///     for applied in store.migrate(&migrations()?)? {
///         println!("applied {applied}");
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct MigrationSet {
    own: Component,
    others: Vec<Component>,
}

#[derive(Debug)]
struct Component {
    name: String,
    steps: Vec<Migration>,
}

impl MigrationSet {
    /// Makes the empty set of a component.
    ///
    /// The name is stored with every applied step, so it must never change. The host must have
    /// bound it to this component: `larder run` binds the name of the component's file, or the
    /// names given with `--component-name`.
    pub fn new(component: impl Into<String>) -> Self {
        Self { own: Component { name: component.into(), steps: Vec::new() }, others: Vec::new() }
    }

    /// Appends a step.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the id is empty or already in the set. The set is unchanged.
    pub fn add(&mut self, step: Migration) -> Result<&mut Self, Error> {
        self.own.check([&step])?;
        self.own.steps.push(step);
        Ok(self)
    }

    /// Appends the steps of another set.
    ///
    /// If this set already has steps of the same component, the new steps follow them. Otherwise
    /// the component is added.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if an id is already in the same component. The set is
    ///   unchanged.
    pub fn extend(&mut self, other: Self) -> Result<&mut Self, Error> {
        for component in other.components() {
            if let Some(known) = self.components().find(|known| known.name == component.name) {
                known.check(&component.steps)?;
            }
        }
        for component in std::iter::once(other.own).chain(other.others) {
            let mut known = std::iter::once(&mut self.own).chain(&mut self.others);
            match known.find(|known| known.name == component.name) {
                Some(known) => known.steps.extend(component.steps),
                None => self.others.push(component),
            }
        }
        Ok(self)
    }

    /// The number of steps, of all components together.
    pub fn len(&self) -> usize {
        self.components().map(|component| component.steps.len()).sum()
    }

    /// Whether the set has no steps.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn components(&self) -> impl Iterator<Item = &Component> {
        std::iter::once(&self.own).chain(&self.others)
    }
}

impl Component {
    /// Checks that steps can be appended.
    fn check<'a>(&'a self, steps: impl IntoIterator<Item = &'a Migration>) -> Result<(), Error> {
        let mut ids: HashSet<&str> = self.steps.iter().map(Migration::id).collect();
        for Migration { id, .. } in steps {
            if id.is_empty() {
                return Err(invalid(format!(
                    "a migration of the component {:?} has an empty id; give it one",
                    self.name
                )));
            }
            if !ids.insert(id) {
                return Err(invalid(format!(
                    "the component {:?} already has a migration {id:?}; use another id",
                    self.name
                )));
            }
        }
        Ok(())
    }

    fn declared(&self) -> Vec<raw::store::Migration> {
        let declared = |step: &Migration| raw::store::Migration {
            id: step.id.clone(),
            checksum: step.checksum.to_vec(),
        };
        self.steps.iter().map(declared).collect()
    }
}

fn invalid(text: String) -> Error {
    Error::InvalidArgument(text)
}

/// Why a store was not migrated.
///
/// The steps before the one that failed are applied.
#[derive(Debug)]
#[non_exhaustive]
pub enum MigrateError {
    /// The store returned an error, for example [`Error::MigrationMismatch`].
    Store(Error),
    /// A step failed and was rolled back. The next run continues with this step.
    Step {
        /// The step's component.
        component: String,
        /// The step's id.
        id: String,
        /// The error of the step's closure.
        error: StepError,
    },
}

impl fmt::Display for MigrateError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(formatter),
            Self::Step { component, id, error } => {
                write!(formatter, "the migration {id:?} of {component:?} failed and was rolled back: {error}")
            }
        }
    }
}

impl std::error::Error for MigrateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Step { error, .. } => Some(error.as_ref()),
        }
    }
}

impl From<Error> for MigrateError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Store {
    /// Applies the pending steps of a set and returns their ids.
    ///
    /// Each step runs in a transaction of its own, which also records the step. Several instances
    /// may call this at the same time: each step is applied once, and all calls succeed. A call
    /// returns only the ids of the steps that it applied itself.
    ///
    /// # Errors
    /// - [`MigrateError::Step`] if a closure fails. This step and the later ones are not applied.
    /// - [`MigrateError::Store`] with:
    ///   - [`Error::AccessDenied`] if the host did not bind a component's name to this component,
    ///     or a step is pending and the store is granted read-only.
    ///   - [`Error::MigrationMismatch`] if the applied steps are not the beginning of the set.
    ///   - [`Error::InvalidArgument`] or [`Error::LimitExceeded`] if a component's name or an id is
    ///     invalid or too long, or the set or a step is too large.
    ///   - [`Error::Conflict`] if a step conflicted in every run of the retry policy.
    ///   - [`Error::Closed`], [`Error::TimedOut`], [`Error::Unavailable`], [`Error::Corrupt`] or
    ///     [`Error::Other`] if the store is closed, a step takes too long, or the backend fails.
    pub fn migrate(&self, set: &MigrationSet) -> Result<Vec<String>, MigrateError> {
        let mut applied = Vec::new();
        for component in set.components() {
            let declared = component.declared();
            // Usually no step is pending. This check is a view, so it works on a store that is
            // granted read-only.
            if self.pending_in(component, &declared)?.is_empty() {
                continue;
            }
            while let Some(id) = self.retry(|| self.apply_next(component, &declared))? {
                applied.push(id);
            }
        }
        Ok(applied)
    }

    fn pending_in(
        &self,
        component: &Component,
        declared: &[raw::store::Migration],
    ) -> Result<Vec<String>, Error> {
        self.retry(|| match self.raw().pending_migrations(&component.name, declared) {
            Err(types::Error::Conflict) => Attempt::Conflict,
            outcome => Attempt::Done(outcome.map_err(Error::from)),
        })
    }

    /// Applies the first pending step. The outcome is `None` if all steps are applied.
    fn apply_next(
        &self,
        component: &Component,
        declared: &[raw::store::Migration],
    ) -> Attempt<Option<String>, MigrateError> {
        let (id, tx) = match self.raw().begin_migration(&component.name, declared) {
            Ok(Some(next)) => next,
            Ok(None) => return Attempt::Done(Ok(None)),
            Err(types::Error::Conflict) => return Attempt::Conflict,
            Err(error) => return Attempt::Done(Err(Error::from(error).into())),
        };
        let Some(step) = component.steps.iter().find(|step| step.id == id) else {
            let text = format!("the host began the migration {id:?}, which this component did not declare");
            return Attempt::Done(Err(Error::Other(text).into()));
        };
        let update = Update::new(tx);
        match (step.up)(&update) {
            // If it is unknown whether the step was applied, the next attempt reads the ledger.
            Ok(()) => match update.into_view().finish(Some(id)) {
                Attempt::Done(Err(Error::CommitUnknown(_))) | Attempt::Conflict => Attempt::Conflict,
                Attempt::Done(outcome) => Attempt::Done(outcome.map_err(MigrateError::Store)),
            },
            Err(error) => {
                let component = component.name.clone();
                update.into_view().fail(MigrateError::Step { component, id, error })
            }
        }
    }

    /// Returns the pending steps of a set as pairs of component and id, in order.
    ///
    /// # Errors
    /// - [`Error::AccessDenied`] if the host did not bind a component's name to this component.
    /// - [`Error::MigrationMismatch`] if the applied steps are not the beginning of the set.
    /// - [`Error::InvalidArgument`] or [`Error::LimitExceeded`] if a component's name or an id is
    ///   invalid or too long, or the set is too large.
    /// - [`Error::Conflict`] if reading the applied steps conflicted in every run of the retry
    ///   policy.
    /// - [`Error::Closed`], [`Error::TimedOut`], [`Error::Unavailable`], [`Error::Corrupt`] or
    ///   [`Error::Other`] if the store is closed, reading takes too long, or the backend fails.
    pub fn pending_migrations(&self, set: &MigrationSet) -> Result<Vec<(String, String)>, Error> {
        let mut pending = Vec::new();
        for component in set.components() {
            let declared = component.declared();
            let ids = self.pending_in(component, &declared)?;
            pending.extend(ids.into_iter().map(|id| (component.name.clone(), id)));
        }
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(id: &str) -> Migration {
        Migration::with_checksum(id, [0; 32], |_| Ok(()))
    }

    fn set(component: &str, ids: &[&str]) -> MigrationSet {
        let mut set = MigrationSet::new(component);
        for id in ids {
            set.add(step(id)).unwrap();
        }
        set
    }

    /// Components and their steps.
    fn steps(set: &MigrationSet) -> Vec<(&str, Vec<&str>)> {
        let steps = set
            .components()
            .map(|component| (component.name.as_str(), component.steps.iter().map(Migration::id).collect()));
        steps.collect()
    }

    fn refused<T: fmt::Debug>(outcome: Result<T, Error>) -> String {
        match outcome {
            Err(Error::InvalidArgument(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn steps_are_kept_in_their_order() {
        let set = set("tasks", &["b", "a"]);
        assert_eq!((set.len(), set.is_empty()), (2, false));
        assert_eq!(steps(&set), [("tasks", vec!["b", "a"])]);
        assert!(MigrationSet::new("tasks").is_empty());
    }

    #[test]
    fn a_refused_step_leaves_the_set_as_it_was() {
        let mut set = set("tasks", &["a"]);
        assert_eq!(
            refused(set.add(step("a"))),
            "the component \"tasks\" already has a migration \"a\"; use another id"
        );
        assert_eq!(
            refused(set.add(step(""))),
            "a migration of the component \"tasks\" has an empty id; give it one"
        );
        assert_eq!(steps(&set), [("tasks", vec!["a"])]);
    }

    #[test]
    fn a_set_is_extended_with_its_own_steps_and_with_other_components() {
        let mut whole = set("tasks", &["a"]);
        whole.extend(set("search", &["a"])).unwrap().extend(set("tasks", &["b"])).unwrap();
        assert_eq!(steps(&whole), [("tasks", vec!["a", "b"]), ("search", vec!["a"])]);
        assert_eq!(whole.len(), 3);
        whole.extend(MigrationSet::new("empty")).unwrap();
        assert_eq!(whole.len(), 3);
    }

    #[test]
    fn a_refused_extension_appends_nothing() {
        let mut whole = set("tasks", &["a"]);
        whole.extend(set("search", &["x"])).unwrap();
        let mut other = set("search", &["y"]);
        other.extend(set("tasks", &["b", "a"])).unwrap();
        assert_eq!(
            refused(whole.extend(other)),
            "the component \"tasks\" already has a migration \"a\"; use another id"
        );
        assert_eq!(steps(&whole), [("tasks", vec!["a"]), ("search", vec!["x"])]);
    }

    #[test]
    fn sets_of_many_threads_are_apart() {
        let make = |number: usize| {
            let ids: Vec<_> = (0..number).map(|id| id.to_string()).collect();
            set("tasks", &ids.iter().map(String::as_str).collect::<Vec<_>>()).len()
        };
        let lengths: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32).map(|number| scope.spawn(move || make(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(lengths, (0..32).collect::<Vec<_>>());
    }

    #[test]
    fn an_id_may_be_any_expression() {
        let number = 7;
        let step = crate::migration!(format!("{number:04}_seventh"), |_| Ok(()),);
        assert_eq!(step.id(), "0007_seventh");
    }

    #[test]
    fn a_failed_step_says_which_and_why() {
        let error = MigrateError::Step {
            component: "tasks".to_string(),
            id: "0002".to_string(),
            error: "the row is broken".into(),
        };
        let text = "the migration \"0002\" of \"tasks\" failed and was rolled back: the row is broken";
        assert_eq!(error.to_string(), text);
    }
}
