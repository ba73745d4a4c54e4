//! The fakes pass the suites that real implementations pass, and the suites notice broken ones.

mod fakes;
mod mutants;
