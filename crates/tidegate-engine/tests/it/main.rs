//! The engine over fakes: what it asks a keeper and a driver for, and what it does when they, the clock
//! or the user say stop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod runs;
mod stops;
mod together;
mod world;
