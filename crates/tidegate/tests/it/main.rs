//! The program as its users meet it: commands, files, exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod answers;
mod apart;
mod cancelling;
mod clouds;
mod commands;
mod contested;
mod control;
mod fixture;
mod hosts;
mod identity;
mod journey;
mod keys;
mod kills;
mod machines;
mod network;
mod nodes;
#[path = "../../../tidegate-cloud/tests/it/peers.rs"]
#[allow(dead_code, reason = "some of it serves the tests of stores alone")]
mod peers;
mod proxy;
mod refusals;
mod rows;
mod secrets;
mod sending;
mod serving;
mod setups;
mod small;
mod spot;
mod tampering;
mod tasks;
mod terminal;
mod transfers;
