//! The stores of tenants that components get. The identity that the host bound selects the tenant.

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::{Error, Event, Store, StoreSource};

use crate::key::{Scope, Slug, TenantKey};
use crate::local::tenants::Tenants;

/// The identity on whose behalf a component runs.
///
/// The host binds it. A guest cannot choose it.
///
/// ```
/// use larder_tenants::{Scope, Slug, TenantIdentity};
///
/// let org = TenantIdentity::org(Slug::new("acme")?);
/// let identity = TenantIdentity { user: Some(Slug::new("ann")?), ..org };
/// assert_eq!(identity.key(Scope::User)?.to_string(), "acme/users/ann");
/// assert!(identity.key(Scope::App).is_err());
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantIdentity {
    /// The organisation.
    pub org: Slug,
    /// The user, if any.
    pub user: Option<Slug>,
    /// The app, if any.
    pub app: Option<Slug>,
    /// The project of the app, if any.
    pub project: Option<Slug>,
}

impl TenantIdentity {
    /// An identity of an organisation, without a user, app or project.
    pub fn org(org: Slug) -> Self {
        Self { org, user: None, app: None, project: None }
    }

    /// The tenant of this identity in a scope.
    ///
    /// # Errors
    /// [`Error::IdentityRequired`] if the identity lacks a part that the scope needs.
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

    /// Whether a tenant belongs to this identity.
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
    /// Returns the store of an identity's tenant in a scope, for a component.
    ///
    /// The tenant is opened when the component opens the store.
    pub fn store_of(&self, identity: Option<TenantIdentity>, scope: Scope) -> Arc<dyn StoreSource> {
        Arc::new(TenantStore { tenants: self.clone(), identity, whose: Whose::Scope(scope) })
    }

    /// Returns the store of one tenant, for a component that runs for an identity.
    ///
    /// If the tenant belongs to another identity, opening the store fails with
    /// [`Error::AccessDenied`], and the host gets an [`Event::AccessDenied`].
    pub fn store_at(&self, identity: Option<TenantIdentity>, key: TenantKey) -> Arc<dyn StoreSource> {
        Arc::new(TenantStore { tenants: self.clone(), identity, whose: Whose::Key(key) })
    }
}

impl TenantStore {
    fn key(&self) -> Result<TenantKey, Error> {
        let unbound = || Error::IdentityRequired("the host bound no identity to this component".to_string());
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
