//! The recorded state of a database in the cache folder.

use serde::{Deserialize, Serialize};

use crate::dsn::Durability;
use crate::error::{Result, TenantError};
use crate::head::Head;
use crate::key::TenantKey;
use crate::lease::{Holder, Lease};
use crate::write_id::WriteId;

const FORMAT: u64 = 1;

/// The most uploads that are recorded, because any of them may turn out to be the current snapshot.
/// They are retried once a minute.
const UPLOADS_MAX: usize = 4_096;

/// The origin of a local database, and how much of it object storage has.
///
/// It is written before the database file exists, and before and after each checkpoint is
/// published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalState {
    format: u64,
    tenant: String,
    /// The epoch of the lease under which the database was opened.
    epoch: u64,
    stage: Stage,
    /// Whether commits are acknowledged before object storage has them.
    acknowledges_locally: bool,
    /// The position up to which object storage has the database.
    position: u64,
    /// Copies of the database whose upload was started: the one that the head last named, and all
    /// later ones.
    #[serde(default)]
    uploads: Vec<Upload>,
}

/// A copy of the database whose upload was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upload {
    id: WriteId,
    /// The position of the copy. A database with the same history and at least this position
    /// contains all of the copy.
    position: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// The file is a copy, perhaps a partial one, of what object storage has.
    Hydrating,
    /// The database was used.
    Open,
}

/// What to do with a database that an earlier process left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// No other host had the tenant since. The database is the newest state, unless it is behind
    /// `position`, which a power cut can cause.
    Current {
        /// The position up to which object storage has it.
        position: u64,
    },
    /// Another host had the tenant since, or it is unknown how much object storage has. Commits
    /// after `position` were acknowledged, and cannot be kept.
    Superseded {
        /// The position up to which object storage had it.
        position: u64,
        /// Why it is superseded.
        reason: &'static str,
    },
    /// Object storage has every commit that was acknowledged.
    Worthless,
}

impl LocalState {
    pub(crate) fn hydrating(lease: &Lease, durability: Durability) -> Self {
        Self {
            format: FORMAT,
            tenant: lease.key().to_string(),
            epoch: lease.epoch(),
            stage: Stage::Hydrating,
            acknowledges_locally: durability == Durability::Local,
            position: 0,
            uploads: Vec::new(),
        }
    }

    /// The state of a database that contains the current snapshot, and that object storage has up
    /// to `position`.
    pub(crate) fn open(lease: &Lease, durability: Durability, position: u64) -> Self {
        let current = lease.head().snapshot.and_then(|snapshot| snapshot.upload());
        let uploads = current.map(|id| Upload { id, position }).into_iter().collect();
        Self { stage: Stage::Open, position, uploads, ..Self::hydrating(lease, durability) }
    }

    /// The state when a copy is about to be uploaded, which may become the current snapshot.
    pub(crate) fn uploading(&self, id: WriteId, position: u64) -> Self {
        let mut uploads = self.uploads.clone();
        if uploads.len() >= UPLOADS_MAX {
            // The first one may be the one that the head names.
            uploads.remove(1);
        }
        uploads.push(Upload { id, position });
        Self { uploads, ..self.clone() }
    }

    /// The same state under the next lease of the tenant.
    pub(crate) fn under(self, lease: &Lease) -> Self {
        Self { epoch: lease.epoch(), ..self }
    }

    /// Whether the database was opened under this lease.
    pub(crate) fn is_under(&self, lease: &Lease) -> bool {
        self.epoch == lease.epoch()
    }

    /// The state under the lease in a head, if a process of this folder took that lease directly
    /// after the recorded one and recorded nothing since. `None` if nothing changes. Only the
    /// process that has this folder uses the name `holder`.
    pub(crate) fn adopted(&self, head: &Head, holder: &Holder) -> Option<Self> {
        let is_own = head.lease.as_ref().is_some_and(|lease| lease.holder == holder.as_str());
        let follows = self.epoch.checked_add(1) == Some(head.epoch);
        (is_own && follows).then(|| Self { epoch: head.epoch, ..self.clone() })
    }

    /// Parses the state. `None` if it belongs to another tenant, has another format or is torn.
    pub(crate) fn parse(key: &TenantKey, bytes: &[u8]) -> Option<Self> {
        let state: Self = serde_json::from_slice(bytes).ok()?;
        (state.format == FORMAT && state.tenant == key.to_string()).then_some(state)
    }

    pub(crate) fn to_bytes(&self, key: &TenantKey) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            TenantError::corrupt(key, format!("the state of its local database can't be written: {error}"))
        })
    }

    /// What to do with the database under a new lease. Each lease raises the epoch by one. So if
    /// the epoch of the new lease directly follows the recorded one, no other host had the tenant
    /// in between.
    pub(crate) fn leftover(&self, lease: &Lease) -> Leftover {
        let position = self.position;
        match self.stage {
            Stage::Hydrating => Leftover::Worthless,
            // A commit that was not shipped was not acknowledged, and the guest got an error.
            Stage::Open if !self.acknowledges_locally => Leftover::Worthless,
            Stage::Open if self.epoch.checked_add(1) != Some(lease.epoch()) => {
                let reason = "another host had the tenant before these commits were sent";
                Leftover::Superseded { position, reason }
            }
            Stage::Open => match lease.head().snapshot {
                None => Leftover::Current { position },
                Some(snapshot) => {
                    match self.uploads.iter().find(|upload| snapshot.upload() == Some(upload.id)) {
                        Some(upload) => Leftover::Current { position: upload.position },
                        None => {
                            let reason = "the current snapshot was not made from this database";
                            Leftover::Superseded { position, reason }
                        }
                    }
                }
            },
        }
    }
}
