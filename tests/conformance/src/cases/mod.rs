//! The cases, one module for each group.

use crate::check::Outcome;

/// Lists functions under the names `group::sentence_in_words`.
macro_rules! named {
    ($group:literal: $($function:ident),* $(,)?) => {
        &[$((concat!($group, "::", stringify!($function)), $function)),*]
    };
}

mod basic;
mod bytes;
mod cas;
mod increment;
mod lifecycle;
mod limits;
mod memory;
mod migrations;
mod packed;
mod page;
mod planted;
mod scan;
mod ttl;
mod two_hosts;
mod tx;

/// A case: its name and its function.
pub(crate) type Case = (&'static str, fn() -> Outcome);

/// A worker, which several instances run at once: its name and its function.
pub(crate) type Worker = (&'static str, fn(u32) -> Outcome);

/// All cases that must pass.
pub(crate) const GROUPS: &[&[&[Case]]] = &[STORE, memory::CASES];

const STORE: &[&[Case]] = &[
    basic::CASES,
    bytes::CASES,
    scan::CASES,
    page::CASES,
    packed::CASES,
    tx::CASES,
    cas::CASES,
    increment::CASES,
    ttl::CASES,
    limits::CASES,
    lifecycle::CASES,
    two_hosts::CASES,
    migrations::CASES,
];

/// Cases that must fail.
pub(crate) const PLANTED: &[Case] = planted::CASES;

/// All workers.
pub(crate) const WORKERS: &[&[&[Worker]]] = &[STORE_WORKERS, memory::WORKERS];

const STORE_WORKERS: &[&[Worker]] = &[
    basic::WORKERS,
    tx::WORKERS,
    cas::WORKERS,
    increment::WORKERS,
    two_hosts::WORKERS,
    migrations::WORKERS,
    planted::WORKERS,
];
