//! `larder tenants delete`, `undelete` and `purge`.

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
use crate::tenants::{HostArguments, Place, parse_key};
use crate::text::{parse_duration, time};

/// Delete a tenant; its objects stay for a grace period
///
/// No host can open the tenant after this. Until the grace period has passed and `larder tenants purge` runs, `larder
/// tenants undelete` brings it back. With `--grace 0`, its objects are removed at once.
#[derive(Args)]
pub(super) struct Delete {
    #[command(flatten)]
    host: HostArguments,
    /// Tenant to delete
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// How long the deletion can be undone: 30d, 12h, or 0 [default: 7d]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
}

/// How long a deletion can be undone if the operator does not say so.
const GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Delete {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let host = self.host.options()?.open().await?;
        let deleting = async {
            // A deletion is not cut short unless the operator says so.
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
            "{key} is deleted; from {} on, `larder tenants purge` removes its objects, and until then `larder tenants \
             undelete {key}` brings it back",
            time(deletion.purge_at)
        ),
        DeletionStage::Purging => format!("{key} is deleted, and its objects are being removed"),
        DeletionStage::Purged => format!("{key} is deleted, and its objects were removed"),
    }
}

/// Bring a deleted tenant back, unless its objects were removed
#[derive(Args)]
pub(super) struct Undelete {
    #[command(flatten)]
    place: Place,
    /// Tenant to bring back
    #[arg(value_parser = parse_key)]
    key: TenantKey,
}

impl Undelete {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let undeleting = self.place.remote()?;
        undeleting.undelete(&self.key).await?;
        let printed = writeln!(output(), "{} can be opened", self.key);
        heard(printed.context("the tenant is back, but the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove the objects of deleted tenants whose grace periods have passed
///
/// It may run at any time, on several machines at once, and again after an error. A host removes its own copies of
/// such tenants, also those in quarantine, when it is started next.
#[derive(Args)]
pub(super) struct Purge {
    #[command(flatten)]
    place: Place,
    /// Tenant whose objects to remove [default: all that are due]
    #[arg(value_parser = parse_key)]
    key: Option<TenantKey>,
}

/// Tenants that are asked for at once.
const PAGE: usize = 10_000;

/// Tenants that are looked at side by side.
const PURGED_AT_ONCE: usize = 8;

/// So many tenants that fail are a fault of the object storage.
const FAILURES_MAX: u32 = 20;

impl Purge {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let remote = self.place.remote()?;
        if let Some(key) = &self.key {
            let deletion = remote.purge(key).await?;
            heard(writeln!(output(), "{}", sentence(key, &deletion)).context("the output was not written"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let failed = purge_all(&remote).await?;
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Whether some tenant failed.
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

/// `None` if the tenant is not deleted, or not due.
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
