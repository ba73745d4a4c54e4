//! Machines of clouds, one for each job: a cloud boots a stock image, which finds in its user-data what to do.
//!
//! ```text
//!  control plane ──puts once──▶ store of the site: programs/SHA-256
//!       │                              ▲
//!       └─starts, by the cloud──▶ machine: fetches it by a signed address, verifies it, runs it, ends itself
//! ```
//!
//! Platforms that run containers start one for each job, with the program in its image and the ticket in its environment.
//!
//! The user-data holds the ticket, which is worthless after its hello, and an address that reads the program and nothing
//! else. Nothing has to reach the machine, and nobody can log in there.

use std::fmt;
use std::io;

use tidegate_contracts::{ComputeError, JobRequest};
use tidegate_seal::digest::{canonical_digest, sha256};
use tidegate_types::files::sites::Machine;
use tokio::sync::{Mutex, MutexGuard};
use url::Url;

use crate::address::secure;

pub(crate) mod amazon;
pub(crate) mod azureml;
mod boot;
mod container;
pub(crate) mod openstack;
mod shelf;
pub(crate) mod vertex;
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

/// Refuses what is written of a machine and means nothing to a driver.
fn refuse(driver: &str, written: &[(&str, Option<&String>)]) -> Result<(), InvalidMachine> {
    match written.iter().find_map(|(key, value)| Some((key, (*value)?))) {
        Some((key, value)) => Err(InvalidMachine::new(
            value,
            &format!("is `{key}`, which means nothing to the driver `{driver}`"),
        )),
        None => Ok(()),
    }
}

/// The server that is asked in place of the cloud's own.
fn server(machine: &Machine) -> Result<Option<Url>, InvalidMachine> {
    let Some(text) = &machine.endpoint else { return Ok(None) };
    let wrong = |why: &str| InvalidMachine::new(text, why);
    let url = Url::parse(text).map_err(|_| wrong("is no address of a server"))?;
    secure(&url).map_err(wrong)?;
    Ok(Some(url))
}

/// Whoever asks for the same job in this process waits, where a platform does not know a request again and would start
/// one for each.
static ENSURING: [Mutex<()>; 64] = [const { Mutex::const_new(()) }; 64];

/// Keeps others of this process from asking for job `id` at the same time.
async fn alone(id: &str) -> MutexGuard<'static, ()> {
    let place = usize::from(sha256(id.as_bytes()).as_bytes()[0]) % ENSURING.len();
    ENSURING[place].lock().await
}

/// The digest by which a request is known again, in hexadecimal.
fn identified(request: &JobRequest) -> Result<String, ComputeError> {
    let invalid = |why: String| ComputeError::Invalid {
        id: request.id.clone(),
        why,
    };
    if request.command.is_empty() {
        return Err(invalid("it has no command".to_owned()));
    }
    let digest = canonical_digest(&request.identity()).map_err(|error| invalid(error.to_string()))?;
    Ok(digest.to_hex())
}

/// What all machines of an owner have in common: plain, where filters take some signs for patterns.
fn owner_tag(owner: &str) -> String {
    sha256(owner.as_bytes()).to_hex().chars().take(32).collect()
}

/// What of a service's own words is shown.
fn told(words: &str) -> String {
    words.chars().filter(|one| !one.is_control()).take(TOLD).collect()
}

/// What of a service's own words is shown, if they repeat no part of `secret`.
fn told_without(words: &str, secret: &str) -> String {
    const PART: usize = 12;
    let repeated = secret
        .as_bytes()
        .windows(PART)
        .any(|part| words.as_bytes().windows(PART).any(|window| window == part));
    if repeated { String::new() } else { told(words) }
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
