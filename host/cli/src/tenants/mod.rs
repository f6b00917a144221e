//! `larder tenants`: manages the databases of tenants, in object storage and in a host's cache
//! directory.

mod delete;
pub(crate) mod host;
mod list;
mod quarantine;
mod reapply;
mod repair;
mod restore;
mod send;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use larder_host::larder_tenants::{Remote, SnapshotRef};
use larder_host::{TenantKey, TenantsDsn};
use serde_json::{Value, json};

use crate::tenants::host::HostOptions;
use crate::text::time;

/// List, upload, restore and delete the databases of tenants
#[derive(Args)]
pub(crate) struct Tenants {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the tenants in object storage, one per line
    List(list::List),
    /// Print the state of a tenant in object storage
    Show(show::Show),
    /// Upload the commits that a crashed host left in its cache directory
    ///
    /// The databases stay in the cache directory.
    Checkpoint(send::Send),
    /// Upload a crashed host's commits, and remove the databases from its cache directory
    Evict(send::Send),
    /// Restore an earlier state of a tenant's database
    Restore(restore::Restore),
    /// Rebuild the lost or damaged head of a tenant from its snapshots and its log segments
    Repair(repair::Repair),
    /// Delete a tenant, and keep its objects for a grace period
    Delete(delete::Delete),
    /// Restore a deleted tenant whose objects still exist
    Undelete(delete::Undelete),
    /// Remove the objects of deleted tenants whose grace period has passed
    Purge(delete::Purge),
    /// Print, export, apply or remove quarantined databases
    Quarantine(quarantine::Quarantine),
}

impl Tenants {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        match self.command {
            Command::List(list) => list.execute().await,
            Command::Show(show) => show.execute().await,
            Command::Checkpoint(send) => send.execute(true).await,
            Command::Evict(send) => send.execute(false).await,
            Command::Restore(restore) => restore.execute().await,
            Command::Repair(repair) => repair.execute().await,
            Command::Delete(delete) => delete.execute().await,
            Command::Undelete(undelete) => undelete.execute().await,
            Command::Purge(purge) => purge.execute().await,
            Command::Quarantine(quarantine) => quarantine.execute().await,
        }
    }
}

#[derive(Args)]
struct Location {
    /// Location of the tenants, such as tenants+s3://BUCKET/PREFIX
    ///
    /// tenants+file:///DIR names a directory, tenants+s3://BUCKET/PREFIX?OPTIONS a prefix of a
    /// bucket.
    #[arg(long = "store", value_name = "DSN")]
    dsn: String,
}

impl Location {
    /// The location, with the option that creates nothing.
    fn existing(&self) -> Result<TenantsDsn> {
        let mut dsn = TenantsDsn::parse(&self.dsn)?;
        dsn.create = false;
        Ok(dsn)
    }

    fn remote(&self) -> Result<Remote> {
        Ok(self.existing()?.open_remote()?)
    }
}

#[derive(Args)]
struct HostArguments {
    #[command(flatten)]
    location: Location,
    /// Cache directory of the host [default: the user cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl HostArguments {
    fn options(&self) -> Result<HostOptions> {
        HostOptions::new(&self.location.existing()?, self.cache_dir.as_deref())
    }
}

/// Returns the head of a tenant, which must exist.
async fn head_of(remote: &Remote, key: &TenantKey) -> Result<larder_host::larder_tenants::Head> {
    let head = remote.head(key).await?;
    head.with_context(|| {
        format!("there is no tenant {key} in this location; `larder tenants list` prints the tenants")
    })
}

fn parse_key(text: &str) -> Result<TenantKey, String> {
    text.parse().map_err(|error: larder_host::Error| error.to_string())
}

fn snapshot_json(snapshot: &SnapshotRef) -> Value {
    json!({
        "name": snapshot.name, "taken_at": time(snapshot.taken_at), "bytes": snapshot.bytes,
        "compressed_bytes": snapshot.compressed_bytes, "sha256": snapshot.sha256,
        "generation": snapshot.generation, "covers": snapshot.covers, "version": snapshot.version,
    })
}
