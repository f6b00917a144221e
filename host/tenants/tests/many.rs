//! More tenants than a host can keep open.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use host::*;
use larder_core::Mode;
use larder_tenants::{TenantKey, Tenants};

const TENANTS: usize = 10_000;
const CAPACITY: usize = 200;
const TASKS: usize = 8;
/// The touches after each tenant was touched once.
const AGAIN: usize = 1_000;

fn user(number: usize) -> TenantKey {
    key(&format!("org{}/users/u{number}", number % 7))
}

async fn touch(tenants: &Tenants, number: usize) -> i64 {
    let tenant = tenants.get(&user(number)).await.unwrap();
    let mut update = handle(&tenant).begin(Mode::Update).unwrap();
    update.increment("n".into(), "touches".into(), 1).unwrap();
    update.commit().await.unwrap();
    get(&tenant, "touches").await.unwrap().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_tenants_are_touched_in_random_order_through_a_cache_of_two_hundred() {
    let world = World::new();
    let builder = world.builder("a").capacity(CAPACITY).room_wait(Duration::from_secs(300));
    let tenants = builder.lease_ttl(Duration::from_secs(600)).open().await.unwrap();
    let mut random = fastrand::Rng::with_seed(10_000);
    let mut order: Vec<usize> = (0..TENANTS).collect();
    random.shuffle(&mut order);
    order.extend((0..AGAIN).map(|_| random.usize(..TENANTS)));
    let mut touches = vec![0_i64; TENANTS];
    order.iter().for_each(|number| touches[*number] += 1);
    let (order, next, most) = (Arc::new(order), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let mut random = fastrand::Rng::with_seed(task as u64);
        let (tenants, order, next, most) = (tenants.clone(), order.clone(), next.clone(), most.clone());
        tasks.spawn(async move {
            while let Some(number) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                let seen = touch(&tenants, *number).await;
                assert!(seen >= 1);
                // An open tenant has its file from its opening to its end.
                if random.u32(..50) == 0 {
                    let open = tenants.cache().tenants().unwrap().len();
                    most.fetch_max(open, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    let touched = start.elapsed();
    assert!(tenants.resident().len() <= CAPACITY);
    let most = most.load(Ordering::Relaxed);
    assert!(most > CAPACITY / 2 && most <= CAPACITY, "{most} were open");
    tenants.close().await.unwrap();
    assert_eq!(tenants.cache().tenants().unwrap(), []);
    // Another host reads from object storage all tenants that were touched more than once, and some
    // of the others.
    let b = world.builder("b").capacity(CAPACITY).lease_ttl(Duration::from_secs(600)).open().await.unwrap();
    let mut read = 0;
    for (number, touches) in
        touches.iter().enumerate().filter(|(number, touches)| **touches > 1 || number % 20 == 0)
    {
        let found = get_in(&b, &user(number), "touches").await;
        assert_eq!(found, Some(touches.to_string()), "{}", user(number));
        read += 1;
    }
    // For the others it is enough that they were written back once.
    let mut listed = Vec::new();
    while let page = b.remote().list(listed.last(), 10_000).await.unwrap()
        && !page.is_empty()
    {
        listed.extend(page);
    }
    assert_eq!(listed.len(), TENANTS);
    for number in 0..TENANTS {
        let head = b.remote().head(&user(number)).await.unwrap().unwrap();
        assert!(head.snapshot.is_some(), "{}", user(number));
    }
    println!(
        "{} touches of {TENANTS} tenants in {touched:?}, at most {most} open, {read} read back",
        order.len()
    );
}
