//! Validated names of tenants.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use larder_core::Error;

/// A validated part of a tenant's name.
///
/// It has 1 to 128 bytes of `a-z`, `0-9`, `_` and `-`.
///
/// ```
/// use larder_tenants::Slug;
///
/// assert_eq!(Slug::new("acme")?.as_str(), "acme");
/// assert!(Slug::new("Acme/1").is_err());
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(Arc<str>);

impl Slug {
    /// The maximum length, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Validates a name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the name is empty, too long or has another character.
    pub fn new(text: &str) -> Result<Self, Error> {
        let wrong = if text.is_empty() {
            "it is empty".to_string()
        } else if text.len() > Self::MAX_BYTES {
            format!("it has {} bytes", text.len())
        } else if let Some(found) = text.chars().find(|found| !is_allowed(*found)) {
            format!("it contains {found:?}")
        } else {
            return Ok(Self(text.into()));
        };
        Err(Error::invalid_argument(format!(
            "a name within a tenant must be 1 to {} bytes of a-z, 0-9, `_` and `-`; {wrong}",
            Self::MAX_BYTES
        )))
    }

    /// The name as a string.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_allowed(found: char) -> bool {
    matches!(found, 'a'..='z' | '0'..='9' | '_' | '-')
}

impl std::fmt::Display for Slug {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::fmt::Debug for Slug {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.0, formatter)
    }
}

impl FromStr for Slug {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::new(text)
    }
}

/// The kind of owner of a tenant's database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// A user of an organisation.
    User,
    /// An organisation.
    Org,
    /// An app of an organisation.
    App,
    /// A project of an app.
    Project,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::User, Self::Org, Self::App, Self::Project];

    /// The lower-case name of the scope.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Org => "org",
            Self::App => "app",
            Self::Project => "project",
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|scope| scope.name() == text).ok_or_else(|| {
            Error::invalid_argument(format!("unknown scope {text:?}; use `user`, `org`, `app` or `project`"))
        })
    }
}

/// The name of a tenant. Each database has exactly one key.
///
/// ```
/// use larder_tenants::{Scope, TenantKey};
///
/// let key: TenantKey = "acme/users/ann".parse()?;
/// assert_eq!(key.scope(), Scope::User);
/// assert_eq!(key.object_path(), "acme/users/ann.db");
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(Owner);

/// Has only the parts that the scope needs, so that two keys of one database are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    User { org: Slug, user: Slug },
    Org { org: Slug },
    App { org: Slug, app: Slug },
    Project { org: Slug, app: Slug, project: Slug },
}

const DATABASE_SUFFIX: &str = ".db";

impl TenantKey {
    /// The database of a user.
    pub fn user(org: Slug, user: Slug) -> Self {
        Self(Owner::User { org, user })
    }

    /// The database of an organisation.
    pub fn org(org: Slug) -> Self {
        Self(Owner::Org { org })
    }

    /// The database of an app.
    pub fn app(org: Slug, app: Slug) -> Self {
        Self(Owner::App { org, app })
    }

    /// The database of a project.
    pub fn project(org: Slug, app: Slug, project: Slug) -> Self {
        Self(Owner::Project { org, app, project })
    }

    /// The scope of the tenant.
    pub fn scope(&self) -> Scope {
        match self.0 {
            Owner::User { .. } => Scope::User,
            Owner::Org { .. } => Scope::Org,
            Owner::App { .. } => Scope::App,
            Owner::Project { .. } => Scope::Project,
        }
    }

    /// The organisation.
    pub fn org_slug(&self) -> &Slug {
        match &self.0 {
            Owner::User { org, .. }
            | Owner::Org { org }
            | Owner::App { org, .. }
            | Owner::Project { org, .. } => org,
        }
    }

    /// The user, for a key of scope [`Scope::User`].
    pub fn user_slug(&self) -> Option<&Slug> {
        if let Owner::User { user, .. } = &self.0 { Some(user) } else { None }
    }

    /// The app, for a key of scope [`Scope::App`] or [`Scope::Project`].
    pub fn app_slug(&self) -> Option<&Slug> {
        if let Owner::App { app, .. } | Owner::Project { app, .. } = &self.0 { Some(app) } else { None }
    }

    /// The project, for a key of scope [`Scope::Project`].
    pub fn project_slug(&self) -> Option<&Slug> {
        if let Owner::Project { project, .. } = &self.0 { Some(project) } else { None }
    }

    /// The path of the tenant's objects, below the prefix of all tenants.
    ///
    /// Examples are `acme/org.db`, `acme/users/ann.db`, `acme/apps/shop.db` and
    /// `acme/apps/shop/projects/x.db`.
    pub fn object_path(&self) -> String {
        format!("{self}{DATABASE_SUFFIX}")
    }

    /// Parses an object path. `None` if it is not the path of a tenant.
    pub fn from_object_path(path: &str) -> Option<Self> {
        path.strip_suffix(DATABASE_SUFFIX)?.parse().ok()
    }

