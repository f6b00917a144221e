//! Names of tenants, checked when they are built.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use larder_core::Error;

/// One part of a tenant's name: 1 to 128 bytes of `a-z`, `0-9`, `_` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(Arc<str>);

impl Slug {
    /// The longest, in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, Error> {
        let wrong = if text.is_empty() {
            "it is empty".to_string()
        } else if text.len() > Self::MAX_BYTES {
            format!("it has {} bytes", text.len())
        } else if let Some(found) = text.chars().find(|found| !is_allowed(*found)) {
            format!("it holds {found:?}")
        } else {
            return Ok(Self(text.into()));
        };
        Err(Error::invalid_argument(format!(
            "a name within a tenant is 1 to {} bytes of a-z, 0-9, `_` and `-`; {wrong}",
            Self::MAX_BYTES
        )))
    }

    /// The text.
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

/// Whom a tenant's database belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One user of an organisation.
    User,
    /// An organisation.
    Org,
    /// An app of an organisation.
    App,
    /// A project of an app.
    Project,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::User, Self::Org, Self::App, Self::Project];

    /// Its name.
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
            Error::invalid_argument(format!(
                "there is no scope {text:?}; there are `user`, `org`, `app` and `project`"
            ))
        })
    }
}

/// The name of a tenant. There is one value for each database, and one database for each value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantKey(Owner);

/// Holds what the scope has, and nothing else: so two keys of one database are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Owner {
    User { org: Slug, user: Slug },
    Org { org: Slug },
    App { org: Slug, app: Slug },
    Project { org: Slug, app: Slug, project: Slug },
}

const DATABASE_SUFFIX: &str = ".db";

impl TenantKey {
    /// The database of one user.
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

    /// Whom it belongs to.
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

    /// The user, where it is one's.
    pub fn user_slug(&self) -> Option<&Slug> {
        if let Owner::User { user, .. } = &self.0 { Some(user) } else { None }
    }

    /// The app, where it is one's or a project's.
    pub fn app_slug(&self) -> Option<&Slug> {
        if let Owner::App { app, .. } | Owner::Project { app, .. } = &self.0 { Some(app) } else { None }
    }

    /// The project, where it is one's.
    pub fn project_slug(&self) -> Option<&Slug> {
        if let Owner::Project { project, .. } = &self.0 { Some(project) } else { None }
    }

    /// Where its objects are, below the prefix of all tenants: `acme/org.db`, `acme/users/ann.db`, `acme/apps/shop.db`,
    /// `acme/apps/shop/projects/x.db`.
    pub fn object_path(&self) -> String {
        format!("{self}{DATABASE_SUFFIX}")
    }

    /// Back from an object path; none where it is no tenant's.
    pub fn from_object_path(path: &str) -> Option<Self> {
        path.strip_suffix(DATABASE_SUFFIX)?.parse().ok()
    }

    /// Where its database file is, below a folder of all tenants: the object path, mirrored.
    pub fn local_path(&self, root: &Path) -> PathBuf {
        // Slugs hold no separator and no dot, so nothing of it leads out of the folder.
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
            ("..", "it holds '.'"),
            ("a/b", "it holds '/'"),
            ("a\0", "it holds '\\0'"),
            ("Ann", "it holds 'A'"),
            ("ä", "it holds 'ä'"),
            ("a b", "it holds ' '"),
        ];
        for (text, reason) in wrong {
            let Err(Error::InvalidArgument(said)) = Slug::new(text) else { panic!("{text:?} was taken") };
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
