//! Tests that are made at run time, on one runtime.

use std::future::Future;
use std::sync::Arc;

use libtest_mimic::{Arguments, Conclusion, Trial};
use tokio::runtime::Runtime;

/// Tests wait for databases more than they compute.
const THREADS: usize = 4;

/// The program's arguments. It runs tests side by side also where there are few cores.
pub(crate) fn arguments() -> Arguments {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    arguments
}

pub(crate) fn runtime() -> Arc<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    Arc::new(runtime.expect("no runtime"))
}

/// A test that passes where its future gives no error.
pub(crate) fn trial<F>(
    runtime: &Arc<Runtime>,
    name: impl Into<String>,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial
where
    F: Future<Output = Result<(), String>>,
{
    let runtime = runtime.clone();
    Trial::test(name, move || Ok(runtime.block_on(test())?))
}

/// Runs the tests, then lets `end` stop what they used.
pub(crate) fn run(arguments: &Arguments, trials: Vec<Trial>, end: impl FnOnce()) -> ! {
    let conclusion: Conclusion = libtest_mimic::run(arguments, trials);
    end();
    conclusion.exit()
}
