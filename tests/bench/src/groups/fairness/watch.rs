//! The largest use of memory and disk during a cell.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Error, Result};

/// The sampling interval.
const INTERVAL: Duration = Duration::from_millis(5);

/// Samples memory and files on a separate thread.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Peaks>>,
}

/// The largest samples, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peaks {
    /// Resident memory of this process.
    pub(super) resident: u64,
    /// The size of all files of the stores.
    pub(super) disk: u64,
    /// The size of the largest write-ahead log.
    pub(super) log: u64,
}

impl Watch {
    pub(super) fn start(folder: &Path) -> Self {
        let (stop, folder) = (Arc::new(AtomicBool::new(false)), folder.to_path_buf());
        let stopped = stop.clone();
        Self { stop, thread: thread::spawn(move || watch(&folder, &stopped)) }
    }

    pub(super) fn stop(self) -> Result<Peaks> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| Error::msg("the watching thread panicked"))?
    }
}

fn watch(folder: &Path, stop: &AtomicBool) -> Result<Peaks> {
    let highest_before = status("VmHWM:")?;
    let mut peaks = Peaks::default();
    while !stop.load(Ordering::Relaxed) {
        peaks.resident = peaks.resident.max(resident()?);
        let (disk, log) = sizes(folder);
        (peaks.disk, peaks.log) = (peaks.disk.max(disk), peaks.log.max(log));
        thread::sleep(INTERVAL);
    }
    // The kernel's high-water mark includes peaks between samples, if it has grown.
    let highest = status("VmHWM:")?;
    if highest > highest_before {
        peaks.resident = peaks.resident.max(highest);
    }
    Ok(peaks)
}

/// Resident memory of this process, in bytes.
pub(super) fn resident() -> Result<u64> {
    status("VmRSS:")
}

fn status(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line
        .and_then(|line| line.split_whitespace().next())
        .context("/proc/self/status does not report the memory")?;
    Ok(kilobytes.parse::<u64>()? * 1_024)
}

/// The size of all files below a folder, and of the largest write-ahead log. Files may vanish
/// during the walk.
fn sizes(folder: &Path) -> (u64, u64) {
    let (mut all, mut log) = (0, 0);
    let mut folders: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = file.path();
            match file.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) => {
                    all += metadata.len();
                    if path.to_string_lossy().ends_with("-wal") {
                        log = log.max(metadata.len());
                    }
                }
                Err(_) => {}
            }
        }
    }
    (all, log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_of_memory_and_of_files_below_a_folder_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("store");
        std::fs::create_dir(&below).unwrap();
        std::fs::write(below.join("a.db"), [0; 100]).unwrap();
        std::fs::write(below.join("a.db-wal"), [0; 1_000]).unwrap();
        let watch = Watch::start(folder.path());
        thread::sleep(INTERVAL * 4);
        let peaks = watch.stop().unwrap();
        assert_eq!((peaks.disk, peaks.log), (1_100, 1_000));
        // Other tests change the memory of the process, so this only checks that the unit is bytes.
        assert!(peaks.resident > 2 << 20 && peaks.resident < 1 << 40, "{peaks:?}");
    }
}
