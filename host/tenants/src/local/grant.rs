//! A tenant's store as a component gets it: by the identity that its host bound, never by a name of its own.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::{Error, Event, Store, StoreSource};

use crate::key::{Scope, Slug, TenantKey};
use crate::local::tenants::Tenants;

/// On whose behalf a component runs. The host binds it; a guest never says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantIdentity {
    /// The organisation.
    pub org: Slug,
    /// The user, where there is one.
    pub user: Option<Slug>,
    /// The app, where there is one.
    pub app: Option<Slug>,
    /// The project of the app, where there is one.
    pub project: Option<Slug>,
}

impl TenantIdentity {
    /// An organisation alone.
    pub fn org(org: Slug) -> Self {
        Self { org, user: None, app: None, project: None }
    }

    /// The tenant of a scope.
    ///
    /// # Errors
    /// [`Error::IdentityRequired`] where the identity lacks what the scope needs.
    pub fn key(&self, scope: Scope) -> Result<TenantKey, Error> {
        let part = |part: &Option<Slug>, name: &str| {
            let missing = || Error::IdentityRequired(format!("a store of scope `{scope}` needs the {name}"));
            part.clone().ok_or_else(missing)
        };
        let org = self.org.clone();
        Ok(match scope {
            Scope::Org => TenantKey::org(org),
            Scope::User => TenantKey::user(org, part(&self.user, "user")?),
            Scope::App => TenantKey::app(org, part(&self.app, "app")?),
            Scope::Project => {
                TenantKey::project(org, part(&self.app, "app")?, part(&self.project, "project")?)
            }
        })
    }

    /// Whether a tenant is one of this identity's.
    fn owns(&self, key: &TenantKey) -> bool {
        self.key(key.scope()).is_ok_and(|own| own == *key)
    }
}

enum Whose {
    Scope(Scope),
    Key(TenantKey),
}

struct TenantStore {
    tenants: Tenants,
    identity: Option<TenantIdentity>,
    whose: Whose,
}

impl Tenants {
    /// The store of the tenant that an identity has in a scope, to be granted to a component. It is opened when the
    /// component opens it.
    pub fn store_of(&self, identity: Option<TenantIdentity>, scope: Scope) -> Arc<dyn StoreSource> {
        Arc::new(TenantStore { tenants: self.clone(), identity, whose: Whose::Scope(scope) })
    }

    /// The store of one tenant, to be granted to a component that runs for an identity. Another identity's tenant is
    /// refused when the component opens it, with [`Error::AccessDenied`], and the platform is told.
    pub fn store_at(&self, identity: Option<TenantIdentity>, key: TenantKey) -> Arc<dyn StoreSource> {
        Arc::new(TenantStore { tenants: self.clone(), identity, whose: Whose::Key(key) })
    }
}

impl TenantStore {
    fn key(&self) -> Result<TenantKey, Error> {
        let unbound = || Error::IdentityRequired("the host bound none to this component".to_string());
        let identity = self.identity.as_ref().ok_or_else(unbound)?;
        match &self.whose {
            Whose::Scope(scope) => identity.key(*scope),
            Whose::Key(key) if identity.owns(key) => Ok(key.clone()),
            Whose::Key(_) => Err(Error::AccessDenied("the store belongs to another tenant".to_string())),
        }
    }
}

#[async_trait]
impl StoreSource for TenantStore {
    async fn open(&self) -> Result<Store, Error> {
        let key = self.key().inspect_err(|error| {
            let store = match &self.whose {
                Whose::Scope(scope) => format!("tenant of scope {scope}"),
                Whose::Key(key) => format!("tenant {key}"),
            };
            let reason = error.to_string();
            self.tenants.emit(Event::AccessDenied { store, operation: "open", reason });
        })?;
        Ok(self.tenants.get(&key).await?.store())
    }
}
