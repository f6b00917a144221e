//! A host that starts on the folder after a power cut.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_core::Mode;
use larder_tenants::faults::replace_cache_folder;
use larder_tenants::{Holder, Remote, RemoteOptions, Tenant, Tenants};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;

use crate::Moment;
use crate::history::{History, NEWEST, Rows, rows_in, rows_of};
use crate::host::handle;
use crate::work::{DATABASE, FOLDER, ann, builder};

/// The sequence of events after the power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sequence {
    /// The host starts and reads, and then another host reads.
    Read,
    /// The host starts and makes as many commits as the disk has lost. If none was lost, it makes a
    /// few.
    Commit,
    /// Another host opens the tenant first, and makes as many commits as the disk has beyond the
    /// snapshot. Then the host starts.
    Overtaken,
}

pub(crate) const SEQUENCES: [Sequence; 3] = [Sequence::Read, Sequence::Commit, Sequence::Overtaken];

/// A disk and object storage after a power cut.
pub(crate) struct Cut<'a> {
    pub(crate) history: &'a History,
    pub(crate) at: Moment,
    /// The cache folder.
    pub(crate) cache: &'a Path,
    pub(crate) store: Arc<dyn ObjectStore>,
    /// A description of the cut, for messages.
    pub(crate) what: String,
}

/// The last commit in the current snapshot, and the last one on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Newest {
    pub(crate) published: u64,
    pub(crate) local: u64,
}

impl Newest {
    /// The last commit that must survive the power cut.
    pub(crate) fn kept(self) -> u64 {
        self.published.max(self.local)
    }
}

impl Cut<'_> {
    fn remote(&self) -> Remote {
        Remote::new(self.store.clone(), ObjectPath::default(), RemoteOptions::default()).unwrap()
    }

    async fn published(&self) -> Rows {
        let remote = self.remote();
        let head = remote.head(&ann()).await.unwrap();
        let Some(snapshot) = head.and_then(|head| head.snapshot) else { return Rows::new() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshot.db");
        remote.fetch(&ann(), &snapshot, &file, 1 << 30).await.unwrap();
        rows_of(&file)
    }

    pub(crate) async fn newest(&self) -> Newest {
        let published = self.history.newest_in(&self.published().await, &format!("published, {}", self.what));
        let local = rows_in(&self.cache.join(FOLDER), DATABASE);
        let local = self.history.newest_in(&local, &format!("on the disk, {}", self.what));
        // Every commit that is found was made. One may have been in flight at the power cut.
        let most = self.history.acknowledged_by(self.at) + 1;
        assert!(published <= most && local <= most, "{published} and {local} of {most}, {}", self.what);
        Newest { published, local }
    }

    /// Starts the host on what the power cut left, and checks the result. No published commit is
    /// undone, no commit that the disk still has is lost, and no version is assigned twice.
    pub(crate) async fn check(&self, sequence: Sequence) -> Newest {
        let newest = self.newest().await;
        let what = format!("{sequence:?} after {newest:?}, {}", self.what);
        let elsewhere = tempfile::tempdir().unwrap();
        let kept = newest.kept();
        // Callers got these commits acknowledged, or readers have seen them.
        let given = self.history.versions(kept.max(self.history.acknowledged_by(self.at)));
        let mut expected = Expected { rows: self.history.rows_after(kept), versions: given, commits: 0 };
        if sequence == Sequence::Overtaken {
            self.expire_lease().await;
            let other = builder(self.store.clone(), elsewhere.path()).open().await.unwrap();
            expected.rows = self.history.rows_after(newest.published);
            let commits = newest.local.saturating_sub(newest.published).max(1);
            expected.commit(&other, commits, &what).await;
            other.close().await.unwrap();
        }

        // The earlier process is dead, and this folder is still its own.
        replace_cache_folder(self.cache).unwrap();
        let host = builder(self.store.clone(), self.cache).open().await.unwrap();
        let commits = match sequence {
            Sequence::Read => 0,
            Sequence::Commit if newest.published > newest.local => newest.published - newest.local,
            Sequence::Commit | Sequence::Overtaken => 3,
        };
        expected.commit(&host, commits, &what).await;
        self.check_quarantine(&host, sequence, newest, &what).await;
        host.close().await.unwrap();

        let other = builder(self.store.clone(), elsewhere.path()).open().await.unwrap();
        expected.check(&other.get(&ann()).await.unwrap(), &format!("another host, {what}")).await;
        other.close().await.unwrap();
        assert_eq!(self.published().await, expected.rows, "{what}");
        newest
    }

    /// Makes the lease of the dead host expire.
    async fn expire_lease(&self) {
        let remote = self.remote();
        let Some(lease) = remote.head(&ann()).await.unwrap().and_then(|head| head.lease) else { return };
        let holder = Holder::new(&lease.holder).unwrap();
        remote.acquire(&ann(), &holder, Duration::ZERO).await.unwrap().release().await.unwrap();
    }

    /// Only a database that was superseded is in quarantine, and all of it.
    async fn check_quarantine(&self, host: &Tenants, sequence: Sequence, newest: Newest, what: &str) {
        let notes = host.cache().quarantined().unwrap();
        if sequence != Sequence::Overtaken {
            assert_eq!(notes, [], "{what}");
            return;
        }
        if newest.local > newest.published {
            assert_eq!(notes.len(), 1, "{what}");
        }
        for note in notes {
            assert_eq!(note.reason, "another host had the tenant before these commits were sent", "{what}");
            assert_eq!(rows_of(&note.database), self.history.rows_after(newest.local), "{what}");
        }
    }
}

/// What every host must show.
struct Expected {
    rows: Rows,
    /// The versions that were assigned so far, including those of lost commits.
    versions: BTreeSet<u64>,
    /// The number of commits since the power cut.
    commits: u64,
}

impl Expected {
    async fn check(&self, tenant: &Tenant, what: &str) {
        let mut view = handle(tenant).begin(Mode::View).unwrap();
        for (row, expected) in &self.rows {
            let found = view.get_versioned("n".into(), row.clone()).await.unwrap();
            let found = found.map(|(value, version)| (String::from_utf8(value).unwrap(), version.0));
            assert_eq!(found.as_ref(), Some(expected), "{row}, {what}");
        }
    }

    /// Checks what a host shows, and makes it commit more.
    async fn commit(&mut self, tenants: &Tenants, commits: u64, what: &str) {
        let tenant = tenants.get(&ann()).await.unwrap();
        self.check(&tenant, what).await;
        for _ in 0..commits {
            self.commits += 1;
            let (row, value) = (format!("later/{:06}", self.commits), format!("later {}", self.commits));
            let mut update = handle(&tenant).begin(Mode::Update).unwrap();
            for row in [NEWEST, &row] {
                update.put("n".into(), row.into(), value.clone().into()).unwrap();
            }
            let version = update.commit().await.unwrap().0;
            assert!(self.versions.insert(version), "version {version} was assigned twice, {what}");
            for row in [NEWEST, &row] {
                self.rows.insert(row.into(), (value.clone(), version));
            }
        }
        self.check(&tenant, what).await;
    }
}
