//! The versions that are reserved in the file, and those that are allocated.
//!
//! As long as no other process commits, this process knows which versions are allocated, and the
//! table in the file holds only an upper bound. Writing the exact version would cost one more page
//! per commit.

use larder_core::row::Version;

/// Which versions are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VersionBlock {
    /// The highest version that was allocated.
    pub(crate) last: Version,
    /// The bound in the table: no version above it is allocated. A process that does not know
    /// `last` continues after this bound.
    pub(crate) reserved: Version,
}

impl VersionBlock {
    /// What is known from the table alone: every version up to the bound may be allocated.
    pub(crate) fn read(reserved: Version) -> Self {
        Self { last: reserved, reserved }
    }
}
