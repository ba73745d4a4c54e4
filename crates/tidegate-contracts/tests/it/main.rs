//! The fakes pass the suites that real implementations pass, and the suites notice broken ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod fakes;
mod mutants;
