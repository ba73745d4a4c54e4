//! The three files that people write, each with its own owner: [`catalog`] (the data owner),
//! [`sites`] (the platform) and [`pipeline`] (the engineer).
//!
//! [`read`] turns a text into one of them and refuses everything that it does not know; [`check()`]
//! holds the three against each other; [`check_refusals`] says where the engineer would loosen what the
//! data owner wrote. Whatever is wrong is a [`FileError`] that points at file, line and column.

pub mod catalog;
mod check;
pub mod pipeline;
pub mod read;
pub mod rules;
pub mod schema;
pub mod sites;
mod source;

pub use catalog::Catalog;
pub use check::{LEAST_CELL, LOOSEST_MEMBERSHIP_AUC, check, check_refusals};
pub use pipeline::Pipeline;
pub use read::{read_catalog, read_pipeline, read_sites};
pub use rules::{CpuRequest, GATE_METRICS, GateCondition, trainer_faults};
pub use sites::Sites;
pub use source::{FileError, SourceText, Texts};
