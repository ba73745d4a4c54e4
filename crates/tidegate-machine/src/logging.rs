//! What a program says on standard error.

use std::io::IsTerminal;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::prelude::*;

/// Starts logging on standard error, as JSON or for people: what `TIDEGATE_LOG` says, or the `usual`, and of that what
/// Tidegate itself says. Libraries log queries, rows and requests when they are asked to.
///
/// # Errors
/// When `TIDEGATE_LOG` is no filter, with what to write.
pub fn log(usual: &str, json: bool) -> Result<(), String> {
    let filter = match std::env::var("TIDEGATE_LOG") {
        Ok(filter) if !filter.is_empty() => tracing_subscriber::EnvFilter::try_new(&filter).map_err(|error| {
            format!(
                "TIDEGATE_LOG: {error}; write a level (off, error, warn, info, debug, trace) or a filter such as \
                 `warn,tidegate_keeper=debug`"
            )
        })?,
        Err(std::env::VarError::NotUnicode(_)) => return Err("TIDEGATE_LOG: it is not UTF-8".to_owned()),
        Ok(_) | Err(std::env::VarError::NotPresent) => tracing_subscriber::EnvFilter::new(usual),
    };
    let ours = filter_fn(|metadata| metadata.target().starts_with("tidegate"));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = if json { lines.json().boxed() } else { lines.boxed() };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_filter(ours))
        .init();
    Ok(())
}

/// Says where this program has a defect. What it was doing is left out: messages of libraries quote the
/// values that they stumbled over.
pub fn tell_defect(defect: &std::panic::PanicHookInfo<'_>) {
    let place = defect
        .location()
        .map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    tracing::error!(%place, "a defect in this program; please report the place");
}
