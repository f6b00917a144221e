//! What is known of a database in the cache folder.

use serde::{Deserialize, Serialize};

use crate::dsn::Durability;
use crate::error::{Result, TenantError};
use crate::head::Head;
use crate::key::TenantKey;
use crate::lease::{Holder, Lease};
use crate::write_id::WriteId;

const FORMAT: u64 = 1;

/// Uploads that are remembered, for one of them may yet turn out to be the current snapshot. They are retried once a minute.
const UPLOADS_MAX: usize = 4_096;

/// Where a local database came from, and how much of it object storage has. It is written before the file is there, before
/// each checkpoint is published, and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LocalState {
    format: u64,
    tenant: String,
    /// Under which lease it was opened.
    epoch: u64,
    stage: Stage,
    /// Whether a commit was acknowledged before object storage had it.
    acknowledges_locally: bool,
    /// Up to which position of the database object storage has all of it.
    position: u64,
    /// Copies of the database whose upload began: that which the head named last, and those since.
    #[serde(default)]
    uploads: Vec<Upload>,
}

/// A copy of the database on its way to object storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upload {
    id: WriteId,
    /// The position of the copy. A database of the same history that is not before it holds all of the copy.
    position: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stage {
    /// What is there is a copy of what object storage has, whole or not.
    Hydrating,
    /// It was used.
    Open,
}

/// What is to become of a database that an earlier process left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Nobody else had the tenant since: it is the newest there is, unless it is before the position, which a power cut can
    /// cause.
    Current {
        /// Up to where object storage has it.
        position: u64,
    },
    /// Another had the tenant since, or it is not known what object storage has. What is behind the position was acknowledged,
    /// and can't be kept.
    Superseded {
        /// Up to where object storage had it.
        position: u64,
        /// Why it is superseded.
        reason: &'static str,
    },
    /// Object storage has all that was ever acknowledged.
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

    /// Of a database that holds the current snapshot, and of which object storage has everything up to `position`.
    pub(crate) fn open(lease: &Lease, durability: Durability, position: u64) -> Self {
        let current = lease.head().snapshot.and_then(|snapshot| snapshot.upload());
        let uploads = current.map(|id| Upload { id, position }).into_iter().collect();
        Self { stage: Stage::Open, position, uploads, ..Self::hydrating(lease, durability) }
    }

    /// The same once a copy is about to be uploaded, and may become the current snapshot.
    pub(crate) fn uploading(&self, id: WriteId, position: u64) -> Self {
        let mut uploads = self.uploads.clone();
        if uploads.len() >= UPLOADS_MAX {
            // The first one may be that which the head names.
            uploads.remove(1);
        }
        uploads.push(Upload { id, position });
        Self { uploads, ..self.clone() }
    }

    /// The same database under a lease that follows on the one before.
    pub(crate) fn under(self, lease: &Lease) -> Self {
        Self { epoch: lease.epoch(), ..self }
    }

    /// Whether it tells of a lease.
    pub(crate) fn is_under(&self, lease: &Lease) -> bool {
        self.epoch == lease.epoch()
    }

    /// The same under the lease that a head shows, where a process of this folder took that right after its own one and
    /// came no further; none where nothing is to be changed. Only who has this folder is called `holder`.
    pub(crate) fn adopted(&self, head: &Head, holder: &Holder) -> Option<Self> {
        let is_own = head.lease.as_ref().is_some_and(|lease| lease.holder == holder.as_str());
        let follows = self.epoch.checked_add(1) == Some(head.epoch);
        (is_own && follows).then(|| Self { epoch: head.epoch, ..self.clone() })
    }

    /// Reads it; none where it is of another tenant or release, or torn.
    pub(crate) fn parse(key: &TenantKey, bytes: &[u8]) -> Option<Self> {
        let state: Self = serde_json::from_slice(bytes).ok()?;
        (state.format == FORMAT && state.tenant == key.to_string()).then_some(state)
    }

    pub(crate) fn to_bytes(&self, key: &TenantKey) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| {
            TenantError::corrupt(key, format!("what is known of its database can't be written: {error}"))
        })
    }

    /// What becomes of the database under a new lease. Epochs grow by one with every lease of a tenant: where this one
    /// follows on the one that the database was opened under, nobody was in between.
    pub(crate) fn leftover(&self, lease: &Lease) -> Leftover {
        let position = self.position;
        match self.stage {
            Stage::Hydrating => Leftover::Worthless,
            // What was not shipped was not acknowledged, and its guests were told so.
            Stage::Open if !self.acknowledges_locally => Leftover::Worthless,
            Stage::Open if self.epoch.checked_add(1) != Some(lease.epoch()) => {
                let reason = "another host had the tenant before this was sent";
                Leftover::Superseded { position, reason }
            }
            Stage::Open => match lease.head().snapshot {
                None => Leftover::Current { position },
                Some(snapshot) => {
                    match self.uploads.iter().find(|upload| snapshot.upload() == Some(upload.id)) {
                        Some(upload) => Leftover::Current { position: upload.position },
                        None => {
                            let reason = "the current snapshot was not made of this database";
                            Leftover::Superseded { position, reason }
                        }
                    }
                }
            },
        }
    }
}
