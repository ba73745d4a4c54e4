//! The built-in trainer, and everything that says how good or how leaky a model is.
//!
//! ```text
//!  CSV folders ──Table──▶ train ──▶ Trained { model (ONNX), schema, network, history }
//!
//!  probabilities, outcomes, subjects ─┬─ metrics::judge ────▶ Judgement ──summary──▶ QualitySummary
//!                                     ├─ platt::fit_platt ──▶ Calibration
//!                                     └─ leak::membership ──▶ Membership
//!  figures with intervals ─────────────── gates::judge ─────▶ GateResult
//! ```
//!
//! [`train`] is a command like any other: [`train_from_environment`] reads what the worker tells every
//! training command, and the program `tidegate-learn` does nothing else. Training is written out in
//! plain loops, so the same rows, settings and program give the same bytes, and it needs no library
//! that would be larger than all of it.
//!
//! What is measured follows one rule: figures are about *subjects*, not rows. Intervals come from
//! drawing subjects, groups are counted in subjects, and a group of too few is never shown, also not
//! by what is shown around it.
//!
//! Nothing here reads a clock or opens a connection; errors and progress never hold a value of a row.

mod checkpoint;
pub mod environment;
mod error;
mod features;
pub mod gates;
pub mod leak;
pub mod metrics;
mod network;
pub mod platt;
mod table;
mod train;

pub use environment::train_from_environment;
pub use error::LearnError;
pub use leak::{Membership, membership};
pub use metrics::{JudgeError, JudgeInput, Judgement, judge};
pub use platt::{PlattError, fit_platt};
pub use table::Table;
pub use train::{Epoch, Observer, Trained, train, train_observed};
