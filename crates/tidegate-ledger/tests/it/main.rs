//! The ledger as its readers meet it: whole logs, tampered with and read by other software.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fixture;
mod interop;
mod tamper;
mod vectors;
