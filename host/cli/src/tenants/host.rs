//! The tenants host of this process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use larder_host::{
    Event, EventSink, TenantError, TenantKey, Tenants, TenantsBuilder, TenantsDsn, TracingEvents,
};
use parking_lot::Mutex;

use crate::progress::waiting;
use crate::signals;

/// The number of tenants that may be open at once. Each has a few open files.
const CAPACITY: usize = 16;

/// Options for opening a host.
pub(crate) struct HostOptions {
    builder: TenantsBuilder,
    /// The host's cache directory.
    pub(crate) folder: PathBuf,
}

impl HostOptions {
    /// Options of a host for a location, with its cache directory below `cache`, or below the user
    /// cache directory.
    pub(crate) fn new(dsn: &TenantsDsn, cache: Option<&Path>) -> Result<Self> {
        let folder = dsn.cache_folder(cache)?;
        let mut builder = TenantsBuilder::from_dsn(dsn)?.cache_folder(&folder).capacity(CAPACITY);
        if dsn.lease_wait.is_none() {
            builder = builder.outwait_lease();
        }
        Ok(Self { builder, folder })
    }

    /// Sets whether closed databases stay in the cache directory.
    pub(crate) fn keep_copies(mut self, keep: bool) -> Self {
        self.builder = self.builder.keep_copies(keep);
        self
    }

    /// Sets the quota of each database, in bytes.
    pub(crate) fn quota(mut self, bytes: Option<u64>) -> Self {
        if let Some(bytes) = bytes {
            self.builder = self.builder.quota_bytes(bytes);
        }
        self
    }

    /// Opens the host.
    pub(crate) async fn open(self) -> Result<Host> {
        signals::catch()?;
        let quarantined = Arc::new(Quarantined::default());
        let opening = self.builder.events(quarantined.clone()).open();
        let tenants = waiting("opening the object storage", opening).await.map_err(cache_in_use)?;
        Ok(Host { tenants, quarantined })
    }
}

/// Adds the name of the option to an error about the cache directory.
pub(crate) fn cache_in_use(error: TenantError) -> anyhow::Error {
    match error {
        TenantError::CacheInUse { .. } | TenantError::OtherLocation { .. } => {
            anyhow!("{error} (use --cache-dir DIR)")
        }
        error => error.into(),
    }
}

pub(crate) struct Host {
    pub(crate) tenants: Tenants,
    quarantined: Arc<Quarantined>,
}

impl Host {
    /// Whether a database of the tenant was quarantined since the host was opened.
    pub(crate) fn has_quarantined(&self, key: &TenantKey) -> bool {
        let key = key.to_string();
        self.quarantined.lock().iter().any(|(tenant, _)| *tenant == key)
    }

    /// Uploads all pending commits and closes the host. Returns a sentence for each tenant that
    /// could not be uploaded since the host was opened, which says where its data is.
    pub(crate) async fn close(&self) -> Vec<String> {
        let closed = waiting("uploading tenants", self.tenants.close()).await;
        let mut sentences = self.quarantined_sentences();
        match closed {
            Ok(()) => {}
            Err(TenantError::NotWrittenBack { failed }) => {
                let sentence = |(key, error): &(TenantKey, TenantError)| self.unwritten(key, error);
                sentences.extend(failed.iter().map(sentence));
            }
            Err(error) => sentences.push(format!("{:#}", anyhow!(error))),
        }
        sentences
    }

    fn unwritten(&self, key: &TenantKey, error: &TenantError) -> String {
        let database = self.tenants.cache().database(key);
        let error = anyhow!(error.clone());
        format!(
            "cannot upload {key}: {error:#}; its data is in {}; upload it with `larder tenants checkpoint`",
            database.display()
        )
    }

    fn quarantined_sentences(&self) -> Vec<String> {
        let events = self.quarantined.lock().clone();
        let found = self.tenants.cache().quarantined().unwrap_or_default();
        let sentence = |(tenant, reason): (String, String)| {
            // The newest quarantined database of this tenant.
            let newest = found.iter().rev().find(|found| found.tenant == tenant);
            let database = newest.map_or(self.tenants.cache().folder(), |found| &found.database);
            format!("cannot upload {tenant}: {reason}; its data is in quarantine, in {}", database.display())
        };
        events.into_iter().map(sentence).collect()
    }
}

/// Records the tenants whose databases were quarantined, and the reasons.
#[derive(Default)]
struct Quarantined(Mutex<Vec<(String, String)>>);

impl Quarantined {
    fn lock(&self) -> parking_lot::MutexGuard<'_, Vec<(String, String)>> {
        self.0.lock()
    }
}

impl EventSink for Quarantined {
    fn emit(&self, event: Event) {
        if let Event::TenantQuarantined { tenant, reason } = &event {
            self.lock().push((tenant.clone(), reason.clone()));
        }
        TracingEvents.emit(event);
    }
}
