//! Settings of wasmtime with which larder costs least.

use wasmtime::{Config, Enabled, PoolingAllocationConfig};

/// Settings of the engine with which a call from guest to host costs least. larder needs no other: embedders that use
/// component-model concurrency leave `concurrency_support` as it is.
pub fn engine_config() -> Config {
    let mut config = Config::new();
    config.concurrency_support(false);
    config
}

/// Settings of a pool of instances, for a host that makes a new one for each request. It is a start: how many instances
/// there may be at once, and how large, is the embedder's to say.
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
/// Half of what a new instance costs is giving its pages back to the kernel, and the first touch of each by the next one.
/// So the pages that a request has written are kept, and get their first contents back by a copy: up to 1 MiB of each
/// memory, and 64 KiB of each table. Of memories that takes a kernel which tells what pages were written (Linux 6.7 and
/// later); elsewhere all are given back. What is kept counts for as many instances as there ever were at once.
pub fn instance_pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.table_keep_resident(KEPT_OF_TABLE);
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Auto).linear_memory_keep_resident(KEPT_OF_MEMORY);
    }
    pool
}

const KEPT_OF_MEMORY: usize = 1 << 20;

/// Room for 8,192 functions.
const KEPT_OF_TABLE: usize = 64 << 10;
