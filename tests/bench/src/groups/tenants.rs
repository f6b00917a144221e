//! Tenants: the cost of acknowledging and showing a commit only after object storage has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use larder_host::larder_core::OpenTransactions;
use larder_host::larder_tenants::Durability;
use larder_host::{Error, Handle, HandleOptions, Mode, Tenants};
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tokio::task::{AbortHandle, JoinSet};

use crate::row::{Comparison, Row, Side, Work};
use crate::runner::Runner;

/// The time of a put or a get in object storage.
const CALL: Duration = Duration::from_millis(5);

/// The pause between two views beside commits.
const PAUSE: Duration = Duration::from_millis(1);

/// Guests that update concurrently.
const GUESTS: usize = 32;

const ROWS: u64 = 10_000;

const TENANT: &str = "acme/users/ann";

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let local = Host::open(folder.path().join("local"), Durability::Local).await?;
    let object = Host::open(folder.path().join("object"), Durability::Object).await?;
    let rows = [
        ("a view with one get", Load::Views),
        ("a view with one get, while another guest commits", Load::ViewsBesideCommits),
        ("an update of get and put", Load::Updates),
        ("an update of get and put, 32 guests at once", Load::UpdatesAtOnce),
    ];
    for (name, load) in rows {
        let row = Row::named(name)
            .side_at_own_pace("object", Guest::new(&object, load))
            .side_at_own_pace("local", Guest::new(&local, load))
            .goal("on top, µs", Comparison::OnTop { of: 0, over: 1 }, None);
        runner.measure(row).await?;
    }
    local.tenants.close().await?;
    object.tenants.close().await?;
    Ok(())
}

struct Host {
    tenants: Tenants,
    handle: Arc<Handle>,
}

impl Host {
    async fn open(cache: std::path::PathBuf, durability: Durability) -> Result<Self> {
        let times =
            ThrottleConfig { wait_put_per_call: CALL, wait_get_per_call: CALL, ..ThrottleConfig::default() };
        let objects = Arc::new(ThrottledStore::new(InMemory::new(), times));
        let builder = Tenants::builder(objects).cache_folder(cache).durability(durability);
        let tenants = builder.sweep_interval(None).open().await?;
        let store = tenants.get(&TENANT.parse()?).await?.store();
        let open_transactions = OpenTransactions::at_most(1_000);
        let handle = store.handle(HandleOptions::default().open_transactions(open_transactions));
        let handle = Arc::new(handle);
        for first in (0..ROWS).step_by(1_000) {
            let mut update = handle.begin(Mode::Update)?;
            for row in first..first + 1_000 {
                update.put(namespace(), key(row), vec![b'x'; 100])?;
            }
            update.commit().await?;
        }
        Ok(Self { tenants, handle })
    }
}

fn namespace() -> String {
    "bench".to_string()
}

fn key(row: u64) -> String {
    format!("row-{row:08}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Views,
    ViewsBesideCommits,
    Updates,
    UpdatesAtOnce,
}

struct Guest {
    handle: Arc<Handle>,
    load: Load,
    /// The guest that commits meanwhile.
    neighbour: Option<AbortHandle>,
    /// The time of one view beside commits.
    found: Option<Duration>,
}

impl Guest {
    fn new(host: &Host, load: Load) -> Self {
        Self { handle: host.handle.clone(), load, neighbour: None, found: None }
    }
}

#[async_trait]
impl Side for Guest {
    async fn before(&mut self) -> Result<()> {
        if self.load == Load::ViewsBesideCommits {
            let handle = self.handle.clone();
            let committing = async move { while update(&handle, fastrand::u64(..ROWS)).await.is_ok() {} };
            self.neighbour = Some(tokio::spawn(committing).abort_handle());
        }
        Ok(())
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        let mut random = fastrand::Rng::with_seed(work.seed);
        match self.load {
            Load::Views => {
                for _ in 0..work.count {
                    view(&self.handle, random.u64(..ROWS)).await?;
                }
            }
            Load::ViewsBesideCommits => {
                let mut viewed = Duration::ZERO;
                for _ in 0..work.count {
                    // A view that finds its row in memory does not yield, so the neighbour would
                    // not run.
                    tokio::time::sleep(PAUSE).await;
                    let begun = Instant::now();
                    view(&self.handle, random.u64(..ROWS)).await?;
                    viewed += begun.elapsed();
                }
                self.found = Some(viewed / u32::try_from(work.count)?);
            }
            Load::Updates => {
                for _ in 0..work.count {
                    update(&self.handle, random.u64(..ROWS)).await?;
                }
            }
            Load::UpdatesAtOnce => {
                // Each guest has its own rows, so no update conflicts.
                let mut guests = JoinSet::new();
                for guest in 0..GUESTS {
                    let (handle, own) = (self.handle.clone(), guest as u64);
                    let count = work.count.div_ceil(GUESTS as u64);
                    guests.spawn(async move {
                        for number in 0..count {
                            update(&handle, (number * GUESTS as u64 + own) % ROWS).await?;
                        }
                        Ok::<_, Error>(())
                    });
                }
                for outcome in guests.join_all().await {
                    outcome?;
                }
            }
        }
        Ok(work.count)
    }

    fn measured(&self) -> Option<Duration> {
        self.found
    }

    async fn after(&mut self) -> Result<()> {
        if let Some(neighbour) = self.neighbour.take() {
            neighbour.abort();
        }
        Ok(())
    }
}

async fn view(handle: &Handle, row: u64) -> Result<(), Error> {
    let mut view = handle.begin(Mode::View)?;
    view.get(namespace(), key(row)).await?;
    view.commit().await.map(drop)
}

async fn update(handle: &Handle, row: u64) -> Result<(), Error> {
    let mut update = handle.begin(Mode::Update)?;
    update.get(namespace(), key(row)).await?;
    update.put(namespace(), key(row), vec![b'y'; 100])?;
    update.commit().await.map(drop)
}
