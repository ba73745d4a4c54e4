//! Whole crossings through the public interface, and the same bytes through other people's software.

mod crossing;
mod interop;
mod sample;
mod vectors;
