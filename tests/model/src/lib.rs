//! A model of larder's transactions.
//!
//! `Model` says what each call must answer, from the specification (`wit/storage.wit`) alone. It
//! uses types of `larder-core` for arguments and answers, and none of its code: it copies whole
//! states and looks at every row. [`run`] makes random schedules of overlapping transactions on
//! several hosts and handles of one store, and compares each answer with the model's.
//!
//! A commit conflicts for certain if what it read has changed, unless a counter is invalid too. It
//! must not conflict if no row that it depends on was written since. In between, both answers are
//! right: a row may have been written and be as it was.
#![allow(clippy::indexing_slicing, clippy::panic, reason = "a test")]

mod answer;
mod conflicts;
mod model;
mod range;
mod schedule;
mod script;

pub use conflicts::{Conflicts, check_conflicts};
pub use schedule::{Schedule, StandingClock, run};

pub(crate) use answer::{Answer, Refusal};
pub(crate) use model::{Model, ModelTransaction};
