//! The cache folder of a host, which has its open databases.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Result, TenantError};
use crate::head::Takeover;
use crate::key::TenantKey;
use crate::lease::Holder;
use crate::local::folder_owner;
use crate::local::state::LocalState;
use crate::location_id::LocationNote;
use crate::write_id::WriteId;

/// Names of larder's own files begin with a dot, which no slug contains.
const LOCK: &str = ".lock";
const TEMPORARY: &str = ".temporary";
const QUARANTINE: &str = ".quarantine";
const LOCATION: &str = ".place.json";

/// The cache folder of one host. Only one process may use it at a time.
///
/// It has the databases of open tenants, at [`TenantKey::local_path`], each with a file that
/// records its state. It also has the databases in quarantine.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_tenants::CacheFolder;
///
/// # let folder = tempfile::tempdir()?;
/// let cache = CacheFolder::open(&folder.path().join("cache"))?;
/// assert!(cache.tenants()?.is_empty());
/// assert!(cache.quarantined()?.is_empty());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct CacheFolder {
    root: PathBuf,
    holder: Holder,
    /// Unlocked when it is dropped and when the process ends.
    _lock: File,
}

impl CacheFolder {
    /// Opens and locks a folder, and creates it if it does not exist.
    ///
    /// This blocks while it reads and writes a few small files.
    ///
    /// # Errors
    /// - [`TenantError::CacheInUse`] if another process is using the folder.
    /// - [`TenantError::File`] if the folder cannot be read or written.
    pub fn open(root: &Path) -> Result<Self> {
        let failed =
            |error| TenantError::file(format!("the cache folder {} can't be used", root.display()), error);
        make_folder(root).map_err(failed)?;
        let root = root.canonicalize().map_err(failed)?;
        let lock =
            File::options().create(true).write(true).truncate(false).open(root.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TenantError::CacheInUse { folder: root.display().to_string() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let temporary = root.join(TEMPORARY);
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(failed)?;
        }
        make_folder(&temporary).map_err(failed)?;
        make_folder(&root.join(QUARANTINE)).map_err(failed)?;
        let holder = folder_owner::name(&root).map_err(failed)?;
        let holder = Holder::new(&holder)
            .map_err(|error| TenantError::file("this host has no name to take leases under", error))?
            .in_folder(&root);
        Ok(Self { root, holder, _lock: lock })
    }

    /// Whether a cache folder was ever opened at this path.
    pub fn is_at(folder: &Path) -> bool {
        folder_owner::is_at(folder)
    }

    /// The path of the folder.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// The holder of the leases that are taken for this folder.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Whether a lease was taken for this folder under an earlier name, before a restart of the
    /// machine.
    pub(crate) fn is_earlier(&self, takeover: &Takeover) -> bool {
        let host = |name: &str| name.split('/').next().map(str::to_string);
        takeover.folder.as_deref() == Some(self.root.to_string_lossy().as_ref())
            && host(&takeover.holder) == host(self.holder.as_str())
    }

    /// The id of the location whose tenants the folder has. `None` if it was never recorded.
    pub(crate) fn location(&self) -> Result<Option<WriteId>> {
        let path = self.root.join(LOCATION);
        match fs::read(&path) {
            Ok(bytes) => LocationNote::parse(&path.display().to_string(), &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TenantError::file(format!("{} can't be read", path.display()), error)),
        }
    }

    /// Records the location whose tenants the folder has. It never changes.
    pub(crate) fn record_location(&self, location: WriteId) -> Result<()> {
        self.replace(&self.root.join(LOCATION), &LocationNote::new(location).to_bytes()?)
    }

    /// The path of a tenant's database file while it is open.
    pub fn database(&self, key: &TenantKey) -> PathBuf {
        key.local_path(&self.root)
    }

    /// The tenants whose databases are in the folder, sorted by key.
    ///
    /// These are the open tenants, and those that a killed process left.
    ///
    /// # Errors
    /// [`TenantError::File`] if the folder cannot be read.
    pub fn tenants(&self) -> Result<Vec<TenantKey>> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let failed =
                |error| TenantError::file(format!("the folder {} can't be read", folder.display()), error);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(key) = self.key_of(&entry.path()) {
                    found.push(key);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    fn key_of(&self, path: &Path) -> Option<TenantKey> {
        TenantKey::from_object_path(path.strip_prefix(&self.root).ok()?.to_str()?)
    }

    /// The folder whose content is removed at the next start.
    pub(crate) fn temporary_folder(&self) -> PathBuf {
        self.root.join(TEMPORARY)
    }

    /// A new path for a file that is removed at the next start.
    pub(crate) fn temporary(&self) -> TemporaryFile {
        TemporaryFile(self.temporary_folder().join(WriteId::random().to_string()))
    }

    pub(crate) fn quarantine(&self) -> PathBuf {
        self.root.join(QUARANTINE)
    }

    fn state_path(&self, key: &TenantKey) -> PathBuf {
        with_suffix(&self.database(key), ".state.json")
    }

    /// Reads the recorded state of a tenant's database. `None` if there is none or it is invalid.
    pub(crate) fn read_state(&self, key: &TenantKey) -> Result<Option<LocalState>> {
        let path = self.state_path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(LocalState::parse(key, &bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TenantError::file(format!("{} can't be read", path.display()), error)),
        }
    }

    /// Replaces the recorded state of a tenant's database durably.
    pub(crate) fn write_state(&self, key: &TenantKey, state: &LocalState) -> Result<()> {
        self.replace(&self.state_path(key), &state.to_bytes(key)?)
    }

    /// Replaces a file atomically and durably.
    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let written = || -> io::Result<()> {
            make_parent(path)?;
            write_new(&temporary.0, bytes)?;
            rename(&temporary.0, path)?;
            sync_parent(path)
        };
        written().map_err(|error| TenantError::file(format!("{} can't be written", path.display()), error))
    }

    /// Moves a complete file to the path of a tenant's database. Removes logs of an earlier
    /// database there.
    pub(crate) fn install(&self, key: &TenantKey, file: TemporaryFile) -> Result<()> {
        let path = self.database(key);
        let installed = || -> io::Result<()> {
            make_parent(&path)?;
            remove_logs(&path)?;
            rename(&file.0, &path)?;
            sync_parent(&path)
        };
        installed()
            .map_err(|error| TenantError::file(format!("{} can't be put in place", path.display()), error))
    }

    /// Whether the folder has a database file of a tenant.
    pub(crate) fn has_database(&self, key: &TenantKey) -> bool {
        self.database(key).exists()
    }

    /// Removes a tenant's database, and then its recorded state.
    pub(crate) fn remove(&self, key: &TenantKey) -> Result<()> {
        let path = self.database(key);
        let removed = || -> io::Result<()> {
            // After a crash, a database file is found again, but a log alone is not.
            remove_logs(&path)?;
            remove_file(&path)?;
            remove_file(&self.state_path(key))
        };
        removed().map_err(|error| TenantError::file(format!("{} can't be removed", path.display()), error))
    }

    /// Moves a tenant's database and its logs into a folder, whether or not it is closed. A
    /// database and its log are useless without each other, so no file is removed here before all
    /// of them exist there.
    pub(crate) fn move_database(&self, key: &TenantKey, folder: &Path) -> io::Result<()> {
        let path = self.database(key);
        for suffix in ["", "-wal", "-shm"] {
            before_change(&with_suffix(&path, suffix))?;
            match fs::hard_link(with_suffix(&path, suffix), folder.join(format!("database.db{suffix}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        sync_parent(&folder.join("database.db"))?;
        remove_file(&path)?;
        remove_logs(&path)?;
        remove_file(&self.state_path(key))
    }
}

/// A file that is removed on drop, if it still exists.
pub(crate) struct TemporaryFile(PathBuf);

impl TemporaryFile {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // It may have been renamed, or never created. If this fails, the next start removes it.
        let _ = remove_file(&self.0);
        let _ = remove_logs(&self.0);
    }
}

/// Called before each change that a crash may precede. Tests make it fail, or end the process.
fn before_change(_path: &Path) -> io::Result<()> {
    #[cfg(feature = "testing")]
    crate::faults::before_local_change(_path)?;
    Ok(())
}

/// Creates a folder and its parents durably. Only the user may read it, because databases hold
/// private data.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_folder(parent)?;
    before_change(path)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        // Opening another tenant creates the same folder.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_folder(parent)
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_folder)
}

pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    before_change(&folder.join("."))?;
    File::open(folder)?.sync_all()
}

/// Creates a file that must not exist.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    before_change(path)?;
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before_change(to)?;
    fs::rename(from, to)
}

