//! Several hosts write one tenant through a thousand lease changes, on an object store that keeps
//! failing.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use larder_tenants::faults::{Fault, FaultyStore};
use larder_tenants::{Lease, Remote, TenantError};
use object_store::memory::InMemory;
use parking_lot::Mutex;
use support::*;

const HOSTS: u64 = 5;
const LEASE_CHANGES: u64 = 1000;

/// The results of the steps that hosts appended.
#[derive(Default)]
struct Told {
    acknowledged: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

#[derive(Default)]
struct World {
    told: Mutex<Told>,
    next_step: AtomicU64,
    lease_changes: AtomicU64,
}

/// The steps of the tenant, in order: those of its snapshot, then those of the log.
async fn content(lease: &Lease) -> Result<(Vec<u64>, u64), TenantError> {
    let mut steps = Vec::new();
    let mut covers = lease.head().covers();
    if let Some(snapshot) = lease.head().snapshot {
        let files = Files::new();
        lease.remote().fetch(&key(), &snapshot, &files.path("database"), 1 << 30).await?;
        let content = content_of(&std::fs::read(files.path("database")).unwrap());
        let text = String::from_utf8(content).unwrap();
        steps.extend(text.lines().skip(1).map(|line| line.parse::<u64>().unwrap()));
    }
    let mut replay = lease.replay().await?;
    while let Some((position, payload)) = replay.next().await? {
        steps.push(u64::from_be_bytes(payload.as_ref().try_into().unwrap()));
        covers = position;
    }
    Ok((steps, covers))
}

impl World {
    async fn append(&self, lease: &Lease) {
        let step = self.next_step.fetch_add(1, Ordering::Relaxed);
        let appended = lease.append(Bytes::copy_from_slice(&step.to_be_bytes())).await;
        let mut told = self.told.lock();
        match appended {
            Ok(_) => told.acknowledged.insert(step),
            Err(TenantError::OutcomeUnknown { .. }) => told.unknown.insert(step),
            Err(TenantError::Corrupt { reason, .. }) => panic!("{reason}"),
            Err(_) => told.refused.insert(step),
        };
    }

    async fn publish(&self, lease: &Lease) {
        match content(lease).await {
            Ok((steps, covers)) => {
                let files = Files::new();
                let lines: Vec<_> = steps.iter().map(u64::to_string).collect();
                let file = files.write("database", database(format!("steps\n{}", lines.join("\n"))));
                if let Err(TenantError::Corrupt { reason, .. }) = lease.publish(&file, covers).await {
                    panic!("{reason}");
                }
            }
            Err(TenantError::Corrupt { reason, .. }) if !lease.is_fenced() && lease.check().is_ok() => {
                panic!("{reason}")
            }
            Err(_) => {}
        }
    }

    /// Runs one host until there were enough lease changes.
    async fn host(&self, remote: Remote, store: FaultyStore, number: u64, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let holder = holder(&format!("host-{number}"));
        while self.lease_changes.load(Ordering::Relaxed) < LEASE_CHANGES {
            let Ok(lease) = remote.acquire(&key(), &holder, Duration::from_secs(20)).await else {
                tokio::time::sleep(Duration::from_millis(random.u64(1..500))).await;
                continue;
            };
            self.lease_changes.fetch_add(1, Ordering::Relaxed);
            for _ in 0..random.u32(1..8) {
                match random.u32(0..20) {
                    0..10 => self.append(&lease).await,
                    10..12 => drop(lease.renew().await),
                    12..14 => self.publish(&lease).await,
                    14 => drop(lease.collect(Duration::from_secs(100)).await),
                    15 => drop(lease.settle().await),
                    // The host is suspended, and does not know it.
                    16 => tokio::time::sleep(Duration::from_secs(random.u64(1..60))).await,
                    // Object storage is unreachable for a while.
                    17 => {
                        store.set_down(true);
                        self.append(&lease).await;
                        store.set_down(false);
                    }
                    // Two appends at once.
                    _ => {
                        tokio::join!(self.append(&lease), lease.renew(), self.append(&lease)).1.ok();
                    }
                }
            }
            match random.u32(0..10) {
                0..7 => drop(lease.release().await),
                // The host dies while its requests are still in flight.
                7..9 => drop(lease),
                _ => {
                    // Another host takes the lease meanwhile, and this one continues.
                    tokio::time::sleep(TTL * 3).await;
                    self.append(&lease).await;
                }
            }
        }
    }

    async fn run(self: Arc<Self>, seed: u64) {
        let base = FaultyStore::new(Arc::new(InMemory::new()));
        let mut hosts = tokio::task::JoinSet::new();
        for number in 0..HOSTS {
            let store = base.another();
            let faults = [
                Fault::Fail,
                Fault::LoseAnswer,
                Fault::DenyOwnSuccess,
                Fault::Hang,
                Fault::HangAfter,
                Fault::DoneLate(Duration::from_secs(1)),
                Fault::DoneLate(Duration::from_secs(40)),
                Fault::Delay(Duration::from_secs(3)),
            ];
            store.fail_at_random(seed + number, 0.04, &faults);
            let (remote, clock) = remote_with_clock(Arc::new(store.clone()));
            // To these hosts all objects are old, so a collection removes them at once.
            clock.advance(DAY * 30);
            let world = self.clone();
            hosts.spawn(async move { world.host(remote, store, number, seed * 100 + number).await });
        }
        while let Some(host) = hosts.join_next().await {
            host.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        self.check(remote(Arc::new(base))).await;
    }

    async fn check(&self, remote: Remote) {
        let lease = remote.acquire(&key(), &holder("last"), DAY).await.unwrap();
        let (steps, _) = content(&lease).await.unwrap();
        let mut counts = BTreeMap::new();
        steps.iter().for_each(|step| *counts.entry(*step).or_insert(0) += 1);
        let told = self.told.lock();
        assert!(counts.values().all(|count| *count == 1), "a step was applied twice");
        let lost: Vec<_> = told.acknowledged.iter().filter(|step| !counts.contains_key(step)).collect();
        assert!(lost.is_empty(), "acknowledged, but lost: {lost:?}");
        let refused: Vec<_> = told.refused.iter().filter(|step| counts.contains_key(step)).collect();
        assert!(refused.is_empty(), "refused, but stored: {refused:?}");
        let unknown = told.unknown.iter().filter(|step| counts.contains_key(step)).count();
        assert_eq!(told.acknowledged.len() + unknown, steps.len());
        let changes = self.lease_changes.load(Ordering::Relaxed);
        assert!(changes >= LEASE_CHANGES && lease.epoch() > changes);
        assert!(told.acknowledged.len() > 500 && !told.unknown.is_empty() && !told.refused.is_empty());
        println!(
            "{changes} leases, {} steps acknowledged and 0 lost, {} of {} unknown ones stored, {} refused",
            told.acknowledged.len(),
            unknown,
            told.unknown.len(),
            told.refused.len()
        );
    }
}

#[test]
fn through_a_thousand_lease_changes_each_acknowledged_step_is_there_once() {
    for seed in [1, 2, 3] {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(Arc::new(World::default()).run(seed));
    }
}
