//! What a keeper refuses, seen from outside: by a control plane that asks, workers that say hello, and
//! whoever runs the stores.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod access;
mod attempts;
mod away;
mod checkpoints;
mod copies;
mod custodian;
mod fakes;
mod machines;
mod needless;
mod nodes;
mod outputs;
mod permits;
mod releases;
mod setups;
mod transfers;
mod worker;
mod world;
