//! Locates the programs of Postgres, Patroni and etcd, and the user to run them as.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User};

/// Returns the directory with the server's programs.
pub(crate) fn binaries() -> Result<PathBuf> {
    folders().into_iter().find(|folder| folder.join("initdb").is_file()).context(
        "no Postgres was found; run `tests/run`, which installs one, or set LARDER_TEST_POSTGRES_BIN",
    )
}

/// Returns the path of a program in `folder`. If `folder` has only server programs, it is one of
/// another release.
pub(crate) fn program(folder: &Path, name: &str) -> PathBuf {
    let all = std::iter::once(folder.to_path_buf()).chain(folders());
    all.map(|folder| folder.join(name)).find(|path| path.is_file()).unwrap_or_else(|| folder.join(name))
}

/// Returns the directories with programs: the one in `LARDER_TEST_POSTGRES_BIN`, then those that
/// Debian packages install, newest release first.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        std::env::var_os("LARDER_TEST_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|version| version.path()).collect();
        versions.sort_by_key(|path| {
            path.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<u32>().ok())
        });
        folders.extend(versions.into_iter().rev().map(|version| version.join("bin")));
    }
    folders
}

/// Directories in which packages install Patroni and etcd.
const INSTALLED: [&str; 2] = ["/usr/bin", "/usr/local/bin"];

/// Returns the path of an installed program of Patroni or etcd. Also searches `PATH`.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let folders = INSTALLED.iter().map(PathBuf::from).chain(std::env::split_paths(&search));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file()).with_context(|| {
        format!(
            "cannot start {name:?}: it is not installed; on Debian, run `apt-get install patroni etcd-server`"
        )
    })
}

/// Creates a directory that only its owner can access.
pub(crate) fn make_folder(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    if let Some((user, group)) = owner {
        nix::unistd::chown(path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    Ok(())
}

/// Returns the user and group to run the server as, if this process is root. Postgres refuses to
/// run as root.
pub(crate) fn owner() -> Result<Option<(u32, u32)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name)? {
            return Ok(Some((user.uid.as_raw(), user.gid.as_raw())));
        }
    }
    bail!(
        "Postgres refuses to run as root, and neither the user `postgres` nor `nobody` exists; create one, or \
         run as another user"
    )
}
