//! Whole crossings through the public interface, and the same bytes through other people's software.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod crossing;
mod interop;
mod sample;
mod vectors;
