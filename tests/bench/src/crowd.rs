//! Many guests or native clients that update one database at once.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Error, Result, ensure};
use async_trait::async_trait;
use larder_bench_workload::{Random, Shape};
use larder_host::Store;
use tokio::task::{JoinHandle, JoinSet};

use crate::guest::{Guest, Program, Workload};
use crate::native_sqlite::Native;
use crate::row::{Side, Work};
use crate::sqlite_fixture::Durability;

/// The share of one client in the work.
fn part(work: Work, client: usize, clients: usize) -> Work {
    let (client, clients) = (client as u64, clients.max(1) as u64);
    let count = work.count / clients + u64::from(client < work.count % clients);
    // All clients write the same value into a row, so that the order of the writes does not matter.
    Work { count, seed: work.seed * 1_000 + client, salt: work.salt }
}

/// Guests that update one store, each in its own task.
pub(crate) struct Guests {
    guests: Vec<Guest>,
}

impl Guests {
    pub(crate) async fn new(program: &Program, store: &Store, shape: Shape, count: usize) -> Result<Self> {
        let mut guests = Vec::new();
        for _ in 0..count {
            let mut guest = program.instance(store).await?;
            guest.open(shape).await?;
            guests.push(guest);
        }
        Ok(Self { guests })
    }
}

#[async_trait]
impl Side for Guests {
    async fn run(&mut self, work: Work) -> Result<u64> {
        let clients = self.guests.len();
        let mut tasks = JoinSet::new();
        for (client, mut guest) in std::mem::take(&mut self.guests).into_iter().enumerate() {
            let part = part(work, client, clients);
            tasks.spawn(async move {
                guest.run(Workload::UpdateGetPut, part).await?;
                Ok::<_, Error>((guest, part.count))
            });
        }
        let mut done = 0;
        while let Some(outcome) = tasks.join_next().await {
            let (guest, count) = outcome??;
            self.guests.push(guest);
            done += count;
        }
        Ok(done)
    }
}

/// Guests that update, beside one more guest that sleeps inside its updates.
pub(crate) struct WithSleeper {
    guests: Guests,
    sleeper: Option<Guest>,
    stop: Arc<AtomicBool>,
    sleeping: Option<JoinHandle<Result<(Guest, u64)>>>,
}

/// How long the extra guest sleeps inside an update.
const SLEEP_MILLISECONDS: u32 = 20;

impl WithSleeper {
    pub(crate) async fn new(program: &Program, store: &Store, shape: Shape, count: usize) -> Result<Self> {
        let guests = Guests::new(program, store, shape, count).await?;
        let mut sleeper = program.instance(store).await?;
        sleeper.open(shape).await?;
        Ok(Self { guests, sleeper: Some(sleeper), stop: Arc::default(), sleeping: None })
    }
}

async fn sleep_until(stop: Arc<AtomicBool>, mut sleeper: Guest) -> Result<(Guest, u64)> {
    let mut commits = 0;
    while !stop.load(Ordering::Relaxed) {
        sleeper.sleep_in_update(SLEEP_MILLISECONDS).await?;
        commits += 1;
    }
    Ok((sleeper, commits))
}

#[async_trait]
impl Side for WithSleeper {
    async fn before(&mut self) -> Result<()> {
        let sleeper = self.sleeper.take().context("the sleeping guest is still running")?;
        self.stop.store(false, Ordering::Relaxed);
        self.sleeping = Some(tokio::spawn(sleep_until(self.stop.clone(), sleeper)));
        Ok(())
    }

    async fn run(&mut self, work: Work) -> Result<u64> {
        self.guests.run(work).await
    }

    async fn after(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let sleeping = self.sleeping.take().context("the sleeping guest was not started")?;
        let (sleeper, commits) = sleeping.await??;
        self.sleeper = Some(sleeper);
        ensure!(commits > 0, "the sleeping guest did not commit");
        Ok(())
    }
}

/// Native clients, each in its own thread.
pub(crate) enum NativeClients {
    /// They share one connection.
    Mutex { connection: Mutex<Native>, clients: usize },
    /// Each has its own connection, and waits for the locks of the others.
    Competing(Vec<Native>),
}

impl NativeClients {
    pub(crate) fn sharing(path: &Path, durability: Durability, shape: Shape, clients: usize) -> Result<Self> {
        Ok(Self::Mutex { connection: Mutex::new(Native::open(path, durability, shape)?), clients })
    }

    pub(crate) fn competing(
        path: &Path,
        durability: Durability,
        shape: Shape,
        clients: usize,
    ) -> Result<Self> {
        let open = |_| Native::open(path, durability, shape);
        Ok(Self::Competing((0..clients).map(open).collect::<Result<_>>()?))
    }

    fn run_all(&mut self, work: Work) -> Result<u64> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = match self {
                Self::Mutex { connection, clients } => {
                    let (connection, clients) = (&*connection, *clients);
                    let start = |client| scope.spawn(move || share(connection, part(work, client, clients)));
                    (0..clients).map(start).collect()
                }
                Self::Competing(natives) => {
                    let clients = natives.len();
                    let natives = natives.iter_mut().enumerate();
                    natives
                        .map(|(client, native)| {
                            scope.spawn(move || compete(native, part(work, client, clients)))
                        })
                        .collect()
                }
            };
            let mut done = 0;
            for thread in threads {
                done += thread.join().map_err(|_| Error::msg("a native client panicked"))??;
            }
            Ok(done)
        })
    }
}

fn share(connection: &Mutex<Native>, work: Work) -> Result<u64> {
    let mut random = Random::new(work.seed);
    for _ in 0..work.count {
        let mut native = connection.lock().unwrap_or_else(PoisonError::into_inner);
        let index = random.below(native.rows());
        native.get_and_put(index, work.salt)?;
    }
    Ok(work.count)
}

fn compete(native: &mut Native, work: Work) -> Result<u64> {
    native.run(Workload::UpdateGetPut, work)?;
    Ok(work.count)
}

#[async_trait]
impl Side for NativeClients {
    async fn run(&mut self, work: Work) -> Result<u64> {
        tokio::task::block_in_place(|| self.run_all(work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_the_whole() {
        for (count, clients) in [(0, 4), (1, 32), (100, 7), (64, 32)] {
            let work = Work { count, seed: 1, salt: 1 };
            let parts: Vec<Work> = (0..clients).map(|client| part(work, client, clients)).collect();
            assert_eq!(parts.iter().map(|part| part.count).sum::<u64>(), count);
            assert!(parts.windows(2).all(|pair| pair[0].seed != pair[1].seed));
        }
    }
}
