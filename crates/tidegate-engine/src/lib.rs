//! The engine: takes a pipeline from its plan to a served model, and survives being killed anywhere.
//!
//! ```text
//!   plan ─▶ run record ─▶ prepare ─▶ train ─▶ evaluate ─▶ refine ─▶ release ─▶ deploy-SITE…
//!               │            │         │          │
//!               ▼            ▼         ▼          ▼
//!            journal   keeper's mailbox   drivers (Compute)
//!               │
//!               └─▶ ledger: leaf and intent in one transaction, then tiles and checkpoint
//! ```
//!
//! The engine holds no key that opens data. Everything that touches rows or keys is a request to the
//! keeper of the home site; the engine decides nothing that the plan has not decided. Requests can be
//! repeated, so recovery is to do the same again: a step whose result is in the journal is not asked
//! for, everything else is.
//!
//! - [`Engine`]: what the command line uses
//! - [`ControlKey`]: signs requests and the ledger
//! - [`LedgerBook`]: the journal's leaves as a folder of tiles and checkpoints
//! - [`KeeperClient`]: requests and replies through a mailbox
//! - [`Progress`], [`Summary`]: what a run tells
//! - [`spending`]: what it costs so far, and what runs for it

mod accounts;
mod attempt;
mod client;
mod crossings;
mod error;
mod jobs;
mod key;
mod ledger;
mod planning;
mod progress;
mod rows;
mod run;
mod state;
mod summary;
mod tasks;
mod together;
mod train;

pub use accounts::{MachineTime, Spending, machine_times, spending};
pub use client::{KeeperClient, Watchdog};
pub use error::EngineError;
pub use key::ControlKey;
pub use ledger::{COSIGNED_PATH, LedgerBook};
pub use planning::Planned;
pub use progress::Progress;
pub use run::{Engine, Enrol, Setup, WorkerProgram};
pub use state::{CrossingEntry, RunRecord, RunStatus, TaskState};
pub use summary::Summary;
