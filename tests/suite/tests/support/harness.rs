//! Tests that are generated at run time and share one runtime.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Conclusion, Trial};
use tokio::runtime::Runtime;

/// More threads than cores are useful, as tests mostly wait for databases.
const THREADS: usize = 4;

/// The program's arguments. Tests run in parallel by default, even on few cores.
pub(crate) fn arguments() -> Arguments {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    arguments
}

pub(crate) fn runtime() -> Arc<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    Arc::new(runtime.expect("cannot start a runtime"))
}

/// A test that passes if its future returns `Ok`.
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

/// Runs the tests, then calls `end` to stop what they used.
pub(crate) fn run(arguments: &Arguments, trials: Vec<Trial>, end: impl FnOnce()) -> ! {
    let conclusion: Conclusion = libtest_mimic::run(arguments, trials);
    end();
    conclusion.exit()
}

/// Waits for the first line of output of a process, then kills it after a random delay of at most
/// `longest`. Returns all its lines; the last one may be torn.
pub(crate) async fn kill(mut child: Child, longest: Duration) -> Result<Vec<String>, String> {
    let output = child.stdout.take().ok_or("the output of the process is not piped")?;
    let mut said = BufReader::new(output).lines();
    let first = said.next();
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
    child.kill().map_err(|error| error.to_string())?;
    child.wait().map_err(|error| error.to_string())?;
    let first = first.ok_or("the process printed nothing")?.map_err(|error| error.to_string())?;
    Ok(std::iter::once(first).chain(said.map_while(Result::ok)).collect())
}

/// The number of the last line that ends with a full stop. A torn line has none.
pub(crate) fn last_number(lines: &[String]) -> u64 {
    let mut numbers = lines.iter().rev().filter_map(|line| line.strip_suffix('.')?.parse().ok());
    numbers.next().unwrap_or_default()
}
