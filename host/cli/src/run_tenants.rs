//! The stores of tenants that `larder run` grants to a component.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use async_trait::async_trait;
use larder_host::{Error, Store, StoreSource, TenantIdentity, TenantsDsn, larder_core};

use crate::output::complain;
use crate::progress::waiting;
use crate::tenants::host::{Host, HostOptions};

/// The tenants of this run. All grants for the same location share one host.
pub(crate) struct RunTenants {
    identity: Option<TenantIdentity>,
    cache: Option<PathBuf>,
    quota: Option<u64>,
    hosts: Vec<(TenantsDsn, Host)>,
}

impl RunTenants {
    /// Opens nothing yet. Each location has its own directory below `cache`, or below the user
    /// cache directory.
    pub(crate) fn new(identity: Option<TenantIdentity>, cache: Option<PathBuf>, quota: Option<u64>) -> Self {
        Self { identity, cache, quota, hosts: Vec::new() }
    }

    /// The source to grant under a name for a data-source name.
    pub(crate) async fn source(&mut self, name: &str, dsn: &str) -> Result<Arc<dyn StoreSource>> {
        let dsn = TenantsDsn::parse(dsn)?;
        let identity = self.identity.clone();
        let tenants = &self.host(&dsn).await?.tenants;
        let store = match dsn.tenant {
            Some(key) => tenants.store_at(identity, key),
            None => tenants.store_of(identity, dsn.scope),
        };
        Ok(Arc::new(Watched { name: name.to_string(), store }))
    }

    /// Opens a store for the host's own data. The caller may close it.
    pub(crate) async fn open(&mut self, name: &str, dsn: &str) -> Result<Store> {
        let dsn = TenantsDsn::parse(dsn)?;
        let key = match (&dsn.tenant, &self.identity) {
            (Some(key), _) => key.clone(),
            (None, Some(identity)) => identity.key(dsn.scope)?,
            (None, None) => bail!("the store belongs to a tenant; give its identity with --tenant"),
        };
        let tenants = &self.host(&dsn).await?.tenants;
        let tenant = waiting(format!("opening {key}"), tenants.get(&key)).await?;
        let mut store = Store::builder(tenant.backend()).name(name);
        if let Some(bytes) = self.quota {
            store = store.quota_bytes(bytes);
        }
        Ok(store.build()?)
    }

    async fn host(&mut self, dsn: &TenantsDsn) -> Result<&Host> {
        let index = match self.hosts.iter().position(|(open, _)| open.location_name() == dsn.location_name())
        {
            Some(index) => index,
            None => {
                let options = HostOptions::new(dsn, self.cache.as_deref())?.quota(self.quota);
                self.hosts.push((dsn.clone(), options.open().await?));
                self.hosts.len() - 1
            }
        };
        let (open, host) = self.hosts.get(index).ok_or_else(|| anyhow!("the tenants are not open"))?;
        if how_kept(open) != how_kept(dsn) {
            bail!("two stores have the same location and different options; give both the same options");
        }
        Ok(host)
    }

    /// Uploads all pending commits and closes the hosts. Returns a sentence for each tenant that
    /// could not be uploaded, which says where its data is.
    pub(crate) async fn close(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (_, host) in &self.hosts {
            sentences.extend(host.close().await);
        }
        sentences
    }
}

/// The options of a data-source name that apply to the location, not to one tenant's store.
fn how_kept(dsn: &TenantsDsn) -> impl PartialEq + use<> {
    let times = (dsn.checkpoint_interval, dsn.lease_ttl, dsn.lease_wait, dsn.keep_for);
    (dsn.durability, dsn.checkpoint_writes, times, dsn.max_database, dsn.cache.clone(), dsn.create)
}

/// Reports to the operator why a store could not be opened. The guest's error does not contain
/// other hosts, keys and paths.
struct Watched {
    name: String,
    store: Arc<dyn StoreSource>,
}

#[async_trait]
impl StoreSource for Watched {
    async fn open(&self) -> larder_core::Result<Store> {
        let opened = waiting(format!("opening the store {:?}", self.name), self.store.open()).await;
        opened.inspect_err(|error| self.tell(error))
    }
}

impl Watched {
    fn tell(&self, error: &Error) {
        let hint = match error {
            Error::IdentityRequired(_) => {
                "; give the component's identity with --tenant, and --user, --app or --project"
            }
            _ => "",
        };
        let error = anyhow!(error.clone());
        complain(format_args!("cannot open the store {:?}: {error:#}{hint}", self.name));
    }
}
