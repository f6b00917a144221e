//! Power cuts at the level of the database files: SQLite's writes since its last sync of a file
//! survive only in part.
//!
//! All changes that SQLite makes to the database and its log are recorded, and so are the changes
//! that the host makes to the folder. After a power cut, a file has everything that was written
//! before its last sync began, and any part of later writes: none, all, a prefix with a torn end,
//! or any of its sectors. The host syncs its own files before it continues, so they are as the host
//! left them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_sqlite_vfs::{Change, Disk};
use larder_tenants::faults::before_local_changes;
use object_store::memory::InMemory;
use parking_lot::Mutex;

use crate::host::copy;
use crate::objects::{RecordedStore, objects_at, put_all};
use crate::restart::{Cut, Newest, SEQUENCES};
use crate::work::{DATABASE, FOLDER, Worked, work};
use crate::{Moment, now};

/// The unit that a disk writes atomically.
const SECTOR: usize = 512;

/// The number of power cuts in the short form.
const CUTS: usize = 90;

/// A change of the tenant's folder, with its time.
struct Recorded {
    at: Moment,
    event: Event,
}

enum Event {
    /// SQLite changed the database or its log.
    File(Which, FileEvent),
    /// The folder was synced, and has these files.
    Folder { state: Option<Vec<u8>>, exists: [bool; 2], installed: Option<Vec<u8>> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Database,
    Log,
}

const FILES: [(Which, &str); 2] = [(Which::Database, ""), (Which::Log, "-wal")];

#[derive(Clone)]
enum FileEvent {
    Opened,
    Written(usize, Vec<u8>),
    Truncated(usize),
    Removed,
    SyncBegins,
    SyncEnds,
}

/// The recorded folder of the tenant.
#[derive(Clone)]
struct Recording {
    folder: PathBuf,
    events: Arc<Mutex<Vec<Recorded>>>,
    /// Keeps SQLite's VFS recording.
    _disk: Arc<Disk>,
}

impl Recording {
    fn start(cache: &Path) -> Self {
        let folder = cache.join(FOLDER);
        std::fs::create_dir_all(&folder).unwrap();
        let recording = Self { folder: folder.clone(), events: Arc::default(), _disk: Disk::watch(&folder) };
        let events = recording.events.clone();
        recording._disk.follow(move |path, change| {
            let which = FILES.iter().find(|(_, suffix)| path.ends_with(format!("{DATABASE}{suffix}")));
            if let Some((which, _)) = which {
                push(&events, Event::File(*which, FileEvent::from(change)));
            }
        });
        let (events, is_replaced) = (recording.events.clone(), Mutex::new(false));
        before_local_changes(folder.clone(), move |path| {
            if path == folder.join(DATABASE) {
                *is_replaced.lock() = true;
            } else if path == folder.join(".") {
                // The host does the same next: from here on, all of it is on the disk.
                std::fs::File::open(&folder)?.sync_all()?;
                let read = |suffix: &str| std::fs::read(folder.join(format!("{DATABASE}{suffix}"))).ok();
                let is_replaced = std::mem::take(&mut *is_replaced.lock());
                let installed = is_replaced.then(|| read("")).flatten();
                let exists = FILES.map(|(_, suffix)| folder.join(format!("{DATABASE}{suffix}")).exists());
                push(&events, Event::Folder { state: read(".state.json"), exists, installed });
            }
            Ok(())
        });
        recording
    }

