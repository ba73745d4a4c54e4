//! Planning by value: what runs where, what crosses, what is refused, and what the checker finds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod checker;
mod placement;
mod properties;
mod report;
mod world;
