//! The server as its clients and its operators meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
mod fixture;
mod interop;
mod limits;
mod protocol;
mod releases;