    /// Builds the tenant's folder as the power cut may leave it.
    fn build(&self, moment: Moment, loss: &mut Loss, folder: &Path) {
        let mut files = [File::default(), File::default()];
        let (mut state, mut is_new) = (None, true);
        for recorded in self.events.lock().iter().take_while(|recorded| recorded.at <= moment) {
            match &recorded.event {
                Event::File(which, event) => files[*which as usize].apply(event),
                Event::Folder { state: found, exists, installed } => {
                    // The host syncs the log of a new database itself, so the VFS does not see it.
                    // `power_device.rs` would find a database whose log was not synced.
                    if is_new && found.as_deref().is_some_and(is_open) {
                        files[1].apply(&FileEvent::SyncBegins);
                        files[1].apply(&FileEvent::SyncEnds);
                        is_new = false;
                    }
                    state.clone_from(found);
                    for (file, exists) in files.iter_mut().zip(exists) {
                        file.settle(*exists);
                    }
                    if let Some(installed) = installed {
                        files[0] = File { synced: Some(installed.clone()), ..File::default() };
                    }
                }
            }
        }
        std::fs::create_dir_all(folder).unwrap();
        let files = FILES.iter().zip(files).map(|((_, suffix), file)| (*suffix, file.after(loss)));
        for (suffix, bytes) in files.chain([(".state.json", state)]) {
            if let Some(bytes) = bytes {
                std::fs::write(folder.join(format!("{DATABASE}{suffix}")), bytes).unwrap();
            }
        }
    }
}

/// Whether a recorded state of the host says that the database was opened.
fn is_open(state: &[u8]) -> bool {
    String::from_utf8_lossy(state).contains(r#""stage":"open""#)
}

/// Takes the time while it holds the lock, so that events are in order.
fn push(events: &Mutex<Vec<Recorded>>, event: Event) {
    let mut events = events.lock();
    events.push(Recorded { at: now(), event });
}

impl From<Change<'_>> for FileEvent {
    fn from(change: Change<'_>) -> Self {
        let size = |bytes: u64| usize::try_from(bytes).unwrap();
        match change {
            Change::Opened => Self::Opened,
            Change::Written(offset, bytes) => Self::Written(size(offset), bytes.to_vec()),
            Change::Truncated(bytes) => Self::Truncated(size(bytes)),
            Change::Removed => Self::Removed,
            Change::SyncBegins => Self::SyncBegins,
            Change::SyncEnds => Self::SyncEnds,
        }
    }
}

/// A file on the disk.
#[derive(Default)]
struct File {
    /// The content that is certain. `None` if the file does not exist.
    synced: Option<Vec<u8>>,
    /// Later changes, which may be lost.
    pending: Vec<FileEvent>,
    /// Syncs that have begun, and how many of the pending changes each of them includes.
    syncs: Option<(usize, usize)>,
}

impl File {
    fn apply(&mut self, event: &FileEvent) {
        match event {
            FileEvent::SyncBegins => {
                let (begun, included) = self.syncs.unwrap_or((0, self.pending.len()));
                self.syncs = Some((begun + 1, included));
            }
            FileEvent::SyncEnds => {
                let (begun, included) = self.syncs.take().unwrap();
                for event in self.pending.drain(..included) {
                    change(&mut self.synced, &event, |_| true);
                }
                self.syncs = (begun > 1).then_some((begun - 1, 0));
            }
            event => self.pending.push(event.clone()),
        }
    }

    /// After a sync of the folder, whether the file exists is certain.
    fn settle(&mut self, exists: bool) {
        let removed = self.pending.iter().rposition(|event| matches!(event, FileEvent::Removed));
        if let Some(removed) = removed {
            self.pending.drain(..=removed);
        }
        if removed.is_some() || !exists {
            self.synced = None;
        }
        if !exists {
            self.pending.clear();
        }
    }

