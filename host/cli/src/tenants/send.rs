//! `larder tenants checkpoint` and `evict`: what a host that died left is sent.

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
    /// Only this tenant; all that the folder holds where it is left out
    #[arg(value_parser = parse_key)]
    key: Option<TenantKey>,
}

/// Tenants that are sent side by side.
const AT_ONCE: usize = 4;

impl Send {
    /// Sends them; `keep` leaves the databases in the cache folder.
    pub(super) async fn execute(self, keep: bool) -> Result<ExitCode> {
        let options = self.host.options()?;
        let keys = self.keys(&options.folder)?;
        if keys.is_empty() {
            writeln!(output(), "the cache folder {} holds no tenants", options.folder.display())?;
            return Ok(ExitCode::SUCCESS);
        }
        // A host sends what was left as soon as it is open: so this is read before.
        let remote = self.host.place.remote()?;
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
        heard(printed.context("what could be sent was sent, but the output was not written"))?;
        Ok(if failed || !unwritten.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn keys(&self, folder: &std::path::Path) -> Result<Vec<TenantKey>> {
        let nothing = |whose: String| format!("the cache folder {} holds nothing{whose}", folder.display());
        if !CacheFolder::is_at(folder) {
            bail!("{}: there is no cache folder of this place", folder.display());
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

/// Sends them side by side and says what became of each, in their order; true if one could not be sent. If
/// what is said cannot be written, the others are sent all the same.
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
                let error = anyhow::anyhow!(error).context(format!("{key} was not sent"));
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
    // Opening it finds out whether what was left is the newest there is.
    match host.tenants.get_existing(key).await {
        Err(TenantError::NotFound { .. }) if !host.tenants.cache().tenants()?.contains(key) => {
            return Ok(format!("{key} was deleted, and so was its database here"));
        }
        opened => drop(opened?),
    }
    host.tenants.checkpoint(key).await?;
    if !keep {
        match host.tenants.evict(key).await {
            // Closing all of them tries again.
            Ok(_) | Err(TenantError::InUse { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let current = host.tenants.remote().head(key).await?.and_then(|head| head.snapshot);
    Ok(match current {
        _ if host.has_quarantined(key) => format!("{key} went into quarantine"),
        Some(current) if earlier.is_none_or(|earlier| *earlier != current) => {
            format!("{key} was sent, {}", bytes(current.bytes))
        }
        _ => format!("{key} was up to date"),
    })
}
