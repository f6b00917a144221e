//! `larder tenants list`: prints the tenants in object storage.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use futures_util::StreamExt;
use larder_host::larder_tenants::{Deletion, Head, Remote, Takeover};
use larder_host::{TenantError, TenantKey};
use serde_json::json;

use crate::inspect::done;
use crate::output::output;
use crate::progress::counter;
use crate::tenants::{Location, snapshot_json};
use crate::text::{bytes, escape, time};

/// Print the tenants in object storage, one per line
#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    location: Location,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// The number of tenants to list at once.
const PAGE: usize = 1_000;

/// The number of heads to read concurrently.
const READS: usize = 8;

impl List {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        done(self.print(&self.location.remote()?).await)
    }

    async fn print(&self, remote: &Remote) -> Result<()> {
        if !self.json {
            writeln!(output(), "TENANT\tSCOPE\tGENERATION\tEPOCH\tLEASE\tSNAPSHOT\tSIZE\tDELETED")?;
        }
        let progress = counter("tenants");
        let mut after = None;
        loop {
            let page = remote.list(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            let mut heads = futures_util::stream::iter(page)
                .map(|key| async move {
                    let head = remote.head(&key).await;
                    (key, head)
                })
                .buffered(READS);
            while let Some((key, head)) = heads.next().await {
                let line = match head {
                    Ok(Some(head)) if self.json => head_json(&key, &head).to_string(),
                    Ok(Some(head)) => head_line(&key, &head),
                    // The objects belong to a tenant that was removed, or is being created.
                    Ok(None) => continue,
                    // Without object storage, no head can be read. Other errors concern one tenant.
                    Err(error @ TenantError::Unavailable { .. }) => return Err(error.into()),
                    Err(error) if self.json => {
                        json!({ "tenant": key.to_string(), "scope": key.scope().name(), "error": error.to_string() })
                            .to_string()
                    }
                    Err(error) => format!("{key}\t{}\t{}", key.scope(), escape(&error.to_string())),
                };
                writeln!(output(), "{line}")?;
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        Ok(())
    }
}

fn head_line(key: &TenantKey, head: &Head) -> String {
    let lease = head.lease.as_ref().map_or_else(|| "-".to_string(), |lease| escape(&lease.holder));
    let (taken_at, size) = match &head.snapshot {
        Some(snapshot) => (time(snapshot.taken_at), bytes(snapshot.bytes)),
        None => ("-".to_string(), "-".to_string()),
    };
    let deleted = head.deletion.as_ref().map_or_else(|| "-".to_string(), |deletion| time(deletion.at));
    let (scope, generation, epoch) = (key.scope(), head.generation, head.epoch);
    format!("{key}\t{scope}\t{generation}\t{epoch}\t{lease}\t{taken_at}\t{size}\t{deleted}")
}

pub(super) fn head_json(key: &TenantKey, head: &Head) -> serde_json::Value {
    let lease = head.lease.as_ref().map(|lease| json!({ "holder": lease.holder, "ttl_ms": lease.ttl_ms }));
    json!({
        "tenant": key.to_string(), "scope": key.scope().name(), "generation": head.generation,
        "epoch": head.epoch, "lease": lease, "snapshot": head.snapshot.as_ref().map(snapshot_json),
        "deletion": head.deletion.as_ref().map(deletion_json),
        "takeovers": head.takeovers.iter().map(takeover_json).collect::<Vec<_>>(),
    })
}

fn takeover_json(Takeover { holder, folder, epoch, .. }: &Takeover) -> serde_json::Value {
    json!({ "holder": holder, "folder": folder, "epoch": epoch })
}

fn deletion_json(deletion: &Deletion) -> serde_json::Value {
    let Deletion { at, purge_at, stage, .. } = deletion;
    json!({ "at": time(*at), "purge_at": time(*purge_at), "stage": stage })
}
