//! On what was measured.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// On what was measured, and when.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) kernel: String,
    pub(crate) unix_seconds: u64,
    /// Processes that ran or waited for a core in the minute before.
    pub(crate) load_before: String,
    pub(crate) load_after: String,
}

impl Machine {
    /// This one, now. What a system does not tell is left empty.
    pub(crate) fn look() -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name.to_string())
            .unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor,
            kernel: kernel.trim().to_string(),
            unix_seconds: since.as_secs(),
            load_before: load(),
            load_after: String::new(),
        }
    }

    /// Notes how busy it was until now.
    pub(crate) fn note_end(&mut self) {
        self.load_after = load();
    }
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
