//! What runs on a machine that works for a site.
//!
//! ```text
//!   ticket ──stdin──▶ worker ──▶ store of the site (a cloud's, or a folder)
//!                       └─ sandbox-exec ──▶ the user's command, or `trainer`
//! ```
//!
//! The program `tidegate-machine` is this and nothing else: small, without a query engine, policies or custody of keys,
//! and, linked statically, in need of nothing on the machine but a kernel. The program `tidegate` has the same commands,
//! for its own site. The crate wires the worker to the stores and notices of real platforms:
//!
//! - [`Command`]: the commands, hidden from users, and what they do
//! - [`stores`]: a site's store by its address
//! - [`notices`]: what a worker hears about its machine

pub mod notices;
pub mod stores;

mod logging;
mod worker;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use tidegate_local::program_digest;
use tidegate_types::Digest;

pub use logging::{log, tell_defect};

/// The name of the small program, which lies beside `tidegate`.
pub const PROGRAM: &str = "tidegate-machine";

/// How this build is told from others: its version, and a number for the sources that it was made from. The file of the
/// program holds these words, and `--version` says them.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " build ", env!("TIDEGATE_BUILD"));

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("failed while {what}: {why}")]
pub struct MachineError {
    /// What was being done.
    pub what: String,
    /// What happened.
    pub why: String,
}

impl MachineError {
    pub(crate) fn new(what: &str, why: impl std::fmt::Display) -> Self {
        Self {
            what: what.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Says what was being done when a call into another crate failed.
pub(crate) trait While<T> {
    fn while_(self, what: &str) -> Result<T, MachineError>;
}

impl<T, E: std::fmt::Display> While<T> for Result<T, E> {
    fn while_(self, what: &str) -> Result<T, MachineError> {
        self.map_err(|error| MachineError::new(what, error))
    }
}

/// What a program on a machine is started for, by drivers and workers.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a worker; the ticket comes on standard input.
    #[command(hide = true)]
    Worker {
        /// The variable that the ticket is in: a container has no standard input. The worker starts itself again without
        /// it before it does anything else.
        #[arg(long, value_name = "VARIABLE")]
        ticket_from: Option<String>,
        /// A folder for the worker alone; beside the site's store otherwise.
        #[arg(long)]
        work: Option<PathBuf>,
        /// Where the digest of this program is remembered.
        #[arg(long)]
        memory: Option<PathBuf>,
    },
    /// Keep jobs on this machine for a driver elsewhere, which asks on standard input.
    #[command(hide = true)]
    Jobs {
        /// Where they are kept.
        #[arg(long)]
        folder: PathBuf,
    },
    /// Train by the built-in trainer under the worker's contract.
    #[command(hide = true)]
    Trainer,
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What kept it from that. A worker whose attempt failed has told its keeper more.
    pub fn run(self, runtime: impl FnOnce() -> std::io::Result<tokio::runtime::Runtime>) -> Result<(), MachineError> {
        match self {
            Self::Worker {
                ticket_from: Some(variable),
                work,
                memory,
            } => worker::worker_again(&variable, work.as_deref(), memory.as_deref()),
            Self::Worker { work, memory, .. } => runtime().while_("starting")?.block_on(worker::worker(work, memory)),
            Self::Jobs { folder } => runtime().while_("starting")?.block_on(worker::jobs(&folder)),
            Self::Trainer => tidegate_learn::train_from_environment().while_("training"),
        }
    }
}

/// SHA-256 of the file of this program; `memory` is where whoever owns a folder remembers it.
///
/// # Errors
/// When the file cannot be read.
pub fn this_program(memory: Option<&Path>) -> Result<Digest, MachineError> {
    let reading = "reading this program";
    program_digest(&std::env::current_exe().while_(reading)?, memory).while_(reading)
}
