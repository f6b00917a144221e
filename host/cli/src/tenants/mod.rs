//! `larder tenants`: the databases of tenants, in object storage and in the cache folder of a host.

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

/// See, send and restore the databases of tenants
#[derive(Args)]
pub(crate) struct Tenants {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the tenants in object storage, one a line
    List(list::List),
    /// Print what object storage has of a tenant
    Show(show::Show),
    /// Send what a host that died left in its cache folder
    Checkpoint(send::Send),
    /// The same, and remove the databases from the cache folder
    Evict(send::Send),
    /// Go back to how a tenant's database was
    Restore(restore::Restore),
    /// Make the lost head of a tenant anew, from its snapshots and its log
    Repair(repair::Repair),
    /// Delete a tenant; its objects stay for a grace period
    Delete(delete::Delete),
    /// Bring a deleted tenant back, unless its objects were removed
    Undelete(delete::Undelete),
    /// Remove the objects of deleted tenants whose grace periods have passed
    Purge(delete::Purge),
    /// Print, export, re-apply or remove the databases of a host that could not be kept
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
struct Place {
    /// Where the tenants are: tenants+file:///FOLDER, tenants+s3://BUCKET/PREFIX?…
    #[arg(long = "store", value_name = "DSN")]
    dsn: String,
}

impl Place {
    /// The place, of which nothing is made that isn't there.
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
    place: Place,
    /// The host's cache folder; where it is left out, that of the user's programs
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl HostArguments {
    fn options(&self) -> Result<HostOptions> {
        HostOptions::new(&self.place.existing()?, self.cache_dir.as_deref())
    }
}

/// The head of a tenant that must be there.
async fn head_of(remote: &Remote, key: &TenantKey) -> Result<larder_host::larder_tenants::Head> {
    let head = remote.head(key).await?;
    head.with_context(|| {
        format!("there is no tenant {key} there; `larder tenants list` prints those there are")
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
