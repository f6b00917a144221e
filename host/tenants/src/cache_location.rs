//! Which cache folder belongs to which location.

use std::path::{Path, PathBuf};

use larder_core::Error;
use sha2::{Digest, Sha256};

use crate::dsn::{Location, TenantsDsn, azure_account, s3_endpoint};
use crate::error::Result;
use crate::local::{CacheFolder, TenantsBuilder};
use crate::remote::Remote;

/// The bytes of the hash that names a location.
const NAME_BYTES: usize = 8;

impl TenantsDsn {
    /// A short, unique name of the location.
    ///
    /// Every data-source name of the location has the same one. It is a hash, so it reveals no
    /// secret.
    pub fn location_name(&self) -> String {
        let text = |part: &str| Some(part.to_string());
        let location = match &self.location {
            Location::Folder(folder) => {
                // With or without a slash at the end, it is the same folder.
                let folder: PathBuf = folder.components().collect();
                vec![text("file"), text(&folder.to_string_lossy())]
            }
            Location::S3 { bucket, endpoint, .. } => {
                vec![text("s3"), text(bucket), s3_endpoint(endpoint.as_deref())]
            }
            Location::Azure { container, account, endpoint } => {
                let [account, endpoint] = azure_account(account.as_deref(), endpoint.as_deref());
                vec![text("az"), text(container), account, endpoint]
            }
            Location::Gcs { bucket } => vec![text("gs"), text(bucket)],
        };
        let mut hash = Sha256::new();
        for part in location.into_iter().chain([text(self.prefix.as_ref())]) {
            let part = part.unwrap_or_default();
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hex::encode(hash.finalize().iter().take(NAME_BYTES).copied().collect::<Vec<_>>())
    }

    /// The path of the cache folder for this location.
    ///
    /// The parent is the option `cache` of the data-source name, else `folder`, else
    /// `larder/tenants` in the user's cache directory. If that is itself a cache folder, it is
    /// used. Otherwise the result is a folder below it, which no other location uses.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if neither is set, and the environment names no cache directory.
    pub fn cache_folder(&self, folder: Option<&Path>) -> Result<PathBuf, Error> {
        let folder = match (self.cache.as_deref(), folder) {
            (Some(own), _) => own.to_path_buf(),
            (None, Some(folder)) => folder.to_path_buf(),
            (None, None) => CacheFolder::default_root().ok_or_else(|| {
                Error::invalid_argument(
                    "tenants need a cache folder for open databases; set `cache=FOLDER`, XDG_CACHE_HOME or HOME",
                )
            })?,
        };
        Ok(if CacheFolder::is_at(&folder) { folder } else { folder.join(self.location_name()) })
    }

    /// Opens the tenants in object storage without a cache folder.
    ///
    /// Use it to read tenants or to take leases. The object storage is not probed.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if this build does not support the object store, the settings
    ///   in the environment are invalid, or options contradict each other.
    /// - [`Error::NotFound`] if the folder does not exist and must not be created.
    /// - [`Error::Unavailable`] if the folder cannot be used.
    pub fn open_remote(&self) -> Result<Remote, Error> {
        let TenantsBuilder { store, prefix, remote, .. } = TenantsBuilder::from_dsn(self)?;
        Ok(Remote::new(store, prefix, remote)?)
    }
}

impl CacheFolder {
    /// The default parent of a user's cache folders: `larder/tenants` in the user's cache
    /// directory.
    ///
    /// `None` if neither `XDG_CACHE_HOME` nor `HOME` is an absolute path.
    pub fn default_root() -> Option<PathBuf> {
        let absolute =
            |name| std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute());
        let caches =
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(caches.join("larder").join("tenants"))
    }

    /// Finds cache folders: `folder` itself, if it is one, or those directly below it.
    ///
    /// # Errors
    /// [`TenantError::File`](crate::TenantError::File) if `folder` cannot be read.
    pub fn find(folder: &Path) -> Result<Vec<PathBuf>> {
        if Self::is_at(folder) {
            return Ok(vec![folder.to_path_buf()]);
        }
        let failed =
            |error| crate::TenantError::file(format!("the folder {} can't be read", folder.display()), error);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if Self::is_at(&path) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dsn(text: &str) -> TenantsDsn {
        TenantsDsn::parse(text).unwrap()
    }

    #[test]
    fn a_place_has_one_name_whatever_its_options_and_every_other_another() {
        let name = dsn("tenants+file:///srv/a").location_name();
        assert_eq!(name.len(), 16);
        assert_eq!(dsn("tenants+file:///srv/a/?scope=org&durability=object").location_name(), name);
        let s3 = "tenants+s3://b/p?endpoint=http://127.0.0.1:1";
        let locations = [
            "tenants+file:///srv/b",
            "tenants+s3://b",
            "tenants+s3://b/p",
            s3,
            "tenants+s3://b/p?endpoint=http://127.0.0.1:2",
            "tenants+gs://b/p",
            "tenants+az://b/p",
            "tenants+az://b/p?account=me",
        ];
        let mut names: Vec<_> = locations.iter().map(|location| dsn(location).location_name()).collect();
        names.push(name);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), locations.len() + 1);
        assert_eq!(dsn(s3).location_name(), dsn(&format!("{s3}&region=eu-west-1")).location_name());
    }

    #[test]
    fn a_folder_that_is_a_cache_folder_is_used_itself_and_others_hold_one_a_location() {
        let folder = tempfile::tempdir().unwrap();
        let location = dsn("tenants+file:///srv/a");
        let below = folder.path().join(location.location_name());
        assert_eq!(location.cache_folder(Some(folder.path())).unwrap(), below);
        assert_eq!(CacheFolder::find(folder.path()).unwrap(), [] as [PathBuf; 0]);
        drop(CacheFolder::open(&below).unwrap());
        assert_eq!(location.cache_folder(Some(folder.path())).unwrap(), below);
        assert_eq!(location.cache_folder(Some(&below)).unwrap(), below);
        let own = dsn(&format!("tenants+file:///srv/a?cache={}", below.display()));
        assert_eq!(own.cache_folder(Some(Path::new("/elsewhere"))).unwrap(), below);
        assert_eq!(CacheFolder::find(folder.path()).unwrap(), CacheFolder::find(&below).unwrap());
        assert_eq!(CacheFolder::find(&below).unwrap(), [below]);
        CacheFolder::find(&folder.path().join("missing")).unwrap_err();
    }
}