    /// The path of the tenant's database file: the object path below the folder `root`.
    pub fn local_path(&self, root: &Path) -> PathBuf {
        // A slug has no separator and no dot, so the path cannot leave the folder.
        self.object_path().split('/').fold(root.to_path_buf(), |path, part| path.join(part))
    }
}

impl std::fmt::Display for TenantKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Owner::User { org, user } => write!(formatter, "{org}/users/{user}"),
            Owner::Org { org } => write!(formatter, "{org}/org"),
            Owner::App { org, app } => write!(formatter, "{org}/apps/{app}"),
            Owner::Project { org, app, project } => write!(formatter, "{org}/apps/{app}/projects/{project}"),
        }
    }
}

impl std::fmt::Debug for TenantKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "TenantKey({self})")
    }
}

impl FromStr for TenantKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<_> = text.split('/').collect();
        match parts.as_slice() {
            [org, "org"] => Ok(Self::org(Slug::new(org)?)),
            [org, "users", user] => Ok(Self::user(Slug::new(org)?, Slug::new(user)?)),
            [org, "apps", app] => Ok(Self::app(Slug::new(org)?, Slug::new(app)?)),
            [org, "apps", app, "projects", project] => {
                Ok(Self::project(Slug::new(org)?, Slug::new(app)?, Slug::new(project)?))
            }
            _ => Err(Error::invalid_argument(
                "a tenant is named ORG/org, ORG/users/USER, ORG/apps/APP or ORG/apps/APP/projects/PROJECT",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(text: &str) -> Slug {
        Slug::new(text).unwrap()
    }

    fn keys() -> [(TenantKey, &'static str); 4] {
        let (acme, shop) = (slug("acme"), slug("shop"));
        [
            (TenantKey::org(acme.clone()), "acme/org.db"),
            (TenantKey::user(acme.clone(), slug("ann")), "acme/users/ann.db"),
            (TenantKey::app(acme.clone(), shop.clone()), "acme/apps/shop.db"),
            (TenantKey::project(acme, shop, slug("x")), "acme/apps/shop/projects/x.db"),
        ]
    }

    #[test]
    fn object_paths_are_those_of_the_seed_and_are_read_back() {
        for (key, path) in keys() {
            assert_eq!(key.object_path(), path);
            assert_eq!(TenantKey::from_object_path(path), Some(key.clone()));
            assert_eq!(key.to_string().parse::<TenantKey>().unwrap(), key);
            assert_eq!(key.local_path(Path::new("/cache")), Path::new("/cache").join(path));
            assert_eq!(key.org_slug().as_str(), "acme");
        }
        assert_eq!(keys().map(|(key, _)| key.scope()), [Scope::Org, Scope::User, Scope::App, Scope::Project]);
        assert_eq!(keys()[3].0.project_slug(), Some(&slug("x")));
        assert_eq!(keys()[3].0.app_slug(), Some(&slug("shop")));
        assert_eq!(keys()[1].0.user_slug(), Some(&slug("ann")));
        assert_eq!(keys()[0].0.user_slug(), None);
    }

    #[test]
    fn slugs_that_could_lead_elsewhere_are_refused_with_a_reason() {
        let long = "a".repeat(129);
        let wrong = [
            ("", "it is empty"),
            (long.as_str(), "it has 129 bytes"),
            ("..", "it contains '.'"),
            ("a/b", "it contains '/'"),
            ("a\0", "it contains '\\0'"),
            ("Ann", "it contains 'A'"),
            ("ä", "it contains 'ä'"),
            ("a b", "it contains ' '"),
        ];
        for (text, reason) in wrong {
            let Err(Error::InvalidArgument(said)) = Slug::new(text) else { panic!("{text:?} was accepted") };
            assert!(said.ends_with(reason), "{said}");
            assert!(said.contains("1 to 128 bytes of a-z, 0-9, `_` and `-`"), "{said}");
        }
        assert_eq!(slug(&"a".repeat(128)).as_str().len(), 128);
        assert_eq!(slug("a-z_0").to_string(), "a-z_0");
    }

    #[test]
    fn what_is_no_tenants_path_is_none() {
        for path in [
            "acme/org",
            "acme/org.db/head.json",
            "acme/users.db",
            "acme/users/.db",
            "acme/users/../x.db",
            "/org.db",
            "acme/apps/shop/projects.db",
            ".probe/x.db",
        ] {
            assert_eq!(TenantKey::from_object_path(path), None, "{path}");
        }
    }

    #[test]
    fn scopes_are_read_from_their_names_only() {
        for scope in Scope::ALL {
            assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
        }
        assert!(matches!("User".parse::<Scope>(), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn names_that_are_words_of_a_path_are_no_trap() {
        let key = TenantKey::user(slug("org"), slug("users"));
        assert_eq!(key.to_string().parse::<TenantKey>().unwrap(), key);
        let key = TenantKey::project(slug("apps"), slug("projects"), slug("org"));
        assert_eq!(key.to_string().parse::<TenantKey>().unwrap(), key);
    }
}
