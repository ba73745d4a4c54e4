//! Crossings that go well, and all the ways in which stores, disks, senders and processes fail them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking, as tests do"
)]

mod copy;
mod describe;
mod faults;
mod fixture;
mod full;
mod kill;
mod known;
mod large;
mod permits;
mod roundtrip;
mod sweep;
mod tamper;
