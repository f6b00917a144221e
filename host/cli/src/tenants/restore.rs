//! `larder tenants restore`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use larder_host::larder_tenants::{Lease, SnapshotRef};
use larder_host::{TenantError, TenantKey, Tenants};

use crate::progress::waiting;
use crate::tenants::{HostArguments, head_of, parse_key};
use crate::text::{bytes, moment, time};

/// Go back to how a tenant's database was
///
/// What came after stays in the history: going forward again is another restore.
#[derive(Args)]
pub(super) struct Restore {
    #[command(flatten)]
    host: HostArguments,
    /// The tenant
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// When: the newest snapshot of this moment or before; 2026-01-31T12:00:00Z, or milliseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: u64,
}

impl Restore {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        head_of(&self.host.place.remote()?, &self.key).await?;
        let host = self.host.options()?.open().await?;
        let outcome = self.publish(&host.tenants).await;
        // From here on nothing opens the tenant in this process.
        let unwritten = host.close().await;
        for sentence in &unwritten {
            eprintln!("larder: {sentence}");
        }
        outcome?;
        if !unwritten.is_empty() {
            bail!("{} was not restored: first, everything that it holds has to be sent", self.key);
        }
        self.restore(&host.tenants).await?;
        Ok(ExitCode::SUCCESS)
    }

    /// What the log holds after the last snapshot, or a host that died left, becomes a snapshot too.
    async fn publish(&self, tenants: &Tenants) -> Result<()> {
        drop(waiting(format!("opening {}", self.key), tenants.get(&self.key)).await?);
        tenants.checkpoint(&self.key).await?;
        Ok(())
    }

    async fn restore(&self, tenants: &Tenants) -> Result<()> {
        let holder = tenants.cache().holder();
        let lease = tenants.remote().acquire(&self.key, holder, Duration::from_secs(5)).await?;
        let outcome = self.restore_under(&lease).await;
        let released = lease.release().await;
        let Restored { before, found } = outcome?;
        if let Err(error) = released {
            eprintln!("larder: the lease was not given back, and runs out by itself: {error}");
        }
        let (taken_at, size) = (time(found.taken_at), bytes(found.bytes));
        if before.name == found.name {
            println!("{} is as it was at {taken_at} already, {size}", self.key);
            return Ok(());
        }
        println!("{} is now as it was at {taken_at}, {size}", self.key);
        println!(
            "to undo this: larder tenants restore {} --at {} --store …",
            self.key,
            time(before.taken_at)
        );
        Ok(())
    }

    async fn restore_under(&self, lease: &Lease) -> Result<Restored> {
        let head = lease.head();
        let found = head.snapshots().filter(|snapshot| snapshot.taken_at <= self.at).last().cloned();
        match (lease.restore_at(self.at).await, found, head.snapshot) {
            (Ok(_), Some(found), Some(before)) => Ok(Restored { before, found }),
            (Ok(_), ..) => bail!("{} has no snapshots", self.key),
            (Err(TenantError::NoSnapshot { oldest: Some(oldest), .. }), ..) => bail!(
                "{} has no snapshot of {} or before; the oldest is of {}",
                self.key,
                time(self.at),
                time(oldest)
            ),
            (Err(TenantError::NoSnapshot { oldest: None, .. }), ..) => {
                bail!("{} has no snapshots yet", self.key)
            }
            (Err(error), ..) => Err(error.into()),
        }
    }
}

struct Restored {
    /// What was current before.
    before: SnapshotRef,
    /// What was gone back to.
    found: SnapshotRef,
}
