//! The three files as their writers meet them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod check;
mod documents;
mod labels;
mod quantities;
mod read;
mod rules;
mod samples;
mod words;
