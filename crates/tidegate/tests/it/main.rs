//! The program as its users meet it: commands, files, exit codes.

mod fixture;
mod journey;
mod kills;
mod refusals;
mod secrets;
mod tampering;
