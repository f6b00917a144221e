//! Whose memory it is.

use crate::error::{Error, LimitKind, Result};
use crate::limits::Limits;

/// Whose memory it is: tenant, user and session are never empty. Parts are any text, compared by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    tenant: String,
    user: String,
    session: String,
    run: String,
}

/// The parts of an identity, before they are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityParts {
    /// The customer, or whoever must never see another's data.
    pub tenant: String,
    /// The person.
    pub user: String,
    /// The conversation.
    pub session: String,
    /// A part of the conversation with a memory of its own; empty for the whole of it.
    pub run: String,
}

impl IdentityParts {
    /// An identity for the whole of a session.
    pub fn session(tenant: &str, user: &str, session: &str) -> Self {
        Self { tenant: tenant.into(), user: user.into(), session: session.into(), run: String::new() }
    }

    /// What is missing, as a reason: `tenant and session empty`.
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
    /// The longest part that every backend can hold: all four must fit into one B-tree entry of Postgres, which
    /// takes 2,704 bytes.
    pub const PART_BYTES_MAX: u64 = 512;

    /// Checks an identity that a guest sent.
    ///
    /// # Errors
    /// [`Error::IdentityRequired`] says which parts are missing; [`Error::LimitExceeded`] where a part is too
    /// long.
    pub fn new(parts: IdentityParts, limits: &Limits) -> Result<Self> {
        if let Some(missing) = parts.missing() {
            return Err(Error::IdentityRequired(missing));
        }
        for part in [&parts.tenant, &parts.user, &parts.session, &parts.run] {
            limits.check(LimitKind::IdentityBytes, part.len() as u64)?;
        }
        Ok(Self::unchecked(parts))
    }

    /// Takes the parts of an identity that a backend stored.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where they are no text, or one is missing.
    pub fn from_stored(tenant: Vec<u8>, user: Vec<u8>, session: Vec<u8>, run: Vec<u8>) -> Result<Self> {
        let text = |part: Vec<u8>| {
            String::from_utf8(part)
                .map_err(|_| Error::Corrupt("a part of an identity is no UTF-8 text".to_string()))
        };
        let (tenant, user, session, run) = (text(tenant)?, text(user)?, text(session)?, text(run)?);
        let parts = IdentityParts { tenant, user, session, run };
        match parts.missing() {
            Some(missing) => Err(Error::Corrupt(format!("a stored identity has {missing}"))),
            None => Ok(Self::unchecked(parts)),
        }
    }

    /// A bound between identities, which need not be one.
    pub(crate) fn unchecked(parts: IdentityParts) -> Self {
        let IdentityParts { tenant, user, session, run } = parts;
        Self { tenant, user, session, run }
    }

    /// The customer, or whoever must never see another's data.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The person.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The conversation.
    pub fn session(&self) -> &str {
        &self.session
    }

    /// A part of the conversation; empty for the whole of it.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// Its parts.
    pub fn parts(&self) -> IdentityParts {
        let Self { tenant, user, session, run } = self.clone();
        IdentityParts { tenant, user, session, run }
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        (self.tenant.len() + self.user.len() + self.session.len() + self.run.len()) as u64
    }
}

/// Which identities a guest may open. What the platform did not grant is refused.
///
/// ```
/// use larder_core::{IdentityScope, IdentityParts};
/// let scope = IdentityScope::user("acme", "ann").unwrap();
/// assert!(scope.permits(&IdentityParts::session("acme", "ann", "monday")));
/// assert!(!scope.permits(&IdentityParts::session("acme", "bob", "monday")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IdentityScope {
    /// None.
    #[default]
    None,
    /// Those of one user, or only those of one session. Every run of it.
    Bound {
        /// The tenant.
        tenant: String,
        /// The user.
        user: String,
        /// The session; none for every session of the user.
        session: Option<String>,
    },
    /// Every one: for a guest that serves all tenants, and is trusted to keep them apart.
    Any,
}

impl IdentityScope {
    /// Every session of one user.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where a part is empty: nothing could ever be opened.
    pub fn user(tenant: impl Into<String>, user: impl Into<String>) -> Result<Self> {
        Self::bound(tenant.into(), user.into(), None)
    }

    /// One session.
    ///
    /// # Errors
    /// As [`IdentityScope::user`].
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
            return Err(Error::invalid_argument("tenant, user and session of a guest can't be empty"));
        }
        Ok(Self::Bound { tenant, user, session })
    }

    /// Whether a guest may open the memory of these.
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
        let limits = Limits { identity_bytes: 4, ..Default::default() };
        Identity::new(IdentityParts::session("ää", "u", "s"), &limits).unwrap();
        let Err(Error::LimitExceeded(exceeded)) =
            Identity::new(IdentityParts::session("ääa", "u", "s"), &limits)
        else {
            panic!("accepted")
        };
        assert_eq!((exceeded.kind, exceeded.max, exceeded.requested), (LimitKind::IdentityBytes, 4, 5));
    }
}
