//! `larder tenants checkpoint` and `evict`: upload the commits that a crashed host left.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::StreamExt;
use larder_host::larder_tenants::{CacheFolder, SnapshotRef};
use larder_host::{TenantError, TenantKey};

use crate::output::{complain, heard, output};
use crate::progress::bar;
use crate::signals::{self, on_own_thread};
use crate::tenants::host::{Host, cache_in_use};
use crate::tenants::{HostArguments, parse_key};
use crate::text::bytes;

#[derive(Args)]
pub(super) struct Send {
    #[command(flatten)]
    host: HostArguments,
    /// Tenant to upload [default: every tenant in the cache directory]
    #[arg(value_parser = parse_key)]
    key: Option<TenantKey>,
}

/// The number of tenants to upload concurrently.
const AT_ONCE: usize = 4;

impl Send {
    /// Uploads the tenants. `keep` leaves the databases in the cache directory.
    pub(super) async fn execute(self, keep: bool) -> Result<ExitCode> {
        let options = self.host.options()?;
        let keys = self.keys(&options.folder)?;
        if keys.is_empty() {
            writeln!(output(), "the cache directory {} contains no tenants", options.folder.display())?;
            return Ok(ExitCode::SUCCESS);
        }
        // A host uploads these commits as soon as it is open, so read the heads before that.
        let remote = self.host.location.remote()?;
        let mut earlier = HashMap::new();
        for key in &keys {
            let head = remote.head(key).await?;
            earlier.insert(key.clone(), head.and_then(|head| head.snapshot));
        }
        let host = Arc::new(options.keep_copies(keep).open().await?);
        let sending = host.clone();
        let sent =
            on_own_thread(move || async move { Ok(send_all(&sending, keys, &earlier, keep).await) }).await;
        let unwritten = host.close().await;
        for sentence in &unwritten {
            complain(sentence);
        }
        let (failed, printed) = signals::closed(sent)?;
        heard(printed.context("the tenants were uploaded if possible, but the output was not written"))?;
        Ok(if failed || !unwritten.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn keys(&self, folder: &std::path::Path) -> Result<Vec<TenantKey>> {
        let nothing =
            |whose: String| format!("the cache directory {} contains no database{whose}", folder.display());
        if !CacheFolder::is_at(folder) {
            bail!(
                "there is no cache directory of this location at {}; check --cache-dir and --store",
                folder.display()
            );
        }
        let found = CacheFolder::open(folder).map_err(cache_in_use)?.tenants()?;
        let Some(key) = &self.key else { return Ok(found) };
        if !found.contains(key) {
            bail!(nothing(format!(" of {key}")));
        }
        Ok(vec![key.clone()])
    }
}

type Earlier = HashMap<TenantKey, Option<SnapshotRef>>;

/// Uploads tenants concurrently and prints the outcome of each, in order. Returns true if a tenant
/// could not be uploaded. If the output cannot be written, the upload continues.
async fn send_all(host: &Host, keys: Vec<TenantKey>, earlier: &Earlier, keep: bool) -> (bool, Result<()>) {
    let progress = bar(keys.len() as u64);
    let mut sent = futures_util::stream::iter(keys)
        .map(|key| async move {
            let sent = send(host, &key, earlier.get(&key).and_then(Option::as_ref), keep).await;
            (key, sent)
        })
        .buffered(AT_ONCE);
    let (mut failed, mut printed) = (false, Ok(()));
    while let Some((key, sent)) = sent.next().await {
        progress.suspend(|| match sent {
            Ok(sentence) if printed.is_ok() => printed = writeln!(output(), "{sentence}"),
            Ok(_) => {}
            Err(error) => {
                failed = true;
                let error = anyhow::anyhow!(error).context(format!("cannot upload {key}"));
                complain(format_args!("{error:#}"));
            }
        });
        progress.inc(1);
    }
    progress.finish_and_clear();
    (failed, printed.map_err(Into::into))
}

async fn send(
    host: &Host,
    key: &TenantKey,
    earlier: Option<&SnapshotRef>,
    keep: bool,
) -> Result<String, TenantError> {
    // Opening the tenant checks whether the local commits are the newest ones.
    match host.tenants.get_existing(key).await {
        Err(TenantError::NotFound { .. }) if !host.tenants.cache().tenants()?.contains(key) => {
            return Ok(format!("{key} was deleted; its database in the cache directory was removed"));
        }
        opened => drop(opened?),
    }
    host.tenants.checkpoint(key).await?;
    if !keep {
        match host.tenants.evict(key).await {
            // Closing the host tries again.
            Ok(_) | Err(TenantError::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let current = host.tenants.remote().head(key).await?.and_then(|head| head.snapshot);
    Ok(match current {
        _ if host.has_quarantined(key) => format!("{key} was quarantined"),
        Some(current) if earlier.is_none_or(|earlier| *earlier != current) => {
            format!("{key} was uploaded, {}", bytes(current.bytes))
        }
        _ => format!("{key} was up to date"),
    })
}
