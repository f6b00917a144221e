//! The holder name under which a cache folder takes leases.
//!
//! A lease with the same name is taken over at once, because the process that had it must be dead.
//! That does not hold for a copy of the folder: a clone of the machine, a snapshot of the volume or
//! a folder in an image. So a name is bound to one file on one machine during one boot. In any
//! other case a new name is drawn, which waits for the lease like any other host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::lease::Holder;
use crate::local::cache::sync_parent;
use crate::write_id::WriteId;

const FILE: &str = ".holder";

/// Whether a cache folder was ever opened at this path.
pub(crate) fn is_at(folder: &Path) -> bool {
    folder.join(FILE).is_file()
}

/// Returns the name of a folder. Draws a new one if it has none, or if the name is bound to another
/// file, machine or boot.
pub(crate) fn name(folder: &Path) -> io::Result<String> {
    let path = folder.join(FILE);
    match File::open(&path) {
        Ok(file) => {
            let text = io::read_to_string(&file)?;
            let mut lines = text.lines();
            let (name, owner) = (lines.next().unwrap_or_default(), lines.next());
            if Holder::new(name).is_ok() && owner.is_some() && owner == owner_of(&file)?.as_deref() {
                return Ok(name.to_string());
            }
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let host: String = host.chars().filter(char::is_ascii_graphic).take(64).collect();
    let name = format!("{host}/{}", WriteId::random());
    write(folder, &name)?;
    Ok(name)
}

/// Gives a folder a name, bound to this folder.
pub(crate) fn write(folder: &Path, name: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let text = format!("{name}\n{}\n", owner_of(file.as_file())?.unwrap_or_default());
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    let path = folder.join(FILE);
    file.persist(&path)?;
    sync_parent(&path)
}

/// The machine, its boot, and the device and inode of the file. `None` if the system does not
/// identify boots. Then each process gets a new name.
fn owner_of(file: &File) -> io::Result<Option<String>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let (machine, boot) = (read("/etc/machine-id"), read("/proc/sys/kernel/random/boot_id"));
    let metadata = file.metadata()?;
    let owner =
        || format!("machine {machine}, boot {boot}, device {}, inode {}", metadata.dev(), metadata.ino());
    Ok((!boot.is_empty()).then(owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_name_and_a_copy_of_it_gets_another() {
        let folder = tempfile::tempdir().unwrap();
        let (one, copy) = (folder.path().join("one"), folder.path().join("copy"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&copy).unwrap();
        assert!(!is_at(&one));
        let first = name(&one).unwrap();
        assert_eq!(name(&one).unwrap(), first);
        fs::copy(one.join(FILE), copy.join(FILE)).unwrap();
        let other = name(&copy).unwrap();
        assert_ne!(other, first);
        assert_eq!((name(&copy).unwrap(), name(&one).unwrap()), (other, first.clone()));
        // A folder keeps its name when it is moved.
        let moved = folder.path().join("moved");
        fs::rename(&one, &moved).unwrap();
        assert_eq!(name(&moved).unwrap(), first);
    }

    #[test]
    fn a_name_of_another_boot_or_what_a_power_cut_left_of_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let first = name(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        for left in [
            text.replace("boot ", "boot x"),
            text.replace("machine ", "machine x"),
            first.clone(),
            String::new(),
        ] {
            fs::write(folder.path().join(FILE), left).unwrap();
            let next = name(folder.path()).unwrap();
            assert_ne!(next, first);
            assert_eq!(name(folder.path()).unwrap(), next);
        }
    }
}
