//! Support code that test programs share.
#![allow(dead_code, reason = "each program uses a part of it")]

pub(crate) mod accountable;
pub(crate) mod assistant;
pub(crate) mod broken;
pub(crate) mod counting;
pub(crate) mod harness;
pub(crate) mod instance;
pub(crate) mod postgres_server;
pub(crate) mod proxy;
pub(crate) mod serializable;
