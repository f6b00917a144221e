//! The identity of a session, and which identities a guest may open.

use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// The identity of a session; tenant, user and session are never empty.
///
/// The parts are any text and are compared by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    tenant: String,
    user: String,
    session: String,
    run: String,
}

/// The parts of an identity that has not been checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityParts {
    /// The customer. Tenants must never see each other's data.
    pub tenant: String,
    /// The user.
    pub user: String,
    /// The session.
    pub session: String,
    /// A part of the session with its own conversation; empty for the whole session.
    pub run: String,
}

impl IdentityParts {
    /// The parts for a whole session: the run is empty.
    pub fn session(tenant: &str, user: &str, session: &str) -> Self {
        Self { tenant: tenant.into(), user: user.into(), session: session.into(), run: String::new() }
    }

    /// Which required parts are empty, as a reason: `tenant and session empty`.
    pub(crate) fn missing(&self) -> Option<String> {
        let parts = [("tenant", &self.tenant), ("user", &self.user), ("session", &self.session)];
        let missing: Vec<_> =
            parts.into_iter().filter(|(_, part)| part.is_empty()).map(|(name, _)| name).collect();
        let (last, others) = missing.split_last()?;
        Some(if others.is_empty() {
            format!("{last} empty")
        } else {
            format!("{} and {last} empty", others.join(", "))
        })
    }
}

impl Identity {
    /// Checks the parts of an identity that a guest passed.
    ///
    /// # Errors
    ///
    /// - [`Error::IdentityRequired`] if tenant, user or session is empty; it names them.
    /// - [`Error::LimitExceeded`] if a part is too long.
    pub fn new(parts: IdentityParts, limits: &Limits) -> Result<Self> {
        if let Some(missing) = parts.missing() {
            return Err(Error::IdentityRequired(missing));
        }
        for part in [&parts.tenant, &parts.user, &parts.session, &parts.run] {
            limits.check(LimitKind::IdentityBytes, part.len() as u64)?;
        }
        Ok(Self::unchecked(parts))
    }

    /// Builds an identity from the parts that a backend stored.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if a part is not UTF-8, or tenant, user or session is empty.
    pub fn from_stored(tenant: Vec<u8>, user: Vec<u8>, session: Vec<u8>, run: Vec<u8>) -> Result<Self> {
        let text = |part: Vec<u8>| {
            String::from_utf8(part)
                .map_err(|_| Error::Corrupt("a part of a stored identity is not UTF-8".to_string()))
        };
        let (tenant, user, session, run) = (text(tenant)?, text(user)?, text(session)?, text(run)?);
        let parts = IdentityParts { tenant, user, session, run };
        match parts.missing() {
            Some(missing) => Err(Error::Corrupt(format!("a stored identity is incomplete: {missing}"))),
            None => Ok(Self::unchecked(parts)),
        }
    }

    /// An identity that only bounds a range, and may have empty parts.
    pub(crate) fn unchecked(parts: IdentityParts) -> Self {
        let IdentityParts { tenant, user, session, run } = parts;
        Self { tenant, user, session, run }
    }

    /// The customer. Tenants must never see each other's data.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The session.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// The run; empty for the whole session.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// The parts of the identity.
    pub fn parts(&self) -> IdentityParts {
        let Self { tenant, user, session, run } = self.clone();
        IdentityParts { tenant, user, session, run }
    }

    /// The bytes of all parts.
    pub fn bytes(&self) -> u64 {
        (self.tenant.len() + self.user.len() + self.session.len() + self.run.len()) as u64
    }
}

