//! Quarantine: databases with commits that were not sent and that another host's data has
//! superseded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_core::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::local::cache::{CacheFolder, make_folder, write_new};
use crate::write_id::WriteId;

const NOTE: &str = "note.json";

/// The most characters of the tenant's name in the name of its folder.
const MAX_NAMED: usize = 150;

/// A database in quarantine, kept for an operator to inspect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The name of the database in the quarantine.
    #[serde(skip)]
    pub name: String,
    /// The path of the database file.
    #[serde(skip)]
    pub database: PathBuf,
    /// The key of the tenant. Empty if the record is unreadable.
    pub tenant: String,
    /// Why it is in quarantine.
    pub reason: String,
    /// When it was put into quarantine, in milliseconds since 1970.
    pub at: UnixMillis,
    /// The position up to which object storage had the database, if known.
    pub sent_position: Option<u64>,
    /// The position of its last commit, if it could be read.
    pub position: Option<u64>,
}

impl CacheFolder {
    /// Moves a tenant's local database into quarantine.
    pub(crate) fn put_into_quarantine(&self, key: &TenantKey, mut note: Quarantined) -> Result<Quarantined> {
        // The note has the full name. File systems allow 255 bytes in a name, and a key can be
        // longer.
        let tenant: String = key.to_string().replace('/', ".").chars().take(MAX_NAMED).collect();
        let name = format!("{tenant}-{}-{}", note.at, WriteId::random());
        let folder = self.quarantine().join(&name);
        let put = || -> io::Result<()> {
            make_folder(&folder)?;
            write_new(&folder.join(NOTE), &serde_json::to_vec_pretty(&note).map_err(io::Error::other)?)?;
            self.move_database(key, &folder)
        };
        put().map_err(|error| TenantError::file(format!("{key} can't be put into quarantine"), error))?;
        note.database = folder.join("database.db");
        note.name = name;
        Ok(note)
    }

    /// Lists the databases in quarantine, oldest first.
    ///
    /// # Errors
    /// [`TenantError::File`] if the quarantine cannot be read.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let folder = self.quarantine();
        let read = || -> io::Result<Vec<Quarantined>> {
            let mut found = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if !entry.file_type()?.is_dir() {
                    continue;
                }
                let name = entry.file_name().to_string_lossy().into_owned();
                found.push(read_note(&entry.path(), name)?);
            }
            found.sort_by(|a, b| (a.at, &a.name).cmp(&(b.at, &b.name)));
            Ok(found)
        };
        read().map_err(|error| TenantError::file("the quarantine can't be read", error))
    }

    /// Removes a database from quarantine permanently.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if no quarantined database has this name.
    /// - [`TenantError::File`] if it cannot be removed.
    pub fn remove_from_quarantine(&self, name: &str) -> Result<()> {
        let name = self.in_quarantine(name)?.name;
        // After a crash, all of it is in quarantine, or in a folder that the next start removes.
        let removed = self.temporary_folder().join(WriteId::random().to_string());
        fs::rename(self.quarantine().join(name), &removed)
            .and_then(|()| fs::remove_dir_all(removed))
            .map_err(|error| TenantError::file("a database can't be removed from quarantine", error))
    }
}

impl CacheFolder {
    pub(crate) fn in_quarantine(&self, name: &str) -> Result<Quarantined> {
        let known = self.quarantined()?.into_iter().find(|quarantined| quarantined.name == name);
        known
            .ok_or_else(|| TenantError::invalid_argument(format!("nothing in quarantine is called {name:?}")))
    }
}

fn read_note(folder: &Path, name: String) -> io::Result<Quarantined> {
    let note = match fs::read(folder.join(NOTE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let unknown = Quarantined {
        name: String::new(),
        database: PathBuf::new(),
        tenant: String::new(),
        reason: "its note can't be read".to_string(),
        at: 0,
        sent_position: None,
        position: None,
    };
    Ok(Quarantined { name, database: folder.join("database.db"), ..note.unwrap_or(unknown) })
}
