//! The embedded edges against the contracts of their traits, against `kill -9`, and against what a
//! hostile or broken disk may hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod child;
mod conformance;
mod custody;
mod journal;
mod pkcs11;
mod process;
mod store;
