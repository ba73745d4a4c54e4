//! The three files as their writers meet them.

mod check;
mod documents;
mod read;
mod samples;
mod write;
