//! The numbers by which this process tells committed states of a database apart.

use larder_core::row::Version;

/// The number of a committed state of the database, counted by this process.
///
/// No two states get the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StateNumber(u64);

impl StateNumber {
    #[cfg(test)]
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number in the type that the commit log counts in.
    pub(crate) fn as_version(self) -> Version {
        Version(self.0)
    }
}
