//! Public conformance suites: one for each trait at the edges.
//!
//! A driver's author calls the suite from a test and hands it a way to open the driver. `open` is
//! called with a name: the same name must give the same thing again, as after a restart, and another
//! name an empty one. The suites never panic; they return the first promise that was broken, as a
//! sentence, so that a driver's own test (or a command that checks an installation) decides what a
//! failure means.
//!
//! ```
//! use std::sync::Arc;
//! use tidegate_contracts::{conformance, fakes::MemoryJournal};
//!
//! let forgetful = conformance::journal(&|_| Arc::new(MemoryJournal::new()));
//! assert_eq!(forgetful.unwrap_err(), "broken: compare-and-set by several writers loses no update");
//! ```

mod compute;
mod custody;
mod journal;
mod store;

pub use compute::{ComputeSubject, compute};
pub use custody::custody;
pub use journal::journal;
pub use store::store;

/// `Ok`, or the first promise that was broken.
pub type Verdict = Result<(), String>;

/// `Ok` when a promise holds.
fn must(holds: bool, promise: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(format!("broken: {promise}"))
    }
}

/// The value of a call that has to succeed.
fn done<T, E: std::fmt::Display>(result: Result<T, E>, promise: &str) -> Result<T, String> {
    result.map_err(|error| format!("broken: {promise}: {error}"))
}
