//! Settings of wasmtime with which larder costs the least.

use wasmtime::{Config, Enabled, PoolingAllocationConfig};

/// Returns the engine settings with which a call from guest to host costs the least.
///
/// They disable `concurrency_support`. larder needs no special setting, so an embedder that uses
/// component-model concurrency can leave that enabled.
///
/// ```
/// let engine = wasmtime::Engine::new(&larder_host::engine_config()).unwrap();
/// # drop(engine);
/// ```
pub fn engine_config() -> Config {
    let mut config = Config::new();
    config.concurrency_support(false);
    config
}

/// Returns settings of an instance pool.
///
/// They are for a host that makes a new instance for each request. Adjust them: the embedder
/// decides how many instances may exist at once, and how large they may be.
///
/// ```
/// use wasmtime::InstanceAllocationStrategy;
///
/// let mut pool = larder_host::instance_pool();
/// pool.total_component_instances(200).max_memory_size(64 << 20);
/// let mut config = larder_host::engine_config();
/// config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
/// # wasmtime::Engine::new(&config).unwrap();
/// ```
///
/// Half of the cost of a new instance is returning its pages to the kernel and the page faults of
/// the next instance. So the pool keeps the pages that a request has written and resets them by a
/// copy: up to 1 MiB of each memory and 64 KiB of each table. For memories, this requires a kernel
/// that reports which pages were written (Linux 6.7 and later). On other systems, all pages of
/// memories are returned. The pool keeps pages for as many instances as ever existed at once.
pub fn instance_pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.table_keep_resident(KEPT_OF_TABLE);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Auto).linear_memory_keep_resident(KEPT_OF_MEMORY);
    }
    pool
}

const KEPT_OF_MEMORY: usize = 1 << 20;

/// Enough for 8,192 functions.
const KEPT_OF_TABLE: usize = 64 << 10;