/// Which identities a guest may open; the host refuses all others.
///
/// ```
/// use larder_core::{IdentityScope, IdentityParts};
/// let scope = IdentityScope::user("acme", "ann").unwrap();
/// assert!(scope.permits(&IdentityParts::session("acme", "ann", "monday")));
/// assert!(!scope.permits(&IdentityParts::session("acme", "bob", "monday")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IdentityScope {
    /// No identity.
    #[default]
    None,
    /// The sessions of one user, or one session; every run of each.
    Bound {
        /// The tenant.
        tenant: String,
        /// The user.
        user: String,
        /// The session; `None` for every session of the user.
        session: Option<String>,
    },
    /// Every identity, for a trusted guest that serves all tenants.
    ///
    /// The guest itself has to keep the tenants apart.
    Any,
}

impl IdentityScope {
    /// Permits every session of one user.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a part is empty, because no such identity can be opened.
    pub fn user(tenant: impl Into<String>, user: impl Into<String>) -> Result<Self> {
        Self::bound(tenant.into(), user.into(), None)
    }

    /// Permits one session.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if a part is empty, because no such identity can be opened.
    pub fn session(
        tenant: impl Into<String>,
        user: impl Into<String>,
        session: impl Into<String>,
    ) -> Result<Self> {
        Self::bound(tenant.into(), user.into(), Some(session.into()))
    }

    fn bound(tenant: String, user: String, session: Option<String>) -> Result<Self> {
        let is_empty = |part: &Option<String>| part.as_ref().is_some_and(String::is_empty);
        if tenant.is_empty() || user.is_empty() || is_empty(&session) {
            return Err(Error::invalid_argument("a guest's tenant, user and session must not be empty"));
        }
        Ok(Self::Bound { tenant, user, session })
    }

    /// Whether a guest may open the identity with these parts.
    pub fn permits(&self, parts: &IdentityParts) -> bool {
        match self {
            Self::None => false,
            Self::Any => true,
            Self::Bound { tenant, user, session } => {
                parts.tenant == *tenant
                    && parts.user == *user
                    && session.as_ref().is_none_or(|session| parts.session == *session)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(tenant: &str, user: &str, session: &str) -> Option<String> {
        IdentityParts::session(tenant, user, session).missing()
    }

    #[test]
    fn what_is_missing_is_named_in_a_fixed_order() {
        assert_eq!(missing("t", "u", "s"), None);
        assert_eq!(missing("", "u", "s").unwrap(), "tenant empty");
        assert_eq!(missing("t", "", "s").unwrap(), "user empty");
        assert_eq!(missing("t", "u", "").unwrap(), "session empty");
        assert_eq!(missing("", "", "s").unwrap(), "tenant and user empty");
        assert_eq!(missing("", "", "").unwrap(), "tenant, user and session empty");
    }

    #[test]
    fn a_scope_permits_what_it_was_bound_to_and_nothing_else() {
        let parts = IdentityParts::session;
        let user = IdentityScope::user("t", "u").unwrap();
        assert!(user.permits(&parts("t", "u", "s")) && user.permits(&parts("t", "u", "other")));
        assert!(!user.permits(&parts("t", "other", "s")) && !user.permits(&parts("other", "u", "s")));
        let session = IdentityScope::session("t", "u", "s").unwrap();
        assert!(session.permits(&parts("t", "u", "s")) && !session.permits(&parts("t", "u", "other")));
        assert!(!IdentityScope::None.permits(&parts("t", "u", "s")));
        assert!(IdentityScope::Any.permits(&parts("x", "y", "z")));
        IdentityScope::user("", "u").unwrap_err();
        IdentityScope::session("t", "u", "").unwrap_err();
    }

    #[test]
    fn a_part_is_measured_in_bytes() {
        let limits = Limits::default().identity_bytes(4);
        Identity::new(IdentityParts::session("ää", "u", "s"), &limits).unwrap();
        let Err(Error::LimitExceeded(exceeded)) =
            Identity::new(IdentityParts::session("ääa", "u", "s"), &limits)
        else {
            panic!("accepted")
        };
        assert_eq!((exceeded.kind, exceeded.max, exceeded.requested), (LimitKind::IdentityBytes, 4, 5));
    }
}
