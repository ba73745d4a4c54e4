//! Reads, scans, follows labels through SQL, de-identifies, measures risk, freezes the feature recipe.
//!
//! This is what a keeper does with rows at home before anything may leave. [`prepare()`] goes this way,
//! and each step has a module:
//!
//! ```text
//! source ─ ingest ─▶ snapshot ─ split ─▶ train, validation │ refine, test (stay home)
//!                                  │
//!                 session, functions, labels, profile: the query, and what it would let out
//!                                  │
//!                               execute: the query on each part alone, each row with its subject
//!                                  │
//!                             disclosure: k and l over all releases, suppression, identifier scan
//!                                  │
//!                       shuffled CSV of train and validation + recipe and home parts
//! ```
//!
//! * [`analyse`] reads no more than it needs to know the columns and their types, and tells what the
//!   query would let out ([`tidegate_types::report::LabelReport`]).
//! * [`rehearse`] executes the query on every row and keeps nothing, to find what is wrong before it costs.
//! * [`prepare()`] makes the inputs of the training and measures their risk. What it makes depends on
//!   rows of train and validation alone: changing a row of refine or test changes no byte of it.
//! * [`look`] and [`take_over`] are the two ends of a preparation on another machine of the site.
//! * [`home_rows`], [`raw_rows`] and [`apply_recipe`] give rows at home, as the frozen [`Recipe`] makes
//!   them, to evaluation, refinement and prediction.
//! * [`scan()`] and [`first_catalog`] describe a source nobody has written a catalog for;
//!   [`scan_code`] looks for identifiers in files that shall cross as code.
//!
//! Errors ([`PrepareError`]) name files, lines, columns and rules. None holds a value of the data.

mod away;
mod disclosure;
mod error;
mod execute;
pub mod functions;
mod home;
mod ingest;
pub mod labels;
mod metadata;
mod prepare;
pub mod profile;
mod recipe;
mod rehearse;
mod release;
mod scan;
mod sealed;
pub mod session;
mod sort;
mod split;
mod spool;

pub use away::{Needed, home_folders, look, take_over};
pub use error::PrepareError;
pub use home::{Rows, home_rows, raw_rows};
pub use ingest::SourceFile;
pub use prepare::{PrepareInput, Prepared, analyse, prepare};
pub use recipe::{Feature, FeatureType, Recipe, apply_recipe, read_recipe};
pub use rehearse::{Rehearsal, rehearse};
pub use scan::code::scan_code;
pub use scan::{ScanColumn, ScanReport, first_catalog, scan, scan_brought};
pub use split::{Keys, Part};
