//! `larder tenants restore`: restores an earlier state of a tenant's database.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use larder_host::larder_tenants::{RestorePoint, Restored};
use larder_host::{TenantError, TenantKey};

use crate::output::{OutputError, complain, heard, output};
use crate::progress::waiting;
use crate::signals::{self, until_ended};
use crate::tenants::{HostArguments, head_of, parse_key};
use crate::text::{bytes, moment, time};

/// Restore an earlier state of a tenant's database
///
/// Later states stay in the history. To return to one of them, restore again.
#[derive(Args)]
pub(super) struct Restore {
    #[command(flatten)]
    host: HostArguments,
    /// Tenant to restore
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    #[command(flatten)]
    point: Point,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Point {
    /// Restore the newest snapshot that was taken at TIME or before
    ///
    /// TIME is written as 2026-01-31T12:00:00Z, or in milliseconds since 1970, by the clock of the
    /// object storage.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<u64>,
    /// Restore the snapshot of this generation
    ///
    /// `larder tenants show` prints the generations.
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Restore the newest snapshot without commits after this version
    ///
    /// NUMBER is the version of a row, as `larder get --json` prints it.
    #[arg(long, value_name = "NUMBER")]
    version: Option<u64>,
}

impl Point {
    fn restore_point(&self) -> RestorePoint {
        match (self.generation, self.version, self.at) {
            (Some(generation), ..) => RestorePoint::Generation(generation),
            (None, Some(version), _) => RestorePoint::Version(version),
            (None, None, at) => RestorePoint::At(at.unwrap_or(u64::MAX)),
        }
    }
}

impl Restore {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        head_of(&self.host.location.remote()?, &self.key).await?;
        let host = self.host.options()?.open().await?;
        let restoring = host.tenants.restore(&self.key, self.point.restore_point());
        let restoring = async { restoring.await.map_err(|error| self.explain(error)) };
        let outcome = waiting(format!("restoring {}", self.key), until_ended(restoring)).await;
        let unwritten = host.close().await;
        for sentence in &unwritten {
            complain(sentence);
        }
        let restored = signals::closed(outcome)?;
        if let Some(damage) = &restored.damage {
            complain(format_args!(
                "the newest state is damaged; its commits that no other snapshot contains are lost: {damage}"
            ));
        }
        let printed = self.print(&restored);
        heard(printed.context("the tenant is restored, but the output was not written"))?;
        Ok(if unwritten.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn print(&self, Restored { before, found, damage, .. }: &Restored) -> Result<(), OutputError> {
        let mut output = output();
        let (taken_at, size) = (time(found.taken_at), bytes(found.bytes));
        if before.name == found.name {
            return writeln!(output, "{} already has the state of {taken_at}, {size}", self.key);
        }
        writeln!(output, "{} now has the state of {taken_at}, {size}", self.key)?;
        if damage.is_some() {
            return Ok(());
        }
        writeln!(
            output,
            "to undo this: larder tenants restore {} --generation {} --store …",
            self.key, before.generation
        )
    }

    fn explain(&self, error: TenantError) -> anyhow::Error {
        match error {
            TenantError::NoSnapshot { at, oldest: Some(oldest), .. } => anyhow!(
                "{} has no snapshot of {} or before; the oldest snapshot is of {}",
                self.key,
                time(at),
                time(oldest)
            ),
            TenantError::NoGeneration { generation, .. } => anyhow!(
                "{} has no snapshot of generation {generation}; `larder tenants show` prints the snapshots",
                self.key
            ),
            TenantError::NoSnapshot { oldest: None, .. } => anyhow!("{} has no snapshots", self.key),
            error => anyhow!(error).context(format!("cannot restore {}", self.key)),
        }
    }
}
