//! Machines of clouds, one for each job: a cloud boots a stock image, which finds in its user-data what to do.
//!
//! ```text
//!  control plane ──puts once──▶ store of the site: programs/SHA-256
//!       │                              ▲
//!       └─starts, by the cloud──▶ machine: fetches it by a signed address, verifies it, runs it, ends itself
//! ```
//!
//! The user-data holds the ticket, which is worthless after its hello, and an address that reads the program and nothing
//! else. Nothing has to reach the machine, and nobody can log in there.

pub(crate) mod amazon;
mod boot;
mod shelf;

pub use shelf::ProgramShelf;

/// Why settings of a machine cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` {why}")]
pub struct InvalidMachine {
    what: String,
    why: String,
}

impl InvalidMachine {
    fn new(what: &str, why: &str) -> Self {
        Self {
            what: what.escape_default().take(100).collect(),
            why: why.to_owned(),
        }
    }

    /// The value that cannot be used.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
}
