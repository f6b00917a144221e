//! The tenants that this process has open, as a host.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use larder_host::{
    Event, EventSink, TenantError, TenantKey, Tenants, TenantsBuilder, TenantsDsn, TracingEvents,
};

use crate::progress::waiting;
use crate::signals;

/// Tenants that are open at once: each has a few files open.
const CAPACITY: usize = 16;

/// How a host is opened.
pub(crate) struct HostOptions {
    builder: TenantsBuilder,
    /// Its cache folder.
    pub(crate) folder: PathBuf,
}

impl HostOptions {
    /// A host for a place, with its cache folder in `cache`, or in the user's folder for caches.
    pub(crate) fn new(dsn: &TenantsDsn, cache: Option<&Path>) -> Result<Self> {
        let folder = dsn.cache_folder(cache)?;
        let mut builder = TenantsBuilder::from_dsn(dsn)?.cache_folder(&folder).capacity(CAPACITY);
        if dsn.lease_wait.is_none() {
            builder = builder.outwait_lease();
        }
        Ok(Self { builder, folder })
    }

    /// Whether closed databases stay in the cache folder.
    pub(crate) fn keep_copies(mut self, keep: bool) -> Self {
        self.builder = self.builder.keep_copies(keep);
        self
    }

    /// How many bytes each database may hold.
    pub(crate) fn quota(mut self, bytes: Option<u64>) -> Self {
        if let Some(bytes) = bytes {
            self.builder = self.builder.quota_bytes(bytes);
        }
        self
    }

    /// Opens it.
    pub(crate) async fn open(self) -> Result<Host> {
        signals::catch()?;
        let quarantined = Arc::new(Quarantined::default());
        let opening = self.builder.events(quarantined.clone()).open();
        let tenants = waiting("looking at the object storage", opening).await.map_err(cache_in_use)?;
        Ok(Host { tenants, quarantined })
    }
}

/// What the operator can do where a cache folder is taken.
pub(crate) fn cache_in_use(error: TenantError) -> anyhow::Error {
    match error {
        TenantError::CacheInUse { .. } | TenantError::OtherPlace { .. } => {
            anyhow!("{error}, here with --cache-dir DIR")
        }
        error => error.into(),
    }
}

pub(crate) struct Host {
    pub(crate) tenants: Tenants,
    quarantined: Arc<Quarantined>,
}

impl Host {
    /// Whether something of a tenant went into quarantine since this was opened.
    pub(crate) fn has_quarantined(&self, key: &TenantKey) -> bool {
        let key = key.to_string();
        self.quarantined.lock().iter().any(|(tenant, _)| *tenant == key)
    }

    /// Writes everything back and closes it. Says in a sentence each what could not be written back since this was
    /// opened, and where it is.
    pub(crate) async fn close(&self) -> Vec<String> {
        let closed = waiting("writing tenants back", self.tenants.close()).await;
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
            "{key} could not be written back: {error:#}; what it holds is in {}, and `larder tenants checkpoint` sends it",
            database.display()
        )
    }

    fn quarantined_sentences(&self) -> Vec<String> {
        let events = self.quarantined.lock().clone();
        let found = self.tenants.cache().quarantined().unwrap_or_default();
        let sentence = |(tenant, reason): (String, String)| {
            // The newest of this tenant.
            let place = found.iter().rev().find(|found| found.tenant == tenant);
            let place = place.map_or(self.tenants.cache().folder(), |found| &found.database);
            format!(
                "{tenant} could not be written back: {reason}; what it holds is in quarantine, in {}",
                place.display()
            )
        };
        events.into_iter().map(sentence).collect()
    }
}

/// Remembers what went into quarantine: tenants and reasons.
#[derive(Default)]
struct Quarantined(Mutex<Vec<(String, String)>>);

impl Quarantined {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
