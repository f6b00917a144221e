//! `larder tenants delete`, `undelete` and `purge`: delete tenants and their objects.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use futures_util::StreamExt;
use larder_host::larder_tenants::{Deletion, DeletionStage, Remote};
use larder_host::{TenantError, TenantKey};

use crate::output::{complain, heard, output};
use crate::progress::{counter, waiting};
use crate::signals::{self, until_ended};
use crate::tenants::{HostArguments, Location, parse_key};
use crate::text::{parse_duration, time};

/// Delete a tenant, and keep its objects for a grace period
///
/// After this, no host can open the tenant. `larder tenants undelete` restores it until the grace
/// period has passed and `larder tenants purge` has run. With `--grace 0`, its objects are removed
/// at once.
#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    host: HostArguments,
    /// Tenant to delete
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// Time to undo the deletion, for example 30d; 0 for none [default: 7d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
}

/// The grace period if the operator gives none.
const GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Delete {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let host = self.host.options()?.open().await?;
        let deleting = async {
            // Only an explicit --grace shortens the grace period of an earlier deletion.
            let head = host.tenants.remote().head(&self.key).await?;
            match head.and_then(|head| head.deletion) {
                Some(deletion) if self.grace.is_none() => return Ok(deletion),
                _ => {}
            }
            let deletion = host.tenants.delete(&self.key, self.grace.unwrap_or(GRACE)).await?;
            if self.grace == Some(Duration::ZERO) && deletion.stage != DeletionStage::Purged {
                let purged = host.tenants.purge(&self.key).await;
                return purged.context("the tenant is deleted, but some of its objects may still exist");
            }
            Ok(deletion)
        };
        let outcome = waiting(format!("deleting {}", self.key), until_ended(deleting)).await;
        let unwritten = host.close().await;
        for sentence in &unwritten {
            complain(sentence);
        }
        let deletion = signals::closed(outcome)?;
        let printed = writeln!(output(), "{}", sentence(&self.key, &deletion));
        heard(printed.context("the tenant is deleted, but the output was not written"))?;
        Ok(if unwritten.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn sentence(key: &TenantKey, deletion: &Deletion) -> String {
    match deletion.stage {
        DeletionStage::Marked => format!(
            "{key} is deleted; from {} on, `larder tenants purge` removes its objects; before that, `larder tenants \
             undelete {key}` restores it",
            time(deletion.purge_at)
        ),
        DeletionStage::Purging => format!("{key} is deleted, and its objects are being removed"),
        DeletionStage::Purged => format!("{key} is deleted, and its objects were removed"),
    }
}

/// Restore a deleted tenant whose objects still exist
#[derive(Args)]
pub(super) struct Undelete {
    #[command(flatten)]
    location: Location,
    /// Tenant to restore
    #[arg(value_parser = parse_key)]
    key: TenantKey,
}

impl Undelete {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let undeleting = self.location.remote()?;
        undeleting.undelete(&self.key).await?;
        let printed = writeln!(output(), "{} can be opened", self.key);
        heard(printed.context("the tenant is restored, but the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove the objects of deleted tenants whose grace period has passed
///
/// This command may run at any time, on several machines at once, and again after an error. A host
/// removes its own copies of such tenants, including those in quarantine, when it starts the next
/// time.
#[derive(Args)]
pub(super) struct Purge {
    #[command(flatten)]
    location: Location,
    /// Tenant whose objects to remove [default: all that are due]
    #[arg(value_parser = parse_key)]
    key: Option<TenantKey>,
}

/// The number of tenants to list at once.
const PAGE: usize = 10_000;

/// The number of tenants to purge concurrently.
const PURGED_AT_ONCE: usize = 8;

/// After this number of failures, the command stops: the object storage itself is likely to fail.
const FAILURES_MAX: u32 = 20;

impl Purge {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let remote = self.location.remote()?;
        if let Some(key) = &self.key {
            let deletion = remote.purge(key).await?;
            heard(writeln!(output(), "{}", sentence(key, &deletion)).context("the output was not written"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let failed = purge_all(&remote).await?;
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Purges all tenants that are due. Returns whether a tenant failed.
async fn purge_all(remote: &Remote) -> Result<bool> {
    let progress = counter("tenants");
    let (mut failures, mut after) = (0, None);
    loop {
        let page = remote.list(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        let mut purged = futures_util::stream::iter(page)
            .map(|key| async move {
                let outcome = purge(remote, &key).await;
                (key, outcome)
            })
            .buffered(PURGED_AT_ONCE);
        while let Some((key, outcome)) = purged.next().await {
            match outcome {
                Ok(Some(deletion)) => writeln!(output(), "{}", sentence(&key, &deletion))?,
                Ok(None) => {}
                Err(error) => {
                    failures += 1;
                    complain(&error);
                    if failures >= FAILURES_MAX {
                        return Err(error.into());
                    }
                }
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(failures > 0)
}

/// Purges a tenant. Returns `None` if the tenant is not deleted, or its grace period has not
/// passed.
async fn purge(remote: &Remote, key: &TenantKey) -> Result<Option<Deletion>, TenantError> {
    if remote.head(key).await?.is_none_or(|head| head.deletion.is_none()) {
        return Ok(None);
    }
    match remote.purge(key).await {
        Ok(deletion) => Ok(Some(deletion)),
        Err(TenantError::Deleted { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
