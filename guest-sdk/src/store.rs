//! A store that the host granted.

use crate::error::Error;
use crate::raw;
use crate::raw::tx::Mode;
use crate::retry::{Attempt, RetryPolicy, run};
use crate::transaction::{Update, View};

/// A store that the host granted to this component.
pub struct Store {
    raw: raw::store::Store,
    policy: RetryPolicy,
}

impl Store {
    /// Opens the store granted under `name`.
    ///
    /// # Errors
    /// [`Error::NoSuchStore`] where none is, [`Error::LimitExceeded`] where too many are open.
    pub fn open(name: &str) -> Result<Self, Error> {
        Ok(Self { raw: raw::store::Store::open(name)?, policy: RetryPolicy::default() })
    }

    /// How transactions are run again after conflicts.
    pub fn with_retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Runs `body` in a transaction that reads one snapshot. It may be run several times: some backends find out
    /// late that a snapshot can't stand.
    ///
    /// # Errors
    /// The error of `body` as it was, and those of the transaction.
    pub fn view<T, E: From<Error>>(&self, mut body: impl FnMut(&View) -> Result<T, E>) -> Result<T, E> {
        self.run(|| {
            let view = View::new(self.begin(Mode::View)?);
            Ok(match body(&view) {
                Ok(value) => view.finish(value),
                Err(error) => view.fail(error),
            })
        })
    }

    /// Runs `body` in a transaction that reads and writes, and commits it. Where another transaction committed first,
    /// everything is forgotten and `body` is run again: it must do nothing but read and write the store.
    ///
    /// ```no_run
    /// # use larder_guest::{Error, Store};
    /// # fn example(store: &Store) -> Result<(), Error> {
    /// let moved = store.update(|tx| {
    ///     let Some(task) = tx.get("open", "task:1")? else { return Ok(false) };
    ///     tx.delete("open", "task:1")?;
    ///     tx.put("done", "task:1", task)?;
    ///     Ok::<_, Error>(true)
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The error of `body` as it was, after which everything is rolled back; those of the transaction;
    /// [`Error::Conflict`] when the runs of the retry policy are used up. [`Error::CommitUnknown`] is never run again:
    /// the commit may have happened.
    pub fn update<T, E: From<Error>>(&self, mut body: impl FnMut(&Update) -> Result<T, E>) -> Result<T, E> {
        self.run(|| {
            let update = Update::new(self.begin(Mode::Update)?);
            Ok(match body(&update) {
                Ok(value) => update.into_view().finish(value),
                Err(error) => update.into_view().fail(error),
            })
        })
    }

    /// Whether the backend can be reached.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where it can't, [`Error::Closed`] after [`Store::close`].
    pub fn ping(&self) -> Result<(), Error> {
        Ok(self.raw.ping()?)
    }

    /// Rolls back the open transactions of this handle; later calls get [`Error::Closed`].
    pub fn close(&self) {
        self.raw.close();
    }

    fn begin(&self, mode: Mode) -> Result<raw::tx::Tx, Error> {
        Ok(self.raw.begin(mode)?)
    }

    fn run<T, E: From<Error>>(
        &self,
        mut attempt: impl FnMut() -> Result<Attempt<T, E>, Error>,
    ) -> Result<T, E> {
        self.retry(|| attempt().unwrap_or_else(|error| Attempt::Done(Err(error.into()))))
    }

    /// Runs an attempt as often as the policy allows.
    pub(crate) fn retry<T, E: From<Error>>(&self, attempt: impl FnMut() -> Attempt<T, E>) -> Result<T, E> {
        run(&self.policy, std::thread::sleep, attempt)
    }

    pub(crate) fn raw(&self) -> &raw::store::Store {
        &self.raw
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("policy", &self.policy).finish_non_exhaustive()
    }
}
