//! Preparation as a keeper uses it: the query language and its labels, and what comes of rows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod errors;
mod fixture;
mod functions;
mod home;
mod inputs;
mod kills;
mod labels;
mod laundering;
mod memory;
mod mutants;
mod noninterference;
mod queries;
mod releases;
mod rows;
mod scanning;
mod support2;
mod tampering;
mod world;
