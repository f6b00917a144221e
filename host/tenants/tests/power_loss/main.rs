//! Power cuts based on a recording of what a host does to its files.
//!
//! A host commits, checkpoints and evicts. Every change is recorded with its time: what SQLite does
//! to the files of the database (through a VFS), the objects in object storage, and the
//! acknowledged commits. One recording serves for any number of power cuts. For each, the test
//! builds a disk that the power cut may leave and object storage as it was at that time, and starts
//! a host on both. `power_device.rs` cuts the power of a real file system.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

#[path = "../host/mod.rs"]
mod host;

mod database_files;
mod history;
mod objects;
mod restart;
mod work;

use rustix::time::{ClockId, clock_gettime};

/// A time in nanoseconds, by the clock that all processes of the machine share.
type Moment = u64;

fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}
