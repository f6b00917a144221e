//! Progress indicators. They are shown only on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The time after which a spinner is shown.
const QUIET: Duration = Duration::from_millis(300);

/// A progress bar over `count` steps.
pub(crate) fn bar(count: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
    match style {
        Ok(style) => ProgressBar::new(count).with_style(style),
        Err(_) => ProgressBar::hidden(),
    }
}

/// A counter of printed items. It is hidden if standard output is the terminal.
pub(crate) fn counter(what: &'static str) -> ProgressBar {
    if std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {pos} {msg}");
    match style {
        Ok(style) => ProgressBar::new_spinner().with_style(style).with_message(what),
        Err(_) => ProgressBar::hidden(),
    }
}

/// Waits for work, with a spinner if it takes longer than [`QUIET`].
pub(crate) async fn waiting<T>(what: impl Into<String>, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(QUIET, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::new_spinner().with_message(what.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}