    /// The content after the power cut.
    fn after(mut self, loss: &mut Loss) -> Option<Vec<u8>> {
        let last = self.pending.len();
        let kept = match loss.kind {
            Kind::Everything => 0,
            Kind::Nothing | Kind::Sectors => last,
            Kind::AfterATornWrite => loss.random.usize(0..=last),
        };
        for (number, event) in self.pending.drain(..kept).enumerate() {
            let is_torn = loss.kind == Kind::AfterATornWrite && number + 1 == kept;
            let whole = if is_torn { loss.random.usize(0..8) } else { usize::MAX };
            let mut keeps = |sector| match loss.kind {
                Kind::Sectors => loss.random.bool(),
                _ => sector < whole,
            };
            change(&mut self.synced, &event, &mut keeps);
        }
        self.synced
    }
}

/// Applies a change to the content of a file, except for sectors that are lost.
fn change(content: &mut Option<Vec<u8>>, event: &FileEvent, mut keeps: impl FnMut(usize) -> bool) {
    match event {
        FileEvent::Opened => drop(content.get_or_insert_default()),
        FileEvent::Removed if keeps(0) => *content = None,
        FileEvent::Truncated(bytes) if keeps(0) => content.get_or_insert_default().resize(*bytes, 0),
        FileEvent::Written(offset, bytes) => {
            let mut at = *offset;
            for sector in 0.. {
                let end = (offset + bytes.len()).min((at / SECTOR + 1) * SECTOR);
                if at == end {
                    break;
                }
                if keeps(sector) {
                    let content = content.get_or_insert_default();
                    content.resize(content.len().max(end), 0);
                    content[at..end].copy_from_slice(&bytes[at - offset..end - offset]);
                }
                at = end;
            }
        }
        _ => {}
    }
}

/// What the power cut loses of changes that were not synced.
struct Loss {
    kind: Kind,
    random: fastrand::Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Everything,
    Nothing,
    AfterATornWrite,
    Sectors,
}

const KINDS: [Kind; 4] = [Kind::Everything, Kind::Nothing, Kind::AfterATornWrite, Kind::Sectors];

struct Recorder {
    root: tempfile::TempDir,
    recording: Recording,
    worked: Worked,
}

async fn record() -> Recorder {
    let root = tempfile::tempdir().unwrap();
    let cache = root.path().canonicalize().unwrap().join("cache");
    let recording = Recording::start(&cache);
    let store = RecordedStore::new(Arc::new(InMemory::new()));
    let worked = work(store, cache, 32).await;
    // The host has removed the database, and the rest of its folder stays.
    assert_eq!(std::fs::read_dir(&recording.folder).unwrap().count(), 0);
    Recorder { root, recording, worked }
}

impl Recorder {
    async fn cut(&self, number: usize, at: Moment, random: &mut fastrand::Rng) -> Newest {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        copy(&self.root.path().join("cache"), &cache);
        let kind = KINDS[number % KINDS.len()];
        let mut loss = Loss { kind, random: random.fork() };
        self.recording.build(at, &mut loss, &cache.join(FOLDER));
        let store = Arc::new(InMemory::new());
        put_all(&objects_at(&self.worked.puts, at, random), store.as_ref()).await;
        let what = format!("cut {number}, losing {kind:?}");
        let cut = Cut { history: &self.worked.history, at, cache: &cache, store, what };
        cut.check(SEQUENCES[number / KINDS.len() % SEQUENCES.len()]).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_that_loses_unsynced_writes_of_sqlite_undoes_nothing_that_was_published() {
    let recorder = record().await;
    let (first, last) = recorder.worked.times();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let moments: Vec<_> = if std::env::var_os("LARDER_LONG_TESTS").is_some() {
        let events = recorder.recording.events.lock();
        events.iter().map(|recorded| recorded.at).filter(|at| (first..=last).contains(at)).collect()
    } else {
        (0..CUTS).map(|_| recorder.worked.moment(&mut random)).collect()
    };
    let mut cuts = Vec::new();
    for (number, moment) in moments.into_iter().enumerate() {
        cuts.push(recorder.cut(number, moment, &mut random).await);
    }
    let behind = cuts.iter().filter(|cut| cut.local < cut.published).count();
    let ahead = cuts.iter().filter(|cut| cut.local > cut.published).count();
    println!("{} power cuts: {behind} disks were behind the published commits, {ahead} ahead", cuts.len());
    assert!(behind > 0 && ahead > 0, "{behind} and {ahead} of {cuts:?}");
}