fn remove_logs(database: &Path) -> io::Result<()> {
    remove_file(&with_suffix(database, "-wal"))?;
    remove_file(&with_suffix(database, "-shm"))?;
    remove_file(&with_suffix(database, "-journal"))
}

fn remove_file(path: &Path) -> io::Result<()> {
    before_change(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_that_fails_halfway_leaves_everything_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let cache = CacheFolder::open(folder.path()).unwrap();
        let key: TenantKey = "acme/org".parse().unwrap();
        let (database, target) = (cache.database(&key), folder.path().join("target"));
        make_parent(&database).unwrap();
        let names = ["", "-wal", "-shm", ".state.json"];
        for name in names {
            fs::write(with_suffix(&database, name), name).unwrap();
        }
        // The log cannot be put there.
        fs::create_dir_all(target.join("database.db-wal")).unwrap();
        cache.move_database(&key, &target).unwrap_err();
        for name in names {
            assert_eq!(fs::read_to_string(with_suffix(&database, name)).unwrap(), name);
        }
        let target = folder.path().join("another");
        fs::create_dir(&target).unwrap();
        cache.move_database(&key, &target).unwrap();
        for name in ["", "-wal", "-shm"] {
            assert_eq!(fs::read_to_string(target.join(format!("database.db{name}"))).unwrap(), name);
        }
        assert_eq!(fs::read_dir(database.parent().unwrap()).unwrap().count(), 0);
    }

    #[cfg(feature = "testing")]
    #[test]
    fn folders_that_are_new_are_in_the_one_above_after_a_power_cut() {
        use std::sync::Arc;

        use parking_lot::Mutex;

        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().canonicalize().unwrap();
        let steps: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
        crate::faults::before_local_changes(&above, {
            let steps = steps.clone();
            move |path| {
                steps.lock().push(path.to_path_buf());
                Ok(())
            }
        });
        let taken = || std::mem::take(&mut *steps.lock());
        let root = above.join("new/cache");
        let cache = CacheFolder::open(&root).unwrap();
        let synced = |above: &str| root.join(above).join(".");
        let made = taken();
        assert_eq!(made[..4], [above.join("new"), above.join("."), root.clone(), above.join("new/.")]);
        make_parent(&cache.database(&"acme/users/ann".parse().unwrap())).unwrap();
        assert_eq!(taken(), [root.join("acme"), synced(""), root.join("acme/users"), synced("acme")]);
        make_parent(&cache.database(&"acme/users/bob".parse().unwrap())).unwrap();
        assert!(taken().is_empty());
    }
}
