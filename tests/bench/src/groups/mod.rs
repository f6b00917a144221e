//! The groups of rows.

mod clients;
mod command;
mod fairness;
mod growth;
mod host_memory;
mod hosts;
mod in_memory;
mod postgres;
mod processes;
mod request;
mod sqlite;
mod tenants;
mod values;

use std::process::ExitCode;

use anyhow::Result;

use crate::report::GroupReport;
use crate::runner::{Bench, Runner};

pub(crate) use host_memory::observe;

/// Plays the part of a child process, if the benchmark started this one as such.
pub(crate) fn played_by_this_process() -> Option<Result<ExitCode>> {
    processes::played_by_this_process().or_else(fairness::played_by_this_process)
}

/// A group of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Sqlite,
    Clients,
    Processes,
    InMemory,
    Postgres,
    Hosts,
    Tenants,
    Request,
    Command,
    Fairness,
    Values,
    GrowthRows,
    GrowthClients,
    GrowthNamespaces,
    HostMemory,
}

impl Group {
    /// All groups, in the order in which they are measured.
    pub(crate) const ALL: [Self; 15] = [
        Self::Sqlite,
        Self::Clients,
        Self::Processes,
        Self::InMemory,
        Self::Postgres,
        Self::Hosts,
        Self::Tenants,
        Self::Request,
        Self::Command,
        Self::Fairness,
        Self::Values,
        Self::GrowthRows,
        Self::GrowthClients,
        Self::GrowthNamespaces,
        Self::HostMemory,
    ];

    /// The name for `--filter`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Clients => "guests",
            Self::Processes => "processes",
            Self::InMemory => "in-memory",
            Self::Postgres => "postgres",
            Self::Hosts => "hosts",
            Self::Tenants => "tenants",
            Self::Request => "request",
            Self::Command => "command",
            Self::Fairness => "fairness",
            Self::Values => "values",
            Self::GrowthRows => "growth-rows",
            Self::GrowthClients => "growth-guests",
            Self::GrowthNamespaces => "growth-namespaces",
            Self::HostMemory => "host-memory",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite, one guest, 100,000 rows of 100 bytes",
            Self::Clients => {
                "SQLite, many guests, an update with a get and a put each, 100,000 rows of 100 bytes"
            }
            Self::Processes => "SQLite, 3 processes that commit without a pause, synced",
            Self::InMemory => "In memory, 100,000 rows of 100 bytes, compared with wasmtime-wasi-keyvalue",
            Self::Postgres => "Postgres, one guest, 100,000 rows of 100 bytes",
            Self::Hosts => "Postgres, several hosts that commit to one database",
            Self::Tenants => {
                "Tenants, durability `object` compared with `local`; object storage takes 5 ms for a call"
            }
            Self::Request => {
                "A request: a new instance from a pool, and an update with a get and a put on SQLite"
            }
            Self::Command => "The second `larder run` of a component, from its start to its end",
            Self::Fairness => "A victim beside 4 attackers, compared with 4 well-behaved guests",
            Self::Values => "SQLite, values from 2 kB to 1 MiB",
            Self::GrowthRows => "SQLite, one guest, 1,000,000 rows of 100 bytes",
            Self::GrowthClients => "SQLite, 1 and 8 guests, an update with a get and a put each",
            Self::GrowthNamespaces => "SQLite, 100,000 rows in 1,000 namespaces",
            Self::HostMemory => "Memory of the host",
        }
    }

    /// Whether some of its rows are on Postgres.
    pub(crate) fn needs_postgres(self) -> bool {
        matches!(self, Self::Postgres | Self::Hosts | Self::Fairness)
    }

    /// Whether it measures the growth of cost, which only the full form does.
    pub(crate) fn is_growth(self) -> bool {
        matches!(
            self,
            Self::Values | Self::GrowthRows | Self::GrowthClients | Self::GrowthNamespaces | Self::HostMemory
        )
    }

    pub(crate) async fn measure(self, bench: &Bench) -> Result<GroupReport> {
        let mut runner = Runner::new(bench, self.name(), self.title());
        match self {
            Self::Sqlite => sqlite::measure(&mut runner).await?,
            Self::Clients => clients::measure(&mut runner).await?,
            Self::Processes => processes::measure(&mut runner).await?,
            Self::InMemory => in_memory::measure(&mut runner).await?,
            Self::Postgres => postgres::measure(&mut runner).await?,
            Self::Hosts => hosts::measure(&mut runner).await?,
            Self::Tenants => tenants::measure(&mut runner).await?,
            Self::Request => request::measure(&mut runner).await?,
            Self::Command => command::measure(&mut runner).await?,
            Self::Fairness => fairness::measure(&mut runner).await?,
            Self::Values => values::measure(&mut runner).await?,
            Self::GrowthRows => growth::measure_rows(&mut runner).await?,
            Self::GrowthClients => clients::measure_growth(&mut runner).await?,
            Self::GrowthNamespaces => growth::measure_namespaces(&mut runner).await?,
            Self::HostMemory => host_memory::measure(&mut runner).await?,
        }
        Ok(runner.finish())
    }
}
