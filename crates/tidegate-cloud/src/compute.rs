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

use std::fmt;
use std::io;

use tidegate_contracts::ComputeError;
use tidegate_seal::digest::sha256;

pub(crate) mod amazon;
mod boot;
pub(crate) mod openstack;
mod shelf;
pub(crate) mod vsphere;

pub use shelf::ProgramShelf;

/// The longest part of a service's own words that is shown.
const TOLD: usize = 200;

/// Why settings of a machine cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` {why}")]
pub struct InvalidMachine {
    what: String,
    why: String,
}

impl InvalidMachine {
    fn new(what: &str, why: &str) -> Self {
        // Somebody may have written a password into an address.
        let shown = match what.split_once("://") {
            Some((scheme, rest)) if rest.contains('@') => format!("{scheme}://…"),
            _ => what.to_owned(),
        };
        Self {
            what: shown.chars().filter(|one| !one.is_control()).take(100).collect(),
            why: why.to_owned(),
        }
    }

    /// The value that cannot be used.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// Refuses values of keys that mean nothing at a cloud, each with the reason.
fn none_of(foreign: &[(Option<&String>, &str)]) -> Result<(), InvalidMachine> {
    let first = foreign.iter().find_map(|(value, why)| Some((value.as_ref()?, why)));
    first.map_or(Ok(()), |(value, why)| Err(InvalidMachine::new(value, why)))
}

/// What all machines of an owner have in common: plain, where filters take some signs for patterns.
fn owner_tag(owner: &str) -> String {
    sha256(owner.as_bytes()).to_hex().chars().take(32).collect()
}

/// What of a service's own words is shown.
fn told(words: &str) -> String {
    words.chars().filter(|one| !one.is_control()).take(TOLD).collect()
}

/// Why a request to a cloud did not do what it asked for.
#[derive(Debug)]
enum Failure {
    /// There is no room; elsewhere, or later, there may be.
    Capacity(String),
    /// The service's word for what is wrong, and its own words where they say nothing about who asked.
    Refused { code: String, why: String },
    /// Something that may pass.
    Passing(io::Error),
    /// No answer came, or none that can be read: nobody knows whether it was done.
    Unheard(io::Error),
}

impl Failure {
    fn passing(why: impl Into<String>) -> Self {
        Self::Passing(io::Error::other(why.into()))
    }

    fn unheard(why: impl Into<String>) -> Self {
        Self::Unheard(io::Error::other(why.into()))
    }

    /// Whether the service said one of these words.
    fn is(&self, codes: &[&str]) -> bool {
        matches!(self, Self::Refused { code, .. } if codes.contains(&code.as_str()))
    }

    /// What it means to whoever asked for job `id` at `cloud`.
    fn into_error(self, cloud: &impl fmt::Display, what: impl Into<String>, id: &str) -> ComputeError {
        let id = id.to_owned();
        match self {
            Self::Capacity(why) => ComputeError::Capacity { id, why },
            Self::Refused { code, why } => ComputeError::Invalid {
                id,
                why: format!("{cloud} refused it: {code}: {why}"),
            },
            Self::Passing(source) | Self::Unheard(source) => ComputeError::Transient {
                what: format!("{} by {cloud}", what.into()),
                source,
            },
        }
    }
}
